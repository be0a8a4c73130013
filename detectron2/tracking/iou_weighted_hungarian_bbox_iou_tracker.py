"""Tracking by the largest sum of overlaps."""

from typing import Any

import numpy as np

from .base_tracker import TRACKER_HEADS_REGISTRY
from .vanilla_hungarian_bbox_iou_tracker import VanillaHungarianBBoxIOUTracker

__all__ = ["IOUWeightedHungarianBBoxIOUTracker"]


@TRACKER_HEADS_REGISTRY.register()
class IOUWeightedHungarianBBoxIOUTracker(VanillaHungarianBBoxIOUTracker):
    """Matches boxes whose IoU reaches the threshold so that the sum of the IoU of all pairs is largest.

    Arguments are those of `OverlapTracker`.
    """

    def assign_cost_matrix_values(self, cost_matrix: np.ndarray, bbox_pairs: list[dict[str, Any]]) -> np.ndarray:
        """Set the costs of the pairs that overlap enough: their IoU with a minus sign.

        Args:
            cost_matrix: `(instances, previous instances)`, changed in place.
            bbox_pairs: pairs as `create_prediction_pairs` lists them.

        Returns:
            The same matrix.
        """
        for pair in bbox_pairs:
            cost_matrix[pair["idx"], pair["prev_idx"]] = -pair["IoU"]
        return cost_matrix
