import logging

import pytest
import torch

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from detectron2.projects.point_rend import PointRendMaskHead, PointRendROIHeads


def old_names(state_dict):
    """The names that a checkpoint of the first release has."""
    return {
        k.replace("mask_head.coarse_head.fc", "mask_coarse_head.coarse_mask_fc")
        .replace("mask_head.coarse_head", "mask_coarse_head")
        .replace("mask_head.point_head", "mask_point_head"): v
        for k, v in state_dict.items()
    }


@pytest.fixture
def old_model(tiny_config):
    def make(name="CoarseMaskHead"):
        cfg = tiny_config("standard", "MODEL.ROI_HEADS.NAME", "PointRendROIHeads", "MODEL.ROI_MASK_HEAD.NAME", name)
        cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE = "" if name == "PointRendMaskHead" else "ROIAlignV2"
        return build_model(cfg)

    return make


def test_old_config(old_model, make_batch, caplog):
    with caplog.at_level(logging.WARNING):
        model = old_model()
    assert "PointRendMaskHead" in caplog.text
    assert isinstance(model.roi_heads, PointRendROIHeads) and isinstance(model.roi_heads.mask_head, PointRendMaskHead)
    with torch.no_grad():
        assert model.eval()(make_batch(False))[0]["instances"].has("pred_masks")


def test_new_head_is_left_as_it_is(old_model, caplog):
    with caplog.at_level(logging.WARNING):
        model = old_model("PointRendMaskHead")
    assert not caplog.text and isinstance(model.roi_heads.mask_head, PointRendMaskHead)


@pytest.mark.parametrize("renamed", [False, True])
def test_old_checkpoint(old_model, renamed, tmp_path):
    source, target = old_model(), old_model()
    state = old_names(source.state_dict()) if renamed else source.state_dict()
    assert ("roi_heads.mask_coarse_head.coarse_mask_fc1.weight" in state) == renamed
    result = target.load_state_dict(dict(state))
    assert not result.missing_keys and not result.unexpected_keys
    for name, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict()[name])

    torch.save({"model": state}, tmp_path / "model.pth")
    target = old_model()
    DetectionCheckpointer(target).load_for_inference(str(tmp_path / "model.pth"))
    for name, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict()[name])
