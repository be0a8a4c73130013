import copy
import itertools
import json
import logging
import sys

import pytest
import torch

from detectron2.checkpoint import read_description
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer, hooks
from detectron2.modeling import build_model, optimized_for_inference
from detectron2.modeling.meta_arch import HFDetector
from detectron2.modeling.optimized import OptimizedForm
from detectron2.structures import Boxes, Instances
from tests.e2e.conftest import shapes, shapes_dir
from tests.modeling.meta_arch.hf_configs import DETECTORS

__all__ = ["shapes", "shapes_dir"]

transformers = pytest.importorskip("transformers")

MEAN, STD = [120.0, 110.0, 100.0], [60.0, 50.0, 40.0]  # of red, green, blue
TELLS_PADDING = {"detr", "table-transformer", "conditional_detr", "dab-detr", "deformable_detr", "lw_detr", "rf_detr"}
PROCESSORS = {
    "detr": "DetrImageProcessor",
    "table-transformer": "DetrImageProcessor",
    "yolos": "YolosImageProcessor",
    "conditional_detr": "ConditionalDetrImageProcessor",
    "dab-detr": "ConditionalDetrImageProcessor",
    "deformable_detr": "DeformableDetrImageProcessor",
    "lw_detr": "DeformableDetrImageProcessor",
    "rf_detr": "RfDetrImageProcessor",
}


def batch():
    """Three images: with a box that covers all of it, with one object, and with none."""
    random = torch.Generator().manual_seed(0)
    inputs = []
    for (height, width), count in (((60, 90), 2), ((64, 70), 1), ((50, 64), 0)):
        target = Instances((height, width))
        target.gt_boxes = Boxes(torch.tensor([[0.0, 0, width, height], [3, 4, 20, 30]])[:count])
        target.gt_classes = torch.arange(count)
        image = torch.randint(0, 256, (3, height, width), generator=random, dtype=torch.uint8)
        inputs.append({"image": image, "instances": target, "height": 2 * height, "width": 3 * width})
    return inputs


def detector(kind="detr", **options):
    torch.manual_seed(0)
    options = {"pixel_mean": MEAN, "pixel_std": STD, "max_detections_per_image": 1000, **options}
    return HFDetector(config=options.pop("config", DETECTORS[kind]), **options)


def network_inputs(inputs, divisor, masked):
    """What the library is given: normalised images in one tensor, and which pixels are theirs."""
    sides = [max(x["image"].shape[i] for x in inputs) for i in (1, 2)]
    height, width = (-(-side // divisor) * divisor for side in sides)
    pixels, mask = torch.zeros(len(inputs), 3, height, width), torch.zeros(len(inputs), height, width)
    for i, item in enumerate(inputs):
        h, w = item["image"].shape[1:]
        pixels[i, :, :h, :w] = (item["image"] - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        mask[i, :h, :w] = 1
    return {"pixel_values": pixels, **({"pixel_mask": mask.long()} if masked else {})}


class TestBesideTheLibrary:
    """Losses and detections are those of the model of transformers and its image processor."""

    def test_no_objects_at_all(self):
        model = detector()
        losses = model(batch()[2:])
        of_boxes = {name: float(loss.detach()) for name, loss in losses.items() if "ce" not in name}
        assert of_boxes == {"loss_bbox": 0.0, "loss_giou": 0.0, "loss_bbox_0": 0.0, "loss_giou_0": 0.0}
        sum(losses.values()).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())

    @pytest.mark.parametrize("kind", DETECTORS)
    def test_losses(self, kind):
        model, inputs = detector(kind), batch()
        arguments = network_inputs(inputs, model.size_divisibility, kind in TELLS_PADDING)
        padded = arguments["pixel_values"].shape[2:]
        targets = []
        for item in inputs:
            height, width = item["image"].shape[1:] if kind in TELLS_PADDING else padded
            x1, y1, x2, y2 = item["instances"].gt_boxes.tensor.unbind(1)
            boxes = torch.stack([(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height])
            targets.append({"boxes": boxes.T, "class_labels": item["instances"].gt_classes})
        other = copy.deepcopy(model.network)
        torch.manual_seed(1)
        wanted = other(**arguments, labels=targets)
        torch.manual_seed(1)
        losses = model(inputs)
        assert set(losses) <= set(wanted.loss_dict)
        total = sum(losses.values())
        assert torch.allclose(total, wanted.loss, rtol=1e-5)
        total.backward()
        wanted.loss.backward()
        gradients = zip(model.network.named_parameters(), other.parameters(), strict=True)
        for (name, a), b in gradients:
            assert (a.grad is None) == (b.grad is None)
            assert a.grad is None or torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-5), name

    @pytest.mark.parametrize("kind", DETECTORS)
    def test_detections(self, kind):
        model, inputs = detector(kind).eval(), batch()
        arguments = network_inputs(inputs, model.size_divisibility, kind in TELLS_PADDING)
        sizes = []
        for item in inputs:
            height, width = item["image"].shape[1:] if kind in TELLS_PADDING else arguments["pixel_values"].shape[2:]
            sizes.append([2 * height, 3 * width])
        with torch.no_grad():
            found, outputs = model(inputs), model.network(**arguments)
        processor = getattr(transformers, PROCESSORS.get(kind, "RTDetrImageProcessor"))()
        wanted = processor.post_process_object_detection(outputs, 0.0, torch.tensor(sizes, dtype=torch.float32))
        for item, ours, theirs in zip(inputs, found, wanted, strict=True):
            ours = ours["instances"]
            assert ours.image_size == (item["height"], item["width"])
            boxes = Boxes(theirs["boxes"])
            boxes.clip(ours.image_size)
            order = theirs["scores"].argsort(descending=True, stable=True)
            order = order[boxes.nonempty()[order]]
            assert len(ours) == len(order)
            assert torch.allclose(ours.scores, theirs["scores"][order], atol=1e-5)
            # Detections with one score may stand in another order.
            key = (ours.scores * 1e4).round() * 10 + ours.pred_classes
            other_key = (theirs["scores"][order] * 1e4).round() * 10 + theirs["labels"][order]
            assert torch.equal(key.sort().values, other_key.sort().values)
            assert torch.allclose(ours.pred_boxes.tensor.sum(0), boxes.tensor[order].sum(0), rtol=1e-4, atol=1e-2)

    def test_only_the_best_above_the_threshold(self):
        model = detector("rt_detr").eval()
        with torch.no_grad():
            everything = model.inference(batch(), do_postprocess=False)[0]
        model.max_detections_per_image, model.test_score_thresh = 4, float(everything.scores[2])
        best = model.inference(batch(), do_postprocess=False)[0]
        assert torch.equal(best.scores, everything.scores[:2])
        assert torch.equal(best.pred_boxes.tensor, everything.pred_boxes.tensor[:2])


class TestImagesAndClasses:
    def test_order_of_channels(self):
        rgb = detector().eval()
        bgr = detector(input_format="BGR", pixel_mean=MEAN[::-1], pixel_std=STD[::-1]).eval()
        flipped = [{**item, "image": item["image"].flip(0)} for item in batch()]
        with torch.no_grad():
            for a, b in zip(rgb(batch()), bgr(flipped), strict=True):
                assert torch.equal(a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor)
        with pytest.raises(ValueError, match=r"INPUT\.FORMAT is BGR or RGB .* 'L'"):
            detector(input_format="L")

    @pytest.mark.parametrize("kind", ["detr", "rt_detr"])
    def test_labels_that_stand_for_classes(self, kind):
        """With classes 0, 1 as labels 2, 0 of the network, what it says about label 1 is left out."""
        model, some = detector(kind).eval(), detector(kind, label_ids=[2, 0]).eval()
        assert (model.num_classes, some.num_classes) == (3, 2)
        logits = torch.randn(1, 5, 3 + (kind == "detr"), generator=torch.Generator().manual_seed(0))
        boxes, frames = torch.rand(1, 5, 4), torch.tensor([[100.0, 50.0]])
        _, scores, classes = some.select(logits, boxes, frames)
        own = logits.softmax(-1) if kind == "detr" else logits.sigmoid()
        wanted = own[0, :, [2, 0]]
        wanted = wanted.max(1).values if kind == "detr" else wanted.flatten()
        assert torch.allclose(scores[0], wanted.sort(descending=True).values[: scores.shape[1]])
        assert classes.unique().tolist() == [0, 1]
        target = torch.tensor([0, 1, 1])
        assert some._labels_of(target).tolist() == [2, 0, 0]

    def test_classes_that_do_not_exist(self):
        inputs = batch()
        inputs[1]["instances"].gt_classes = torch.tensor([3])
        with pytest.raises(ValueError, match=r"gt_classes go from 3 to 3, but the model has 3 classes"):
            detector()(inputs)
        with pytest.raises(ValueError, match=r"LABEL_IDS has \[3\], but labels of the network are 0 to 2"):
            detector(label_ids=[3])
        with pytest.raises(ValueError, match="has no 'instances'"):
            detector()([{"image": inputs[0]["image"]}])


def cfg_of(*options):
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "HFDetector", "MODEL.DEVICE", "cpu", *options])
    return cfg


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that transformers saved, with what it says about images."""
    path = tmp_path_factory.mktemp("detr")
    detector().network.save_pretrained(path)
    content = {
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.25, 0.2, 0.1],
        "image_processor_type": "DetrImageProcessor",
    }
    (path / "preprocessor_config.json").write_text(json.dumps(content))
    return path


@pytest.fixture
def named_classes():
    """A registered data set, whose class names a test sets."""
    DatasetCatalog.register("hf_named", list)
    yield MetadataCatalog.get("hf_named")
    DatasetCatalog.pop("hf_named")
    MetadataCatalog.pop("hf_named")


class TestConfig:
    def test_nothing_to_build(self):
        with pytest.raises(ValueError, match=r"MODEL\.HF\.CONFIG and MODEL\.HF\.PRETRAINED are empty"):
            build_model(cfg_of())
        with pytest.raises(ValueError, match="model_type None"):
            build_model(cfg_of("MODEL.HF.CONFIG", "{}"))
        with pytest.raises(ValueError, match="not valid JSON"):
            build_model(cfg_of("MODEL.HF.CONFIG", "{"))
        with pytest.raises(ValueError, match="describes a 'bert' model, but HFDetector wraps: conditional_detr, "):
            build_model(cfg_of("MODEL.HF.CONFIG", '{"model_type": "bert"}'))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"model_type": "detrr"}, "it must be a name such as 'detr', "),
            ({"d_model": "wide"}, r"cannot build a 'detr' with this config \(MODEL.HF.CONFIG\): .*Field 'd_model'"),
            ({"backbone_config": {"model_type": "resnett"}}, r"cannot build a 'detr' with .*: KeyError: 'resnett'"),
            ({"backbone_config": {"model_type": "bert"}}, r"cannot build a 'detr' with .*BertConfig"),
        ],
    )
    def test_values_that_transformers_refuses(self, changes, message):
        with pytest.raises(ValueError, match=message):
            build_model(cfg_of("MODEL.HF.CONFIG", json.dumps({**DETECTORS["detr"], **changes})))

    def test_name_that_is_not_there(self, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(FileNotFoundError, match=r"finds no model 'nobody/nothing'.* MODEL\.HF\.PRETRAINED /path"):
            build_model(cfg_of("MODEL.HF.PRETRAINED", "nobody/nothing"))

    def test_without_transformers(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "transformers", None)
        with pytest.raises(ImportError, match=r"pip install 'detectron2\[transformers\]'"):
            detector()

    def test_text_file_and_folder(self, folder, tmp_path):
        text = json.dumps(DETECTORS["detr"])
        (tmp_path / "config.json").write_text(text)
        sizes = [
            sum(p.numel() for p in build_model(cfg_of("MODEL.HF.CONFIG", source)).parameters())
            for source in (text, str(tmp_path / "config.json"), str(folder))
        ]
        assert len(set(sizes)) == 1

    def test_pretrained(self, folder, caplog):
        caplog.set_level(logging.INFO)
        mean, std = [127.5, 102.0, 76.5], [63.75, 51.0, 25.5]
        right = ["INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", mean, "MODEL.PIXEL_STD", std]
        model = build_model(cfg_of("MODEL.HF.PRETRAINED", str(folder), *right))
        wanted = detector().network.state_dict()
        assert all(torch.equal(value, wanted[key]) for key, value in model.network.state_dict().items())
        assert "another normalization" not in caplog.text
        assert model.training and not model.transformers_config.get("use_pretrained_backbone")

        other = build_model(cfg_of("MODEL.HF.PRETRAINED", str(folder), "MODEL.HF.NUM_CLASSES", 5))
        assert f"MODEL.PIXEL_MEAN {mean[::-1]}, MODEL.PIXEL_STD {std[::-1]}" in caplog.text
        assert "class_labels_classifier.weight" in caplog.text  # begins anew
        assert other.num_classes == 5 and other.network.class_labels_classifier.out_features == 6
        kept = [k for k, v in other.network.state_dict().items() if v.shape == wanted[k].shape]
        assert all(torch.equal(other.network.state_dict()[key], wanted[key]) for key in kept)
        assert len(kept) == len(wanted) - 2

    @pytest.mark.parametrize(
        ("names", "count", "ids"),
        [(["a"], 1, ()), (["x", "y", "z"], 3, ()), (["Label 2", "label 0"], 2, (2, 0)), (list("abcd"), 4, ())],
    )
    def test_classes_of_the_data(self, names, count, ids, named_classes):
        named_classes.thing_classes = names
        text = json.dumps(DETECTORS["detr"])
        model = build_model(cfg_of("MODEL.HF.CONFIG", text, "DATASETS.TRAIN", ("hf_named",)))
        assert (model.num_classes, model.label_ids) == (count, ids)
        assert model.network.class_labels_classifier.out_features == (3 if ids else count) + 1

    def test_keys_that_travel(self, folder, named_classes):
        """The config of a checkpoint builds the same model, without the folder and the data set."""
        named_classes.thing_classes = ["label 2", "label 0"]
        cfg = cfg_of("MODEL.HF.PRETRAINED", str(folder), "DATASETS.TRAIN", ("hf_named",))
        model = build_model(cfg)
        for key, value in model.portable_keys.items():
            cfg.merge_from_list([key, value])
        again = get_cfg()
        again.merge_from_other_cfg(cfg.load_cfg(cfg.dump()))
        assert str(folder) not in cfg.dump()
        other = build_model(again)
        other.load_state_dict(model.state_dict())
        assert other.label_ids == model.label_ids == (2, 0)
        assert other.portable_keys == model.portable_keys


@pytest.mark.parametrize("kind", ["detr", "rt_detr_v2", "yolos"])
def test_optimized_form_gives_the_same(kind):
    model = detector(kind).eval()
    assert OptimizedForm(model).current() is model  # its modules are not known
    with torch.no_grad():
        wanted, found = model(batch()), optimized_for_inference(model)(batch())
    for a, b in zip(wanted, found, strict=True):
        assert torch.allclose(a["instances"].scores, b["instances"].scores, atol=1e-5)


class TestTraining:
    @pytest.fixture
    def cfg(self, shapes, tmp_path):
        cfg = cfg_of(
            *(
                "MODEL.HF.CONFIG",
                json.dumps(DETECTORS["rt_detr"]),
                "DATASETS.TRAIN",
                (shapes,),
                "DATASETS.TEST",
                (shapes,),
            ),
            *("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64, "DATALOADER.NUM_WORKERS", 0),
            *("SOLVER.OPTIMIZER", "AdamW", "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 4, "SOLVER.WARMUP_ITERS", 3),
            *("SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.STEPS", (), "SOLVER.EMA_DECAY", 0.5, "OUTPUT_DIR", str(tmp_path)),
        )
        DatasetCatalog.get(shapes)
        return cfg

    def test_resume_is_exact_and_checkpoints_need_nothing_else(self, cfg, tmp_path):
        """A run that ends in the middle and goes on gives the weights of an undisturbed run; and a predictor."""
        cfg.DATASETS.TEST = ()

        def run(name, stop_at=None):
            cfg.OUTPUT_DIR = str(tmp_path / name)
            torch.manual_seed(0)
            trainer = DefaultTrainer(cfg)
            trainer.resume_or_load()
            trainer.data_loader = list(itertools.islice(batches, trainer.start_iter, stop_at))
            trainer.register_hooks([hooks.CallbackHook(before_step=lambda t: torch.manual_seed(t.iter))])
            if stop_at is None:
                trainer.train()
            else:
                with pytest.raises(StopIteration):
                    trainer.train()
            return trainer

        batches = list(itertools.islice(DefaultTrainer.build_train_loader(cfg), 4))
        whole = run("whole")
        run("parts", stop_at=2)
        second = run("parts")
        assert second.start_iter == 2
        for (name, a), b in zip(whole.model.state_dict().items(), second.model.state_dict().values(), strict=True):
            assert torch.equal(a, b), name

        checkpoint = str(tmp_path / "whole" / "model_final.pth")
        config = read_description(checkpoint).load_config()
        assert (config.MODEL.HF.NUM_CLASSES, config.MODEL.HF.PRETRAINED) == (6, "")
        from detectron2 import Predictor

        predictor = Predictor(checkpoint, score_threshold=0.0)
        image = batches[0][0]["image"].permute(1, 2, 0).numpy()
        assert len(predictor(image).instances) > 0

    def test_evaluation_while_training(self, cfg):
        cfg.SOLVER.MAX_ITER = 1
        results = DefaultTrainer(cfg).train()
        assert set(results) == {"bbox"} and results["bbox"]["AP"] >= 0
