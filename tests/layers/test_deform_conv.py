import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detectron2.layers import DeformConv, ModulatedDeformConv, deform_conv, modulated_deform_conv


def sample(image, y, x):
    """Bilinear value of one channel at (y, x), zero outside."""
    h, w = image.shape
    y0, x0 = int(np.floor(y)), int(np.floor(x))
    total = 0.0
    for yy, wy in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
        for xx, wx in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
            if 0 <= yy < h and 0 <= xx < w:
                total += wy * wx * image[yy, xx]
    return total


def slow(x, offset, mask, weight, stride, padding, dilation, deformable_groups):
    n, c = x.shape[:2]
    out_c, _, kh, kw = weight.shape
    out_h, out_w = offset.shape[2:]
    out = np.zeros((n, out_c, out_h, out_w))
    per_group = c // deformable_groups
    for b, i, j, ch, u, v in np.ndindex(n, out_h, out_w, c, kh, kw):
        cell = (ch // per_group) * kh * kw + u * kw + v
        y = i * stride - padding + u * dilation + offset[b, 2 * cell, i, j]
        xx = j * stride - padding + v * dilation + offset[b, 2 * cell + 1, i, j]
        out[b, :, i, j] += weight[:, ch, u, v] * sample(x[b, ch], y, xx) * mask[b, cell, i, j]
    return out


def inputs(n, deformable_groups=2, hw=(5, 6)):
    return (
        torch.randn(n, 4, *hw),
        torch.randn(n, deformable_groups * 18, 3, 3),
        torch.rand(n, deformable_groups * 9, 3, 3),
        torch.randn(3, 4, 3, 3),
    )


def test_against_a_slow_one():
    x, offset, mask, weight = inputs(2)
    ones = torch.ones_like(mask)
    geometry = {"stride": 2, "padding": 1, "dilation": 1, "deformable_groups": 2}
    for got, m in (
        (deform_conv(x, offset, weight, **geometry), ones),
        (modulated_deform_conv(x, offset, mask, weight, **geometry), mask),
    ):
        expected = slow(x.numpy(), offset.numpy(), m.numpy(), weight.numpy(), *geometry.values())
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-3, atol=1e-4)


def test_gradients():
    x, offset, mask, weight = (t.double().requires_grad_() for t in inputs(1, 1, (4, 4)))
    weight = weight[:1].detach().requires_grad_()
    bias = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    offset = (offset.detach() * 0.1 + 0.3).requires_grad_()[..., :2, :2]
    mask = mask[..., :2, :2]
    assert torch.autograd.gradcheck(
        lambda *a: modulated_deform_conv(*a, stride=2, padding=1), (x, offset, mask, weight, bias), fast_mode=True
    )


@pytest.mark.parametrize("groups", [1, 2])
def test_zero_offsets_make_an_ordinary_convolution(groups):
    conv = ModulatedDeformConv(4, 6, 3, padding=2, dilation=2, groups=groups)
    nn.init.normal_(conv.bias)
    x = torch.randn(2, 4, 7, 8)
    got = conv(x, torch.zeros(2, 18, 7, 8), torch.ones(2, 9, 7, 8))
    torch.testing.assert_close(got, F.conv2d(x, conv.weight, conv.bias, padding=2, dilation=2, groups=groups))


@pytest.mark.parametrize("kind", [DeformConv, ModulatedDeformConv])
class TestModules:
    def arguments(self, kind, n, h, w):
        offsets, mask = torch.zeros(n, 18, h, w), torch.ones(n, 9, h, w)
        return (offsets,) if kind is DeformConv else (offsets, mask)

    def test_empty_batch(self, kind):
        conv = kind(4, 32, 3, stride=2, padding=1, norm=nn.GroupNorm(4, 32), activation=F.relu)
        x = torch.zeros(0, 4, 9, 8, requires_grad=True)
        out = conv(x, *self.arguments(kind, 0, 5, 4))
        out.sum().backward()
        assert out.shape == (0, 32, 5, 4)
        assert x.grad is not None and not conv.weight.grad.any()

    def test_norm_then_activation(self, kind):
        conv = kind(4, 32, 3, padding=1, norm=nn.GroupNorm(4, 32), activation=F.relu)
        x = torch.randn(2, 4, 5, 5)
        expected = F.relu(conv.norm(F.conv2d(x, conv.weight, conv.bias, padding=1)))
        torch.testing.assert_close(conv(x, *self.arguments(kind, 2, 5, 5)), expected, rtol=1e-4, atol=1e-4)

    def test_keys(self, kind):
        keys = {"weight", "norm.weight", "norm.bias"} | ({"bias"} if kind is ModulatedDeformConv else set())
        assert set(kind(4, 32, 3, norm=nn.GroupNorm(4, 32)).state_dict()) == keys

    def test_attributes_and_repr(self, kind):
        conv = kind(4, 6, 3, 2, 1, 1, 2, 2)
        assert conv.kernel_size == (3, 3)
        modulated = kind is ModulatedDeformConv  # it shows what it was given, the other one pairs
        shown = "stride=2, padding=1, dilation=1," if modulated else "stride=(2, 2), padding=(1, 1), dilation=(1, 1),"
        assert f"kernel_size=(3, 3), {shown} groups=2, deformable_groups=2, bias=" in repr(conv)

    def test_wrong_offsets(self, kind):
        with pytest.raises(ValueError, match=r"offset of shape \(N, 36, H, W\), got \(1, 18, 5, 5\)"):
            kind(4, 6, 3, padding=1, deformable_groups=2)(torch.zeros(1, 4, 5, 5), *self.arguments(kind, 1, 5, 5))

    def test_groups_must_divide(self, kind):
        with pytest.raises(ValueError, match="out_channels"):
            kind(4, 5, 3, groups=2)


def test_deform_conv_has_no_bias():
    with pytest.raises(ValueError, match="bias"):
        DeformConv(4, 4, 3, bias=True)


def test_wrong_mask_and_input():
    x, offset, mask, weight = inputs(1)
    with pytest.raises(ValueError, match="mask"):
        modulated_deform_conv(x, offset, mask[:, :9], weight, deformable_groups=2)
    with pytest.raises(ValueError, match="input"):
        deform_conv(x[:, :2], offset, weight, deformable_groups=2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """The operator computes in single precision; types may be mixed, as autocast leaves them."""
    layer = ModulatedDeformConv(4, 6, 3, padding=1, bias=True)
    x, offset, mask = torch.randn(2, 4, 5, 5), torch.randn(2, 18, 5, 5), torch.rand(2, 9, 5, 5)
    halved = [tensor.to(dtype) for tensor in (x, offset, mask)]
    expected = layer(*[tensor.float() for tensor in halved])
    out = layer(*halved)
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected.to(dtype))
    torch.testing.assert_close(layer(halved[0].float(), halved[1], halved[2]), expected)
    out.sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32


class TestShapesThatDoNotFit:
    def expect(self, message, x=(1, 4, 8, 8), offset=(1, 18, 8, 8), mask=(1, 9, 8, 8), weight=(4, 4, 3, 3), **others):
        x, offset, mask, weight = (torch.zeros(shape) for shape in (x, offset, mask, weight))
        with pytest.raises(ValueError, match=message):
            modulated_deform_conv(x, offset, mask, weight, **{"padding": 1, **others})

    def test_groups(self):
        self.expect("3 output channels into 2 groups", weight=(3, 2, 3, 3), groups=2)
        self.expect("4 input channels into 3 groups", offset=(1, 54, 8, 8), mask=(1, 27, 8, 8), deformable_groups=3)

    def test_offset_and_mask_of_another_size(self):
        self.expect(r"offset of shape \(1, 18, 8, 8\).*got \(1, 18, 7, 8\)", offset=(1, 18, 7, 8))
        self.expect(r"offset of shape \(2, 18, 8, 8\).*got \(1, 18, 8, 8\)", x=(2, 4, 8, 8))
        self.expect(r"mask of shape \(1, 9, 8, 8\).*got \(1, 9, 7, 8\)", mask=(1, 9, 7, 8))

    def test_input_smaller_than_the_kernel(self):
        self.expect(r"kernel of \(3, 3\) does not fit an input of shape \(1, 4, 1, 8\)", x=(1, 4, 1, 8), padding=0)

    def test_bias(self):
        self.expect(r"bias of shape \(4,\), got \(5,\)", bias=torch.zeros(5))

    def test_module(self):
        with pytest.raises(ValueError, match=r"in_channels \(4\) must be divisible by deformable_groups \(3\)"):
            DeformConv(4, 8, 3, deformable_groups=3)
        with pytest.raises(ValueError, match=r"in_channels \(4\) must be divisible by groups \(0\)"):
            DeformConv(4, 8, 3, groups=0)
