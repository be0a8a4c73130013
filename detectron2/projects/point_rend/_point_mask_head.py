"""What the mask heads of PointRend share: they read feature maps at points of regions, and predict in groups.

`N` images, `R` regions over the whole batch (`Ri` in image i), `K` classes, `P` points of a region, `C` channels, `M`
side of a mask in cells. Points are `(x, y)` as shares of their region's box.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference
from detectron2.structures import Boxes, Instances

from .point_features import generate_regular_grid_point_coords, point_sample_fine_grained_features

__all__ = ["PointMaskHead", "arguments_from_config", "channels_of"]

# How many numbers the description of all points of a group of regions may hold in inference; a point head needs a few
# times as much. Regions do not depend on each other, so more of them are worked off in groups.
_GROUP_NUMBERS = 1 << 25


def channels_of(names: Sequence[str], shapes: dict[str, ShapeSpec], key: str) -> int:
    """How many channels the feature maps `names` have together."""
    unknown = [name for name in names if name not in shapes]
    if unknown:
        raise ValueError(
            f"{key} names {unknown}, but the mask head is given only {sorted(shapes)}, which "
            "MODEL.ROI_HEADS.IN_FEATURES chooses"
        )
    return sum(shapes[name].channels or 0 for name in names)


def _check_config(cfg: CfgNode) -> None:
    """Raise when the config asks for what a PointRend mask head cannot do."""
    classes, point_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.POINT_HEAD.NUM_CLASSES
    if classes != point_classes:
        raise ValueError(
            f"MODEL.POINT_HEAD.NUM_CLASSES is {point_classes} and MODEL.ROI_HEADS.NUM_CLASSES {classes}; set both to "
            "the number of classes of the data set"
        )
    if cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE:
        raise ValueError(
            f"{cfg.MODEL.ROI_MASK_HEAD.NAME} reads the feature maps themselves; set MODEL.ROI_MASK_HEAD.POOLER_TYPE "
            f"to '' (it is {cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE!r})"
        )


def arguments_from_config(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
    """Arguments that the two mask heads have in common, but for the heads inside of them."""
    _check_config(cfg)
    head, point_head = cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.POINT_HEAD
    return {
        "in_features": head.IN_FEATURES,
        "pooler_resolution": head.POOLER_RESOLUTION,
        "point_in_features": point_head.IN_FEATURES,
        "feature_scales": {name: 1.0 / (shape.stride or 1) for name, shape in input_shape.items()},
        "train_num_points": point_head.TRAIN_NUM_POINTS,
        "subdivision_steps": point_head.SUBDIVISION_STEPS,
        "subdivision_num_points": point_head.SUBDIVISION_NUM_POINTS,
        "vis_period": cfg.VIS_PERIOD,
    }


class PointMaskHead(nn.Module):
    """What both mask heads do: read the regions, and predict masks for groups of them in inference."""

    def __init__(
        self,
        *,
        in_features: Sequence[str],
        pooler_resolution: int,
        point_in_features: Sequence[str],
        feature_scales: dict[str, float],
        train_num_points: int,
        subdivision_steps: int,
        subdivision_num_points: int,
        vis_period: int,
    ):
        super().__init__()
        self.roi_pooler_in_features = tuple(in_features)
        self.roi_pooler_size = pooler_resolution
        self.mask_point_in_features = tuple(point_in_features)
        self._feature_scales = dict(feature_scales)
        self.mask_point_train_num_points = train_num_points
        self.mask_point_subdivision_steps = subdivision_steps
        self.mask_point_subdivision_num_points = subdivision_num_points
        self.vis_period = vis_period

    def _roi_pooler(self, features: dict[str, torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        """Features `Tensor[R, C, S, S]` of whole regions, read at the points of a regular grid."""
        side = self.roi_pooler_size
        regions = sum(len(x) for x in boxes)
        grid = generate_regular_grid_point_coords(regions, side, features[self.roi_pooler_in_features[0]].device)
        pooled, _ = self._read(features, self.roi_pooler_in_features, boxes, grid)
        return pooled.unflatten(2, (side, side))

    def _point_features(
        self, features: dict[str, torch.Tensor], boxes: list[Boxes], point_coords: torch.Tensor
    ) -> torch.Tensor:
        """Fine-grained features `Tensor[R, C, P]` of points `Tensor[R, P, 2]`."""
        return self._read(features, self.mask_point_in_features, boxes, point_coords)[0]

    def _read(self, features: Any, names: Sequence[str], boxes: list[Boxes], coords: torch.Tensor) -> Any:
        maps = [features[name] for name in names]
        return point_sample_fine_grained_features(maps, [self._feature_scales[name] for name in names], boxes, coords)

    def _inference(self, features: dict[str, torch.Tensor], instances: list[Instances]) -> list[Instances]:
        """Set `pred_masks`, `Tensor[Ri, 1, M, M]` of probabilities, of every image."""
        counts = [len(x) for x in instances]
        if not instances:
            return instances
        total = sum(counts)
        boxes = [x.pred_boxes for x in instances]
        classes = cat([x.pred_classes for x in instances])
        channels = sum(features[name].shape[1] for name in self.mask_point_in_features)
        group = max(1, _GROUP_NUMBERS // max(1, self.mask_point_subdivision_num_points * channels))
        logits = []
        for start in range(0, max(total, 1), group):  # at least once, for the shape of no masks
            stop = min(start + group, total)
            part, seen = [], 0
            for of_image, count in zip(boxes, counts, strict=True):
                part.append(of_image[max(start - seen, 0) : max(stop - seen, 0)])
                seen += count
            logits.append(self._predict(features, part, classes[start:stop]))
        mask_rcnn_inference(cat(logits), instances)
        return instances

    def _predict(self, features: dict[str, torch.Tensor], boxes: list[Boxes], classes: torch.Tensor) -> torch.Tensor:
        """Mask logits `Tensor[R, 1, M, M]` of the class of each region."""
        raise NotImplementedError(f"{type(self).__name__} must define _predict(features, boxes, classes)")
