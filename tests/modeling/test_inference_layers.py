import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detectron2.layers import Conv2d, get_norm
from detectron2.modeling import inference_layers, optimized_for_inference
from detectron2.modeling.backbone import FPN, BottleneckBlock, ResNet
from detectron2.modeling.backbone.resnet import BasicStem
from detectron2.modeling.inference_layers import InPlaceBottleneckBlock, InPlaceFPN, WinogradConv2d
from tests.e2e.test_model_edges import predictions
from tests.modeling.test_optimized import assert_close, model_named, run, with_statistics


@pytest.fixture(autouse=True)
def small_layers_count(monkeypatch):
    """Small models are to use what large ones use."""
    monkeypatch.setattr(inference_layers, "_FEWEST_CHANNELS", 1)
    monkeypatch.setattr(inference_layers, "_FEWEST_TILES", 1)


def kinds_in(model):
    return {type(module) for module in model.modules()}


@pytest.mark.parametrize("name", ["mask FPN", "mask C4", "keypoint", "RetinaNet", "panoptic FPN", "cascade", "rotated"])
def test_whole_models(name):
    model = model_named(name)
    optimized = optimized_for_inference(model)
    assert WinogradConv2d in kinds_in(optimized) and WinogradConv2d not in kinds_in(model)
    expected = predictions(model, name)
    assert_close(predictions(optimized, name), expected)
    for other in (copy.deepcopy(optimized), pickle.loads(pickle.dumps(optimized)), optimized_for_inference(optimized)):
        assert_close(predictions(other, name), expected)


# ---------------------------------------------------------------------------------------------------------- convolution


def convolution(**kwargs):
    torch.manual_seed(0)
    options = {"padding": 1, **kwargs}
    return with_statistics(Conv2d(4, 32, 3, **options))


@pytest.mark.parametrize("shape", [(0, 4, 8, 8), (1, 4, 3, 9), (2, 4, 9, 13)])
@pytest.mark.parametrize(
    "make",
    [
        convolution,
        lambda: convolution(bias=False),
        lambda: convolution(norm=get_norm("BN", 32), activation=F.relu),
        lambda: convolution(norm=get_norm("GN", 32), activation=nn.ReLU()),
        lambda: convolution(activation=F.gelu),
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1)).eval(),
    ],
)
def test_convolutions(make, shape):
    module = make()
    optimized = optimized_for_inference(module)
    assert WinogradConv2d in kinds_in(optimized)
    x = torch.randn(shape)
    before = x.clone()
    if x.numel():
        assert_close(run(optimized, x), run(module, x))
    else:
        assert run(optimized, x).shape == run(module, x).shape
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    "options",
    [{"stride": 2}, {"padding": 0}, {"dilation": 2}, {"groups": 2}, {"padding_mode": "reflect"}, {"padding": "same"}],
)
def test_convolutions_that_do_not_suit(options):
    conv = convolution(**options)
    optimized = optimized_for_inference(conv)
    assert type(optimized) is Conv2d
    x = torch.randn(1, 4, 9, 13)
    assert_close(run(optimized, x), run(conv, x))


@pytest.mark.parametrize("limit", [{"_FEWEST_CHANNELS": 5}, {"_MOST_PAIRS": 4 * 32 - 1}])
def test_narrow_and_very_wide_convolutions_stay(limit, monkeypatch):
    for name, value in limit.items():
        monkeypatch.setattr(inference_layers, name, value)
    assert type(optimized_for_inference(convolution())) is Conv2d


def test_filters_are_made_once_and_follow_the_weight():
    conv = convolution()
    optimized, x = optimized_for_inference(conv), torch.randn(1, 4, 9, 13)
    run(optimized, x)
    made = optimized._made[1]
    run(optimized, x)
    assert optimized._made[1] is made
    with torch.no_grad():
        optimized.weight.mul_(2)
        conv.weight.mul_(2)
    assert_close(run(optimized, x), run(conv, x))
    assert optimized._made[1] is not made
    assert copy.deepcopy(optimized)._made is None and "_made" not in pickle.loads(pickle.dumps(optimized)).__dict__


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_the_usual_convolution_does():
    conv = convolution(activation=F.relu)
    optimized, x = optimized_for_inference(conv), torch.randn(1, 4, 9, 13)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(run(optimized, x), run(conv, x)) and run(optimized, x).dtype == torch.bfloat16
    assert_close(run(optimized, x[0]), run(conv, x[0]))
    wanted = x.clone().requires_grad_()
    optimized(wanted).sum().backward()
    assert wanted.grad.abs().sum() > 0
    traced = torch.jit.trace(optimized, x, check_trace=False)
    assert "aten::_convolution" in str(traced.inlined_graph) and "aten::bmm" not in str(traced.inlined_graph)
    assert_close(run(optimized.double(), x.double()), run(conv.double(), x.double()))
    assert optimized._made is None


# --------------------------------------------------------------------------------------------- bottlenecks and pyramids


def network(norm="FrozenBN", **kwargs):
    torch.manual_seed(0)
    stages = [
        ResNet.make_stage(
            BottleneckBlock,
            3,
            stride_per_block=[stride, 1, 1],
            in_channels=width,
            bottleneck_channels=32 if norm == "GN" else 8,
            out_channels=32 * stride,
            norm=norm,
        )
        for stride, width in ((1, 32), (2, 32))
    ]
    return ResNet(BasicStem(3, 32, norm), stages, out_features=["res2", "res3"])


def pyramid(norm="", fuse_type="sum"):
    fpn = FPN(network(), ["res2", "res3"], 32, norm=norm, fuse_type=fuse_type)
    return with_statistics(fpn)


@pytest.mark.parametrize("fuse_type", ["sum", "avg"])
@pytest.mark.parametrize("shape", [(1, 3, 32, 64), (2, 3, 64, 32)])
def test_pyramid(shape, fuse_type):
    fpn = pyramid(fuse_type=fuse_type)
    optimized = optimized_for_inference(fpn)
    assert {InPlaceFPN, InPlaceBottleneckBlock} <= kinds_in(optimized) and BottleneckBlock not in kinds_in(optimized)
    x = torch.randn(shape)
    expected = run(fpn, x)
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        before = given.clone()
        found = run(optimized, given)
        assert found.keys() == expected.keys()
        for name in expected:
            assert_close(found[name], expected[name])
        assert torch.equal(given, before)


def test_maps_between_stages_are_not_written_over():
    model = with_statistics(network())
    optimized = optimized_for_inference(model)
    x = torch.randn(1, 3, 32, 64)
    found, expected = run(optimized, x), run(model, x)
    assert_close(found["res2"], expected["res2"])
    assert [block.owns_input for block in optimized.res2] == [False, True, True]
    assert [block.owns_input for block in optimized.res3] == [False, True, True]


def test_a_block_that_is_listened_to_keeps_its_output():
    model = with_statistics(network())
    seen = []
    model.res3[1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    x = torch.randn(1, 3, 32, 64)
    run(model, x)
    run(optimized_for_inference(model), x)
    assert_close(seen[1], seen[0])


def test_norms_that_cannot_be_folded():
    for model in (with_statistics(network("GN")), pyramid("GN")):
        optimized = optimized_for_inference(model)
        x = torch.randn(1, 3, 32, 64)
        found, expected = run(optimized, x), run(model, x)
        for name in expected:
            assert_close(found[name], expected[name])
    assert InPlaceFPN not in kinds_in(optimized)


def test_one_block_and_its_input():
    torch.manual_seed(0)
    block = with_statistics(nn.Sequential(BottleneckBlock(8, 8, bottleneck_channels=4, norm="BN")))
    optimized = optimized_for_inference(block)
    x = torch.randn(1, 8, 9, 13).contiguous(memory_format=torch.channels_last)
    before = x.clone()
    assert_close(run(optimized, x), run(block, x))
    assert torch.equal(x, before)


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="FPN cannot add the map res2"):
        run(optimized_for_inference(pyramid()), torch.randn(1, 3, 36, 64))


def test_gradients_flow():
    optimized = optimized_for_inference(pyramid())
    x = torch.randn(1, 3, 32, 64, requires_grad=True)
    sum(y.sum() for y in optimized(x).values()).backward()
    assert x.grad.abs().sum() > 0


def test_compiled_and_traced():
    torch._dynamo.reset()
    fpn = pyramid()
    optimized, x = optimized_for_inference(fpn), torch.randn(1, 3, 32, 64)
    expected = run(fpn, x)
    compiled = run(torch.compile(optimized, fullgraph=True, backend="aot_eager"), x)
    for name in expected:
        assert_close(compiled[name], expected[name])
