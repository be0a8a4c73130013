"""Adapters for MMDetection, with stand-ins that have the interface of its modules (it is not installed here)."""

import copy
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, MMDetBackbone, MMDetDetector
from detectron2.modeling.meta_arch.rcnn import ProposalNetwork
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage


class TwoMaps(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 2, stride=2)
        self.down = nn.Conv2d(4, 8, 2, stride=2)
        self.initialised = []

    def init_weights(self, pretrained=None):
        self.initialised.append(pretrained)

    def forward(self, x):
        x = self.conv(x)
        return x, self.down(x)


class NewTwoMaps(TwoMaps):
    """As from MMDetection 2.11 on."""

    init_cfg = None

    def init_weights(self):
        self.initialised.append(self.init_cfg)


class Neck(nn.Module):
    def __init__(self):
        super().__init__()
        self.initialised = 0

    def init_weights(self):
        self.initialised += 1

    def forward(self, maps):
        return [x + 1 for x in maps]


SHAPES = [ShapeSpec(channels=4, stride=2), ShapeSpec(channels=8, stride=4)]


# ------------------------------------------------------------------------------------------------------------- backbone


def test_backbone():
    inner = TwoMaps()
    model = MMDetBackbone(inner, output_shapes=SHAPES)
    assert isinstance(model, Backbone)
    assert model.output_shape() == {"out0": SHAPES[0], "out1": SHAPES[1]}
    x = torch.randn(2, 3, 8, 12)
    found = model(x)
    assert list(found) == ["out0", "out1"]
    assert torch.equal(found["out1"], inner(x)[1])
    assert {k: v.shape[1] for k, v in found.items()} == {"out0": 4, "out1": 8}
    assert inner.initialised == [None]


def test_neck_and_names():
    inner, neck = TwoMaps(), Neck()
    model = MMDetBackbone(inner, neck, output_shapes=SHAPES, output_names=["p1", "p2"])
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(model(x)["p1"], inner(x)[0] + 1)
    assert neck.initialised == 1
    row = nn.Sequential(Neck(), Neck())
    MMDetBackbone(inner, row, output_shapes=SHAPES)
    assert [n.initialised for n in row] == [1, 1]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(TwoMaps, "torchvision://x"), (NewTwoMaps, {"type": "Pretrained", "checkpoint": "torchvision://x"})],
)
def test_pretrained_backbone(kind, expected):
    inner = kind()
    MMDetBackbone(inner, output_shapes=SHAPES, pretrained_backbone="torchvision://x")
    assert inner.initialised == [expected]


def test_a_plain_module_needs_no_init_weights():
    model = MMDetBackbone(nn.Sequential(nn.Identity(), TwoMaps()), output_shapes=SHAPES)
    assert len(model(torch.ones(1, 3, 4, 4))) == 2
    with pytest.raises(ValueError, match="init_weights"):
        MMDetBackbone(nn.Identity(), output_shapes=SHAPES, pretrained_backbone="torchvision://x")


@pytest.mark.parametrize(
    ("backbone", "shapes", "names", "error", "message"),
    [
        (TwoMaps(), SHAPES[:1], None, ValueError, "returned 2 feature maps, but output_shapes describes 1"),
        (nn.Conv2d(3, 3, 1), SHAPES[:1], None, TypeError, "list or tuple, got Tensor"),
        (TwoMaps(), SHAPES, ["a"], ValueError, "name of its own"),
        (TwoMaps(), SHAPES, ["a", "a"], ValueError, "name of its own"),
        ("resnet", SHAPES, None, TypeError, "got str"),
    ],
)
def test_backbones_that_do_not_fit(backbone, shapes, names, error, message):
    with pytest.raises(error, match=message):
        MMDetBackbone(backbone, output_shapes=shapes, output_names=names)(torch.ones(1, 3, 4, 4))


def test_backbone_compiles_without_a_break():
    model = MMDetBackbone(TwoMaps(), Neck(), output_shapes=SHAPES)
    x = torch.randn(1, 3, 8, 8)
    found = torch.compile(model, fullgraph=True, backend="eager")(x)
    torch.testing.assert_close(found["out1"], model(x)["out1"])


def test_backbone_copies_and_states():
    model = MMDetBackbone(TwoMaps(), Neck(), output_shapes=SHAPES)
    x = torch.randn(1, 3, 8, 8)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x)["out0"], model(x)["out0"])
    assert set(model.state_dict()) == {f"backbone.{n}" for n in TwoMaps().state_dict()}


# --------------------------------------------------------------------------------------------------- building by config


@pytest.mark.parametrize("detector", [{"type": "MaskRCNN"}, OmegaConf.create({"type": "MaskRCNN"})])
def test_without_mmdetection_a_config_cannot_be_built(detector):
    with pytest.raises(ImportError, match=r"'MaskRCNN' from a config needs MMDetection 2.*pip install"):
        MMDetDetector(detector, pixel_mean=[0.0], pixel_std=[1.0])
    with pytest.raises(ImportError, match="pip install"):
        MMDetBackbone(detector, output_shapes=SHAPES)


class ConfigDict(dict):
    __getattr__ = dict.__getitem__


class MmdetMasks:
    def __init__(self, masks, height, width):
        self.masks, self.height, self.width = masks, height, width


@pytest.fixture
def mmdet(monkeypatch):
    """Modules with what is used of MMDetection and MMCV; the builders return what the config holds."""

    def build(cfg):
        assert type(cfg) is ConfigDict and type(cfg.nested) is list  # nothing of omegaconf is left inside
        return {"Two": TwoMaps, "Neck": Neck, "Detector": Detector}[cfg.type]()

    fakes = {
        "mmdet": {},
        "mmdet.models": {"build_backbone": build, "build_neck": build, "build_detector": build},
        "mmdet.core": {
            "BitmapMasks": type("BitmapMasks", (MmdetMasks,), {}),
            "PolygonMasks": type("PolygonMasks", (MmdetMasks,), {}),
        },
        "mmcv": {},
        "mmcv.utils": {"ConfigDict": ConfigDict},
    }
    for name, members in fakes.items():
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    return sys.modules["mmdet.core"]


@pytest.mark.parametrize("wrap", [dict, OmegaConf.create], ids=["dict", "omegaconf"])
def test_parts_are_built_from_configs(mmdet, wrap):
    two, neck, detector = (wrap({"type": kind, "nested": [1]}) for kind in ("Two", "Neck", "Detector"))
    model = MMDetBackbone(two, neck, output_shapes=SHAPES, pretrained_backbone="x")
    assert isinstance(model.backbone, TwoMaps) and model.backbone.initialised == ["x"]
    assert isinstance(model.neck, Neck) and model.neck.initialised == 1
    assert MMDetDetector(detector, pixel_mean=[0.0], pixel_std=[1.0]).detector.initialised == 1


# ------------------------------------------------------------------------------------------------------------- detector


class Detector(nn.Module):
    """Returns prepared results; remembers how it was called."""

    def __init__(self, results=()):
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 1)
        self.results = list(results)
        self.initialised = 0
        self.seen = None

    def init_weights(self):
        self.initialised += 1

    def forward_train(self, img, img_metas, gt_bboxes, gt_labels, gt_masks=None):
        self.seen = {"img": img, "metas": img_metas, "boxes": gt_bboxes, "labels": gt_labels, "masks": gt_masks}
        out = self.layer(img)
        return {
            "loss_cls": [out[:, 0].mean(), out[:, 1]],
            "loss_bbox": out.abs(),
            "acc": torch.tensor([50.0, 100.0]),
        }

    def simple_test(self, img, img_metas, rescale=False):
        self.seen = {"img": img, "metas": img_metas, "rescale": rescale}
        return self.results


class OneEntry(nn.Module):
    """As the base class of MMDetection 2 dispatches."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, img, img_metas, return_loss=True, **kwargs):
        if return_loss:
            return self.inner.forward_train(img, img_metas, **kwargs)
        assert isinstance(img, list) and isinstance(img_metas, list) and len(img) == 1
        return self.inner.simple_test(img[0], img_metas[0], **kwargs)


def wrapped(inner, one_entry=False):
    module = OneEntry(inner) if one_entry else inner
    return MMDetDetector(module, size_divisibility=16, pixel_mean=[1.0, 2.0, 3.0], pixel_std=[2.0, 2.0, 2.0])


def ground_truth(size_hw, boxes, masks=None):
    out = Instances(size_hw)
    out.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    out.gt_classes = torch.arange(len(boxes))
    if masks is not None:
        out.gt_masks = masks
    return out


def batch():
    return [{"image": torch.full((3, 20, 30), 5.0)}, {"image": torch.full((3, 10, 40), 5.0), "file_name": "b.jpg"}]


def rows(*values):
    return np.array(values, dtype=np.float32).reshape(-1, 5)


@pytest.mark.parametrize("one_entry", [False, True])
def test_inference(one_entry):
    first = [rows([1, 2, 3, 4, 0.5], [5, 6, 7, 8, 0.25]), rows(), rows([0, 0, 9, 9, 0.75])]
    inner = Detector([first, [rows(), rows(), rows()]])
    model = wrapped(inner, one_entry).eval()
    inputs = batch()
    inputs[0].update(height=40, width=90)
    one, nothing = (x["instances"] for x in model(inputs))
    assert one.image_size == (40, 90)
    assert one.pred_boxes.tensor.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [0, 0, 9, 9]]
    assert one.scores.tolist() == [0.5, 0.25, 0.75]
    assert one.pred_classes.tolist() == [0, 0, 2]
    assert not one.has("pred_masks")
    assert nothing.image_size == (10, 40) and len(nothing) == 0
    assert nothing.pred_boxes.tensor.shape == (0, 4) and nothing.pred_classes.dtype == torch.int64

    assert inner.seen["rescale"] is True
    images, (meta, other) = inner.seen["img"], inner.seen["metas"]
    assert images.shape == (2, 3, 32, 48)
    assert images[0, :, 0, 0].tolist() == [2.0, 1.5, 1.0]  # (5 - mean) / 2
    assert not images[1, :, 10:].any()
    assert meta["img_shape"] == (20, 30, 3) and meta["pad_shape"] == (32, 48, 3) and meta["ori_shape"] == (40, 90, 3)
    np.testing.assert_allclose(meta["scale_factor"], [1 / 3, 0.5, 1 / 3, 0.5], rtol=1e-6)
    assert meta["flip"] is False
    assert other["ori_shape"] == (10, 40, 3) and other["scale_factor"].tolist() == [1, 1, 1, 1]
    assert other["filename"] == "b.jpg"


def test_masks():
    mask = np.zeros((20, 30), dtype=bool)
    mask[3:5] = True
    boxes = [rows(), rows([1, 2, 3, 4, 0.5]), rows([1, 2, 3, 4, 0.5])]
    masks = [[], [mask], [torch.from_numpy(~mask)]]
    scored = (boxes, (masks, [[], [0.5], [0.5]]))  # a detector that scores its masks too
    empty = ([rows()] * 3, [[], [], []])
    for result in ((boxes, masks), scored):
        one, nothing = (x["instances"] for x in wrapped(Detector([result, empty])).eval()(batch()))
        assert one.pred_masks.dtype == torch.bool
        assert np.array_equal(one.pred_masks.numpy(), np.stack([mask, ~mask]))
        assert nothing.pred_masks.shape == (0, 10, 40)


def test_no_classes():
    (one,) = wrapped(Detector([[]])).eval()(batch()[:1])
    assert len(one["instances"]) == 0


@pytest.mark.parametrize("one_entry", [False, True])
def test_training(one_entry):
    inner = Detector()
    model = wrapped(inner, one_entry)
    inputs = batch()
    inputs[0]["instances"] = ground_truth((20, 30), [[1, 2, 3, 4], [5, 6, 7, 8]])
    inputs[1]["instances"] = ground_truth((10, 40), [])
    inputs[0].update(height=40, width=90)
    with EventStorage() as storage:
        losses = model(inputs)
        assert storage.latest()["acc"][0] == 75.0
    assert list(losses) == ["loss_cls", "loss_bbox"]
    out = inner.layer(inner.seen["img"])
    torch.testing.assert_close(losses["loss_cls"], out[:, 0].mean() + out[:, 1].mean())
    torch.testing.assert_close(losses["loss_bbox"], out.abs().mean())
    sum(losses.values()).backward()
    assert inner.layer.weight.grad is not None
    assert [x.tolist() for x in inner.seen["boxes"]] == [[[1, 2, 3, 4], [5, 6, 7, 8]], []]
    assert [x.tolist() for x in inner.seen["labels"]] == [[0, 1], []]
    assert inner.seen["masks"] is None
    assert inner.seen["metas"][0]["ori_shape"] == (20, 30, 3)  # boxes of the ground truth are those of the image


def test_training_in_half_precision():
    model = wrapped(Detector())
    inputs = [{**x, "instances": ground_truth(tuple(x["image"].shape[1:]), [])} for x in batch()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            loss = sum(model(inputs).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)


@pytest.mark.parametrize("kind", ["BitmapMasks", "PolygonMasks"])
def test_ground_truth_masks(mmdet, kind):
    inner = Detector()
    model = wrapped(inner)
    inputs = batch()
    triangle = np.array([0.0, 0, 4, 0, 4, 4])
    bitmap = torch.zeros(1, 20, 30, dtype=torch.bool)
    bitmap[0, 19, 29] = True
    masks = BitMasks(bitmap) if kind == "BitmapMasks" else PolygonMasks([[triangle]])
    inputs[0]["instances"] = ground_truth((20, 30), [[0, 0, 4, 4]], masks)
    inputs[1]["instances"] = ground_truth((10, 40), [])
    model(inputs)
    first, empty = inner.seen["masks"]
    assert type(first) is getattr(mmdet, kind)
    assert (first.height, first.width) == (empty.height, empty.width) == (32, 48)
    if kind == "BitmapMasks":
        assert first.masks.shape == (1, 32, 48) and np.argwhere(first.masks).tolist() == [[0, 19, 29]]
    else:
        assert first.masks[0][0].tolist() == triangle.tolist()
    assert empty.masks.shape == (0, 32, 48)


def test_ground_truth_masks_need_mmdetection():
    inputs = batch()[:1]
    inputs[0]["instances"] = ground_truth((20, 30), [[0, 0, 4, 4]], BitMasks(torch.zeros(1, 20, 30)))
    with pytest.raises(ImportError, match=r"mmdet.core.BitmapMasks.*pip install"):
        wrapped(Detector())(inputs)


def test_wrong_use():
    with pytest.raises(ValueError, match=r"pixel_mean.* has 1 values, but pixel_std.* 2"):
        MMDetDetector(Detector(), pixel_mean=[0.0], pixel_std=[1.0, 1.0])
    with pytest.raises(TypeError, match="got int"):
        MMDetDetector(5, pixel_mean=[0.0], pixel_std=[1.0])
    with pytest.raises(ValueError, match="no 'instances'"):
        wrapped(Detector())(batch())

    class Odd(Detector):
        def forward_train(self, *args, **kwargs):
            return {"loss": 3}

    with pytest.raises(TypeError, match="loss must be a tensor"):
        wrapped(Odd())([{**batch()[0], "instances": ground_truth((20, 30), [])}])


def test_detector_device_copies_and_states():
    model = wrapped(Detector([[rows([1, 2, 3, 4, 0.5])]])).eval()
    assert model.device == torch.device("cpu")
    assert set(model.state_dict()) == {"detector.layer.weight", "detector.layer.bias"}
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert len(other(batch()[:1])[0]["instances"]) == 1


def test_backbone_serves_in_a_model_of_ours():
    class Proposals(nn.Module):
        def forward(self, images, features, targets=None):
            found = Instances(images.image_sizes[0])
            found.proposal_boxes = Boxes(torch.tensor([[0.0, 0, 4, 4]]))
            found.objectness_logits = features["out1"].mean().reshape(1)
            return [found], {}

    backbone = MMDetBackbone(TwoMaps(), output_shapes=SHAPES)
    model = ProposalNetwork(
        backbone=backbone, proposal_generator=Proposals(), pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3
    ).eval()
    assert len(model(batch()[:1])[0]["proposals"]) == 1
