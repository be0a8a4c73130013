"""Residual networks with few channels: shapes, names of parameters, freezing, and every option of the config."""

import copy
import functools
import pickle

import pytest
import torch
from torch import nn

from detectron2.config import get_cfg
from detectron2.layers import DeformConv, FrozenBatchNorm2d, ModulatedDeformConv, ShapeSpec
from detectron2.modeling.backbone.resnet import (
    BasicBlock,
    BasicStem,
    BottleneckBlock,
    DeformBottleneckBlock,
    ResNet,
    build_resnet_backbone,
    make_stage,
)

NAMES = ["res2", "res3", "res4", "res5"]


def tiny(out_features=None, num_stages=4, **kwargs):
    stages, channels = [], 8
    for i in range(num_stages):
        stages.append(
            ResNet.make_stage(
                BottleneckBlock,
                2,
                in_channels=channels,
                out_channels=16 * 2**i,
                bottleneck_channels=4,
                stride_per_block=[1 if i == 0 else 2, 1],
            )
        )
        channels = 16 * 2**i
    return ResNet(BasicStem(3, 8), stages, out_features=out_features, **kwargs)


def config(**options):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 16
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
    cfg.MODEL.RESNETS.OUT_FEATURES = NAMES
    for name, value in options.items():
        setattr(cfg.MODEL.RESNETS, name, value)
    return cfg


def build(**options) -> ResNet:
    return build_resnet_backbone(config(**options), ShapeSpec(channels=3))


def check_shapes(net, size_hw=(64, 96), num_images=2):
    outputs = net(torch.zeros(num_images, 3, *size_hw))
    shapes = net.output_shape()
    assert list(outputs) == list(shapes) or set(outputs) == set(shapes)
    for name, spec in shapes.items():
        expected = (num_images, spec.channels, size_hw[0] // spec.stride, size_hw[1] // spec.stride)
        assert outputs[name].shape == expected, name


def test_no_images():
    assert tiny(["res5"]).eval()(torch.zeros(0, 3, 32, 32))["res5"].shape == (0, 128, 1, 1)


@pytest.mark.parametrize("names", [["stem"], ["res2"], ["res4", "res2"], ["stem", *NAMES]])
def test_output_shape_is_that_of_the_output(names):
    net = tiny(names)
    assert list(net.output_shape()) == names
    check_shapes(net)


def test_last_layer_is_the_default_output():
    assert list(tiny().output_shape()) == ["res5"]
    assert list(tiny(num_stages=0).output_shape()) == ["stem"]


def test_stages_behind_the_last_output_are_left_out():
    net = tiny(["res3"])
    assert net.stage_names == ("res2", "res3")
    assert not any(name.startswith(("res4", "res5")) for name in net.state_dict())


def test_classifier():
    net = tiny(["linear", "res3"], num_classes=7)
    outputs = net(torch.randn(2, 3, 64, 64))
    assert outputs["linear"].shape == (2, 7) and outputs["res3"].shape == (2, 32, 8, 8)
    assert net.output_shape()["linear"].channels == 7
    assert list(tiny(num_classes=7).output_shape()) == ["linear"]


def test_names_of_parameters():
    keys = set(tiny(["res2"]).state_dict())
    assert {"stem.conv1.weight", "stem.conv1.norm.running_var", "res2.0.shortcut.norm.bias"} <= keys
    assert {f"res2.{i}.conv{j}.{k}" for i in (0, 1) for j in (1, 2, 3) for k in ("weight", "norm.weight")} <= keys
    assert not any("res2.1.shortcut" in key or key.endswith("conv1.bias") for key in keys)


@pytest.mark.parametrize("freeze_at", range(6))
def test_freezing(freeze_at):
    net = tiny(NAMES, freeze_at=freeze_at)
    for i, stage in enumerate([net.stem, *net.stages], start=1):
        frozen = i <= freeze_at
        assert all(p.requires_grad != frozen for p in stage.parameters())
        norms = [m for m in stage.modules() if isinstance(m, (nn.BatchNorm2d, FrozenBatchNorm2d))]
        assert norms and all(isinstance(m, FrozenBatchNorm2d) == frozen for m in norms)


def test_freezing_more_than_there_is(caplog):
    tiny(NAMES, freeze_at=5)
    assert not caplog.records
    net = tiny(["res2"], freeze_at=3)
    assert not any(p.requires_grad for p in net.parameters())
    assert "FREEZE_AT) is 3, but the backbone has 2 parts" in caplog.text


def test_freeze_returns_the_network():
    net = tiny()
    assert net.freeze(2) is net and not next(net.res2.parameters()).requires_grad


def test_block_is_branch_plus_shortcut():
    block = BottleneckBlock(6, 6, bottleneck_channels=3).eval()
    x = torch.randn(2, 6, 5, 5)
    branch = block.conv3(block.conv2(block.conv1(x).relu()).relu())
    before = x.clone()
    assert torch.allclose(block(x), (branch + x).relu(), atol=1e-6)
    assert torch.equal(x, before)


@pytest.mark.parametrize("stride_in_1x1", [True, False])
def test_place_of_the_stride(stride_in_1x1):
    block = BottleneckBlock(4, 8, bottleneck_channels=4, stride=2, stride_in_1x1=stride_in_1x1, num_groups=2)
    assert (block.conv1.stride[0], block.conv2.stride[0]) == ((2, 1) if stride_in_1x1 else (1, 2))
    assert block.conv2.groups == 2 and block.stride == 2
    assert block(torch.zeros(1, 4, 8, 8)).shape == (1, 8, 4, 4)


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_deformable_block_starts_as_an_ordinary_one(modulated, groups):
    arguments = {"bottleneck_channels": 4, "stride": 2, "dilation": 2, "norm": ""}
    plain = BottleneckBlock(4, 8, **arguments)
    deform = DeformBottleneckBlock(4, 8, deform_modulated=modulated, deform_num_groups=groups, **arguments)
    assert isinstance(deform.conv2, ModulatedDeformConv if modulated else DeformConv)
    assert deform.conv2_offset.out_channels == (27 if modulated else 18) * groups
    deform.load_state_dict(plain.state_dict(), strict=False)
    if modulated:  # every sampling point starts with the weight sigmoid(0)
        plain.conv2.weight.data /= 2
    x = torch.randn(1, 4, 9, 9)
    assert torch.allclose(deform(x), plain(x), atol=1e-5)
    deform(x).sum().backward()
    assert deform.conv2_offset.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("block", [BasicBlock, functools.partial(BottleneckBlock, bottleneck_channels=2)])
@pytest.mark.parametrize(("channels_out", "stride"), [(4, 1), (4, 2), (6, 1), (6, 2)])
def test_the_input_is_projected_where_the_shapes_differ(block, channels_out, stride):
    block = block(4, channels_out, stride=stride)
    assert (block.shortcut is None) == (channels_out == 4 and stride == 1)
    assert block(torch.randn(1, 4, 8, 8)).shape == (1, channels_out, 8 // stride, 8 // stride)


def test_make_stage_spreads_arguments_over_blocks():
    blocks = ResNet.make_stage(
        BottleneckBlock,
        3,
        in_channels=4,
        out_channels=8,
        bottleneck_channels=2,
        stride_per_block=[2, 1, 1],
        dilation_per_block=[1, 1, 2],
    )
    assert [b.in_channels for b in blocks] == [4, 8, 8] and [b.stride for b in blocks] == [2, 1, 1]
    assert [b.conv2.dilation[0] for b in blocks] == [1, 1, 2]
    assert ResNet.make_stage(BasicBlock, 0, in_channels=4, out_channels=4) == []


def test_make_stage_checks_lists():
    with pytest.raises(ValueError, match="stride_per_block has 2 values for a stage of 3 blocks"):
        ResNet.make_stage(BasicBlock, 3, in_channels=4, out_channels=4, stride_per_block=[1, 1])
    with pytest.raises(ValueError, match="not both"):
        ResNet.make_stage(BasicBlock, 1, in_channels=4, out_channels=4, stride=1, stride_per_block=[1])


def test_old_make_stage():
    blocks = make_stage(BasicBlock, 2, 2, in_channels=4, out_channels=8)
    assert [b.stride for b in blocks] == [2, 1]
    assert [b.stride for b in make_stage(BasicBlock, 2, in_channels=4, out_channels=8, stride=1)] == [1, 1]


@pytest.mark.parametrize(
    ("depth", "block", "counts", "widths"),
    [
        (18, BasicBlock, [2, 2, 2, 2], [64, 128, 256, 512]),
        (34, BasicBlock, [3, 4, 6, 3], [64, 128, 256, 512]),
        (50, BottleneckBlock, [3, 4, 6, 3], [256, 512, 1024, 2048]),
        (101, BottleneckBlock, [3, 4, 23, 3], [256, 512, 1024, 2048]),
        (152, BottleneckBlock, [3, 8, 36, 3], [256, 512, 1024, 2048]),
    ],
)
def test_default_stages(depth, block, counts, widths):
    with torch.device("meta"):
        stages = ResNet.make_default_stages(depth, norm="FrozenBN")
    assert [len(s) for s in stages] == counts
    assert [s[-1].out_channels for s in stages] == widths
    assert [s[0].stride for s in stages] == [1, 2, 2, 2]
    assert all(type(b) is block for s in stages for b in s)
    if block is BottleneckBlock:
        assert [s[0].conv1.out_channels for s in stages] == [64, 128, 256, 512]


def test_default_stages_of_another_class_and_depth():
    with torch.device("meta"):
        stages = ResNet.make_default_stages(50, DeformBottleneckBlock, deform_modulated=True)
    assert type(stages[0][0]) is DeformBottleneckBlock
    with pytest.raises(ValueError, match=r"DEPTH.* 42"):
        ResNet.make_default_stages(42)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"\['res6'\] do not exist"):
        tiny(["res2", "res6"])
    with pytest.raises(ValueError, match="stage res2 has no blocks"):
        ResNet(BasicStem(3, 8), [[]])
    with pytest.raises(TypeError, match="stage res2 holds a Conv2d"):
        ResNet(BasicStem(3, 8), [[nn.Conv2d(8, 8, 1)]])
    with pytest.raises(ValueError, match=r"\(3, 32, 32\)"):
        tiny()(torch.zeros(3, 32, 32))


def test_config_builds_a_pyramid_of_maps():
    net = build()
    shapes = net.output_shape()
    assert [(s.channels, s.stride) for s in shapes.values()] == [(16, 4), (32, 8), (64, 16), (128, 32)]
    check_shapes(net)
    assert net.res2[0].conv1.stride == (1, 1) and net.res3[0].conv1.stride == (2, 2)  # STRIDE_IN_1X1


def test_config_res5_dilation():
    net = build(RES5_DILATION=2)
    assert net.output_shape()["res5"].stride == 16
    assert net.res5[0].conv2.dilation == (2, 2) and net.res4[0].conv2.dilation == (1, 1)
    check_shapes(net)


def test_config_resnext():
    net = build(NUM_GROUPS=8, WIDTH_PER_GROUP=2, STRIDE_IN_1X1=False, NORM="BN")
    assert net.res2[0].conv2.groups == 8 and net.res2[0].conv2.in_channels == 16
    assert net.res4[0].conv2.in_channels == 64 and net.res4[0].conv2.stride == (2, 2)
    assert isinstance(net.stem.conv1.norm, nn.BatchNorm2d)


def test_config_deformable_stages():
    net = build(DEFORM_ON_PER_STAGE=[False, True, False, True], DEFORM_MODULATED=True, DEFORM_NUM_GROUPS=2)
    kinds = [type(stage[0]) for stage in net.stages]
    assert kinds == [BottleneckBlock, DeformBottleneckBlock, BottleneckBlock, DeformBottleneckBlock]
    assert net.res3[0].conv2_offset.out_channels == 54
    check_shapes(net)


def test_config_basic_blocks_and_freezing():
    cfg = config(DEPTH=18, RES2_OUT_CHANNELS=8, OUT_FEATURES=["res3"])
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    net = build_resnet_backbone(cfg, ShapeSpec(channels=4))
    assert net.stem.conv1.in_channels == 4
    assert not net.res2[0].conv1.weight.requires_grad and net.res3[0].conv1.weight.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"DEPTH": 20}, "DEPTH.* 20"),
        ({"RES5_DILATION": 3}, "RES5_DILATION must be 1 or 2"),
        ({"OUT_FEATURES": ["res6"]}, "OUT_FEATURES"),
        ({"DEPTH": 18, "RES2_OUT_CHANNELS": 256}, r"RES2_OUT_CHANNELS 256 \(must be 64"),
        ({"DEPTH": 34, "RES2_OUT_CHANNELS": 64, "DEFORM_ON_PER_STAGE": [True] * 4}, "DEFORM_ON_PER_STAGE"),
    ],
)
def test_config_errors(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_copies_are_independent():
    net = tiny(NAMES)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert other.stages[0] is other.res2 and other.stages[0] is not net.res2
        other.load_state_dict(net.state_dict())
        x = torch.randn(1, 3, 32, 32)
        assert torch.equal(net.eval()(x)["res4"], other.eval()(x)["res4"])


@pytest.mark.parametrize("block", [BottleneckBlock, DeformBottleneckBlock])
def test_weights_are_drawn_when_all_layers_of_a_block_are_made(block):
    torch.manual_seed(0)
    got = block(8, 16, bottleneck_channels=8)
    torch.manual_seed(0)
    for shape in [(16, 8, 1), (8, 8, 1)] + [(18, 8, 3)] * (block is DeformBottleneckBlock) + [(8, 8, 3), (16, 8, 1)]:
        nn.Conv2d(shape[1], shape[0], shape[2], bias=shape[0] == 18)  # what each layer draws when it is made
    for layer in (got.conv1, got.conv2, got.conv3, got.shortcut):
        std = (2 / (layer.weight.shape[0] * layer.weight.shape[2] ** 2)) ** 0.5
        assert torch.equal(layer.weight, torch.empty_like(layer.weight).normal_(0, std))
