"""Pyramids on top of a toy backbone: shapes, names, values by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.backbone.fpn import (
    FPN,
    LastLevelMaxPool,
    LastLevelP6P7,
    _assert_strides_are_log2_contiguous,
    build_resnet_fpn_backbone,
    build_retinanet_resnet_fpn_backbone,
)


class Strides(Backbone):
    """Average pooling to strides 4, 8, 16, 32, with 3 channels each."""

    def __init__(self):
        super().__init__()
        self._out_feature_strides = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
        self._out_feature_channels = dict.fromkeys(self._out_feature_strides, 3)
        self._out_features = list(self._out_feature_strides)

    def forward(self, x):
        return {k: F.avg_pool2d(x, s, ceil_mode=True) for k, s in self._out_feature_strides.items()}


ALL = ["res2", "res3", "res4", "res5"]


@pytest.mark.parametrize(
    ("in_features", "top_block", "names"),
    [
        (["res4"], None, ["p4"]),
        (ALL, None, ["p2", "p3", "p4", "p5"]),
        (ALL, LastLevelMaxPool(), ["p2", "p3", "p4", "p5", "p6"]),
        (ALL[1:], LastLevelP6P7(3, 6), ["p3", "p4", "p5", "p6", "p7"]),
        (ALL[1:], LastLevelP6P7(6, 6, "p5"), ["p3", "p4", "p5", "p6", "p7"]),
    ],
)
@pytest.mark.parametrize("num_images", [0, 2])
def test_output_shape_is_that_of_the_output(in_features, top_block, names, num_images):
    fpn = FPN(Strides(), in_features, 6, top_block=top_block)
    assert list(fpn.output_shape()) == names
    outputs = fpn(torch.zeros(num_images, 3, 128, 256))
    assert list(outputs) == names
    for name, spec in fpn.output_shape().items():
        assert spec.channels == 6 and spec.stride == 2 ** int(name[1:])
        assert outputs[name].shape == (num_images, 6, 128 // spec.stride, 256 // spec.stride)


def test_constraints_on_the_input():
    fpn = FPN(Strides(), ALL[:3], 6, top_block=None)
    assert fpn.size_divisibility == 16 and fpn.padding_constraints == {"square_size": 0}
    assert FPN(Strides(), ALL, 6, square_pad=64).padding_constraints == {"square_size": 64}


def test_names_of_parameters():
    assert set(FPN(Strides(), ALL[2:], 6, top_block=LastLevelP6P7(3, 6)).state_dict()) == {
        f"{m}.{p}"
        for m in ("fpn_lateral4", "fpn_output4", "fpn_lateral5", "fpn_output5", "top_block.p6", "top_block.p7")
        for p in ("weight", "bias")
    }
    assert set(FPN(Strides(), ["res5"], 32, norm="GN").state_dict()) == {
        f"{m}.{p}" for m in ("fpn_lateral5", "fpn_output5") for p in ("weight", "norm.weight", "norm.bias")
    }


@pytest.mark.parametrize(("fuse_type", "divisor"), [("sum", 1), ("avg", 2)])
def test_values_by_hand(fuse_type, divisor):
    fpn = FPN(Strides(), ["res4", "res5"], 3, fuse_type=fuse_type)
    for level in (4, 5):
        lateral, output = getattr(fpn, f"fpn_lateral{level}"), getattr(fpn, f"fpn_output{level}")
        for layer in (lateral, output):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        lateral.weight.data[range(3), range(3), 0, 0] = 1
        output.weight.data[range(3), range(3), 1, 1] = 1
    x = torch.randn(1, 3, 64, 32)
    below = Strides()(x)
    outputs = fpn(x)
    assert torch.allclose(outputs["p5"], below["res5"])
    upsampled = below["res5"].repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(outputs["p4"], (below["res4"] + upsampled) / divisor)


def test_last_levels():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert LastLevelMaxPool()(x)[0].tolist() == [[[[0, 2], [8, 10]]]]
    p6, p7 = LastLevelP6P7(1, 2)(x)
    assert p6.shape == (1, 2, 2, 2) and p7.shape == (1, 2, 1, 1)


def test_sizes_that_do_not_divide_are_explained():
    with pytest.raises(ValueError, match="pad the input images to multiples of 32"):
        FPN(Strides(), ALL, 6)(torch.zeros(1, 3, 100, 128))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"in_features": []}, "nothing given"),
        ({"in_features": ["res5", "res6"]}, "res6"),
        ({"in_features": ["res2", "res4"]}, "16 is not twice 4"),
        ({"in_features": ["res5", "res4"]}, "16 is not twice 32"),
        ({"fuse_type": "max"}, "'sum' or 'avg'"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        FPN(Strides(), **{"in_features": ALL, "out_channels": 6, **kwargs})


def test_strides():
    _assert_strides_are_log2_contiguous([])
    _assert_strides_are_log2_contiguous([1, 2, 4])
    with pytest.raises(ValueError, match="not a power of two"):
        _assert_strides_are_log2_contiguous([6, 12])


@pytest.mark.parametrize(
    ("build", "in_features", "names"),
    [
        (build_resnet_fpn_backbone, ALL, ["p2", "p3", "p4", "p5", "p6"]),
        (build_retinanet_resnet_fpn_backbone, ALL[1:], ["p3", "p4", "p5", "p6", "p7"]),
    ],
)
def test_config(build, in_features, names):
    cfg = get_cfg()
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 4
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 2
    cfg.MODEL.RESNETS.OUT_FEATURES = in_features
    cfg.MODEL.FPN.IN_FEATURES = in_features
    cfg.MODEL.FPN.OUT_CHANNELS = 6
    cfg.MODEL.FPN.FUSE_TYPE = "avg"
    fpn = build(cfg, ShapeSpec(channels=3))
    assert list(fpn.output_shape()) == names and fpn.size_divisibility == 32
    outputs = fpn(torch.zeros(1, 3, 64, 128))
    assert [tuple(outputs[name].shape[1:]) for name in names] == [
        (6, 64 // s.stride, 128 // s.stride) if s.stride <= 64 else (6, 1, 1) for s in fpn.output_shape().values()
    ]
