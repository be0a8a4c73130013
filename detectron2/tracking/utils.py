"""Which boxes of two frames may be the same object."""

from typing import Any

import numpy as np
import torch

from detectron2.structures import Instances

__all__ = ["create_prediction_pairs"]


def create_prediction_pairs(
    instances: Instances, prev_instances: Instances, iou_all: np.ndarray | torch.Tensor, threshold: float = 0.5
) -> list[dict[str, Any]]:
    """List the pairs of boxes of two frames that overlap enough.

    Args:
        instances: instances of a frame.
        prev_instances: instances of the frame before, with the fields `ID` and `ID_period`.
        iou_all: `(len(instances), len(prev_instances))`, IoU of every pair.
        threshold: the least IoU of a pair that is listed.

    Returns:
        For each pair a dictionary with `idx`, the row in `instances`; `prev_idx`, the row in `prev_instances`;
        `prev_id` and `prev_period`, the fields of the latter; and `IoU`. Ordered by `idx`, then `prev_idx`.

    Raises:
        ValueError: `iou_all` has another shape.

    Example:
        >>> from detectron2.structures import Boxes, Instances
        >>> from detectron2.tracking import create_prediction_pairs
        >>> before = Instances((480, 640), pred_boxes=Boxes([[0, 0, 10, 10]]), ID=[7], ID_period=[3])
        >>> now = Instances((480, 640), pred_boxes=Boxes([[0, 0, 10, 8]]))
        >>> create_prediction_pairs(now, before, np.array([[0.8]]))
        [{'idx': 0, 'prev_idx': 0, 'prev_id': 7, 'IoU': 0.8, 'prev_period': 3}]
    """
    overlaps = np.asarray(iou_all.detach().cpu() if isinstance(iou_all, torch.Tensor) else iou_all)
    expected = (len(instances), len(prev_instances))
    if overlaps.shape != expected:
        raise ValueError(f"iou_all must have the shape (instances, previous instances), {expected}: {overlaps.shape}")
    return [
        {
            "idx": row,
            "prev_idx": prev_row,
            "prev_id": prev_instances.ID[prev_row],
            "IoU": float(overlaps[row, prev_row]),
            "prev_period": prev_instances.ID_period[prev_row],
        }
        for row, prev_row in np.argwhere(overlaps >= threshold).tolist()
    ]
