"""PointRend with fixed shapes, for export.

Letters: `N` images, `D` detections that an image may have, `T` rows of the outputs, `K` classes, `P` points of a
region or image, `C` channels, `M` side of a mask in cells. Points are `(x, y)` as shares of their region or image.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from detectron2.export.graphs import Detections, GraphPart, register_exportable
from detectron2.export.graphs.roi_heads import of_own_class
from detectron2.export.graphs.selection import top_k
from detectron2.modeling.roi_heads.numerics import full_precision

from .mask_head import ImplicitPointRendMaskHead, PointRendMaskHead
from .point_features import (
    generate_regular_grid_point_coords,
    get_point_coords_wrt_image,
    point_sample,
    subdivide,
)
from .semantic_seg import PointRendSemSegHead

__all__ = ["ImplicitPointRendMaskHeadGraph", "PointRendMaskHeadGraph", "PointRendSemSegHeadGraph"]


class _PointMaskHeadGraph(GraphPart):
    """What both mask heads do; they work on all `N * D` rows, so that a batch has one shape."""

    def __call__(self, features: Mapping[str, torch.Tensor], detections: Detections) -> torch.Tensor:
        """Probabilities of each detection's own class, `Tensor[T, M, M]`."""
        boxes, classes = detections.padded_boxes, detections.padded_classes.flatten()
        module = self.module
        side = module.roi_pooler_size
        grid = generate_regular_grid_point_coords(classes.shape[0], side, boxes.device)
        pooled = self._read(features, module.roi_pooler_in_features, boxes, grid).unflatten(2, (side, side))

        def fine(coords: torch.Tensor) -> torch.Tensor:
            return self._read(features, module.mask_point_in_features, boxes, coords)

        masks = self._logits(pooled, fine, classes).sigmoid()[:, 0]
        return masks if detections.rows is None else masks[detections.rows]

    def _read(
        self, features: Mapping[str, torch.Tensor], names: Sequence[str], boxes: torch.Tensor, coords: torch.Tensor
    ) -> torch.Tensor:
        """Features `Tensor[N * D, C, P]` of points `Tensor[N * D, P, 2]` of boxes `Tensor[N, D, 4]`."""
        points = get_point_coords_wrt_image(boxes.flatten(0, 1), coords).unflatten(0, boxes.shape[:2])
        read = []
        for name in names:
            feature, scale = features[name], self.module._feature_scales[name]
            size_wh = [torch.scalar_tensor(s, device=boxes.device) for s in (feature.shape[3], feature.shape[2])]
            # The regions of an image are the rows of one large grid over it.
            sampled = point_sample(feature, points * (scale / torch.stack(size_wh)), align_corners=False)
            read.append(sampled.transpose(1, 2).flatten(0, 1))
        return torch.cat(read, dim=1)

    def _logits(self, pooled: torch.Tensor, fine: Any, classes: torch.Tensor) -> torch.Tensor:
        """Mask logits `Tensor[N * D, 1, M, M]`; `fine` reads the features of points."""
        raise NotImplementedError(f"{type(self).__name__} must define _logits()")

    def _subdivide(self, logits: torch.Tensor, predict: Any) -> torch.Tensor:
        steps, num_points = self.module.mask_point_subdivision_steps, self.module.mask_point_subdivision_num_points
        return subdivide(logits, steps, num_points, lambda x: -x.abs(), predict)


_METHODS = (
    "forward",
    "_inference",
    "_predict",
    "_roi_pooler",
    "_point_features",
    "_read",
    "_point_logits",
    "_subdivide",
)


@register_exportable(PointRendMaskHead)
class PointRendMaskHeadGraph(_PointMaskHeadGraph):
    """A coarse mask, refined where it is least certain."""

    replaces = _METHODS

    def _logits(self, pooled: torch.Tensor, fine: Any, classes: torch.Tensor) -> torch.Tensor:
        module = self.module
        coarse = module.coarse_head(pooled)
        logits = full_precision(of_own_class(coarse, classes))
        if not module.mask_point_on:
            return logits

        def predict(coords: torch.Tensor) -> torch.Tensor:
            at_points = point_sample(coarse, coords, align_corners=False)
            return of_own_class(module.point_head(fine(coords), at_points), classes)

        return self._subdivide(logits, predict)


@register_exportable(ImplicitPointRendMaskHead)
class ImplicitPointRendMaskHeadGraph(_PointMaskHeadGraph):
    """A small network for each region, which predicts its points."""

    replaces = _METHODS

    def _logits(self, pooled: torch.Tensor, fine: Any, classes: torch.Tensor) -> torch.Tensor:
        module = self.module
        parameters = module.parameter_head(pooled)

        def predict(coords: torch.Tensor) -> torch.Tensor:
            logits = module.point_head(fine(coords), coords, parameters)
            return full_precision(of_own_class(logits, classes))

        side = module.mask_point_subdivision_init_resolution
        grid = generate_regular_grid_point_coords(classes.shape[0], side, parameters.device)
        return self._subdivide(predict(grid).unflatten(2, (side, side)), predict)


@register_exportable(PointRendSemSegHead)
class PointRendSemSegHeadGraph(GraphPart):
    """A coarse label map, refined where it is least certain."""

    replaces = ("forward", "_point_logits")

    def __call__(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Scores `Tensor[N, K, H, W]`."""
        head = self.module
        coarse = scores = head.coarse_sem_seg_head.layers(features)
        for _ in range(head.subdivision_steps):
            scores = F.interpolate(scores, scale_factor=2, mode="bilinear", align_corners=False)
            height, width = scores.shape[-2:]
            # Of a small map all points are predicted; what there are fewer of is made up with the last one.
            index = top_k(_uncertainty(scores).flatten(1), head.subdivision_num_points).index
            row_length = torch.scalar_tensor(width, dtype=index.dtype, device=index.device)
            row = index // row_length
            coords = torch.stack(((index - row * row_length + 0.5) / width, (row + 0.5) / height), dim=2)
            read = [point_sample(features[name], coords, align_corners=False) for name in head.in_features]
            at_points = point_sample(coarse, coords, align_corners=False)
            values = head.point_head(torch.cat(read, dim=1), at_points).to(scores.dtype)
            flat = scores.flatten(2).scatter(2, index[:, None].expand_as(values), values)
            scores = flat.unflatten(2, (height, width))
        return scores


def _uncertainty(scores: torch.Tensor) -> torch.Tensor:
    """How close the two best of classes `Tensor[N, K, H, W]` are: `Tensor[N, H, W]`, at most 0."""
    if scores.shape[1] == 1:
        return -scores[:, 0].abs()
    best = scores.topk(2, dim=1).values
    return best[:, 1] - best[:, 0]
