"""Deformable convolutions, versions 1 and 2, on torchvision's operator.

Letters: `N` images, `C` channels, `G` deformable groups, `(kh, kw)` kernel size, `(H', W')` output size. Offsets are
`(N, G * 2 * kh * kw, H', W')`: for each group and kernel cell `(dy, dx)` in cells of the input. Masks are
`(N, G * kh * kw, H', W')`.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.utils import _pair
from torchvision.ops import deform_conv2d

__all__ = ["DeformConv", "ModulatedDeformConv", "deform_conv", "modulated_deform_conv"]

IntPair = int | tuple[int, int]


def deform_conv(
    input: torch.Tensor,
    offset: torch.Tensor,
    weight: torch.Tensor,
    stride: IntPair = 1,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    groups: int = 1,
    deformable_groups: int = 1,
    im2col_step: int = 64,
) -> torch.Tensor:
    """Deformable convolution (https://arxiv.org/abs/1703.06211).

    Args:
        input: `(N, C, H, W)`.
        offset: see the top of this module.
        weight: `(C', C / groups, kh, kw)`.
        stride: stride of the convolution.
        padding: zeros added on each side.
        dilation: spacing of the kernel cells.
        groups: groups of channels that do not mix.
        deformable_groups: groups of channels that share offsets, `G`.
        im2col_step: ignored; the operator chooses how many images to unfold at once.

    Returns:
        `(N, C', H', W')`.

    Raises:
        ValueError: the shapes do not fit one another.

    Example:
        >>> from detectron2.layers import deform_conv
        >>> features, weight = torch.rand(1, 4, 10, 12), torch.rand(8, 4, 3, 3)
        >>> offset = torch.zeros(1, 2 * 9, 10, 12)  # y and x for each of nine samples
        >>> out = deform_conv(features, offset, weight, padding=1)
        >>> torch.allclose(out, nn.functional.conv2d(features, weight, padding=1), atol=1e-4)
        True
    """
    del im2col_step
    return _convolve(input, offset, None, weight, None, stride, padding, dilation, groups, deformable_groups)


def modulated_deform_conv(
    input: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: IntPair = 1,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    groups: int = 1,
    deformable_groups: int = 1,
) -> torch.Tensor:
    """Deformable convolution with a weight for each sample (https://arxiv.org/abs/1811.11168).

    Args:
        input: `(N, C, H, W)`.
        offset: see the top of this module.
        mask: weight of every sample; see the top of this module.
        weight: `(C', C / groups, kh, kw)`.
        bias: `(C',)` or `None`.
        stride: stride of the convolution.
        padding: zeros added on each side.
        dilation: spacing of the kernel cells.
        groups: groups of channels that do not mix.
        deformable_groups: groups of channels that share offsets and mask, `G`.

    Returns:
        `(N, C', H', W')`.

    Raises:
        ValueError: the shapes do not fit one another.

    Example:
        >>> from detectron2.layers import modulated_deform_conv
        >>> features, weight = torch.rand(1, 4, 10, 12), torch.rand(8, 4, 3, 3)
        >>> offset, mask = torch.zeros(1, 2 * 9, 10, 12), torch.ones(1, 9, 10, 12)
        >>> modulated_deform_conv(features, offset, mask, weight, padding=1).shape
        torch.Size([1, 8, 10, 12])
    """
    return _convolve(input, offset, mask, weight, bias, stride, padding, dilation, groups, deformable_groups)


def _convolve(
    x: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: IntPair,
    padding: IntPair,
    dilation: IntPair,
    groups: int,
    deformable_groups: int,
) -> torch.Tensor:
    stride, padding, dilation = _pair(stride), _pair(padding), _pair(dilation)
    cells = weight.shape[2] * weight.shape[3]
    # torchvision infers both group counts from shapes: a mismatch would silently mean something else.
    _expect_channels("input", x, weight.shape[1] * groups)
    _expect_channels("offset", offset, 2 * cells * deformable_groups)
    if mask is not None:
        _expect_channels("mask", mask, cells * deformable_groups)
    if x.shape[0] == 0:
        out_hw = _output_hw(x, weight, stride, padding, dilation)
        tied = [t.sum() for t in (x, offset, mask, weight, bias) if t is not None]
        return x.new_zeros(0, weight.shape[0], *out_hw) + sum(tied) * 0.0
    dtype = x.dtype
    # The operator knows no bfloat16, on the CPU no half precision either, and wants one type; autocast mixes them.
    unknown = dtype == torch.bfloat16 or (dtype == torch.float16 and x.device.type == "cpu")
    if unknown or any(t is not None and t.dtype != dtype for t in (offset, mask, weight, bias)):
        x, offset, weight = x.float(), offset.float(), weight.float()
        mask, bias = (None if t is None else t.float() for t in (mask, bias))
    try:
        out = deform_conv2d(x, offset, weight, bias, stride=stride, padding=padding, dilation=dilation, mask=mask)
    except (RuntimeError, ZeroDivisionError) as e:  # asked before, this would fix numbers in a graph
        out_hw = _output_hw(x, weight, stride, padding, dilation)
        if min(out_hw) < 1:
            raise ValueError(
                f"Deformable convolution: a kernel of {tuple(weight.shape[2:])} does not fit an input of shape "
                f"{tuple(x.shape)} with padding {padding} and dilation {dilation}."
            ) from e
        for name, channels, count in (
            ("input", x.shape[1], deformable_groups),
            ("input", x.shape[1], groups),
            ("output", weight.shape[0], groups),
        ):
            if channels % count:
                raise ValueError(
                    f"Deformable convolution cannot divide {channels} {name} channels into {count} groups."
                ) from e
        for name, tensor in (("offset", offset), ("mask", mask)):
            if tensor is not None and (tensor.shape[0], *tensor.shape[2:]) != (x.shape[0], *out_hw):
                expected = (x.shape[0], tensor.shape[1], *out_hw)
                raise ValueError(
                    f"Deformable convolution expects {name} of shape {expected}, that of the result, got "
                    f"{tuple(tensor.shape)}."
                ) from e
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(
                f"Deformable convolution expects a bias of shape ({weight.shape[0]},), got {tuple(bias.shape)}."
            ) from e
        raise
    return out.to(dtype)


def _output_hw(
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> list[int]:
    return [
        (x.shape[i + 2] + 2 * padding[i] - dilation[i] * (weight.shape[i + 2] - 1) - 1) // stride[i] + 1
        for i in range(2)
    ]


def _expect_channels(name: str, tensor: torch.Tensor, channels: int) -> None:
    if tensor.dim() != 4 or tensor.shape[1] != channels:
        raise ValueError(
            f"Deformable convolution expects {name} of shape (N, {channels}, H, W), got {tuple(tensor.shape)}."
        )


class _DeformableConvolution(nn.Module):
    """What both versions share: arguments, weights, and what follows the convolution."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        stride: IntPair = 1,
        padding: IntPair = 0,
        dilation: IntPair = 1,
        groups: int = 1,
        deformable_groups: int = 1,
        bias: bool = True,
        norm: nn.Module | None = None,
        activation: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        super().__init__()
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if groups < 1 or channels % groups:
                raise ValueError(f"{name} ({channels}) must be divisible by groups ({groups}).")
        if deformable_groups < 1 or in_channels % deformable_groups:
            raise ValueError(
                f"in_channels ({in_channels}) must be divisible by deformable_groups ({deformable_groups})."
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _pair(kernel_size)
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.groups = groups
        self.deformable_groups = deformable_groups
        self.with_bias = bias
        self.norm = norm
        self.activation = activation
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")

    def _run(self, x: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        geometry = (self.stride, self.padding, self.dilation, self.groups, self.deformable_groups)
        x = _convolve(x, offset, mask, self.weight, self.bias, *geometry)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)

    def extra_repr(self) -> str:
        """Summarise the arguments for `repr`."""
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        shown = "".join(f"{name}={getattr(self, name)}, " for name in names)
        return f"{shown}deformable_groups={self.deformable_groups}, bias={self.with_bias}"


class DeformConv(_DeformableConvolution):
    """Deformable convolution (https://arxiv.org/abs/1703.06211).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: size of the kernel.
        stride: stride of the convolution.
        padding: zeros added on each side.
        dilation: spacing of the kernel cells.
        groups: groups of channels that do not mix.
        deformable_groups: groups of channels that share offsets.
        bias: must be false; other convolutions have this argument too.
        norm: normalization applied to the result.
        activation: function applied last.

    Raises:
        ValueError: `bias` is true, or a number of groups does not divide the channels.

    Example:
        >>> from detectron2.layers import DeformConv
        >>> conv = DeformConv(4, 8, kernel_size=3, padding=1)
        >>> conv(torch.rand(1, 4, 10, 12), offset=torch.zeros(1, 18, 10, 12)).shape
        torch.Size([1, 8, 10, 12])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        stride: IntPair = 1,
        padding: IntPair = 0,
        dilation: IntPair = 1,
        groups: int = 1,
        deformable_groups: int = 1,
        bias: bool = False,
        norm: nn.Module | None = None,
        activation: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        if bias:
            raise ValueError("DeformConv has no bias; use ModulatedDeformConv, or a norm with a bias.")
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            _pair(stride),
            _pair(padding),
            _pair(dilation),
            groups,
            deformable_groups,
            False,
            norm,
            activation,
        )

    def forward(self, x: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        """Convolve `(N, C, H, W)` at the given offsets (see the top of this module); `N` may be 0."""
        return self._run(x, offset, None)


class ModulatedDeformConv(_DeformableConvolution):
    """Deformable convolution with weighted samples (https://arxiv.org/abs/1811.11168).

    The arguments are those of `DeformConv`; there is a bias unless `bias` is false.

    Example:
        >>> from detectron2.layers import ModulatedDeformConv
        >>> conv = ModulatedDeformConv(4, 8, kernel_size=3, padding=1)
        >>> offset, mask = torch.zeros(1, 18, 10, 12), torch.ones(1, 9, 10, 12)
        >>> conv(torch.rand(1, 4, 10, 12), offset, mask).shape
        torch.Size([1, 8, 10, 12])
    """

    def forward(self, x: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Convolve `(N, C, H, W)` at the given offsets with the given sample weights; `N` may be 0."""
        return self._run(x, offset, mask)
