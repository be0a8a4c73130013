"""The head of TensorMask.

Letters: `N` images, `L` levels, `A` windows per cell, `K` classes, `V_a` side of the masks of window a in cells, `P`
windows; `H_i` and `W_i` size of the feature map of level i, the finest being level 0.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec

from .layers import swap_align2nat_at

__all__ = ["TensorMaskHead"]


class TensorMaskHead(nn.Module):
    """Three towers of 3x3 convolutions, for classes, boxes and masks; the same weights for all levels.

    Masks in their windows are as large as whole feature maps, and only those of objects are ever looked at. So
    `forward` returns the features that masks are made from, and `masks_at` makes those that are wanted.

    Args:
        input_shape: stride and channels of each feature map.
        num_classes: `K`.
        num_anchors: `A`.
        mask_sizes: `V_a` of each of the `A` windows.
        num_convs: convolutions in each tower.
        cls_channels: channels of the tower of classes.
        bbox_channels: channels of the tower of boxes.
        mask_channels: channels of the tower of masks.
        mask_on: whether to predict masks at all.
        aligned_on: predict masks in the aligned representation (section 3.3 of the paper).
        bipyramid_on: predict the masks of all levels at the resolution of the finest (section 3.6).
        prior_prob: probability that an untrained head gives to every class.
    """

    @configurable
    def __init__(
        self,
        *,
        input_shape: Sequence[ShapeSpec],
        num_classes: int,
        num_anchors: int,
        mask_sizes: Sequence[int],
        num_convs: int = 4,
        cls_channels: int = 256,
        bbox_channels: int = 128,
        mask_channels: int = 128,
        mask_on: bool = True,
        aligned_on: bool = True,
        bipyramid_on: bool = True,
        prior_prob: float = 0.01,
    ):
        super().__init__()
        channels, strides = _checked_shapes(input_shape)
        if bipyramid_on and not aligned_on:
            raise ValueError(
                "the bipyramid resamples masks in the aligned representation: "
                "MODEL.TENSOR_MASK.BIPYRAMID_ON needs ALIGNED_ON"
            )
        if len(mask_sizes) != num_anchors:
            raise ValueError(f"{num_anchors} windows per cell need as many mask sizes, got {list(mask_sizes)}")
        self.mask_on = mask_on
        self.aligned_on = aligned_on
        self.bipyramid_on = bipyramid_on
        self.mask_sizes = list(mask_sizes)
        self.lambdas = [stride // strides[0] if bipyramid_on else 1 for stride in strides]

        self.cls_subnet = _tower(channels, cls_channels, num_convs)
        self.cls_score = _normal_conv(cls_channels if num_convs else channels, num_anchors * num_classes, 3)
        nn.init.constant_(self.cls_score.bias, math.log(prior_prob / (1 - prior_prob)))  # pyright: ignore[reportArgumentType]  # it has a bias
        self.bbox_subnet = _tower(channels, bbox_channels, num_convs)
        self.bbox_pred = _normal_conv(bbox_channels if num_convs else channels, num_anchors * 4, 3)
        if mask_on:
            tower_channels = mask_channels if num_convs else channels
            self.mask_subnet = _tower(channels, mask_channels, num_convs)
            if bipyramid_on:
                self.mask_fuse = nn.Sequential(_normal_conv(tower_channels, tower_channels, 3), nn.ReLU())
            for anchor, side in enumerate(mask_sizes):
                self.add_module(_mask_layer(anchor), _normal_conv(tower_channels, side * side, 1))

    def forward(
        self, features: list[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor] | None]:
        """Predict on every level.

        Args:
            features: for each level `Tensor[N, C, H_i, W_i]`.

        Returns:
            For each level the logits `Tensor[N, A * K, H_i, W_i]`, the deltas `Tensor[N, A * 4, H_i, W_i]`, and the
            features for `masks_at`; None in place of the last without masks.
        """
        logits = [self.cls_score(self.cls_subnet(x)) for x in features]
        deltas = [self.bbox_pred(self.bbox_subnet(x)) for x in features]
        return logits, deltas, self._mask_features(features) if self.mask_on else None

    def _mask_features(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        maps = [self.mask_subnet(x) for x in features]
        if not self.bipyramid_on:
            return maps
        finest = maps[0]
        height, width = finest.shape[-2:]
        fused = []
        for x, scale in zip(maps, self.lambdas, strict=True):
            if scale > 1:
                x = F.interpolate(x, scale_factor=float(scale), mode="bilinear", align_corners=False)
            # Sizes are rounded up at every level, so the last cells can reach beyond the finest map.
            fused.append(self.mask_fuse(x[..., :height, :width] + finest))
        return fused

    def mask_side(self, level: int, anchor: int) -> int:
        """Cells along the side of the masks of a window at a level."""
        return self.mask_sizes[anchor] * self.lambdas[level]

    def masks_at(
        self,
        mask_features: list[torch.Tensor],
        level: int,
        anchor: int,
        images: torch.Tensor,
        rows: torch.Tensor,
        columns: torch.Tensor,
    ) -> torch.Tensor:
        """Predict the masks of some windows of one kind.

        Args:
            mask_features: as `forward` returns them.
            level: the level of the windows.
            anchor: their number in the cell.
            images: int64 `Tensor[P]`, the image of each.
            rows: int64 `Tensor[P]`, its row in the feature map.
            columns: int64 `Tensor[P]`, its column.

        Returns:
            Logits `Tensor[P, S, S]` where S is `mask_side`. The mask spans the window evenly.
        """
        aligned = getattr(self, _mask_layer(anchor))(mask_features[level]).float()
        if self.aligned_on:
            return swap_align2nat_at(aligned, self.lambdas[level], images, rows, columns)
        side = self.mask_sizes[anchor]
        return aligned[images, :, rows, columns].unflatten(1, (side, side))

    @classmethod
    def from_config(
        cls, cfg: CfgNode, num_anchors: int, mask_sizes: Sequence[int], input_shape: Sequence[ShapeSpec]
    ) -> dict[str, Any]:
        """Arguments of the constructor from `cfg.MODEL.TENSOR_MASK`."""
        options = cfg.MODEL.TENSOR_MASK
        return {
            "input_shape": input_shape,
            "num_classes": options.NUM_CLASSES,
            "num_anchors": num_anchors,
            "mask_sizes": mask_sizes,
            "num_convs": options.NUM_CONVS,
            "cls_channels": options.CLS_CHANNELS,
            "bbox_channels": options.BBOX_CHANNELS,
            "mask_channels": options.MASK_CHANNELS,
            "mask_on": cfg.MODEL.MASK_ON,
            "aligned_on": options.ALIGNED_ON,
            "bipyramid_on": options.BIPYRAMID_ON,
        }


def _mask_layer(anchor: int) -> str:
    return f"mask_pred_{anchor:02d}"


def _checked_shapes(shapes: Sequence[ShapeSpec]) -> tuple[Any, list[Any]]:
    """Channels, the same at all levels, and the strides, each a multiple of the first."""
    channels: list[Any] = [shape.channels for shape in shapes]
    strides: list[Any] = [shape.stride for shape in shapes]
    if not channels or any(c != channels[0] for c in channels):
        raise ValueError(f"the TensorMask head shares its weights between levels, which have channels {channels}")
    if any(stride % strides[0] for stride in strides):
        raise ValueError(f"the strides of all levels must be multiples of that of the first, got {strides}")
    return channels[0], strides


def _normal_conv(in_channels: int, out_channels: int, kernel_size: int) -> nn.Conv2d:
    layer = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]  # it has a bias
    return layer


def _tower(in_channels: int, channels: int, num_convs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(num_convs):
        layers += [_normal_conv(in_channels if i == 0 else channels, channels, 3), nn.ReLU()]
    return nn.Sequential(*layers)
