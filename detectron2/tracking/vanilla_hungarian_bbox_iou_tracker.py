"""Tracking by as many overlapping pairs of boxes as possible."""

from typing import Any

import numpy as np

from detectron2.structures import Instances

from .base_tracker import TRACKER_HEADS_REGISTRY, overlaps_of
from .hungarian_tracker import LARGE_COST_VALUE, BaseHungarianTracker
from .utils import create_prediction_pairs

__all__ = ["VanillaHungarianBBoxIOUTracker"]


@TRACKER_HEADS_REGISTRY.register()
class VanillaHungarianBBoxIOUTracker(BaseHungarianTracker):
    """Matches as many boxes as possible with an IoU of at least the threshold; a higher IoU does not count more.

    Arguments are those of `OverlapTracker`.

    Example:
        >>> from detectron2.structures import Boxes, Instances
        >>> from detectron2.tracking import VanillaHungarianBBoxIOUTracker
        >>> tracker = VanillaHungarianBBoxIOUTracker(video_height=480, video_width=640)
        >>> first = Instances((480, 640), pred_boxes=Boxes([[10, 10, 60, 60], [300, 200, 400, 320]]))
        >>> tracker.update(first).ID
        [0, 1]
        >>> second = Instances((480, 640), pred_boxes=Boxes([[305, 200, 405, 320], [12, 10, 62, 60]]))
        >>> tracker.update(second).ID
        [1, 0]
    """

    def build_cost_matrix(self, instances: Instances, prev_instances: Instances) -> np.ndarray:
        """Costs of all pairs of boxes: what `assign_cost_matrix_values` gives to those that overlap enough."""
        overlaps = overlaps_of(instances, prev_instances)
        pairs = create_prediction_pairs(instances, prev_instances, overlaps, self._track_iou_threshold)
        cost = np.full(tuple(overlaps.shape), float(LARGE_COST_VALUE))
        return self.assign_cost_matrix_values(cost, pairs)

    def assign_cost_matrix_values(self, cost_matrix: np.ndarray, bbox_pairs: list[dict[str, Any]]) -> np.ndarray:
        """Set, in place, the costs of the pairs of `create_prediction_pairs`: -1 for all."""
        for pair in bbox_pairs:
            cost_matrix[pair["idx"], pair["prev_idx"]] = -1
        return cost_matrix
