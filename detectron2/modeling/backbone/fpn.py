"""Feature pyramid networks (Lin et al. 2017): one pyramid of equally wide feature maps on top of a backbone.

Pyramid level `p<k>` has stride `2 ** k` with respect to the input image.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from detectron2.layers import ShapeSpec
from detectron2.layers.blocks import conv_norm
from detectron2.layers.shape_spec import select_shapes
from detectron2.layers.weight_init import c2_xavier_fill

from .backbone import Backbone
from .build import BACKBONE_REGISTRY
from .resnet import build_resnet_backbone

__all__ = [
    "FPN",
    "LastLevelMaxPool",
    "LastLevelP6P7",
    "PyramidBase",
    "build_resnet_fpn_backbone",
    "build_retinanet_resnet_fpn_backbone",
]


class PyramidBase(Backbone):
    """Base of pyramids with levels `p<k>`: their names, strides and channels, and further levels of a `top_block`."""

    top_block: Any

    def _set_levels(
        self, levels: list[int], out_channels: int, below: Sequence[str], top_block: nn.Module | None, square_pad: int
    ) -> None:
        """Describe the levels, numbered by log2 of their strides; `below` are the maps that the backbone offers."""
        self._size_divisibility = 2 ** levels[-1]
        self._square_pad = square_pad
        self.top_block = top_block
        names = [f"p{level}" for level in levels]
        if top_block is not None:
            start = self.top_block.in_feature
            if start not in below and start not in names:
                raise ValueError(
                    f"{type(self).__name__} top_block starts from {start!r}, but the network below offers {below} and "
                    f"the pyramid {names}; set its in_feature"
                )
            levels = levels + [levels[-1] + 1 + i for i in range(self.top_block.num_levels)]
        self._out_features = [f"p{level}" for level in levels]
        self._out_feature_strides = {f"p{level}": 2**level for level in levels}
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)

    @property
    def size_divisibility(self) -> int:
        """The stride of the coarsest map made without `top_block`: sides that are multiples of it lose no pixels."""
        return self._size_divisibility


class FPN(PyramidBase):
    """A feature pyramid on top of another backbone.

    Args:
        bottom_up: the backbone below; its maps named by `in_features` enter the pyramid.
        in_features: names of those maps, from high to low resolution, each with twice the stride of the one before.
        out_channels: channels of every level of the pyramid.
        norm: norm of the lateral and output convolutions, as `detectron2.layers.get_norm` takes it.
        top_block: makes further, coarser levels. It has the attributes `num_levels` (how many it adds) and
            `in_feature` (the map it starts from, of the bottom-up network or of the pyramid).
        fuse_type: "sum" adds the lateral to the top-down map; "avg" takes the mean of the two.
        square_pad: when positive, inputs are padded to squares of this side, in pixels.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: list[str],
        out_channels: int,
        norm: str | Callable[[int], nn.Module] | None = "",
        top_block: nn.Module | None = None,
        fuse_type: str = "sum",
        square_pad: int = 0,
    ):
        super().__init__()
        shapes = bottom_up.output_shape()
        missing = [name for name in in_features if name not in shapes]
        if missing or not in_features:
            raise ValueError(
                f"FPN in_features {list(in_features)}: {missing or 'nothing given'}; "
                f"the bottom-up network offers {list(shapes)}"
            )
        if fuse_type not in ("sum", "avg"):
            raise ValueError(f"FPN fuse_type (MODEL.FPN.FUSE_TYPE) must be 'sum' or 'avg'; got {fuse_type!r}")
        strides: list[Any] = [shapes[name].stride for name in in_features]
        _assert_strides_are_log2_contiguous(strides)
        levels = [stride.bit_length() - 1 for stride in strides]

        laterals, outputs = [], []
        for name, level in zip(in_features, levels, strict=True):
            lateral = conv_norm(shapes[name].channels, out_channels, 1, norm)
            output = conv_norm(out_channels, out_channels, 3, norm)
            for layer in (lateral, output):
                c2_xavier_fill(layer)
            self.add_module(f"fpn_lateral{level}", lateral)
            self.add_module(f"fpn_output{level}", output)
            laterals.append(lateral)
            outputs.append(output)
        # The forward pass runs from the coarsest map to the finest.
        self.lateral_convs, self.output_convs = laterals[::-1], outputs[::-1]

        self._set_levels(levels, out_channels, list(shapes), top_block, square_pad)
        self.in_features = tuple(in_features)
        self.bottom_up = bottom_up
        self._fuse_type = fuse_type

    @property
    def padding_constraints(self) -> dict[str, int]:
        """The side to which inputs are padded (0: no squares)."""
        return {"square_size": self._square_pad}

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the levels `Tensor[N, out_channels, H / stride, W / stride]`, the finest first.

        The input is what the bottom-up network takes, usually images `Tensor[N, 3, H, W]`; `size_divisibility` must
        divide their height and width.
        """
        bottom_up = self.bottom_up(x)
        pyramid: list[torch.Tensor] = []
        top_down = None
        for name, lateral, output in zip(self.in_features[::-1], self.lateral_convs, self.output_convs, strict=True):
            top_down = self._merge(lateral, bottom_up[name], top_down, name)
            pyramid.insert(0, output(top_down))
        if self.top_block is not None:
            source = self.top_block.in_feature
            start = bottom_up[source] if source in bottom_up else pyramid[self._out_features.index(source)]
            pyramid.extend(self.top_block(start))
        return dict(zip(self._out_features, pyramid, strict=True))

    def _merge(self, lateral: nn.Module, x: torch.Tensor, coarser: torch.Tensor | None, name: str) -> torch.Tensor:
        """Fuse the map `name` with the one of twice the stride, if there is one."""
        if coarser is None:
            return lateral(x)
        return self._fuse(lateral(x), F.interpolate(coarser, scale_factor=2.0, mode="nearest"), name)

    def _fuse(self, lateral: torch.Tensor, upsampled: torch.Tensor, name: str) -> torch.Tensor:
        try:
            fused = lateral + upsampled
        except RuntimeError as e:
            raise ValueError(
                f"FPN cannot add the map {name} of {tuple(lateral.shape[-2:])} (H, W) to the upsampled map of "
                f"{tuple(upsampled.shape[-2:])}: pad the input images to multiples of {self._size_divisibility}, e.g. "
                "ImageList.from_tensors(images, model.backbone.size_divisibility)"
            ) from e
        return fused if self._fuse_type == "sum" else fused / 2


def _assert_strides_are_log2_contiguous(strides: list[int]) -> None:
    """Raise unless every stride is a power of two and twice the stride before it."""
    which = f"strides {list(strides)} (of MODEL.FPN.IN_FEATURES, or scale_factors)"
    for i, stride in enumerate(strides):
        if stride < 1 or stride & (stride - 1):
            raise ValueError(f"{which}: {stride} is not a power of two")
        if i and stride != 2 * strides[i - 1]:
            raise ValueError(f"{which}: {stride} is not twice {strides[i - 1]}")


class LastLevelMaxPool(nn.Module):
    """Make `p6` by taking every second pixel of `p5`, as the original FPN does for its region proposals.

    Args:
        in_feature: name of the map it starts from, where the pyramid does not end at `p5`.
    """

    def __init__(self, in_feature: str = "p5"):
        super().__init__()
        self.num_levels = 1
        self.in_feature = in_feature

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the one further level."""
        return [F.max_pool2d(x, kernel_size=1, stride=2, padding=0)]


class LastLevelP6P7(nn.Module):
    """Make `p6` and `p7` by strided convolutions, as RetinaNet does (Lin et al. 2017, section 4).

    Args:
        in_channels: channels of the map it starts from.
        out_channels: channels of both levels.
        in_feature: name of the map it starts from.
    """

    def __init__(self, in_channels: int, out_channels: int, in_feature: str = "res5"):
        super().__init__()
        self.num_levels = 2
        self.in_feature = in_feature
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, 2, 1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, 2, 1)
        for layer in (self.p6, self.p7):
            c2_xavier_fill(layer)

    def forward(self, c5: torch.Tensor) -> list[torch.Tensor]:
        """Return the two further levels."""
        p6 = self.p6(c5)
        return [p6, self.p7(F.relu(p6))]


def _fpn_from_config(cfg, bottom_up: Backbone, top_block: nn.Module) -> FPN:
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """Build a ResNet with a feature pyramid and `LastLevelMaxPool` from `cfg.MODEL.{RESNETS,FPN}`."""
    bottom_up = build_resnet_backbone(cfg, input_shape)
    shapes = select_shapes(bottom_up.output_shape(), cfg.MODEL.FPN.IN_FEATURES, "MODEL.FPN.IN_FEATURES")
    coarsest: Any = shapes[-1].stride
    return _fpn_from_config(cfg, bottom_up, LastLevelMaxPool(f"p{coarsest.bit_length() - 1}"))


@BACKBONE_REGISTRY.register()
def build_retinanet_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """Build a ResNet with a feature pyramid and `LastLevelP6P7` from `cfg.MODEL.{RESNETS,FPN}`."""
    bottom_up = build_resnet_backbone(cfg, input_shape)
    shapes = select_shapes(bottom_up.output_shape(), ["res5"], "LastLevelP6P7 (see MODEL.RESNETS.OUT_FEATURES)")
    channels: Any = shapes[0].channels
    return _fpn_from_config(cfg, bottom_up, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS))
