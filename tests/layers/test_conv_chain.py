import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detectron2.layers import Conv2d, get_norm
from detectron2.layers import conv_chain as module
from detectron2.layers.conv_chain import chain_of, conv_chain


def convolutions(dtype=torch.float64):
    torch.manual_seed(0)
    layers = [nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 7, (1, 5), padding=(0, 2)), nn.Conv2d(7, 5, 1)]
    return [layer.to(dtype) for layer in layers]


def plain(x, layers):
    for layer in layers[:-1]:
        x = layer(x).relu()
    return layers[-1](x)


def run(function, x, layers, grad, **options):
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    variables = [x, *(layer.weight for layer in layers), *(layer.bias for layer in layers)]
    out = function(x, layers)
    return out, torch.autograd.grad(out, variables, grad, **options)


def chained(x, layers):
    return conv_chain([x], [layer.weight for layer in layers], [layer.bias for layer in layers])[0]


def gradient_at(*cells):
    grad = torch.zeros(2, 5, 9, 11, dtype=torch.float64)
    for i, (image, y, x) in enumerate(cells):
        grad[image, i % 5, y, x] = i - 1.5
    return grad


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.25, 1.0])  # whole maps; at first cells, then whole maps; cells
@pytest.mark.parametrize("cells", [(), ((0, 0, 0), (1, 4, 5), (1, 8, 10), (1, 3, 5), (0, 0, 10))])
def test_results_and_gradients_are_those_of_convolutions(order, share, cells, monkeypatch):
    monkeypatch.setattr(module, "_LARGEST_SHARE", share)
    x = torch.randn(2, 6, 9, 11, dtype=torch.float64).contiguous(memory_format=order)
    out, found = run(chained, x, convolutions(), gradient_at(*cells))
    expected_out, expected = run(plain, x, convolutions(), gradient_at(*cells))
    torch.testing.assert_close(out, expected_out)
    torch.testing.assert_close(found, expected)


def test_a_gradient_everywhere():
    x, grad = torch.randn(2, 6, 9, 11, dtype=torch.float64), torch.randn(2, 5, 9, 11, dtype=torch.float64)
    torch.testing.assert_close(run(chained, x, convolutions(), grad)[1], run(plain, x, convolutions(), grad)[1])


def test_cells_with_nan_are_not_passed_over():
    grad = gradient_at((1, 4, 5))
    grad[0, 0, 2, 2] = torch.nan
    x = torch.randn(2, 6, 9, 11, dtype=torch.float64)
    assert all(g.isnan().any() for g in run(chained, x, convolutions(), grad)[1])


def test_gradients_can_be_differentiated():
    x, grad = torch.randn(2, 6, 9, 11, dtype=torch.float64), gradient_at((1, 4, 5), (0, 0, 0))
    layers = convolutions()
    squares = [run(f, x, layers, grad, create_graph=True)[1][0].square().sum() for f in (chained, plain)]
    weights = [layer.weight for layer in layers]
    torch.testing.assert_close(*(torch.autograd.grad(square, weights) for square in squares))


def test_features_without_gradient():
    layers = convolutions()
    out = chained(torch.randn(2, 6, 9, 11, dtype=torch.float64), layers)
    out.backward(gradient_at((1, 4, 5)))
    assert all(p.grad is not None for layer in layers for p in layer.parameters())


def test_autocast():
    x, layers = torch.randn(2, 6, 9, 11), convolutions(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out, found = run(chained, x, layers, gradient_at((1, 4, 5)).bfloat16())
        expected_out, expected = run(plain, x, layers, gradient_at((1, 4, 5)).bfloat16())
    assert out.dtype == torch.bfloat16 and all(g.dtype == torch.float32 for g in found)
    torch.testing.assert_close(out, expected_out)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02)


def test_chain_of_usual_layers():
    first, last, x = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1), torch.rand(1, 3, 5, 5)
    assert chain_of([], [x]) == []
    assert chain_of([nn.Sequential(first, nn.ReLU()), last], [x]) == [first, last]
    rectified = Conv2d(3, 4, 3, padding=1, activation=F.relu)
    assert chain_of([rectified, last], [x]) == [rectified, last]


class Other(nn.Conv2d):
    pass


def with_hook(layer):
    layer.register_forward_hook(lambda *args: None)
    return layer


def compiled(layer):
    layer._compiled_call_impl = layer.forward
    return layer


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()],  # ends with an activation
        [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)],  # none between
        [nn.ReLU(), nn.Conv2d(3, 4, 1)],
        [nn.Conv2d(3, 4, 1), nn.ReLU(), nn.ReLU(), nn.Conv2d(4, 4, 1)],
        [nn.Conv2d(3, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 4, 1)],
        [Conv2d(3, 4, 1, activation=torch.sigmoid), nn.Conv2d(4, 4, 1)],
        [Conv2d(3, 4, 1, activation=F.relu)],
        [Conv2d(3, 4, 1, norm=get_norm("BN", 4))],
        [nn.Conv2d(3, 4, 3)],
        [nn.Conv2d(3, 4, 2, padding=1)],
        [nn.Conv2d(3, 4, 3, padding="same")],
        [nn.Conv2d(3, 4, 3, stride=2, padding=1)],
        [nn.Conv2d(3, 4, 3, padding=2, dilation=2)],
        [nn.Conv2d(3, 3, 3, padding=1, groups=3)],
        [nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")],
        [nn.Conv2d(3, 4, 1, bias=False)],
        [Other(3, 4, 1)],
        [with_hook(nn.Conv2d(3, 4, 1))],
        [with_hook(nn.Sequential(nn.Conv2d(3, 4, 1)))],
        [compiled(nn.Conv2d(3, 4, 1))],
    ],
)
def test_no_chain_of_other_layers(layers):
    assert chain_of(layers, [torch.rand(1, 3, 5, 5)]) == []


def test_no_chain_without_gradients():
    with torch.no_grad():
        assert chain_of([nn.Conv2d(3, 4, 1)], [torch.rand(1, 3, 5, 5)]) == []
