"""The dilated networks of DeepLab: resolutions, dilations and what can be built."""

import pytest
import torch

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock, DeformBottleneckBlock
from detectron2.projects.deeplab import DeepLabStem, add_deeplab_config, build_resnet_deeplab_backbone


def _config(*changes):
    cfg = get_cfg()
    add_deeplab_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_resnet_deeplab_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    options = cfg.MODEL.RESNETS
    options.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    options.STRIDE_IN_1X1 = False
    options.NORM = "BN"
    options.STEM_OUT_CHANNELS, options.RES2_OUT_CHANNELS, options.WIDTH_PER_GROUP = 8, 8, 2
    cfg.merge_from_list(list(changes))
    return cfg


def _build(*changes):
    return build_resnet_deeplab_backbone(_config(*changes), ShapeSpec(channels=3))


@pytest.mark.parametrize("size_hw", [(32, 32), (33, 65)])
def test_stem(size_hw):
    stem = DeepLabStem(3, 8).eval()
    out = stem(torch.zeros(2, 3, *size_hw))
    assert out.shape == (2, 8, -(-size_hw[0] // 4), -(-size_hw[1] // 4))
    assert [tuple(c.weight.shape) for c in (stem.conv1, stem.conv2, stem.conv3)] == [
        (4, 3, 3, 3),
        (4, 4, 3, 3),
        (8, 4, 3, 3),
    ]
    assert stem(torch.zeros(0, 3, 32, 32)).shape == (0, 8, 8, 8)


@pytest.mark.parametrize(
    ("res4", "res5", "strides"),
    [(1, 1, [4, 8, 16, 32]), (1, 2, [4, 8, 16, 16]), (2, 4, [4, 8, 8, 8])],
)
def test_dilation_replaces_stride(res4, res5, strides):
    net = _build("MODEL.RESNETS.RES4_DILATION", res4, "MODEL.RESNETS.RES5_DILATION", res5).eval()
    assert [s.stride for s in net.output_shape().values()] == strides
    outputs = net(torch.randn(1, 3, 64, 96))
    assert [tuple(o.shape[1:]) for o in outputs.values()] == [
        (8 * 2**i, 64 // s, 96 // s) for i, s in enumerate(strides)
    ]
    blocks = {name: [b.conv2.dilation[0] for b in getattr(net, name)] for name in ("res2", "res4", "res5")}
    assert blocks == {"res2": [1] * 3, "res4": [res4] * 6, "res5": [res5, 2 * res5, 4 * res5]}


def test_default_backbone_is_r52():
    net = _build()
    assert isinstance(net.stem, DeepLabStem)
    convolutions = [n for n, m in net.named_modules() if isinstance(m, torch.nn.Conv2d) and "shortcut" not in n]
    assert len(convolutions) == 51  # the classifier would be the 52nd layer
    assert isinstance(build_backbone(_config()), type(net))


def test_options():
    net = _build("MODEL.RESNETS.STEM_TYPE", "basic", "MODEL.RESNETS.OUT_FEATURES", ["stem", "res3"])
    assert isinstance(net.stem, BasicStem)
    assert list(net.output_shape()) == ["stem", "res3"] and not hasattr(net, "res4")
    net = _build("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, False, False, True], "MODEL.RESNETS.RES5_DILATION", 2)
    assert isinstance(net.res4[0], BottleneckBlock)
    assert [type(b) for b in net.res5] == [DeformBottleneckBlock] * 3
    assert [b.conv2.dilation for b in net.res5] == [(2, 2), (4, 4), (8, 8)]
    net = _build("MODEL.BACKBONE.FREEZE_AT", 2)
    assert not any(p.requires_grad for p in [*net.stem.parameters(), *net.res2.parameters()])
    assert all(p.requires_grad for p in net.res3.parameters())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("DEPTH", 18, "bottleneck"),
        ("STEM_TYPE", "seven", "STEM_TYPE"),
        ("RES4_DILATION", 3, "RES4_DILATION"),
        ("RES5_DILATION", 3, "RES5_DILATION"),
        ("RES4_DILATION", 2, "must be 4"),
        ("RES5_MULTI_GRID", [1, 2], "RES5_MULTI_GRID"),
        ("OUT_FEATURES", ["res6"], "OUT_FEATURES"),
    ],
)
def test_what_cannot_be_built(key, value, message):
    with pytest.raises(ValueError, match=message):
        _build(f"MODEL.RESNETS.{key}", value)


def test_compiles_without_a_break():
    net = _build("MODEL.RESNETS.RES5_DILATION", 2).eval()
    for part, channels in ((net.stem, 3), (net.res5, 32)):  # the whole network takes ten seconds
        x = torch.randn(1, channels, 16, 16)
        torch.testing.assert_close(torch.compile(part, fullgraph=True, backend="eager")(x), part(x))
