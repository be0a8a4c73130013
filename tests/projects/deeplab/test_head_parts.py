"""The layers of the heads of DeepLab and Panoptic-DeepLab; the heads are tested in test_semantic_seg.py."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from detectron2.config import get_cfg
from detectron2.layers import DepthwiseSeparableConv2d, ShapeSpec
from detectron2.projects.deeplab import DeepLabCE, add_deeplab_config
from detectron2.projects.deeplab.head_parts import (
    aspp,
    branch,
    build_loss,
    conv_pair,
    labelled_pixel_loss,
    predictor,
    sorted_by_stride,
    train_crop_hw,
)


def test_finest_maps_come_first():
    shapes = {name: ShapeSpec(channels=1, stride=stride) for name, stride in (("c", 16), ("a", 4), ("b", 8))}
    assert sorted_by_stride(shapes) == ["a", "b", "c"]


def test_size_of_training_images():
    cfg = get_cfg()
    add_deeplab_config(cfg)
    assert train_crop_hw(cfg) is None
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [32, 48]
    assert train_crop_hw(cfg) == [32, 48]
    cfg.INPUT.CROP.TYPE = "relative"
    with pytest.raises(ValueError, match=r"INPUT\.CROP\.TYPE"):
        train_crop_hw(cfg)


@pytest.mark.parametrize("make", [partial(conv_pair, 4, 6), partial(branch, 4)])
@pytest.mark.parametrize("separable", [False, True])
def test_blocks_keep_the_resolution(make, separable):
    block = make(6, "BN", separable).eval()
    assert isinstance(block, DepthwiseSeparableConv2d) == separable
    out = block(torch.randn(2, 4, 5, 7))
    assert out.shape == (2, 6, 5, 7) and (out >= 0).all()


def test_predictor_starts_near_zero():
    layer = predictor(64, 3)
    assert layer.bias is not None and layer.bias.abs().max() == 0
    assert 0 < layer.weight.abs().max() < 0.01


def test_aspp_needs_a_training_size_that_fits_the_stride():
    shape = ShapeSpec(channels=4, stride=16)
    options = {"norm": "BN", "dropout": 0.0, "depthwise_separable": False}
    module = aspp(shape, 6, [1, 2, 3], train_size_hw=(32, 48), **options).eval()
    assert module(torch.randn(1, 4, 2, 3)).shape == (1, 6, 2, 3)
    with pytest.raises(ValueError, match="multiple of the feature map's stride"):
        aspp(shape, 6, [1, 2, 3], train_size_hw=(32, 40), **options)


def test_loss_of_labelled_pixels():
    logits, targets = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    targets[0, 0] = 255
    plain = labelled_pixel_loss(logits, targets, ignore_value=255)
    assert plain.item() == pytest.approx(F.cross_entropy(logits, targets, ignore_index=255).item(), rel=1e-6)
    doubled = labelled_pixel_loss(logits, targets, torch.full((2, 4, 5), 2.0), ignore_value=255)
    assert doubled.item() == pytest.approx(2 * plain.item(), rel=1e-6)
    assert labelled_pixel_loss(logits, torch.full_like(targets, 255), ignore_value=255) == 0


def test_losses_by_name():
    assert isinstance(build_loss("hard_pixel_mining", 255, 0.5), DeepLabCE)
    assert callable(build_loss("cross_entropy", 255))
    with pytest.raises(ValueError, match="loss_type must be"):
        build_loss("dice", 255)
