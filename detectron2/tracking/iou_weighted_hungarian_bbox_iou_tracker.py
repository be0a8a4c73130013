"""Tracking by the largest sum of overlaps."""

from typing import Any

import numpy as np

from .base_tracker import TRACKER_HEADS_REGISTRY
from .vanilla_hungarian_bbox_iou_tracker import VanillaHungarianBBoxIOUTracker

__all__ = ["IOUWeightedHungarianBBoxIOUTracker"]


@TRACKER_HEADS_REGISTRY.register()
class IOUWeightedHungarianBBoxIOUTracker(VanillaHungarianBBoxIOUTracker):
    """Matches boxes with an IoU of at least the threshold so that the sum of the IoU of all pairs is largest.

    Arguments are those of `OverlapTracker`.

    Example:
        >>> from detectron2.structures import Boxes, Instances
        >>> from detectron2.tracking import IOUWeightedHungarianBBoxIOUTracker
        >>> tracker = IOUWeightedHungarianBBoxIOUTracker(video_height=480, video_width=640)
        >>> first = Instances((480, 640), pred_boxes=Boxes([[10, 10, 60, 60], [300, 200, 400, 320]]))
        >>> tracker.update(first).ID
        [0, 1]
        >>> second = Instances((480, 640), pred_boxes=Boxes([[305, 200, 405, 320], [12, 10, 62, 60]]))
        >>> tracker.update(second).ID
        [1, 0]
    """

    def assign_cost_matrix_values(self, cost_matrix: np.ndarray, bbox_pairs: list[dict[str, Any]]) -> np.ndarray:
        """Set, in place, the costs of the pairs of `create_prediction_pairs`: their IoU with a minus sign."""
        for pair in bbox_pairs:
            cost_matrix[pair["idx"], pair["prev_idx"]] = -pair["IoU"]
        return cost_matrix
