"""The code blocks of the documentation run as they stand.

Each test holds one block (or several that belong together), with names that the text leaves open filled in before it
and nothing else changed; assertions follow it.
"""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from detectron2.config import CfgNode


class TestUseModels:
    """ "Use Models"."""

    def test_build(self, cfg):
        from detectron2.modeling import build_model

        model = build_model(cfg)  # returns a torch.nn.Module

        assert isinstance(model, nn.Module)

    def test_sub_models(self, cfg):
        from detectron2.modeling import build_backbone, build_roi_heads

        backbone = build_backbone(cfg)
        assert set(build_roi_heads(cfg, backbone.output_shape()).in_features) == {"p2", "p3", "p4", "p5"}

    def test_load_and_save(self, cfg, tmp_path, monkeypatch):
        from detectron2.modeling import build_model

        model = build_model(cfg)
        file_path_or_url = str(tmp_path / "weights.pth")
        torch.save({"model": model.state_dict()}, file_path_or_url)
        monkeypatch.chdir(tmp_path)

        from detectron2.checkpoint import DetectionCheckpointer

        DetectionCheckpointer(model).load(file_path_or_url)  # load a file, usually from cfg.MODEL.WEIGHTS

        checkpointer = DetectionCheckpointer(model, save_dir="output")
        checkpointer.save("model_999")  # save to output/model_999.pth

        assert (tmp_path / "output" / "model_999.pth").is_file()

    def test_pkl_files_can_be_manipulated(self, cfg, tmp_path):
        import pickle

        from detectron2.checkpoint import DetectionCheckpointer
        from detectron2.modeling import build_model

        model = build_model(cfg)
        path = tmp_path / "weights.pkl"
        with path.open("wb") as f:
            pickle.dump({"model": {k: v.numpy() * 0 for k, v in model.state_dict().items()}}, f)
        DetectionCheckpointer(model).load(str(path))
        assert all(not p.any() for p in model.parameters())

    def test_training(self, cfg):
        from detectron2.data import build_detection_train_loader
        from detectron2.modeling import build_model

        model = build_model(cfg)
        inputs = next(iter(build_detection_train_loader(cfg)))

        from detectron2.utils.events import EventStorage

        with EventStorage() as storage:
            losses = model(inputs)

        assert set(losses) == {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"}
        assert all(isinstance(v, torch.Tensor) and v.shape == () and v.requires_grad for v in losses.values())
        assert "rpn/num_pos_anchors" in storage.latest()

    def test_inference(self, cfg):
        from detectron2.modeling import build_model

        model = build_model(cfg)
        inputs = [{"image": torch.zeros(3, 96, 128)}]

        model.eval()
        with torch.no_grad():
            outputs = model(inputs)

        assert list(outputs[0]) == ["instances"]

    def test_partial_execution(self, cfg):
        from detectron2.modeling import build_model
        from detectron2.structures import ImageList

        tensors = [torch.randn(3, 96, 128), torch.randn(3, 64, 96)]
        images = ImageList.from_tensors(tensors, 32)  # preprocessed input tensor
        model = build_model(cfg)
        model.eval()
        features = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, features)
        instances, _ = model.roi_heads(images, features, proposals)
        mask_features = [features[f] for f in model.roi_heads.in_features]
        mask_features = model.roi_heads.mask_pooler(mask_features, [x.pred_boxes for x in instances])

        assert mask_features.shape == (sum(map(len, instances)), 16, 14, 14)
        assert mask_features.shape[0] > 0

    def test_older_partial_execution(self, cfg):
        import detectron2.modeling
        from detectron2.structures import ImageList

        def build_model(cfg):  # the older page leaves open that the model is in evaluation mode
            return detectron2.modeling.build_model(cfg).eval()

        images = ImageList.from_tensors([torch.randn(3, 96, 128)], 32)  # preprocessed input tensor
        model = build_model(cfg)
        features = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, features)
        instances = model.roi_heads._forward_box(features, proposals)
        mask_features = [features[f] for f in model.roi_heads.in_features]
        mask_features = model.roi_heads.mask_pooler(mask_features, [x.pred_boxes for x in instances])

        assert mask_features.shape == (len(instances[0]), 16, 14, 14)


class TestExtendDefaults:
    """ "Extend Detectron2's Defaults"."""

    def test_mixture_of_config_and_arguments(self, cfg):
        from detectron2.modeling import GeneralizedRCNN, StandardROIHeads, build_backbone

        shape = build_backbone(cfg).output_shape()
        # The block abbreviates StandardROIHeads(cfg, batch_size_per_image=666); it takes the shape of its input too.
        model = GeneralizedRCNN(
            cfg, roi_heads=StandardROIHeads(cfg, shape, batch_size_per_image=666), pixel_std=[57.0, 57.0, 57.0]
        )

        assert model.roi_heads.batch_size_per_image == 666
        assert model.pixel_std.flatten().tolist() == [57.0] * 3

    def test_explicit_arguments(self):
        from detectron2.layers import ShapeSpec
        from detectron2.modeling import FPN, GeneralizedRCNN, ResNet, StandardROIHeads
        from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
        from detectron2.modeling.backbone import BasicStem
        from detectron2.modeling.backbone.fpn import LastLevelMaxPool
        from detectron2.modeling.box_regression import Box2BoxTransform
        from detectron2.modeling.matcher import Matcher
        from detectron2.modeling.poolers import ROIPooler
        from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
        from detectron2.modeling.roi_heads import FastRCNNConvFCHead, FastRCNNOutputLayers, MaskRCNNConvUpsampleHead

        # fmt: off
        model = GeneralizedRCNN(
            backbone=FPN(
                ResNet(
                    BasicStem(3, 64, norm="FrozenBN"),
                    ResNet.make_default_stages(50, stride_in_1x1=True, norm="FrozenBN"),
                    out_features=["res2", "res3", "res4", "res5"],
                ).freeze(2),
                ["res2", "res3", "res4", "res5"],
                256,
                top_block=LastLevelMaxPool(),
            ),
            proposal_generator=RPN(
                in_features=["p2", "p3", "p4", "p5", "p6"],
                head=StandardRPNHead(in_channels=256, num_anchors=3),
                anchor_generator=DefaultAnchorGenerator(
                    sizes=[[32], [64], [128], [256], [512]],
                    aspect_ratios=[0.5, 1.0, 2.0],
                    strides=[4, 8, 16, 32, 64],
                    offset=0.0,
                ),
                anchor_matcher=Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
                box2box_transform=Box2BoxTransform([1.0, 1.0, 1.0, 1.0]),
                batch_size_per_image=256,
                positive_fraction=0.5,
                pre_nms_topk=(2000, 1000),
                post_nms_topk=(1000, 1000),
                nms_thresh=0.7,
            ),
            roi_heads=StandardROIHeads(
                num_classes=80,
                batch_size_per_image=512,
                positive_fraction=0.25,
                proposal_matcher=Matcher([0.5], [0, 1], allow_low_quality_matches=False),
                box_in_features=["p2", "p3", "p4", "p5"],
                box_pooler=ROIPooler(7, (1.0 / 4, 1.0 / 8, 1.0 / 16, 1.0 / 32), 0, "ROIAlignV2"),
                box_head=FastRCNNConvFCHead(
                    ShapeSpec(channels=256, height=7, width=7), conv_dims=[], fc_dims=[1024, 1024]
                ),
                box_predictor=FastRCNNOutputLayers(
                    ShapeSpec(channels=1024),
                    test_score_thresh=0.05,
                    box2box_transform=Box2BoxTransform((10, 10, 5, 5)),
                    num_classes=80,
                ),
                mask_in_features=["p2", "p3", "p4", "p5"],
                mask_pooler=ROIPooler(14, (1.0 / 4, 1.0 / 8, 1.0 / 16, 1.0 / 32), 0, "ROIAlignV2"),
                mask_head=MaskRCNNConvUpsampleHead(
                    ShapeSpec(channels=256, width=14, height=14),
                    num_classes=80,
                    conv_dims=[256, 256, 256, 256, 256],
                ),
            ),
            pixel_mean=[103.530, 116.280, 123.675],
            pixel_std=[1.0, 1.0, 1.0],
            input_format="BGR",
        )
        # fmt: on

        from detectron2 import model_zoo
        from detectron2.modeling import build_model

        zoo = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
        zoo.MODEL.DEVICE = "cpu"
        same = build_model(zoo).state_dict()
        assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in same.items()}


class TestWriteModels:
    """ "Write Models"."""

    def test_new_backbone(self, cfg):
        from detectron2.modeling import BACKBONE_REGISTRY, Backbone, ShapeSpec, build_model

        @BACKBONE_REGISTRY.register()
        class ToyBackbone(Backbone):
            def __init__(self, cfg, input_shape):
                super().__init__()
                # create your own backbone
                self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=16, padding=3)

            def forward(self, image):
                return {"conv1": self.conv1(image)}

            def output_shape(self):
                return {"conv1": ShapeSpec(channels=64, stride=16)}

        # The text says "read a config": one whose heads use the feature map that this backbone has.
        cfg.MODEL.RPN.IN_FEATURES = cfg.MODEL.ROI_HEADS.IN_FEATURES = ["conv1"]
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32, 64]]
        cfg.MODEL.BACKBONE.NAME = "ToyBackbone"  # or set it in the config file
        model = build_model(cfg)  # it will find `ToyBackbone` defined above

        model.eval()
        with torch.no_grad():
            assert len(model([{"image": torch.rand(3, 96, 128) * 255}])[0]["instances"]) > 0

    def test_custom_box_predictor(self, cfg):
        from detectron2.layers import ShapeSpec
        from detectron2.modeling import ROI_HEADS_REGISTRY, FastRCNNOutputLayers, StandardROIHeads, build_backbone

        class MyRCNNOutput(FastRCNNOutputLayers):
            def losses(self, predictions, proposals):
                return {k: v * 2 for k, v in super().losses(predictions, proposals).items()}

        backbone = build_backbone(cfg)
        mine = MyRCNNOutput(cfg, ShapeSpec(channels=cfg.MODEL.ROI_BOX_HEAD.FC_DIM))
        roi_heads = StandardROIHeads(cfg, backbone.output_shape(), box_predictor=mine)
        assert roi_heads.box_predictor is mine

        @ROI_HEADS_REGISTRY.register()
        class MyStandardROIHeads(StandardROIHeads):
            def __init__(self, cfg, input_shape):
                super().__init__(cfg, input_shape, box_predictor=mine)

        from detectron2.modeling import build_roi_heads

        cfg.MODEL.ROI_HEADS.NAME = "MyStandardROIHeads"
        assert build_roi_heads(cfg, backbone.output_shape()).box_predictor is mine


class TestTraining:
    """ "Training"."""

    def test_hello_hook(self, capsys):
        from detectron2.engine import HookBase, SimpleTrainer

        class HelloHook(HookBase):
            def after_step(self):
                if self.trainer.iter % 100 == 0:
                    print(f"Hello at iteration {self.trainer.iter}!")

        class Model(nn.Linear):
            def forward(self, x):
                return {"loss": super().forward(x).sum()}

        model = Model(1, 1)
        trainer = SimpleTrainer(model, [torch.zeros(1)] * 101, torch.optim.SGD(model.parameters(), lr=0.1))
        trainer.register_hooks([HelloHook()])
        trainer.train(0, 101)
        assert capsys.readouterr().out == "Hello at iteration 0!\nHello at iteration 100!\n"

    def test_logging_of_metrics(self):
        class Model(nn.Module):
            def forward(self, inputs):
                # fmt: off
                from detectron2.utils.events import get_event_storage

                # inside the model:
                if self.training:
                  value = inputs.mean()  # compute the value from inputs
                  storage = get_event_storage()
                  storage.put_scalar("some_accuracy", value)
                # fmt: on

        from detectron2.utils.events import EventStorage

        with EventStorage() as opened:
            Model()(torch.tensor([0.25, 0.75]))
        assert opened.latest()["some_accuracy"] == (0.5, 0)

    def test_default_trainer(self, cfg):
        from detectron2.engine import DefaultTrainer

        trainer = DefaultTrainer(cfg)
        trainer.resume_or_load()  # load last checkpoint or MODEL.WEIGHTS
        trainer.train()

        assert (Path(cfg.OUTPUT_DIR) / "model_final.pth").is_file()
        assert "bbox/AP" in trainer.storage.latest()

    def test_default_predictor(self, cfg, shapes_dir, tmp_path):
        from detectron2.engine import DefaultPredictor
        from detectron2.modeling import build_model

        cfg.MODEL.WEIGHTS = str(tmp_path / "w.pth")
        torch.save(build_model(cfg).state_dict(), cfg.MODEL.WEIGHTS)
        cv2 = pytest.importorskip("cv2")
        image_file = str(shapes_dir / "images" / "00000.png")

        pred = DefaultPredictor(cfg)
        inputs = cv2.imread(image_file)
        outputs = pred(inputs)

        assert outputs["instances"].image_size == (96, 128)


class TestEvaluation:
    """ "Evaluation"."""

    def _counter(self):
        from detectron2.evaluation import DatasetEvaluator

        class Counter(DatasetEvaluator):
            def reset(self):
                self.count = 0

            def process(self, inputs, outputs):
                for output in outputs:
                    self.count += len(output["instances"])

            def evaluate(self):
                # save self.count somewhere, or print it, or return it.
                return {"count": self.count}

        return Counter

    def test_evaluate_manually(self, cfg, shapes):
        from detectron2.data import build_detection_test_loader
        from detectron2.modeling import build_model

        model = build_model(cfg).eval()
        data_loader = build_detection_test_loader(cfg, shapes)
        evaluator = self._counter()()

        def get_all_inputs_outputs():
            for data in data_loader:
                yield data, model(data)

        evaluator.reset()
        for inputs, outputs in get_all_inputs_outputs():
            evaluator.process(inputs, outputs)
        eval_results = evaluator.evaluate()

        assert eval_results == {"count": 6 * 5}  # every image yields TEST.DETECTIONS_PER_IMAGE, as no score is too low

    def test_inference_on_dataset(self, cfg, shapes, tmp_path):
        from detectron2 import evaluation
        from detectron2.data import build_detection_test_loader
        from detectron2.evaluation import DatasetEvaluators, inference_on_dataset
        from detectron2.modeling import build_model

        model = build_model(cfg)
        data_loader = build_detection_test_loader(cfg, shapes)
        Counter = self._counter()

        def COCOEvaluator(_):  # the text leaves its arguments open with three dots
            return evaluation.COCOEvaluator(shapes, output_dir=str(tmp_path))

        # fmt: off
        eval_results = inference_on_dataset(
            model,
            data_loader,
            DatasetEvaluators([COCOEvaluator(...), Counter()]))
        # fmt: on

        assert eval_results["count"] == 30
        assert {"bbox", "segm"} <= set(eval_results)
        assert model.training  # as it was before


class TestYacsConfigs:
    """ "Yacs Configs"."""

    def test_basic_usage(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        Path("base.yaml").write_text("SOLVER: {BASE_LR: 0.5, MAX_ITER: 7}\n")
        Path("my_cfg.yaml").write_text("_BASE_: base.yaml\nSOLVER: {MAX_ITER: 8}\n")
        yyy = CfgNode({"A": 1})

        from detectron2.config import get_cfg

        cfg = get_cfg()  # obtain detectron2's default config
        cfg.xxx = yyy  # add new configs for your own custom components
        cfg.merge_from_file("my_cfg.yaml")  # load values from a file

        cfg.merge_from_list(["MODEL.WEIGHTS", "weights.pth"])  # can also load values from a list of str
        print(cfg.dump())  # print formatted configs

        assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.MODEL.WEIGHTS, cfg.xxx.A) == (0.5, 8, "weights.pth", 1)
        assert "BASE_LR: 0.5" in capsys.readouterr().out

    def test_configurable(self):
        from detectron2.config import configurable

        cfg = CfgNode({"A": 10, "B": 20})

        # Usage 1: Decorator on __init__:
        class A:
            @configurable
            def __init__(self, a, b=2, c=3):
                self.values = (a, b, c)

            @classmethod
            def from_config(cls, cfg):  # 'cfg' must be the first argument
                # Returns kwargs to be passed to __init__
                return {"a": cfg.A, "b": cfg.B}

        a1 = A(a=1, b=2)  # regular construction
        a2 = A(cfg)  # construct with a cfg
        a3 = A(cfg, b=3, c=4)  # construct with extra overwrite

        assert [a1.values, a2.values, a3.values] == [(1, 2, 3), (10, 20, 3), (10, 3, 4)]

        # Usage 2: Decorator on any function. Needs an extra from_config argument:
        @configurable(from_config=lambda cfg: {"a": cfg.A, "b": cfg.B})
        def a_func(a, b=2, c=3):
            return (a, b, c)

        a1 = a_func(a=1, b=2)  # regular call
        a2 = a_func(cfg)  # call with a cfg
        a3 = a_func(cfg, b=3, c=4)  # call with extra overwrite

        assert [a1, a2, a3] == [(1, 2, 3), (10, 20, 3), (10, 3, 4)]

    def test_configs_in_projects(self):
        from detectron2.config import get_cfg
        from detectron2.projects.point_rend import add_pointrend_config

        cfg = get_cfg()  # obtain detectron2's default config
        add_pointrend_config(cfg)  # add pointrend's default config

        assert cfg.MODEL.POINT_HEAD.NUM_CLASSES == 80


class TestLazyConfigs:
    """ "Lazy Configs"."""

    def test_python_syntax(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("path/to").mkdir(parents=True)
        Path("path/to/config.py").write_text("a = dict(x=1, y=2, z=dict(xx=1))\nb = dict(x=3, y=4)\n")

        # my_code.py:
        from detectron2.config import LazyConfig

        cfg = LazyConfig.load("path/to/config.py")  # an omegaconf dictionary
        assert cfg.a.z.xx == 1

    def test_recursive_instantiation(self, tmp_path, monkeypatch):
        (tmp_path / "my_app.py").write_text(
            "class Optimizer:\n"
            "    def __init__(self, lr, algo):\n        self.lr, self.algo = lr, algo\n"
            "class Trainer:\n"
            "    def __init__(self, optimizer):\n        self.optimizer = optimizer\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))

        # fmt: off
        from my_app import Optimizer, Trainer

        from detectron2.config import LazyCall as L
        cfg = L(Trainer)(
          optimizer=L(Optimizer)(
            lr=0.01,
            algo="SGD"
          )
        )
        # fmt: on
        as_written = {
            "_target_": "my_app.Trainer",
            "optimizer": {"_target_": "my_app.Optimizer", "lr": 0.01, "algo": "SGD"},
        }

        from detectron2.config import instantiate

        trainer = instantiate(cfg)
        # equivalent to:
        # from my_app import Trainer, Optimizer
        # trainer = Trainer(optimizer=Optimizer(lr=0.01, algo="SGD"))

        assert isinstance(trainer, Trainer)
        assert (trainer.optimizer.lr, trainer.optimizer.algo) == (0.01, "SGD")
        assert isinstance(instantiate(as_written), Trainer)

    def test_full_mask_rcnn(self):
        # fmt: off
        from detectron2.config import LazyCall as L
        from detectron2.layers import ShapeSpec
        from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
        from detectron2.modeling.backbone import FPN, BasicStem, ResNet
        from detectron2.modeling.backbone.fpn import LastLevelMaxPool
        from detectron2.modeling.box_regression import Box2BoxTransform
        from detectron2.modeling.matcher import Matcher
        from detectron2.modeling.meta_arch import GeneralizedRCNN
        from detectron2.modeling.poolers import ROIPooler
        from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
        from detectron2.modeling.roi_heads import (
            FastRCNNConvFCHead,
            FastRCNNOutputLayers,
            MaskRCNNConvUpsampleHead,
            StandardROIHeads,
        )

        model = L(GeneralizedRCNN)(
            backbone=L(FPN)(
                bottom_up=L(ResNet)(
                    stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
                    stages=L(ResNet.make_default_stages)(
                        depth=50,
                        stride_in_1x1=True,
                        norm="FrozenBN",
                    ),
                    out_features=["res2", "res3", "res4", "res5"],
                ),
                in_features="${.bottom_up.out_features}",
                out_channels=256,
                top_block=L(LastLevelMaxPool)(),
            ),
            proposal_generator=L(RPN)(
                in_features=["p2", "p3", "p4", "p5", "p6"],
                head=L(StandardRPNHead)(in_channels=256, num_anchors=3),
                anchor_generator=L(DefaultAnchorGenerator)(
                    sizes=[[32], [64], [128], [256], [512]],
                    aspect_ratios=[0.5, 1.0, 2.0],
                    strides=[4, 8, 16, 32, 64],
                    offset=0.0,
                ),
                anchor_matcher=L(Matcher)(
                    thresholds=[0.3, 0.7], labels=[0, -1, 1], allow_low_quality_matches=True
                ),
                box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
                batch_size_per_image=256,
                positive_fraction=0.5,
                pre_nms_topk=(2000, 1000),
                post_nms_topk=(1000, 1000),
                nms_thresh=0.7,
            ),
            roi_heads=L(StandardROIHeads)(
                num_classes=80,
                batch_size_per_image=512,
                positive_fraction=0.25,
                proposal_matcher=L(Matcher)(
                    thresholds=[0.5], labels=[0, 1], allow_low_quality_matches=False
                ),
                box_in_features=["p2", "p3", "p4", "p5"],
                box_pooler=L(ROIPooler)(
                    output_size=7,
                    scales=(1.0 / 4, 1.0 / 8, 1.0 / 16, 1.0 / 32),
                    sampling_ratio=0,
                    pooler_type="ROIAlignV2",
                ),
                box_head=L(FastRCNNConvFCHead)(
                    input_shape=ShapeSpec(channels=256, height=7, width=7),
                    conv_dims=[],
                    fc_dims=[1024, 1024],
                ),
                box_predictor=L(FastRCNNOutputLayers)(
                    input_shape=ShapeSpec(channels=1024),
                    test_score_thresh=0.05,
                    box2box_transform=L(Box2BoxTransform)(weights=(10, 10, 5, 5)),
                    num_classes="${..num_classes}",
                ),
                mask_in_features=["p2", "p3", "p4", "p5"],
                mask_pooler=L(ROIPooler)(
                    output_size=14,
                    scales=(1.0 / 4, 1.0 / 8, 1.0 / 16, 1.0 / 32),
                    sampling_ratio=0,
                    pooler_type="ROIAlignV2",
                ),
                mask_head=L(MaskRCNNConvUpsampleHead)(
                    input_shape=ShapeSpec(channels=256, width=14, height=14),
                    num_classes="${..num_classes}",
                    conv_dims=[256, 256, 256, 256, 256],
                ),
            ),
            pixel_mean=[103.530, 116.280, 123.675],
            pixel_std=[1.0, 1.0, 1.0],
            input_format="BGR",
        )
        # fmt: on
        from detectron2.config import instantiate

        built = instantiate(model)
        assert isinstance(built, GeneralizedRCNN)
        assert built.roi_heads.box_predictor.num_classes == 80
        assert instantiate({"_target_": "torch.nn.Conv2d", "in_channels": 10, "out_channels": 10, "kernel_size": 1})


class TestCustomDatasets:
    """ "Use Custom Datasets"."""

    def test_register(self):
        from typing import Dict, List  # noqa: UP035

        from detectron2.data import DatasetCatalog as Catalog

        def my_dataset_function():
            return [{"file_name": "a.jpg", "height": 4, "width": 6, "image_id": 1, "annotations": []}]

        try:
            from detectron2.data import DatasetCatalog

            DatasetCatalog.register("my_dataset", my_dataset_function)
            # later, to access the data:
            data: List[Dict] = DatasetCatalog.get("my_dataset")  # noqa: UP006

            assert data[0]["image_id"] == 1
        finally:
            Catalog.remove("my_dataset")

    def test_metadata(self):
        try:
            from detectron2.data import MetadataCatalog

            MetadataCatalog.get("my_dataset_2").thing_classes = ["person", "dog"]

            assert MetadataCatalog.get("my_dataset_2").thing_classes == ["person", "dog"]
        finally:
            MetadataCatalog.remove("my_dataset_2")

    def test_register_coco(self, shapes_dir):
        from detectron2.data import DatasetCatalog, MetadataCatalog

        annotations, images = str(shapes_dir / "annotations.json"), str(shapes_dir / "images")
        try:
            from detectron2.data.datasets import register_coco_instances

            register_coco_instances("my_dataset_3", {}, annotations, images)

            assert len(DatasetCatalog.get("my_dataset_3")) == 6
            assert MetadataCatalog.get("my_dataset_3").thing_classes[0] == "disc"
        finally:
            DatasetCatalog.remove("my_dataset_3")
            MetadataCatalog.remove("my_dataset_3")


class TestDataloader:
    """ "Dataloader"."""

    def test_fixed_size(self, cfg):
        import detectron2.data.transforms as T
        from detectron2.data import (
            DatasetMapper,  # the default mapper
            build_detection_train_loader,
        )

        # fmt: off
        dataloader = build_detection_train_loader(cfg,
           mapper=DatasetMapper(cfg, is_train=True, augmentations=[
              T.Resize((800, 800))
           ]))
        # use this dataloader instead of the default
        # fmt: on

        assert [d["image"].shape for d in next(iter(dataloader))] == [(3, 800, 800)] * 2

    def test_minimal_mapper(self, cfg):
        import detectron2.data.transforms as T
        from detectron2.data import build_detection_train_loader

        # fmt: off
        from detectron2.data import detection_utils as utils
         # Show how to implement a minimal mapper, similar to the default DatasetMapper
        def mapper(dataset_dict):
            dataset_dict = copy.deepcopy(dataset_dict)  # it will be modified by code below
            # can use other ways to read image
            image = utils.read_image(dataset_dict["file_name"], format="BGR")
            # See "Data Augmentation" tutorial for details usage
            auginput = T.AugInput(image)
            transform = T.Resize((800, 800))(auginput)
            image = torch.from_numpy(auginput.image.transpose(2, 0, 1))
            annos = [
                utils.transform_instance_annotations(annotation, [transform], image.shape[1:])
                for annotation in dataset_dict.pop("annotations")
            ]
            return {
               # create the format that the model expects
               "image": image,
               "instances": utils.annotations_to_instances(annos, image.shape[1:])
            }
        dataloader = build_detection_train_loader(cfg, mapper=mapper)
        # fmt: on

        first = next(iter(dataloader))[0]
        assert first["image"].shape == (3, 800, 800)
        assert first["instances"].gt_boxes.tensor.shape == (len(first["instances"]), 4)


class TestDataAugmentation:
    """ "Data Augmentation"."""

    def test_basic_usage(self):
        image = np.full((700, 900, 3), 100, np.uint8)
        image2 = image.copy()
        boxes = np.array([[10.0, 20.0, 300.0, 400.0]])
        sem_seg = np.zeros((700, 900), np.int64)
        polygons = [np.array([[0.0, 0.0], [900.0, 0.0], [900.0, 700.0], [0.0, 700.0]])]

        # fmt: off
        from detectron2.data import transforms as T
        # Define a sequence of augmentations:
        augs = T.AugmentationList([
            T.RandomBrightness(0.9, 1.1),
            T.RandomFlip(prob=0.5),
            T.RandomCrop("absolute", (640, 640))
        ])  # type: T.Augmentation

        # Define the augmentation input ("image" required, others optional):
        input = T.AugInput(image, boxes=boxes, sem_seg=sem_seg)
        # Apply the augmentation:
        transform = augs(input)  # type: T.Transform
        image_transformed = input.image  # new image
        sem_seg_transformed = input.sem_seg  # new semantic segmentation

        # For any extra data that needs to be augmented together, use transform, e.g.:
        image2_transformed = transform.apply_image(image2)
        polygons_transformed = transform.apply_polygons(polygons)
        # fmt: on

        assert image_transformed.shape == image2_transformed.shape == (640, 640, 3)
        assert sem_seg_transformed.shape == (640, 640)
        assert np.array_equal(image_transformed, image2_transformed)
        assert np.ptp(polygons_transformed[0], axis=0).tolist() == [640, 640]  # clipped to the crop
        assert input.boxes.shape == (1, 4)

    def test_new_augmentations(self):
        from detectron2.data import transforms as T

        # fmt: off
        class MyColorAugmentation(T.Augmentation):
            def get_transform(self, image):
                r = np.random.rand(2)
                return T.ColorTransform(lambda x: x * r[0] + r[1] * 10)

        class MyCustomResize(T.Augmentation):
            def get_transform(self, image):
                old_h, old_w = image.shape[:2]
                new_h, new_w = int(old_h * np.random.rand()), int(old_w * 1.5)
                return T.ResizeTransform(old_h, old_w, new_h, new_w)
        # fmt: on

        input = T.AugInput(np.full((100, 120, 3), 50, np.uint8))
        augs = MyCustomResize()
        transform = augs(input)
        assert isinstance(transform, T.ResizeTransform)
        assert input.image.shape[1] == 180
        MyColorAugmentation()(input)

    def test_augmentation_with_more_inputs(self):
        from detectron2.data import transforms as T

        input = T.AugInput(np.zeros((40, 60, 3), np.uint8), sem_seg=np.zeros((40, 60), np.int64))

        # fmt: off
        class MyCustomCrop(T.Augmentation):
            def get_transform(self, image, sem_seg):
                # decide where to crop using both image and sem_seg
                return T.CropTransform(5, 10, 20, 15)

        augs = MyCustomCrop()
        assert hasattr(input, "image") and hasattr(input, "sem_seg")
        transform = augs(input)
        # fmt: on

        assert isinstance(transform, T.CropTransform)
        assert input.image.shape == (15, 20, 3)
        assert input.sem_seg.shape == (15, 20)

    def test_custom_strategy(self):
        from detectron2.data import transforms as T

        augs = T.AugmentationList([T.RandomFlip(prob=1.0), T.Resize((50, 100))])
        input = T.AugInput(np.zeros((100, 200, 3), np.uint8))
        keypoints_xy = np.array([[10.0, 20.0], [190.0, 20.0]])
        flip_indices_mapping = [1, 0]

        # fmt: off
        # augs, input are defined as in previous examples
        transform = augs(input)  # type: T.Transform
        keypoints_xy = transform.apply_coords(keypoints_xy)   # transform the coordinates

        # get a list of all transforms that were applied
        transforms = T.TransformList([transform]).transforms
        # check if it is flipped for odd number of times
        do_hflip = sum(isinstance(t, T.HFlipTransform) for t in transforms) % 2 == 1
        if do_hflip:
            keypoints_xy = keypoints_xy[flip_indices_mapping]
        # fmt: on

        assert do_hflip
        assert keypoints_xy.tolist() == [[5.0, 10.0], [95.0, 10.0]]

    def test_visibility_after_each_step(self):
        from detectron2.data import transforms as T

        augs = T.AugmentationList([T.RandomFlip(prob=1.0), T.Resize((50, 100))])
        input = T.AugInput(np.zeros((100, 200, 3), np.uint8))
        keypoints_xy = np.array([[10.0, 20.0], [250.0, 20.0]])
        visibility = np.array([True, True])
        W, H = 200, 100

        transform = augs(input)  # type: T.TransformList
        assert isinstance(transform, T.TransformList)
        for t in transform.transforms:
            keypoints_xy = t.apply_coords(keypoints_xy)
            # (The block lacks a pair of brackets that Python needs.)
            visibility &= ((keypoints_xy >= [0, 0]) & (keypoints_xy <= [W, H])).all(axis=1)

        assert visibility.tolist() == [True, False]

    def test_inverse(self):
        from detectron2.data import transforms as T

        augs = T.AugmentationList([T.RandomFlip(prob=1.0), T.Resize((50, 100))])
        input = T.AugInput(np.zeros((100, 200, 3), np.uint8))

        def make_prediction(image):
            mask = np.zeros(image.shape[:2], np.uint8)
            mask[:, :20] = 1
            return mask

        transform = augs(input)
        pred_mask = make_prediction(input.image)
        inv_transform = transform.inverse()
        pred_mask_orig = inv_transform.apply_segmentation(pred_mask)

        assert pred_mask_orig.shape == (100, 200)
        assert pred_mask_orig[:, 160:].all() and not pred_mask_orig[:, :160].any()

    def test_new_data_types(self):
        from detectron2.data import transforms as T
        from detectron2.data.transforms import HFlipTransform

        # fmt: off
        @T.HFlipTransform.register_type("documented_rotated_boxes")
        def func(flip_transform: T.HFlipTransform, rotated_boxes: Any):
            # do the work
            flipped_rotated_boxes = rotated_boxes * [-1, 1] + [flip_transform.width, 0]
            return flipped_rotated_boxes

        t = HFlipTransform(width=800)
        transformed_rotated_boxes = t.apply_documented_rotated_boxes(np.array([[100, 5]]))  # func will be called
        # fmt: on

        assert transformed_rotated_boxes.tolist() == [[700, 5]]


class TestApiReference:
    """Examples in "API Documentation" that the tutorials do not have."""

    def test_lazy_call(self):
        from detectron2.config import LazyCall, instantiate

        layer_cfg = LazyCall(nn.Conv2d)(in_channels=32, out_channels=32, kernel_size=1)  # the text lacks the kernel
        layer_cfg.out_channels = 64  # can edit it afterwards
        layer = instantiate(layer_cfg)

        assert layer.weight.shape == (64, 32, 1, 1)

    def test_test_loader(self, cfg, shapes):
        from detectron2.data import DatasetCatalog, DatasetMapper, build_detection_test_loader

        data_loader = build_detection_test_loader(DatasetCatalog.get(shapes), mapper=DatasetMapper(cfg, False))
        # or, instantiate with a CfgNode:
        same = build_detection_test_loader(cfg, shapes)

        ids = [[d["image_id"] for batch in loader for d in batch] for loader in (data_loader, same)]
        assert ids[0] == ids[1] and len(ids[0]) == 6

    def test_new_data_type_without_decorator(self):
        from detectron2.data.transforms import HFlipTransform

        def func(flip_transform, voxel_data):
            transformed_voxel_data = voxel_data[..., ::-1]
            return transformed_voxel_data

        HFlipTransform.register_type("documented_voxel", func)

        transform = HFlipTransform(3)
        assert transform.apply_documented_voxel(np.array([1, 2, 3])).tolist() == [3, 2, 1]  # func will be called

    def test_stage(self):
        from detectron2.modeling.backbone import ResNet
        from detectron2.modeling.backbone.resnet import BottleneckBlock

        # fmt: off
        stage = ResNet.make_stage(
            BottleneckBlock, 3, in_channels=16, out_channels=64,
            bottleneck_channels=16, num_groups=1,
            stride_per_block=[2, 1, 1],
            dilation_per_block=[1, 1, 2]  # (the text has dilations_per_block, which no block takes)
        )
        # fmt: on

        assert [block.conv2.dilation[0] for block in stage] == [1, 1, 2]

    def test_optimizer_and_schedule(self):
        from fvcore.common.param_scheduler import MultiStepParamScheduler

        from detectron2.solver import LRMultiplier, WarmupParamScheduler
        from detectron2.solver.build import get_default_optimizer_params

        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

        # fmt: off
        opt = torch.optim.SGD(get_default_optimizer_params(model, weight_decay_norm=0),
                              lr=0.01, weight_decay=1e-4, momentum=0.9)
        scheduler = LRMultiplier(
            opt,
            WarmupParamScheduler(
                MultiStepParamScheduler(
                    [1, 0.1, 0.01],
                    milestones=[60000, 80000],
                    num_updates=90000,
                ), 0.001, 100 / 90000
            ),
            max_iter=90000
        )
        # fmt: on

        assert {g["weight_decay"] for g in opt.param_groups} == {0, 1e-4}
        assert scheduler.get_last_lr()[0] == pytest.approx(0.01 * 0.001)

    def test_storage(self):
        from detectron2.utils.events import EventStorage

        my_loss, my_accuracy = 1.5, 0.25
        with EventStorage() as storage:
            storage.put_scalars(loss=my_loss, accuracy=my_accuracy, smoothing_hint=True)
        assert storage.latest() == {"loss": (1.5, 0), "accuracy": (0.25, 0)}

    def test_retry(self):
        from detectron2.utils.memory import retry_if_cuda_oom

        input1, input2 = torch.ones(2), torch.ones(2)
        output = retry_if_cuda_oom(torch.add)(input1, input2)

        assert output.tolist() == [2, 2]


class TestCommandLine:
    """ "Getting Started": the training script with its documented flags."""

    def test_train_net(self, cfg, shapes_dir, tmp_path, repo_root):
        config = tmp_path / "config.yaml"
        config.write_text(cfg.dump())
        register = tmp_path / "sitecustomize.py"
        register.write_text(
            "from detectron2.data.datasets import register_coco_instances as r\n"
            f"r('e2e_shapes', {{}}, {str(shapes_dir / 'annotations.json')!r}, {str(shapes_dir / 'images')!r})\n"
        )
        import os

        env = {**os.environ, "PYTHONPATH": str(tmp_path)}
        command = [sys.executable, str(repo_root / "tools" / "train_net.py"), "--config-file", str(config)]
        done = subprocess.run(
            [*command, "--num-gpus", "1", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.0025"],
            env=env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        weights = Path(cfg.OUTPUT_DIR) / "model_final.pth"
        done = subprocess.run(
            [*command, "--eval-only", "MODEL.WEIGHTS", str(weights)], env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "bbox" in done.stdout
