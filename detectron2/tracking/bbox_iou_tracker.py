"""Tracking by the overlap of boxes, best pair first."""

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

    def _match(self, instances: Instances, prev_instances: Instances) -> list[tuple[int, int]]:
        overlaps = overlaps_of(instances, prev_instances)
        pairs = create_prediction_pairs(instances, prev_instances, overlaps, self._track_iou_threshold)
        matches: dict[int, int] = {}
        taken: set[int] = set()
        for pair in sorted(pairs, key=lambda pair: -pair["IoU"]):
            row, prev_row = pair["idx"], pair["prev_idx"]
            if row not in matches and prev_row not in taken:
                matches[row] = prev_row
                taken.add(prev_row)
        return list(matches.items())
