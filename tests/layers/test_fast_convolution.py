import pytest
import torch
import torch.nn.functional as F

from detectron2.layers import fast_convolution
from detectron2.layers.fast_convolution import add_pointwise_conv2d_, winograd_conv2d, winograd_filters

SIZES = [
    (0, 4, 5, 8, 8),  # images, channels before and after, height, width
    (1, 4, 5, 0, 8),
    (1, 1, 1, 1, 1),
    (1, 4, 5, 8, 12),
    (2, 3, 7, 9, 14),
    (1, 8, 3, 3, 21),
    (5, 4, 4, 7, 7),
]


def inputs(n, c, k, height, width):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(n, c, height, width, generator=generator), torch.randn(k, c, 3, 3, generator=generator)
    return x, weight, torch.randn(k, generator=generator)


def direct(x, weight, bias):
    """The same convolution in double precision, cell by cell."""
    if x.numel() == 0:
        return x.new_zeros(x.shape[0], weight.shape[0], *x.shape[2:], dtype=torch.float64)
    return F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), padding=1)


def assert_close(found, expected):
    assert found.dtype == torch.float32 and found.shape == expected.shape
    largest = float(expected.abs().max()) if expected.numel() else 1.0
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("at_once", [1, 60, 1 << 15])  # a row of tiles, some of them, all images
@pytest.mark.parametrize("size", SIZES)
def test_convolution_is_the_direct_one(size, at_once, monkeypatch):
    monkeypatch.setattr(fast_convolution, "_NUMBERS_AT_ONCE", at_once)
    monkeypatch.setattr(fast_convolution, "_FEWEST_TILES_AT_ONCE", 1)
    x, weight, bias = inputs(*size)
    filters = winograd_filters(weight)
    assert filters.shape == (36, size[1], size[2])
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        before = given.clone()
        found = winograd_conv2d(given, filters, bias)
        assert_close(found, direct(x, weight, bias))
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(given, before)
    assert_close(winograd_conv2d(x, filters), direct(x, weight, None))
    assert_close(winograd_conv2d(x, filters, bias, rectify=True), direct(x, weight, bias).clamp(min=0))


def test_one_filter_value_at_a_time():
    """Filters of a single 1 move the map."""
    x = torch.arange(48.0).view(1, 1, 6, 8) + 1
    padded = F.pad(x, (1, 1, 1, 1))
    for row in range(3):
        for column in range(3):
            weight = torch.zeros(1, 1, 3, 3)
            weight[0, 0, row, column] = 1
            moved = padded[:, :, row : row + 6, column : column + 8]
            torch.testing.assert_close(winograd_conv2d(x, winograd_filters(weight)), moved, rtol=0, atol=1e-4)


def test_rounding_stays_small():
    torch.manual_seed(0)
    x, weight = torch.randn(1, 256, 24, 24).relu(), torch.randn(16, 256, 3, 3) / 48
    expected = direct(x, weight, None)
    error = (winograd_conv2d(x, winograd_filters(weight)) - expected).abs().max() / expected.abs().max()
    assert error < 5e-6


def test_no_gradient_is_recorded():
    x = torch.rand(1, 2, 8, 8, requires_grad=True)
    assert not winograd_conv2d(x, winograd_filters(torch.rand(3, 2, 3, 3))).requires_grad


def pointwise_inputs(n, c, k, height, width):
    x, weight, bias = inputs(n, c, k, height, width)
    out = torch.randn(n, k, height, width, generator=torch.Generator().manual_seed(1))
    last = torch.channels_last
    return out.contiguous(memory_format=last), x.contiguous(memory_format=last), weight[:, :, :1, :1].clone(), bias


@pytest.mark.parametrize("at_once", [7, 1 << 10])
@pytest.mark.parametrize("size", [(0, 4, 5, 8, 8), (1, 1, 1, 1, 1), (2, 4, 5, 3, 7), (1, 3, 1, 6, 5)])
def test_pointwise_convolution_is_added(size, at_once, monkeypatch):
    monkeypatch.setattr(fast_convolution, "_PIXELS_AT_ONCE", at_once)
    out, x, weight, bias = pointwise_inputs(*size)
    plain = torch.einsum("nchw,kc->nkhw", x.double(), weight[:, :, 0, 0].double())
    for given_bias, rectify in ((None, False), (bias, False), (bias, True)):
        sums = out.clone()
        found = add_pointwise_conv2d_(sums, x, weight, given_bias, rectify=rectify)
        expected = out.double() + plain + (0 if given_bias is None else bias.double().view(-1, 1, 1))
        assert found is sums
        assert_close(sums, expected.clamp(min=0) if rectify else expected)


def test_maps_in_planes_are_refused():
    out, x, weight, _ = pointwise_inputs(1, 4, 5, 3, 7)
    with pytest.raises(ValueError, match="out has strides"):
        add_pointwise_conv2d_(out.contiguous(), x, weight)
    with pytest.raises(ValueError, match="x has strides"):
        add_pointwise_conv2d_(out, x.contiguous(), weight)
