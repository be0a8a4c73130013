import pytest
import torch
from torch import nn

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


def test_unknown_name(tiny_rcnn_cfg):
    with pytest.raises(KeyError, match="NoSuchArchitecture"):
        build_model(tiny_rcnn_cfg("MODEL.META_ARCHITECTURE", "NoSuchArchitecture"))


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
