"""Convolutional blocks that backbones and heads are made of."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from . import weight_init
from .batch_norm import FrozenBatchNorm2d, get_norm
from .wrappers import Conv2d

__all__ = ["CNNBlockBase", "DepthwiseSeparableConv2d", "conv_norm"]


def conv_norm(
    in_channels: Any, out_channels: int, kernel_size: int, norm: str | Callable[[int], nn.Module] | None, **kwargs: Any
) -> Conv2d:
    """A convolution that keeps height and width (if its stride is 1), then a norm; without a norm it has a bias.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the kernel.
        norm: as `get_norm` takes it.
        **kwargs: further arguments of `Conv2d`.

    Returns:
        The layer.

    Example:
        >>> from detectron2.layers.blocks import conv_norm
        >>> conv_norm(3, 8, 3, "BN", activation=torch.relu)(torch.rand(2, 3, 10, 12)).shape
        torch.Size([2, 8, 10, 12])
    """
    kwargs = {"padding": kwargs.get("dilation", 1) * (kernel_size // 2), "bias": not norm, **kwargs}
    return Conv2d(in_channels, out_channels, kernel_size, norm=get_norm(norm, out_channels), **kwargs)


class CNNBlockBase(nn.Module):
    """A block from `(N, in_channels, H, W)` to `(N, out_channels, H / stride, W / stride)`.

    Args:
        in_channels: channels that `forward` expects.
        out_channels: channels that `forward` returns.
        stride: factor by which height and width shrink.

    Example:
        >>> from detectron2.layers import CNNBlockBase
        >>> class Block(CNNBlockBase):
        ...     def __init__(self):
        ...         super().__init__(in_channels=3, out_channels=8, stride=2)
        ...         self.conv = nn.Conv2d(3, 8, 3, stride=2)
        ...
        >>> any(p.requires_grad for p in Block().freeze().parameters())
        False
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride

    def freeze(self) -> "CNNBlockBase":
        """Stop training this block: parameters lose their gradient, batch norms become fixed; returns the block."""
        self.requires_grad_(False)
        FrozenBatchNorm2d.convert_frozen_batchnorm(self)
        return self


class DepthwiseSeparableConv2d(nn.Module):
    """A k x k convolution of each channel separately, then a 1 x 1 convolution across channels.

    Xception (https://arxiv.org/abs/1610.02357) normalises and activates after the second convolution only,
    MobileNet (https://arxiv.org/abs/1704.04861) after both.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: size of the depthwise kernel.
        padding: padding of the depthwise convolution.
        dilation: dilation of the depthwise convolution.
        norm1: normalization after the depthwise convolution, as `get_norm` takes it.
        activation1: function applied after `norm1`.
        norm2: normalization after the 1 x 1 convolution.
        activation2: function applied after `norm2`.

    Example:
        >>> from detectron2.layers import DepthwiseSeparableConv2d
        >>> conv = DepthwiseSeparableConv2d(16, 32, norm1="BN", norm2="BN")
        >>> conv(torch.rand(2, 16, 20, 30)).shape
        torch.Size([2, 32, 20, 30])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        padding: int = 1,
        dilation: int = 1,
        *,
        norm1: str | Callable[[int], nn.Module] | None = None,
        activation1: Callable[[torch.Tensor], torch.Tensor] | None = None,
        norm2: str | Callable[[int], nn.Module] | None = None,
        activation2: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        super().__init__()
        options: Any = {"padding": padding, "dilation": dilation, "groups": in_channels, "activation": activation1}
        self.depthwise = conv_norm(in_channels, in_channels, kernel_size, norm1, **options)
        self.pointwise = conv_norm(in_channels, out_channels, 1, norm2, activation=activation2)
        weight_init.c2_msra_fill(self.depthwise)
        weight_init.c2_msra_fill(self.pointwise)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(N, in_channels, H, W)` to `(N, out_channels, H', W')`."""
        return self.pointwise(self.depthwise(x))
