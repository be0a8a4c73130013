import pytest
import torch
from torch import nn

from detectron2 import model_zoo
from detectron2.modeling import META_ARCH_REGISTRY, build_model


class NothingButALayer(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.layer = nn.Linear(1, cfg.MODEL.ROI_HEADS.NUM_CLASSES)


META_ARCH_REGISTRY.register(NothingButALayer)


def test_model_is_found_by_name_and_put_on_the_device(tiny_rcnn_cfg):
    model = build_model(tiny_rcnn_cfg("MODEL.META_ARCHITECTURE", "NothingButALayer"))
    assert model.layer.out_features == 3 and model.training
    meta = build_model(tiny_rcnn_cfg("MODEL.META_ARCHITECTURE", "NothingButALayer", "MODEL.DEVICE", "meta"))
    assert meta.layer.weight.device.type == "meta"


def test_what_is_not_a_model_is_named(tiny_rcnn_cfg, monkeypatch):
    monkeypatch.setitem(META_ARCH_REGISTRY._obj_map, "Nothing", lambda cfg: None)
    with pytest.raises(TypeError, match=r"'Nothing' built a NoneType; a model must derive from torch.nn.Module"):
        build_model(tiny_rcnn_cfg("MODEL.META_ARCHITECTURE", "Nothing"))


def test_unknown_name(tiny_rcnn_cfg):
    with pytest.raises(KeyError, match="NoSuchArchitecture"):
        build_model(tiny_rcnn_cfg("MODEL.META_ARCHITECTURE", "NoSuchArchitecture"))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (["MODEL.FPN.NORM", "XX"], "MODEL.FPN.NORM 'XX'"),
        (["MODEL.RESNETS.NORM", "GN", "MODEL.RESNETS.WIDTH_PER_GROUP", "24"], "MODEL.RESNETS.WIDTH_PER_GROUP 24"),
        (["MODEL.RPN.IOU_LABELS", "[0, 1]"], r"MODEL.RPN.IOU_LABELS \[0, 1\]"),
        (["MODEL.RPN.IOU_THRESHOLDS", "[0.6]"], r"MODEL.RPN.IOU_THRESHOLDS \[0.6\]"),
        (["MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [9], [10]]"], "MODEL.ANCHOR_GENERATOR.SIZES"),
        (["MODEL.ROI_MASK_HEAD.POOLER_TYPE", "Foo", "MODEL.MASK_ON", "True"], "MODEL.ROI_MASK_HEAD.POOLER_TYPE 'Foo'"),
        (["MODEL.FPN.IN_FEATURES", "['res2', 'res4']"], "MODEL.FPN.IN_FEATURES"),
    ],
)
def test_what_a_part_refuses_is_named_as_in_the_config(change, found):
    cfg = model_zoo.get_config("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")
    small = ["MODEL.DEVICE", "cpu", "MODEL.FPN.OUT_CHANNELS", 32, "MODEL.ROI_BOX_HEAD.FC_DIM", 8]
    cfg.merge_from_list([*small, *change])
    with pytest.raises(ValueError, match=found):
        build_model(cfg)


class TorchFails(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        if cfg.MODEL.MASK_ON:
            raise torch.OutOfMemoryError("Tried to allocate 48.00 GiB for 48 tensors")
        torch.zeros(32).view(cfg.MODEL.FPN.OUT_CHANNELS)


META_ARCH_REGISTRY.register(TorchFails)


def test_errors_of_pytorch(tiny_rcnn_cfg):
    options = (
        "MODEL.META_ARCHITECTURE",
        "TorchFails",
        "MODEL.DEVICE",
        "cpu",
        "MODEL.FPN.OUT_CHANNELS",
        48,
        "MODEL.MASK_ON",
        False,
    )
    with pytest.raises(ValueError, match=r"invalid.*MODEL\.FPN\.OUT_CHANNELS 48"):
        build_model(tiny_rcnn_cfg(*options))
    with pytest.raises(torch.OutOfMemoryError):
        build_model(tiny_rcnn_cfg(*options[:-1], True))


@pytest.mark.parametrize(
    ("available", "count", "device", "found"),
    [(False, 0, "cuda", "no usable GPU"), (False, 0, "cuda:1", "no usable GPU"), (True, 1, "cuda:1", "only 1")],
)
def test_a_missing_gpu_is_said_before_the_model_is_built(monkeypatch, tiny_rcnn_cfg, available, count, device, found):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    cfg = tiny_rcnn_cfg("MODEL.META_ARCHITECTURE", "NoSuchArchitecture", "MODEL.DEVICE", device)
    with pytest.raises(ValueError, match=rf"{found}.*MODEL.DEVICE cpu"):
        build_model(cfg)


@pytest.mark.parametrize(("masks", "told"), [(True, True), (False, False)])
def test_a_model_without_the_choice_of_masks_is_told_of(tiny_rcnn_cfg, caplog, masks, told):
    common = ("MODEL.META_ARCHITECTURE", "NothingButALayer", "MODEL.MASK_ON", masks)
    build_model(tiny_rcnn_cfg(*common))
    assert "MASK_FORMAT" not in caplog.text
    build_model(tiny_rcnn_cfg(*common, "TEST.MASK_FORMAT", "rle"))
    assert ("TEST.MASK_FORMAT is 'rle', but NothingButALayer gives whole masks" in caplog.text) is told
