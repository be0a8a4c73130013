"""Layers and blocks that do the same as those of training in less time, on the CPU and without gradients.

`detectron2.modeling.optimized_for_inference` puts them in the place of the usual ones. In half precision, on other
devices, where a gradient is asked for, and in graphs that are traced or compiled, they do what the usual ones do.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from detectron2.layers import Conv2d
from detectron2.layers.fast_convolution import add_pointwise_conv2d_, winograd_conv2d, winograd_filters
from detectron2.utils.tracing import when_compiled, when_traced

from .backbone import FPN, BottleneckBlock

__all__ = ["InPlaceBottleneckBlock", "InPlaceFPN", "WinogradConv2d"]

_FEWEST_CHANNELS = 64
_MOST_PAIRS = 1 << 19  # of a channel before and one after, whose transformed filters take 75 MB
_FEWEST_TILES = 8  # of 4 x 4 cells


def _never(*args: Any) -> bool:
    """A graph takes the usual operators."""
    return False


@when_compiled(_never)
@when_traced(_never)
def _is_plain(x: torch.Tensor, conv: nn.Conv2d) -> bool:
    """Whether a map and a convolution are numbers in float32 on the CPU, without a wish for gradients."""
    if type(x) is not torch.Tensor or x.dim() != 4 or torch.is_autocast_enabled("cpu"):
        return False
    if any(t.device.type != "cpu" or t.dtype != torch.float32 for t in (x, conv.weight)):
        return False
    return not (torch.is_grad_enabled() and (x.requires_grad or conv.weight.requires_grad))


def _has_channels_last(x: torch.Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


class WinogradConv2d(Conv2d):
    """A 3x3 convolution by `detectron2.layers.fast_convolution.winograd_conv2d`, of maps that are not tiny.

    The transformed filters, four times as large as the weight, are made when they are first needed.

    Example:
        >>> from detectron2.modeling.inference_layers import WinogradConv2d
        >>> conv = WinogradConv2d(64, 64, 3, padding=1, activation=F.relu_).requires_grad_(False)
        >>> x = torch.rand(1, 64, 24, 40)
        >>> torch.allclose(conv(x), F.relu(F.conv2d(x, conv.weight, conv.bias, padding=1)), atol=1e-4)
        True
    """

    _made: tuple[tuple[int, int | None], torch.Tensor] | None = (
        None  # address and version of the weight, and its filters
    )

    @classmethod
    def suits(cls, conv: nn.Conv2d) -> bool:
        """Whether a convolution can be done like this, and in less time."""
        geometry = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
        after, before = conv.weight.shape[:2]
        has_size = min(before, after) >= _FEWEST_CHANNELS and before * after <= _MOST_PAIRS
        return has_size and geometry == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Convolve, normalise, activate."""
        if not _is_plain(input, self) or input.shape[0] * (input.shape[2] // 4) * (input.shape[3] // 4) < _FEWEST_TILES:
            return super().forward(input)
        is_rectified = self.norm is None and self.activation is F.relu_
        x = winograd_conv2d(input, self._filters(), self.bias, rectify=is_rectified)
        if self.norm is not None:
            x = self.norm(x)
        return x if is_rectified or self.activation is None else self.activation(x)

    def _filters(self) -> torch.Tensor:
        key = self.weight.data_ptr(), None if self.weight.is_inference() else self.weight._version
        made = self._made
        if made is None or made[0] != key:
            with torch.inference_mode(False), torch.no_grad():
                self._made = made = key, winograd_filters(self.weight)
        return made[1]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_made"}


class InPlaceBottleneckBlock(BottleneckBlock):
    """A bottleneck whose last convolution is added to the input, or to the shortcut, in place.

    `conv1` and `conv2` bring their rectifiers along; `conv3` and `shortcut` are without norm.
    """

    owns_input: bool  # whether the input has no other reader

    def _residual(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv3(self.conv2(self.conv1(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `relu(branch(x) + shortcut(x))`."""
        if not _is_plain(x, self.conv3) or not _has_channels_last(x):
            return super().forward(x)
        branch = self.conv2(self.conv1(x))
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif not self.owns_input:
            x = x.clone()
        if not _has_channels_last(x) or not _has_channels_last(branch):
            return F.relu_(x.add_(self.conv3(branch)))
        return add_pointwise_conv2d_(x, branch, self.conv3.weight, self.conv3.bias, rectify=True)


class InPlaceFPN(FPN):
    """A feature pyramid that adds lateral maps to the enlarged ones in place; its lateral convolutions are plain."""

    def _merge(self, lateral: Any, x: torch.Tensor, coarser: torch.Tensor | None, name: str) -> torch.Tensor:
        if coarser is None or not _is_plain(x, lateral) or not _has_channels_last(x):
            return super()._merge(lateral, x, coarser, name)
        sums = F.interpolate(coarser, scale_factor=2.0, mode="nearest")
        if sums.shape[0] != x.shape[0] or sums.shape[2:] != x.shape[2:] or not _has_channels_last(sums):
            return self._fuse(lateral(x), sums, name)
        add_pointwise_conv2d_(sums, x, lateral.weight, lateral.bias)
        return sums if self._fuse_type == "sum" else sums.div_(2)
