"""RegNet: widths of published networks, the same numbers as torchvision's implementation, freezing, odd inputs."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torchvision.models.regnet import BlockParams
from torchvision.models.regnet import RegNet as TorchvisionRegNet

from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone import FPN, Backbone, RegNet
from detectron2.modeling.backbone.regnet import (
    AnyNet,
    ResBasicBlock,
    ResBottleneckBlock,
    ResStem,
    ResStemCifar,
    SimpleStem,
    SqueezeExcitation,
    VanillaBlock,
)

ALL = ["stem", "s1", "s2", "s3", "s4"]


def make(**kwargs) -> RegNet:
    """Widths 8, 16, 32 and 64, one block each but for the last, which has two."""
    arguments = {
        "stem_class": SimpleStem,
        "stem_width": 8,
        "block_class": ResBottleneckBlock,
        "depth": 5,
        "w_a": 14.0,
        "w_0": 8,
        "w_m": 2.0,
        "group_width": 4,
    }
    return RegNet(**{**arguments, **kwargs})


def widths(model):
    return [getattr(model, name).b1.out_channels for name in model.stage_names]


# Tables 5 and 6 of the paper, and the settings published with it: depth, w_a, w_0, w_m, g, then depths and widths.
@pytest.mark.parametrize(
    ("depth", "w_a", "w_0", "w_m", "group_width", "depths", "expected_widths"),
    [
        (13, 36.44, 24, 2.49, 8, [1, 1, 4, 7], [24, 56, 152, 368]),  # X, 200 MF
        (22, 24.48, 24, 2.54, 16, [1, 2, 7, 12], [32, 64, 160, 384]),  # X, 400 MF
        (23, 38.65, 96, 2.43, 40, [2, 5, 14, 2], [80, 240, 560, 1360]),  # X, 4 GF
        (22, 31.41, 96, 2.24, 64, [2, 6, 12, 2], [128, 192, 512, 1088]),  # Y, 4 GF
        (18, 106.23, 200, 2.48, 112, [2, 4, 11, 1], [224, 448, 1232, 3024]),  # Y, 16 GF
    ],
)
def test_published_networks(depth, w_a, w_0, w_m, group_width, depths, expected_widths):
    with torch.device("meta"):
        model = make(depth=depth, w_a=w_a, w_0=w_0, w_m=w_m, group_width=group_width, stem_width=32)
    assert widths(model) == expected_widths
    assert [len(getattr(model, name)) for name in model.stage_names] == depths
    blocks = [getattr(model, name).b1 for name in model.stage_names]
    assert [b.f.b.groups * group_width for b in blocks] == expected_widths


@pytest.mark.parametrize("se_ratio", [0.0, 0.25])
def test_same_numbers_as_torchvision(se_ratio):
    other = TorchvisionRegNet(
        BlockParams.from_init_params(depth=5, w_0=8, w_a=14.0, w_m=2.0, group_width=4, se_ratio=se_ratio or None),
        stem_width=8,
    )
    model = make(se_ratio=se_ratio, out_features=ALL)
    theirs = {k: v for k, v in other.state_dict().items() if not k.startswith("fc.")}
    ours = model.state_dict()
    assert [v.shape for v in ours.values()] == [v.shape for v in theirs.values()]
    state = {k: v + torch.rand(v.shape) if "running" in k else v for k, v in theirs.items()}
    other.load_state_dict(state, strict=False)
    model.load_state_dict(dict(zip(ours, state.values(), strict=True)))
    x = torch.randn(2, 3, 37, 50)
    for train in (False, True):
        found, expected = model.train(train)(x), other.train(train).stem(x)
        torch.testing.assert_close(found["stem"], expected)
        for name, stage in zip(ALL[1:], other.trunk_output, strict=True):
            expected = stage(expected)
            torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-5)


def test_names_of_parameters():
    keys = set(make(se_ratio=0.5).state_dict())
    block = "proj.weight bn.weight f.a.weight f.a_bn.running_mean f.b.weight f.b_bn.bias f.c.weight f.c_bn.weight"
    assert {f"s1.b1.{name}" for name in block.split()} < keys
    assert {"stem.conv.weight", "stem.bn.bias", "s4.b2.f.a.weight"} < keys
    assert {f"s1.b1.f.se.f_ex.{i}.{name}" for i in (0, 2) for name in ("weight", "bias")} < keys
    assert "s4.b2.proj.weight" not in keys and not any("af" in k.split(".")[-2] for k in keys)


@pytest.mark.parametrize("size_hw", [(1, 1), (32, 64), (33, 47)])
def test_output_shapes(size_hw):
    model = make(out_features=ALL)
    assert isinstance(model, Backbone) and list(model.output_shape()) == ALL
    found = model.eval()(torch.zeros(2, 3, *size_hw))
    for i, (name, shape) in enumerate(model.output_shape().items()):
        assert shape.stride == 2 ** (i + 1)
        expected_hw = tuple(-(-side // shape.stride) for side in size_hw)
        assert found[name].shape == (2, shape.channels, *expected_hw)


def test_no_images():
    assert make().eval()(torch.zeros(0, 3, 32, 32))["s4"].shape == (0, 64, 1, 1)


def test_default_output_is_the_last_stage():
    assert list(make()(torch.zeros(2, 3, 64, 64))) == ["s4"]


def test_stages_that_nobody_asks_for_are_left_out():
    model = make(out_features=["stem", "s2"])
    assert model.stage_names == ["s1", "s2"] and not hasattr(model, "s3")
    assert set(model(torch.zeros(2, 3, 32, 32))) == {"stem", "s2"}
    assert make(out_features=["stem"]).stage_names == []


@pytest.mark.parametrize("freeze_at", range(4))
def test_freezing(freeze_at):
    model = make(freeze_at=freeze_at, out_features=ALL)
    for i, name in enumerate(ALL):
        part = getattr(model, name)
        assert all(p.requires_grad != (i < freeze_at) for p in part.parameters())
        frozen = [isinstance(m, FrozenBatchNorm2d) for m in part.modules() if "Norm" in type(m).__name__]
        assert frozen and all(x == (i < freeze_at) for x in frozen)


@pytest.mark.parametrize(
    ("stem", "stride"), [(SimpleStem, 2), (ResStemCifar, 1), (ResStem, 4)], ids=lambda x: getattr(x, "__name__", x)
)
@pytest.mark.parametrize("block", [VanillaBlock, ResBasicBlock, ResBottleneckBlock])
def test_stems_and_blocks(stem, stride, block):
    model = AnyNet(
        stem_class=stem,
        stem_width=4,
        block_class=block,
        depths=[1, 2],
        widths=[8, 8],
        group_widths=[2, 4],
        strides=[1, 2],
        bottleneck_ratios=[0.5, 1.0],
        out_features=["stem", "s1", "s2"],
    )
    found = model(torch.randn(2, 3, 32, 32))
    strides = [shape.stride for shape in model.output_shape().values()]
    assert strides == [stride, stride, 2 * stride]
    assert [found[k].shape[1:] for k in found] == [
        (c, 32 // s, 32 // s) for c, s in zip([4, 8, 8], strides, strict=True)
    ]
    assert all((x >= 0).all() for x in found.values())
    if block is ResBottleneckBlock:
        assert model.s1.b1.f.b.weight.shape == (4, 2, 3, 3) and model.s2.b1.f.b.groups == 2
        # the same width and resolution: nothing to project
        assert hasattr(model.s2.b1, "proj") and not hasattr(model.s2.b2, "proj")


def test_squeeze_and_excitation_by_hand():
    layer = SqueezeExcitation(2, 1)
    with torch.no_grad():
        layer.f_ex[0].weight.copy_(torch.tensor([1.0, -1.0]).view(1, 2, 1, 1))
        layer.f_ex[2].weight.copy_(torch.tensor([1.0, -2.0]).view(2, 1, 1, 1))
    x = torch.tensor([[[[1.0, 5.0]], [[0.0, 2.0]]]])  # means 3 and 1: hidden 2, logits 2 and -4
    weight = torch.sigmoid(torch.tensor([2.0, -4.0])).view(1, 2, 1, 1)
    torch.testing.assert_close(layer(x), x * weight)


def test_initial_weights():
    conv = make(stem_width=256).stem.conv
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.05)


def test_activation_and_norm():
    model = make(activation_class=nn.SiLU, norm="")
    kinds = {type(m) for m in model.modules()}
    assert nn.SiLU in kinds and nn.ReLU not in kinds and not any("Norm" in k.__name__ for k in kinds)
    model(torch.randn(1, 3, 32, 32))["s4"].sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_low_precision_trains(norm):
    model = FPN(make(norm=norm, se_ratio=0.25, out_features=ALL[1:]), in_features=ALL[1:], out_channels=4)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model(torch.randn(2, 3, 64, 64))
        optimizer.zero_grad()
        sum(x.float().square().mean() for x in found.values()).backward()
        optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_copies():
    model, x = make(se_ratio=0.25, activation_class=partial(nn.ReLU, inplace=True)).eval(), torch.randn(1, 3, 32, 32)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(x)["s4"], model(x)["s4"])


def test_compiles_without_a_break():
    model, x = make(se_ratio=0.25, norm="FrozenBN", out_features=["s1", "s4"]), torch.randn(1, 3, 32, 32)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for name, value in compiled(x).items():
        torch.testing.assert_close(value, model(x)[name])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"w_0": 12}, "divisible by 8.*w_0=12"),
        ({"w_m": 1.0}, "w_m > 1"),
        ({"w_a": -1.0}, "w_a >= 0"),
        ({"depth": 0}, "depth >= 1"),
        ({"out_features": ["s1", "s5"]}, r"\['s5'\] do not exist.*'s4'"),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_errors_of_parts():
    with pytest.raises(ValueError, match="one entry for each stage"):
        AnyNet(
            stem_class=SimpleStem,
            stem_width=8,
            block_class=ResBasicBlock,
            depths=[1, 1],
            widths=[8],
            group_widths=[8],
            strides=[2],
            bottleneck_ratios=[1.0],
        )
    with pytest.raises(ValueError, match=r"10 channels.*groups of 4"):
        ResBottleneckBlock(8, 10, 1, "BN", nn.ReLU, {"bottleneck_ratio": 1.0, "group_width": 4, "se_ratio": 0.0})
    with pytest.raises(ValueError, match=r"\(N, C, H, W\); got shape \(3, 8, 8\)"):
        make()(torch.zeros(3, 8, 8))
