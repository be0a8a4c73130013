"""Atrous spatial pyramid pooling (Chen et al., "Rethinking Atrous Convolution", https://arxiv.org/abs/1706.05587)."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from . import weight_init
from .blocks import DepthwiseSeparableConv2d, conv_norm
from .wrappers import Conv2d

__all__ = ["ASPP"]

Activation = Callable[[torch.Tensor], torch.Tensor]
Norm = str | Callable[[int], nn.Module]


class ASPP(nn.Module):
    """Look at a feature map at five scales at once: a 1 x 1 and three dilated 3 x 3 convolutions, and its average.

    Args:
        in_channels: channels of the input.
        out_channels: channels of every branch and of the output.
        dilations: dilations of the three 3 x 3 branches.
        norm: normalization of all convolutions but the one after the average, as `get_norm` takes it.
        activation: activation function; copied for every branch.
        pool_kernel_size: `(height, width)` of the average; `None` averages the whole map. When given, it must
            divide the size of the input. Set it to the training size for a window that stays the same in inference.
        dropout: probability of dropping an output value.
        use_depthwise_separable_conv: whether the 3 x 3 branches are depthwise separable (DeepLabV3+,
            https://arxiv.org/abs/1802.02611).

    Raises:
        ValueError: there are not exactly three dilations.

    Example:
        >>> from detectron2.layers import ASPP
        >>> aspp = ASPP(64, 32, dilations=(6, 12, 18), norm="GN", activation=torch.relu)
        >>> aspp(torch.rand(2, 64, 24, 32)).shape
        torch.Size([2, 32, 24, 32])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dilations: Sequence[int],
        *,
        norm: Norm,
        activation: Activation,
        pool_kernel_size: tuple[int, int] | None = None,
        dropout: float = 0.0,
        use_depthwise_separable_conv: bool = False,
    ):
        super().__init__()
        if len(dilations) != 3:
            raise ValueError(f"ASPP needs 3 dilations, got {len(dilations)}: {list(dilations)}.")
        self.pool_kernel_size = pool_kernel_size
        self.dropout = dropout

        def conv(channels: int, kernel_size: int, dilation: int = 1) -> Conv2d:
            options: Any = {"dilation": dilation, "activation": deepcopy(activation)}
            layer = conv_norm(channels, out_channels, kernel_size, norm, **options)
            weight_init.c2_xavier_fill(layer)
            return layer

        def separable(dilation: int) -> DepthwiseSeparableConv2d:
            return DepthwiseSeparableConv2d(
                in_channels,
                out_channels,
                kernel_size=3,
                padding=dilation,
                dilation=dilation,
                norm1=norm,
                activation1=deepcopy(activation),
                norm2=norm,
                activation2=deepcopy(activation),
            )

        # State-dict keys: convs.0 (1 x 1), convs.1-3 (dilated), convs.4.1 (after the average), project.
        dilated = [separable(d) if use_depthwise_separable_conv else conv(in_channels, 3, d) for d in dilations]
        average = nn.AdaptiveAvgPool2d(1) if pool_kernel_size is None else nn.AvgPool2d(pool_kernel_size, stride=1)
        # A 1 x 1 map has too few values per channel for batch statistics, hence a bias and no norm.
        after_average = Conv2d(in_channels, out_channels, 1, bias=True, activation=deepcopy(activation))
        weight_init.c2_xavier_fill(after_average)
        self.convs = nn.ModuleList([conv(in_channels, 1), *dilated, nn.Sequential(average, after_average)])
        self.project = conv(5 * out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(N, in_channels, H, W)` to `(N, out_channels, H, W)`."""
        size_hw = x.shape[-2:]
        if self.pool_kernel_size is not None and any(
            s % k for s, k in zip(size_hw, self.pool_kernel_size, strict=True)
        ):
            raise ValueError(
                f"ASPP's pool_kernel_size {tuple(self.pool_kernel_size)} must divide the input's (height, width) "
                f"{tuple(size_hw)}; crop the training images to match it, or set it to None."
            )
        branches = [conv(x) for conv in self.convs]
        branches[-1] = F.interpolate(branches[-1], size=size_hw, mode="bilinear", align_corners=False)
        out = self.project(torch.cat(branches, dim=1))
        return F.dropout(out, self.dropout, training=self.training) if self.dropout > 0 else out
