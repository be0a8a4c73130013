"""Mask heads of PointRend, for `MODEL.ROI_MASK_HEAD.NAME`.

`N` images, `R` regions over the whole batch, `K` classes, `P` points of a region, `C` channels, `M` side of a mask in
cells. Points are `(x, y)` as shares of their region's box.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference, mask_rcnn_loss
from detectron2.modeling.roi_heads.numerics import full_precision, select_class
from detectron2.structures import Boxes, Instances

from .coarse_mask_head import CoarseMaskHead
from .point_features import (
    generate_regular_grid_point_coords,
    get_uncertain_point_coords_with_randomness,
    point_sample,
    point_sample_fine_grained_features,
    sample_point_labels,
    subdivide,
)
from .point_head import build_point_head, roi_mask_point_loss

__all__ = ["CoarseMaskHead", "ImplicitPointRendMaskHead", "PointRendMaskHead", "calculate_uncertainty"]


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


def arguments_from_config(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
    """Arguments that the two mask heads have in common, but for the heads inside of them."""
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
    """What both mask heads do: read the regions, and predict masks for groups of them in inference.

    In place of pooled features they take the feature maps themselves: `MODEL.ROI_MASK_HEAD.POOLER_TYPE` is "".

    Args:
        in_features: feature maps that are read over whole regions.
        pooler_resolution: side `S` of the grid on which they are read.
        point_in_features: feature maps that the point head reads.
        feature_scales: the size of each feature map relative to the image, by name.
        train_num_points: points of a region in training.
        subdivision_steps: how often the resolution is doubled in inference.
        subdivision_num_points: points of a region that are predicted at each of these steps.
        vis_period: number of iterations between pictures of coarse masks in the event storage; 0 for never.
    """

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
        vis_period: int = 0,
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
        regions = sum(x.tensor.shape[0] for x in boxes)
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
        if not instances:
            return instances
        boxes = [x.pred_boxes for x in instances]
        classes = cat([x.pred_classes for x in instances])
        if torch.jit.is_tracing():  # a graph has a fixed number of groups
            mask_rcnn_inference(self._predict(features, boxes, classes), instances)
            return instances
        counts = [len(x) for x in instances]
        total = sum(counts)
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

    def _subdivide(self, logits: torch.Tensor, predict: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        steps, num_points = self.mask_point_subdivision_steps, self.mask_point_subdivision_num_points
        return subdivide(logits, steps, num_points, lambda x: -x.abs(), predict)

    def _predict(self, features: dict[str, torch.Tensor], boxes: list[Boxes], classes: torch.Tensor) -> torch.Tensor:
        """Mask logits `Tensor[R, 1, M, M]` of the class of each region."""
        raise NotImplementedError(f"{type(self).__name__} must define _predict(features, boxes, classes)")


def calculate_uncertainty(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """How near to the border of its mask something is: minus the absolute logit of the class of each region.

    From logits `Tensor[R, K, ...]`, or `Tensor[R, 1, ...]` when masks do not depend on the class, and int64 classes
    `Tensor[R]` to `Tensor[R, 1, ...]`.
    """
    return -select_class(logits, classes).unsqueeze(1).abs()


@ROI_MASK_HEAD_REGISTRY.register()
class PointRendMaskHead(PointMaskHead):
    """Predicts a coarse mask, and then its uncertain points one by one (PointRend, section 4).

    Args:
        coarse_head: from features `Tensor[R, C, S, S]` of whole regions to coarse mask logits.
        point_head: from fine-grained features and coarse logits at points to logits; None for coarse masks only.
        oversample_ratio: how many candidates are drawn for each point in training.
        importance_sample_ratio: share of the points that are the least certain candidates.
        **kwargs: arguments of `PointMaskHead`.
    """

    @configurable
    def __init__(
        self,
        *,
        coarse_head: nn.Module,
        point_head: nn.Module | None,
        oversample_ratio: float,
        importance_sample_ratio: float,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.mask_point_oversample_ratio = oversample_ratio
        self.mask_point_importance_sample_ratio = importance_sample_ratio
        self.coarse_head = coarse_head
        self.mask_point_on = point_head is not None
        if point_head is not None:
            self.point_head = point_head

    def forward(self, features: dict[str, torch.Tensor], instances: list[Instances]) -> Any:
        """Predict a mask for every region from feature maps by name, each `Tensor[N, C, H, W]`.

        In training `instances` are foreground proposals with ground truth, and the result is the losses `loss_mask` of
        the coarse masks and `loss_mask_point`; in inference they are detections, and get `pred_masks`.
        """
        if not self.training:
            return self._inference(features, instances)
        boxes = [x.proposal_boxes for x in instances]
        coarse_mask = self.coarse_head(self._roi_pooler(features, boxes))
        losses = {"loss_mask": mask_rcnn_loss(coarse_mask, instances, self.vis_period)}
        if self.mask_point_on:
            coords, labels = self._sample_train_points(coarse_mask, instances)
            point_logits = self._point_logits(features, boxes, coarse_mask, coords)
            losses["loss_mask_point"] = roi_mask_point_loss(point_logits, instances, labels)
        return losses

    def _sample_train_points(
        self, coarse_mask: torch.Tensor, instances: list[Instances]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Points `Tensor[R, P, 2]` to learn from, and their labels `Tensor[R, P]`."""
        classes = cat([x.gt_classes for x in instances])
        coords = get_uncertain_point_coords_with_randomness(
            coarse_mask,
            lambda logits: calculate_uncertainty(logits, classes),
            self.mask_point_train_num_points,
            self.mask_point_oversample_ratio,
            self.mask_point_importance_sample_ratio,
        )
        return coords, sample_point_labels(instances, coords)

    def _point_logits(
        self, features: dict[str, torch.Tensor], boxes: list[Boxes], coarse_mask: torch.Tensor, coords: torch.Tensor
    ) -> torch.Tensor:
        """Logits `Tensor[R, K, P]` of the point head at points `Tensor[R, P, 2]`."""
        coarse_features = point_sample(coarse_mask, coords, align_corners=False)
        return self.point_head(self._point_features(features, boxes, coords), coarse_features)

    def _predict(self, features: dict[str, torch.Tensor], boxes: list[Boxes], classes: torch.Tensor) -> torch.Tensor:
        coarse_mask = self.coarse_head(self._roi_pooler(features, boxes))
        # Masks of other classes are not looked at, so only one of K is made fine.
        logits = full_precision(select_class(coarse_mask, classes)).unsqueeze(1)
        if not self.mask_point_on:
            return logits

        def predict(coords: torch.Tensor) -> torch.Tensor:
            return select_class(self._point_logits(features, boxes, coarse_mask, coords), classes).unsqueeze(1)

        return self._subdivide(logits, predict)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        """Arguments of the constructor from `cfg.MODEL.ROI_MASK_HEAD` and `cfg.MODEL.POINT_HEAD`."""
        common = arguments_from_config(cfg, input_shape)
        head, point_head = cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.POINT_HEAD
        side = head.POOLER_RESOLUTION
        channels = channels_of(head.IN_FEATURES, input_shape, "MODEL.ROI_MASK_HEAD.IN_FEATURES")
        point_channels = channels_of(point_head.IN_FEATURES, input_shape, "MODEL.POINT_HEAD.IN_FEATURES")
        on = head.POINT_HEAD_ON
        return {
            **common,
            "oversample_ratio": point_head.OVERSAMPLE_RATIO,
            "importance_sample_ratio": point_head.IMPORTANCE_SAMPLE_RATIO,
            "coarse_head": CoarseMaskHead(cfg, ShapeSpec(channels=channels, height=side, width=side)),
            "point_head": build_point_head(cfg, ShapeSpec(channels=point_channels)) if on else None,
        }


@ROI_MASK_HEAD_REGISTRY.register()
class ImplicitPointRendMaskHead(PointMaskHead):
    """Predicts the parameters of a small network for each region, which then predicts its points (arXiv:2104.06404).

    It predicts no coarse mask. The small network is first evaluated on a regular grid of `subdivision_num_points`
    points.

    Args:
        parameter_head: from features `Tensor[R, C, S, S]` of whole regions to the parameters of the point head.
        point_head: from fine-grained features, coordinates and parameters to logits.
        parameters_l2_weight: weight of the mean square of the predicted parameters in the loss.
        **kwargs: arguments of `PointMaskHead`, of which `subdivision_num_points` must be a square number.
    """

    @configurable
    def __init__(
        self, *, parameter_head: nn.Module, point_head: nn.Module, parameters_l2_weight: float = 0.0, **kwargs: Any
    ):
        super().__init__(**kwargs)
        num_points = self.mask_point_subdivision_num_points
        self.mask_point_subdivision_init_resolution = math.isqrt(num_points)
        if self.mask_point_subdivision_init_resolution**2 != num_points:
            raise ValueError(
                "MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS must be a square number, because the first prediction is "
                f"made on a square grid of this many points; got {num_points}"
            )
        self.regularizer = parameters_l2_weight
        self.point_head = point_head
        self.parameter_head = parameter_head

    def forward(self, features: dict[str, torch.Tensor], instances: list[Instances]) -> Any:
        """Predict a mask for every region, as `PointRendMaskHead.forward` does.

        The losses are `loss_mask_point` and, unless its weight is 0, `loss_l2` of the parameters.
        """
        if not self.training:
            return self._inference(features, instances)
        boxes = [x.proposal_boxes for x in instances]
        parameters = self.parameter_head(self._roi_pooler(features, boxes))
        coords, labels = self._uniform_sample_train_points(instances)
        point_logits = self._point_logits(features, boxes, coords, parameters)
        losses = {"loss_mask_point": roi_mask_point_loss(point_logits, instances, labels)}
        if self.regularizer > 0:
            squares = full_precision(parameters).square().sum()
            losses["loss_l2"] = squares * (self.regularizer / max(parameters.numel(), 1))
        return losses

    def _uniform_sample_train_points(self, instances: list[Instances]) -> tuple[torch.Tensor, torch.Tensor]:
        """Points `Tensor[R, P, 2]` to learn from, drawn evenly, and their labels `Tensor[R, P]`."""
        boxes = Boxes.cat([x.proposal_boxes for x in instances])
        coords = torch.rand(len(boxes), self.mask_point_train_num_points, 2, device=boxes.device)
        return coords, sample_point_labels(instances, coords)

    def _point_logits(
        self, features: dict[str, torch.Tensor], boxes: list[Boxes], coords: torch.Tensor, parameters: torch.Tensor
    ) -> torch.Tensor:
        """Logits `Tensor[R, K, P]` of the point head at points `Tensor[R, P, 2]`."""
        return self.point_head(self._point_features(features, boxes, coords), coords, parameters)

    def _predict(self, features: dict[str, torch.Tensor], boxes: list[Boxes], classes: torch.Tensor) -> torch.Tensor:
        parameters = self.parameter_head(self._roi_pooler(features, boxes))

        def predict(coords: torch.Tensor) -> torch.Tensor:
            logits = select_class(self._point_logits(features, boxes, coords, parameters), classes)
            return full_precision(logits).unsqueeze(1)

        side = self.mask_point_subdivision_init_resolution
        grid = generate_regular_grid_point_coords(parameters.shape[0], side, parameters.device)
        return self._subdivide(predict(grid).unflatten(2, (side, side)), predict)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        """Arguments from `cfg.MODEL.ROI_MASK_HEAD`, `cfg.MODEL.POINT_HEAD` and `cfg.MODEL.IMPLICIT_POINTREND`."""
        common = arguments_from_config(cfg, input_shape)
        head, point_in_features = cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.POINT_HEAD.IN_FEATURES
        side = head.POOLER_RESOLUTION
        channels = channels_of(head.IN_FEATURES, input_shape, "MODEL.ROI_MASK_HEAD.IN_FEATURES")
        point_channels = channels_of(point_in_features, input_shape, "MODEL.POINT_HEAD.IN_FEATURES")
        point_head = build_point_head(cfg, ShapeSpec(channels=point_channels))
        parameter_head = CoarseMaskHead(
            ShapeSpec(channels=channels, height=side, width=side),
            conv_dim=head.CONV_DIM,
            fc_dims=[head.FC_DIM] * head.NUM_FC,
            output_shape=(point_head.num_params,),
        )
        return {
            **common,
            "parameters_l2_weight": cfg.MODEL.IMPLICIT_POINTREND.PARAMS_L2_REGULARIZER,
            "point_head": point_head,
            "parameter_head": parameter_head,
        }
