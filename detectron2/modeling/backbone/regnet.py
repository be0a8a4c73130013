"""RegNet: networks whose widths follow a quantised line (Radosavovic et al., "Designing Network Design Spaces", 2020).

A network is a stem and stages `s1` to `s4`; a stage halves the resolution once, in its first block `b1`. The paper is
arXiv:2003.13678. Names of parameters are those of its published checkpoints. Feature maps are `Tensor[N, C, H, W]`.

Letters: `w` width (channels), `d` depth (blocks).

Stems, branches and blocks take the same arguments: `w_in` and `w_out`, channels of the input and the output; `stride`,
of the first 3x3 convolution; `norm`, as `detectron2.layers.get_norm` takes it; `activation_class`, which makes an
activation; and `params`, see `BottleneckTransform`. They map `Tensor[N, w_in, H, W]` to
`Tensor[N, w_out, H / stride, W / stride]`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from detectron2.layers import CNNBlockBase, Conv2d, get_norm
from detectron2.layers.weight_init import c2_msra_fill

from .backbone import Backbone, warn_of_freezing_all

__all__ = [
    "AnyNet",
    "AnyStage",
    "BasicTransform",
    "BottleneckTransform",
    "RegNet",
    "ResBasicBlock",
    "ResBottleneckBlock",
    "ResStem",
    "ResStemCifar",
    "SimpleStem",
    "SqueezeExcitation",
    "VanillaBlock",
]

_WIDTH_STEP = 8
"""Widths are rounded to multiples of this (section 3.3)."""

Norm = str | Callable[[int], nn.Module] | None
"""A norm as `detectron2.layers.get_norm` takes it."""
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


class BasicTransform(CNNBlockBase):
    """The branch of `ResBasicBlock`: two 3x3 convolutions; it reads no `params`."""

    def __init__(
        self,
        w_in: int,
        w_out: int,
        stride: int,
        norm: Norm,
        activation_class: Activation = relu,
        params: Mapping[str, Any] | None = None,
    ):
        super().__init__(w_in, w_out, stride)
        self.a = conv(w_in, w_out, 3, stride=stride)
        self.a_bn = norm_layer(norm, w_out)
        self.a_af = activation_class()
        self.b = conv(w_out, w_out, 3)
        self.b_bn = norm_layer(norm, w_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the branch, without an activation at its end."""
        return self.b_bn(self.b(self.a_af(self.a_bn(self.a(x)))))


class BottleneckTransform(CNNBlockBase):
    """The branch of `ResBottleneckBlock`: 1x1, grouped 3x3 and 1x1 convolutions.

    Its `params` are `bottleneck_ratio`, the width of the 3x3 convolution relative to `w_out`; `group_width`, channels
    of each of its groups; and `se_ratio`, the width of squeeze-and-excitation relative to `w_in`, 0 for none.
    """

    def __init__(
        self, w_in: int, w_out: int, stride: int, norm: Norm, activation_class: Activation, params: Mapping[str, Any]
    ):
        super().__init__(w_in, w_out, stride)
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
        """Compute the branch, without an activation at its end."""
        x = self.b_af(self.b_bn(self.b(self.a_af(self.a_bn(self.a(x))))))
        return self.c_bn(self.c(self.se(x)))


class _Stem(CNNBlockBase):
    """A convolution, its norm and an activation."""

    kernel_size: int = 3
    conv_stride: int = 2
    pool_stride: int = 1

    def __init__(self, w_in: int, w_out: int, norm: Norm, activation_class: Activation = relu):
        super().__init__(w_in, w_out, self.conv_stride * self.pool_stride)
        self.conv = conv(w_in, w_out, self.kernel_size, stride=self.conv_stride)
        self.bn = norm_layer(norm, w_out)
        self.af = activation_class()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the stem."""
        return self.af(self.bn(self.conv(x)))


class SimpleStem(_Stem):
    """The stem of RegNet for large images: one 3x3 convolution of stride 2."""


class ResStemCifar(_Stem):
    """A stem for small images: one 3x3 convolution of stride 1."""

    conv_stride = 1


class ResStem(_Stem):
    """The stem of ResNet: a 7x7 convolution of stride 2, then 3x3 max pooling of stride 2."""

    kernel_size, pool_stride = 7, 2

    def __init__(self, w_in: int, w_out: int, norm: Norm, activation_class: Activation = relu):
        super().__init__(w_in, w_out, norm, activation_class)
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the stem."""
        return self.pool(super().forward(x))


class VanillaBlock(BasicTransform):
    """Two 3x3 convolutions, without a shortcut; it reads no `params`."""

    def __init__(
        self, w_in: int, w_out: int, stride: int, norm: Norm, activation_class: Activation = relu, params=None
    ):
        super().__init__(w_in, w_out, stride, norm, activation_class)
        self.b_af = activation_class()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the block."""
        return self.b_af(super().forward(x))


class _ShortcutBlock(CNNBlockBase):
    """A branch `f` added to its input, which is projected where the shapes differ."""

    transform_class: Callable[..., nn.Module]

    def __init__(
        self,
        w_in: int,
        w_out: int,
        stride: int,
        norm: Norm,
        activation_class: Activation = relu,
        params: Mapping[str, Any] | None = None,
    ):
        super().__init__(w_in, w_out, stride)
        self.has_projection = w_in != w_out or stride != 1
        if self.has_projection:
            self.proj = conv(w_in, w_out, 1, stride=stride)
            self.bn = norm_layer(norm, w_out)
        self.f = type(self).transform_class(w_in, w_out, stride, norm, activation_class, params)
        self.af = activation_class()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the block."""
        out = self.f(x)
        # The branch ends in a fresh tensor that no backward formula needs, so the sum may overwrite it.
        out += self.bn(self.proj(x)) if self.has_projection else x
        return self.af(out)


class ResBasicBlock(_ShortcutBlock):
    """Two 3x3 convolutions with a shortcut; it reads no `params`."""

    transform_class = BasicTransform


class ResBottleneckBlock(_ShortcutBlock):
    """The X block of the paper: a shortcut around a `BottleneckTransform`; with squeeze-and-excitation the Y block."""

    transform_class = BottleneckTransform


class AnyStage(nn.Sequential):
    """The `d` blocks `b1`, `b2` … of one resolution; `block_class` makes a block, called like `ResBottleneckBlock`."""

    def __init__(
        self,
        w_in: int,
        w_out: int,
        stride: int,
        d: int,
        block_class: Callable[..., CNNBlockBase],
        norm: Norm,
        activation_class: Activation,
        params: Mapping[str, Any],
    ):
        super().__init__()
        for i in range(1, d + 1):
            self.add_module(f"b{i}", block_class(w_in, w_out, stride, norm, activation_class, params))
            w_in, stride = w_out, 1


class AnyNet(Backbone):
    """A stem and stages of given depths and widths (section 3.2).

    Stages behind the last one that `out_features` asks for are left out, so that no parameter goes unused.

    Args:
        stem_class: makes the stem, called like `SimpleStem`.
        stem_width: channels of the stem.
        block_class: makes a block, called like `ResBottleneckBlock`.
        depths: number of blocks of each stage.
        widths: channels of each stage.
        group_widths: channels of a group in each stage.
        strides: stride of each stage.
        bottleneck_ratios: width of the 3x3 convolutions of each stage relative to its width.
        se_ratio: width of squeeze-and-excitation relative to a block's input; 0 for none.
        activation_class: makes the activations; None for ReLU.
        freeze_at: number of parts to fix, see `freeze`.
        norm: a norm as `detectron2.layers.get_norm` takes it.
        out_features: names of the outputs: "stem", "s1", "s2" …; by default the last stage.
    """

    def __init__(
        self,
        *,
        stem_class: Callable[..., CNNBlockBase],
        stem_width: int,
        block_class: Callable[..., CNNBlockBase],
        depths: Sequence[int],
        widths: Sequence[int],
        group_widths: Sequence[int],
        strides: Sequence[int],
        bottleneck_ratios: Sequence[float],
        se_ratio: float = 0.0,
        activation_class: Activation | None = None,
        freeze_at: int = 0,
        norm: Norm = "BN",
        out_features: Sequence[str] | None = None,
    ):
        super().__init__()
        if len({len(x) for x in (depths, widths, group_widths, strides, bottleneck_ratios)}) != 1:
            raise ValueError(
                "AnyNet: depths, widths, group_widths, strides and bottleneck_ratios need one entry for each stage; "
                f"got {depths}, {widths}, {group_widths}, {strides} and {bottleneck_ratios}"
            )
        names = [f"s{i}" for i in range(1, len(depths) + 1)]
        self._out_features = list(out_features) if out_features else [(["stem", *names])[-1]]
        unknown = [name for name in self._out_features if name not in ("stem", *names)]
        if unknown:
            raise ValueError(f"out_features {unknown} do not exist in this network; available are {['stem', *names]}")

        activation_class = activation_class or relu
        self.stem = stem_class(3, stem_width, norm, activation_class)
        width, stride = stem_width, self.stem.stride
        self._out_feature_channels, self._out_feature_strides = {"stem": width}, {"stem": stride}
        self.stage_names = names[: max((names.index(x) + 1 for x in self._out_features if x != "stem"), default=0)]
        for i, name in enumerate(self.stage_names):
            params = {"bottleneck_ratio": bottleneck_ratios[i], "group_width": group_widths[i], "se_ratio": se_ratio}
            stage = AnyStage(width, widths[i], strides[i], depths[i], block_class, norm, activation_class, params)
            self.add_module(name, stage)
            width, stride = widths[i], stride * strides[i]
            self._out_feature_channels[name], self._out_feature_strides[name] = width, stride
        self.freeze(freeze_at)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the outputs named by `out_features` for images `Tensor[N, 3, H, W]`."""
        if x.dim() != 4:
            raise ValueError(f"{type(self).__name__} takes images of shape (N, C, H, W); got shape {tuple(x.shape)}")
        outputs = {}
        x = self.stem(x)
        if "stem" in self._out_features:
            outputs["stem"] = x
        for name in self.stage_names:
            x = getattr(self, name)(x)
            if name in self._out_features:
                outputs[name] = x
        return outputs

    def freeze(self, freeze_at: int = 0) -> nn.Module:
        """Do what `ResNet.freeze` does: 0 freezes nothing, 1 the stem, 2 the stem and `s1`, and so on."""
        warn_of_freezing_all(freeze_at, 1 + len(self.stage_names))
        if freeze_at >= 1:
            self.stem.freeze()
        for name in self.stage_names[: max(freeze_at - 1, 0)]:
            for block in getattr(self, name):
                block.freeze()
        return self


class RegNet(AnyNet):
    """The network that a few numbers describe (section 3.3): block `j` asks for the width `w_0 + w_a * j`.

    These widths are rounded to powers of `w_m` times `w_0`, and blocks of equal width make a stage.

    Args:
        depth: number of blocks of all stages.
        w_a: slope of the widths.
        w_0: width of the first block; a multiple of 8.
        w_m: factor from one width to the next, above 1.
        group_width: channels of a group.
        stride: stride of every stage.
        bottleneck_ratio: width of the 3x3 convolutions relative to that of their stage.
        **kwargs: arguments of `AnyNet` that are not about single stages.
    """

    def __init__(
        self,
        *,
        depth: int,
        w_a: float,
        w_0: int,
        w_m: float,
        group_width: int,
        stride: int = 2,
        bottleneck_ratio: float = 1.0,
        **kwargs: Any,
    ):
        widths, depths = _stage_widths_and_depths(w_a, w_0, w_m, depth)
        fitting = [_fit_groups(width, bottleneck_ratio, group_width) for width in widths]
        num_stages = len(depths)
        super().__init__(
            depths=depths,
            widths=[width for width, _ in fitting],
            group_widths=[group for _, group in fitting],
            strides=[stride] * num_stages,
            bottleneck_ratios=[bottleneck_ratio] * num_stages,
            **kwargs,
        )


def _stage_widths_and_depths(w_a: float, w_0: int, w_m: float, depth: int) -> tuple[list[int], list[int]]:
    """Widths of the stages and how many blocks have each (equations 2 to 4)."""
    if w_a < 0 or w_0 <= 0 or w_0 % _WIDTH_STEP != 0 or w_m <= 1 or depth < 1:
        raise ValueError(
            f"RegNet needs w_a >= 0, w_0 > 0 divisible by {_WIDTH_STEP}, w_m > 1 and depth >= 1; got w_a={w_a}, "
            f"w_0={w_0}, w_m={w_m}, depth={depth}"
        )
    widths, depths = [], []
    for j in range(depth):
        power = round(math.log((w_0 + w_a * j) / w_0, w_m))
        width = round(w_0 * w_m**power / _WIDTH_STEP) * _WIDTH_STEP
        if widths and widths[-1] == width:
            depths[-1] += 1
        else:
            widths.append(width)
            depths.append(1)
    return widths, depths


def _fit_groups(width: int, bottleneck_ratio: float, group_width: int) -> tuple[int, int]:
    """The nearest width whose bottleneck is a whole number of groups, and the width of a group."""
    bottleneck = max(1, int(width * bottleneck_ratio))
    group = min(group_width, bottleneck)
    bottleneck = max(round(bottleneck / group), 1) * group
    return int(bottleneck / bottleneck_ratio), group
