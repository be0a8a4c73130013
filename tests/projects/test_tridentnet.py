"""TridentNet: branches against plain convolutions, batches of branches, merging, and whole models in small."""

import copy
import importlib
import pickle
import runpy
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.synthetic import generate_shapes_dataset
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone, build_model
from detectron2.modeling.backbone import BottleneckBlock
from detectron2.structures import Boxes, Instances
from tests.engine.conftest import restore_logging

__all__ = ["restore_logging"]

SIZES_HW = [(64, 96), (48, 80)]
CONFIGS = ["tridentnet_fast_R_50_C4_1x", "tridentnet_fast_R_50_C4_3x", "tridentnet_fast_R_101_C4_3x"]


@pytest.fixture(scope="module")
def project(repo_root):
    """The package of the project, which is not installed."""
    folder = str(repo_root / "projects" / "TridentNet")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("tridentnet")
    finally:
        sys.path.remove(folder)


@pytest.fixture
def tiny_config(project, repo_root):
    def make(*changes):
        cfg = get_cfg()
        project.add_tridentnet_config(cfg)
        cfg.merge_from_file(str(repo_root / "projects/TridentNet/configs/tridentnet_fast_R_50_C4_1x.yaml"))
        cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
        cfg.MODEL.PIXEL_STD = [57.0, 57.0, 57.0]
        cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 4
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
        cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 2
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16, 32]]
        cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 30
        cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 8
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
        cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 8
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
        cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 4
        cfg.TEST.DETECTIONS_PER_IMAGE = 5
        cfg.merge_from_list(list(changes))
        return cfg

    return make


def batch(boxes=(((4, 4, 40, 36), (30, 10, 90, 60)), ((10, 8, 42, 40),))):
    result = []
    for size_hw, of_image in zip(SIZES_HW, boxes, strict=True):
        target = Instances(size_hw)
        target.gt_boxes = Boxes(torch.tensor(of_image, dtype=torch.float32).reshape(-1, 4))
        target.gt_classes = torch.arange(len(of_image)) % 3
        result.append({"image": torch.randint(0, 256, (3, *size_hw), dtype=torch.uint8), "instances": target})
    return result


def block(project, **kwargs):
    arguments = {"bottleneck_channels": 4, "stride": 2, "norm": "FrozenBN", "stride_in_1x1": True}
    return project.TridentBottleneckBlock(6, 8, **{**arguments, **kwargs})


def test_convolution(project):
    layer = project.TridentConv(
        4, 6, 3, stride=2, paddings=[1, 2], dilations=[1, 2], groups=2, num_branch=2, bias=True, activation=F.relu
    )
    x = [torch.randn(2, 4, 9, 8), torch.randn(2, 4, 9, 8)]
    for i, found in enumerate(layer(x)):
        expected = F.conv2d(x[i], layer.weight, layer.bias, stride=2, padding=i + 1, dilation=i + 1, groups=2).relu()
        torch.testing.assert_close(found, expected)
    for found, expected in zip(layer(x[0]), layer([x[0]] * 2), strict=True):
        assert torch.equal(found, expected)
    with pytest.raises(ValueError, match="2 branches run, but TridentConv got 3 inputs"):
        layer([*x, x[0]])
    with pytest.raises(ValueError, match=r"2 branches needs as many dilations; got \[1, 2, 3\]"):
        project.TridentConv(4, 6, 3, dilations=[1, 2, 3], num_branch=2)


def test_one_branch_in_inference(project):
    layer = project.TridentConv(4, 6, 3, paddings=[1, 2, 3], dilations=[1, 2, 3], num_branch=3, test_branch_idx=1)
    x = torch.randn(0, 4, 7, 7), torch.randn(2, 4, 7, 7)
    assert len(layer(x[1])) == 3
    layer.eval()
    for images in x:
        (found,) = layer(images)
        torch.testing.assert_close(found, F.conv2d(images, layer.weight, padding=2, dilation=2))
    assert "num_branch=3, test_branch_idx=1, paddings=[1, 2, 3]" in repr(layer)


@pytest.mark.parametrize("index", [-2, 3])
def test_a_branch_that_does_not_exist(project, index):
    with pytest.raises(ValueError, match=f"TEST_BRANCH_IDX is {index}; .* 0 to 2"):
        project.TridentConv(4, 4, 3, num_branch=3, test_branch_idx=index)(torch.zeros(1, 4, 5, 5))


@pytest.mark.parametrize("stride_in_1x1", [True, False])
def test_every_branch_is_a_bottleneck(project, stride_in_1x1):
    branches = block(project, stride_in_1x1=stride_in_1x1)
    x = torch.randn(2, 6, 12, 10)
    found = branches(x)
    for i, dilation in enumerate((1, 2, 3)):
        plain = BottleneckBlock(
            6,
            8,
            bottleneck_channels=4,
            stride=2,
            norm="FrozenBN",
            stride_in_1x1=stride_in_1x1,
            dilation=dilation,
        )
        plain.load_state_dict(branches.state_dict())  # the names are those of a bottleneck
        torch.testing.assert_close(found[i], plain(x))
        separate = [x, x + 1, x - 1]
        torch.testing.assert_close(branches(separate)[i], plain(separate[i]))
    joined = block(project, stride_in_1x1=stride_in_1x1, concat_output=True)
    joined.load_state_dict(branches.state_dict())
    assert torch.equal(joined(x), torch.cat(found))


def test_stage(project):
    stage = project.make_trident_stage(
        project.TridentBottleneckBlock,
        3,
        stride_per_block=[2, 1, 1],
        in_channels=6,
        out_channels=8,
        bottleneck_channels=4,
        num_branch=2,
        dilations=[1, 2],
    )
    assert [b.concat_output for b in stage] == [False, False, True] and [b.stride for b in stage] == [2, 1, 1]
    assert nn.Sequential(*stage)(torch.zeros(2, 6, 8, 8)).shape == (4, 8, 4, 4)


def test_block_compiles_without_a_break(project):
    model, x = block(project, concat_output=True), torch.randn(1, 6, 8, 8)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))


def test_backbone(tiny_config, project):
    backbone = build_backbone(tiny_config(), ShapeSpec(channels=3))
    assert backbone.output_shape()["res4"] == ShapeSpec(channels=32, stride=16)
    assert all(type(b) is project.TridentBottleneckBlock for b in backbone.res4)
    assert all(type(b) is BottleneckBlock for b in backbone.res3)
    x = torch.randn(2, 3, 64, 64)
    outputs = backbone(x)["res4"]
    assert outputs.shape == (6, 32, 4, 4)
    fast = backbone.eval()(x)["res4"]
    torch.testing.assert_close(fast, outputs[2:4])  # the middle branch


def test_later_stages_run_on_all_branches(tiny_config):
    changes = ("MODEL.TRIDENT.TRIDENT_STAGE", "res3", "MODEL.RESNETS.OUT_FEATURES", ["res3", "res4"])
    outputs = build_backbone(tiny_config(*changes), ShapeSpec(channels=3))(torch.zeros(2, 3, 32, 32))
    assert [len(x) for x in outputs.values()] == [6, 6]


def test_frozen_branches(tiny_config):
    cfg = tiny_config("MODEL.BACKBONE.FREEZE_AT", 4, "MODEL.RESNETS.NORM", "BN")
    backbone = build_backbone(cfg, ShapeSpec(channels=3))
    assert not any(p.requires_grad for p in backbone.parameters())
    assert isinstance(backbone.res4[0].conv2.norm, FrozenBatchNorm2d)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("MODEL.TRIDENT.TRIDENT_STAGE", "res5"), r"'res5' is not among the stages.*OUT_FEATURES"),
        (("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4"]), r"\['res3'\] come before the branches of res4"),
        (("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, False, True, False]), "plain bottlenecks"),
        (("MODEL.TRIDENT.BRANCH_DILATIONS", [1, 2]), r"3 branches.*dilations.*\[1, 2\]"),
    ],
)
def test_backbone_errors(tiny_config, changes, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(tiny_config(*changes), ShapeSpec(channels=3))


def found(boxes, scores, classes):
    result = Instances((50, 60))
    result.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    result.scores = torch.tensor(scores, dtype=torch.float32)
    result.pred_classes = torch.tensor(classes, dtype=torch.int64)
    return result


def test_merging_by_hand(project):
    nothing, box, same, other = found([], [], []), [0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]
    # Two branches of three images. The first image: a double, and the double of another class. The third: nothing.
    results = [
        found([box], [0.5], [1]),
        found([other], [0.3], [0]),
        nothing,
        found([same, same, other], [0.9, 0.4, 0.2], [1, 2, 1]),
        nothing,
        nothing,
    ]
    merged = project.merge_branch_instances(results, 2, 0.5, 2)
    assert [x.scores.tolist() for x in merged] == [pytest.approx([0.9, 0.4]), pytest.approx([0.3]), []]
    assert merged[0].pred_classes.tolist() == [1, 2] and merged[0].pred_boxes.tensor.tolist() == [same, same]
    assert merged[2].pred_boxes.tensor.shape == (0, 4)
    assert [len(x) for x in project.merge_branch_instances(results, 2, 0.5, -1)] == [3, 1, 0]
    assert project.merge_branch_instances(results, 1, 0.5, 2) is results
    assert project.merge_branch_instances([], 3, 0.5, 2) == []
    with pytest.raises(ValueError, match="6 images cannot come from 4 branches"):
        project.merge_branch_instances(results, 4, 0.5, 2)


@pytest.mark.parametrize("boxes", [(((4, 4, 40, 36),), ((10, 8, 42, 40),)), (((4, 4, 40, 36),), ()), ((), ())])
def test_training(tiny_config, boxes):
    model = build_model(tiny_config())
    losses = model(batch(boxes))
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}
    assert all(torch.isfinite(x) for x in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert model.backbone.res4[2].conv2.weight.grad.any()


def test_each_branch_sees_each_image(tiny_config):
    model, seen = build_model(tiny_config()), {}
    model.proposal_generator.register_forward_hook(lambda module, inputs, output: seen.update(proposals=output[0]))
    model(batch())
    assert [x.image_size for x in seen["proposals"]] == SIZES_HW * 3
    model.eval()(batch())
    assert [x.image_size for x in seen["proposals"]] == SIZES_HW


@pytest.mark.parametrize("index", [1, -1])
def test_inference(tiny_config, index):
    model = build_model(tiny_config("MODEL.TRIDENT.TEST_BRANCH_IDX", index)).eval()
    outputs = model([{**x, "height": 80, "width": 90} for x in batch()])
    assert len(outputs) == 2
    for item in outputs:
        result = item["instances"]
        assert result.image_size == (80, 90) and 0 < len(result) <= 5
        assert (result.scores.diff() <= 0).all()


@pytest.mark.parametrize("index", [1, -1])
def test_nothing_is_found(tiny_config, index):
    cfg = tiny_config("MODEL.TRIDENT.TEST_BRANCH_IDX", index, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.0)
    for item in build_model(cfg).eval()(batch()):
        assert len(item["instances"]) == 0 and item["instances"].pred_boxes.tensor.shape == (0, 4)


def test_masks_of_all_branches(tiny_config):
    changes = ("MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.CONV_DIM", 4, "MODEL.TRIDENT.TEST_BRANCH_IDX", -1)
    model = build_model(tiny_config(*changes)).eval()
    results = model.inference(batch(), do_postprocess=False)
    assert all(x.pred_masks.shape[:2] == (len(x), 1) for x in results)
    given = [Instances(x.image_size, pred_boxes=x.pred_boxes, pred_classes=x.pred_classes) for x in results]
    again = model.inference(batch(), given, do_postprocess=False)
    assert [x.pred_masks.shape for x in again] == [x.pred_masks.shape for x in results]


def test_standard_heads(tiny_config):
    changes = ["MODEL.ROI_HEADS.NAME", "TridentStandardROIHeads", "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead"]
    changes += ["MODEL.ROI_BOX_HEAD.NUM_FC", 1, "MODEL.ROI_BOX_HEAD.FC_DIM", 8, "MODEL.TRIDENT.TEST_BRANCH_IDX", -1]
    model = build_model(tiny_config(*changes))
    sum(model(batch()).values()).backward()
    assert [len(x["instances"]) for x in model.eval()(batch())] == [5, 5]


def test_low_precision_trains(tiny_config):
    model = build_model(tiny_config())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.001)
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = model(batch())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_copies(tiny_config):
    model, x = build_model(tiny_config()).eval(), batch()
    expected = [item["instances"].scores for item in model(x)]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.load_state_dict(model.state_dict())
        assert all(torch.equal(o["instances"].scores, e) for o, e in zip(other(x), expected, strict=True))


@pytest.fixture
def shapes(tmp_path):
    """The name of a registered data set of generated images."""
    generate_shapes_dataset(tmp_path / "shapes", 4, size_hw=(64, 80), seed=5)
    register_coco_instances(
        "trident_shapes", {}, str(tmp_path / "shapes/annotations.json"), str(tmp_path / "shapes/images")
    )
    yield "trident_shapes"
    DatasetCatalog.remove("trident_shapes")
    MetadataCatalog.remove("trident_shapes")


def test_script(tiny_config, shapes, repo_root, tmp_path, monkeypatch, restore_logging):
    cfg = tiny_config("SOLVER.MAX_ITER", 2, "SOLVER.STEPS", (), "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0)
    cfg.merge_from_list(["DATASETS.TRAIN", (shapes,), "DATASETS.TEST", (shapes,), "MODEL.ROI_HEADS.NUM_CLASSES", 6])
    cfg.merge_from_list(["INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64, "SOLVER.BASE_LR", 0.001])
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    (tmp_path / "tiny.yaml").write_text(cfg.dump())
    script = repo_root / "projects/TridentNet/train_net.py"
    monkeypatch.syspath_prepend(str(script.parent))
    results = tmp_path / "output" / "inference" / "coco_instances_results.json"
    for extra in ([], ["--eval-only", "MODEL.WEIGHTS", str(tmp_path / "output/model_final.pth")]):
        results.unlink(missing_ok=True)
        monkeypatch.setattr("sys.argv", [str(script), "--config-file", str(tmp_path / "tiny.yaml"), *extra])
        runpy.run_path(str(script), run_name="__main__")
        assert results.is_file()


@pytest.mark.parametrize("name", CONFIGS)
def test_configs(project, repo_root, name):
    path = repo_root / "projects/TridentNet/configs" / f"{name}.yaml"
    assert f"projects/TridentNet/configs/{name}.yaml" in path.read_text().splitlines()[1]
    cfg = get_cfg()
    project.add_tridentnet_config(cfg)
    cfg.merge_from_file(str(path))
    assert (90000 if name.endswith("1x") else 270000) == cfg.SOLVER.MAX_ITER
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "meta", ""
    with torch.device("meta"):
        model = build_model(cfg)
    assert len(model.backbone.res4) == (23 if "101" in name else 6)
    # As many parameters, of the same names, as the model without branches has.
    plain = cfg.clone()
    plain.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    with torch.device("meta"):
        expected = build_model(plain).state_dict()
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in expected.items()}


def test_no_config_is_left_out(repo_root):
    found = {p.stem for p in (repo_root / "projects/TridentNet/configs").glob("*.yaml")}
    assert found == {*CONFIGS, "Base-TridentNet-Fast-C4"}
