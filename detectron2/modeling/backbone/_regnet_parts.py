"""Parts of the blocks of :mod:`.regnet`: the branches that a shortcut runs beside, and squeeze-and-excitation.

Letters: `w` width (channels). Names of parameters are those of the published checkpoints.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from detectron2.layers import Conv2d, get_norm
from detectron2.layers.weight_init import c2_msra_fill

__all__ = [
    "Activation",
    "BasicTransform",
    "BottleneckTransform",
    "Norm",
    "SqueezeExcitation",
    "conv",
    "norm_layer",
    "relu",
]

Norm = str | Callable[[int], nn.Module] | None
"""A norm as :func:`detectron2.layers.get_norm` takes it."""
Activation = Callable[[], nn.Module]
"""Makes an activation."""


def relu() -> nn.Module:
    return nn.ReLU(inplace=True)


def conv(w_in: int, w_out: int, kernel_size: int, *, stride: int = 1, groups: int = 1, bias: bool = False) -> Conv2d:
    """A convolution that keeps the resolution up to its stride, initialised for ReLU."""
    layer = Conv2d(w_in, w_out, kernel_size, stride=stride, padding=(kernel_size - 1) // 2, groups=groups, bias=bias)
    c2_msra_fill(layer)
    return layer


def norm_layer(norm: Norm, w: int) -> nn.Module:
    return get_norm(norm, w) or nn.Identity()


class SqueezeExcitation(nn.Module):
    """Weigh channels by what the whole map holds (Hu et al. 2018, arXiv:1709.01507).

    Args:
        w_in: channels.
        w_se: channels between the two layers that compute the weights.
        activation_class: makes the activation between them.
    """

    def __init__(self, w_in: int, w_se: int, activation_class: Activation = relu):
        super().__init__()
        self.f_ex = nn.Sequential(
            conv(w_in, w_se, 1, bias=True), activation_class(), conv(w_se, w_in, 1, bias=True), nn.Sigmoid()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply every channel of `Tensor[N, w_in, H, W]` by its weight between 0 and 1."""
        return x * self.f_ex(x.mean(dim=(2, 3), keepdim=True))


class BasicTransform(nn.Module):
    """The branch of :class:`ResBasicBlock`: two 3x3 convolutions.

    Args:
        w_in: channels of the input.
        w_out: channels of the output.
        stride: stride of the first convolution.
        norm: a norm as :func:`detectron2.layers.get_norm` takes it.
        activation_class: makes the activation.
        params: not used here; see :class:`ResBottleneckBlock`.
    """

    def __init__(
        self,
        w_in: int,
        w_out: int,
        stride: int,
        norm: Norm,
        activation_class: Activation = relu,
        params: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.a = conv(w_in, w_out, 3, stride=stride)
        self.a_bn = norm_layer(norm, w_out)
        self.a_af = activation_class()
        self.b = conv(w_out, w_out, 3)
        self.b_bn = norm_layer(norm, w_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `Tensor[N, w_in, H, W]` to `Tensor[N, w_out, H / stride, W / stride]`."""
        return self.b_bn(self.b(self.a_af(self.a_bn(self.a(x)))))


class BottleneckTransform(nn.Module):
    """The branch of :class:`ResBottleneckBlock`: 1x1, grouped 3x3 and 1x1 convolutions.

    Args:
        w_in: channels of the input.
        w_out: channels of the output.
        stride: stride of the 3x3 convolution.
        norm: a norm as :func:`detectron2.layers.get_norm` takes it.
        activation_class: makes the activations.
        params: see :class:`ResBottleneckBlock`.
    """

    def __init__(
        self,
        w_in: int,
        w_out: int,
        stride: int,
        norm: Norm,
        activation_class: Activation,
        params: Mapping[str, Any],
    ):
        super().__init__()
        w_bottleneck = round(w_out * params["bottleneck_ratio"])
        if w_bottleneck % params["group_width"] != 0:
            raise ValueError(
                f"RegNet: a bottleneck of {w_bottleneck} channels cannot be cut into groups of {params['group_width']}"
            )
        self.a = conv(w_in, w_bottleneck, 1)
        self.a_bn = norm_layer(norm, w_bottleneck)
        self.a_af = activation_class()
        self.b = conv(w_bottleneck, w_bottleneck, 3, stride=stride, groups=w_bottleneck // params["group_width"])
        self.b_bn = norm_layer(norm, w_bottleneck)
        self.b_af = activation_class()
        # The reduction is relative to the input of the block.
        w_se = round(w_in * params["se_ratio"])
        self.se = SqueezeExcitation(w_bottleneck, w_se, activation_class) if w_se else nn.Identity()
        self.c = conv(w_bottleneck, w_out, 1)
        self.c_bn = norm_layer(norm, w_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `Tensor[N, w_in, H, W]` to `Tensor[N, w_out, H / stride, W / stride]`."""
        x = self.b_af(self.b_bn(self.b(self.a_af(self.a_bn(self.a(x))))))
        return self.c_bn(self.c(self.se(x)))
