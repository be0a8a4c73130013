"""Tracking by the overlap of boxes, best pair first."""

from typing import Any

import numpy as np

from detectron2.structures import Instances

from .base_tracker import TRACKER_HEADS_REGISTRY, OverlapTracker, overlaps_of
from .utils import create_prediction_pairs

__all__ = ["BBoxIOUTracker"]


@TRACKER_HEADS_REGISTRY.register()
class BBoxIOUTracker(OverlapTracker):
    """Gives a detection the number of the box of the frame before that it overlaps most.

    Pairs are taken greedily by falling IoU, each box once (Bochinski et al., "High-Speed Tracking-by-Detection Without
    Using Image Information", AVSS 2017, without their filter by score).

    Arguments are those of `OverlapTracker`.

    Example:
        >>> from detectron2.structures import Boxes, Instances
        >>> from detectron2.tracking import BBoxIOUTracker
        >>> tracker = BBoxIOUTracker(video_height=480, video_width=640)
        >>> first = Instances((480, 640), pred_boxes=Boxes([[10, 10, 60, 60], [300, 200, 400, 320]]))
        >>> tracker.update(first).ID
        [0, 1]
        >>> second = Instances((480, 640), pred_boxes=Boxes([[305, 200, 405, 320], [12, 10, 62, 60]]))
        >>> tracker.update(second).ID
        [1, 0]
    """

    def _track(self, instances: Instances, prev_instances: Instances) -> Instances:
        pairs = self._create_prediction_pairs(instances, overlaps_of(instances, prev_instances).detach().cpu().numpy())
        self._reset_fields()
        for pair in sorted(pairs, key=lambda pair: -pair["IoU"]):
            row, number = pair["idx"], pair["prev_id"]
            if row in self._matched_idx or number in self._matched_ID or pair["IoU"] < self._track_iou_threshold:
                continue
            self._continue_track(instances, row, number, pair["prev_period"])
            self._matched_idx.add(row)
            self._matched_ID.add(number)
            self._untracked_prev_idx.remove(pair["prev_idx"])
        return self._merge_untracked_instances(self._assign_new_id(instances))

    # What follows is called in this order and may be overridden.

    def _create_prediction_pairs(self, instances: Instances, iou_all: np.ndarray) -> list[dict[str, Any]]:
        """The pairs that may be matched, as the function `create_prediction_pairs` gives them."""
        previous: Any = self._prev_instances
        return create_prediction_pairs(instances, previous, iou_all, self._track_iou_threshold)

    def _reset_fields(self) -> None:
        """Nothing is matched yet, and every row of the frame before is missing."""
        previous: Any = self._prev_instances
        self._matched_idx, self._matched_ID = set(), set()
        self._untracked_prev_idx = set(range(len(previous)))

    def _assign_new_id(self, instances: Instances) -> Instances:
        """Give new numbers to rows that are not in `_matched_idx`."""
        return self._begin_tracks(instances, self._matched_idx)

    def _merge_untracked_instances(self, instances: Instances) -> Instances:
        """Append the rows `_untracked_prev_idx` of the frame before that are worth waiting for."""
        return self._with_lost(instances, self._untracked_prev_idx)
