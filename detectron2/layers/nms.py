"""Non-maximum suppression of axis-aligned and of rotated boxes.

Letters: `N` boxes.  Axis-aligned boxes are ``(x1, y1, x2, y2)``, rotated ones ``(x_center, y_center, width, height,
angle)`` with the angle in degrees, counter-clockwise; the rest is in any one unit.
"""

import torch
from torchvision.ops import nms

from ._ops.rotated_nms import greedy_nms

__all__ = ["batched_nms", "batched_nms_rotated", "nms", "nms_rotated"]

# The CPU kernel takes time quadratic in the number of boxes: from this number on, several small calls beat a large one.
_SPLIT_FROM = 1000
_MAX_CALLS = 32


def batched_nms(boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Suppress boxes within each group; boxes of different groups never suppress one another.

    Args:
        boxes: ``(N, 4)``.
        scores: ``(N,)``.
        idxs: ``(N,)`` integers, the group (class, pyramid level …) of each box.
        iou_threshold: a box goes when its IoU with a better box of its group is greater than this.

    Returns:
        int64 indices of the boxes that stay, by decreasing score.

    Raises:
        ValueError: ``boxes`` is not ``(N, 4)``.
    """
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"batched_nms expects boxes of shape (N, 4), got {tuple(boxes.shape)}.")
    if boxes.device.type == "mps":  # has no float64
        return _nms_part_by_part(boxes.float(), scores.float(), idxs, iou_threshold)
    apart = _move_groups_apart(boxes, idxs)
    if boxes.device.type == "cpu" and boxes.shape[0] > _SPLIT_FROM:
        return _nms_part_by_part(apart, scores.double(), idxs % _MAX_CALLS, iou_threshold)
    return nms(apart, scores.double(), iou_threshold)


def _move_groups_apart(boxes: torch.Tensor, idxs: torch.Tensor) -> torch.Tensor:
    """Give each group a place of its own, so that boxes of two groups do not overlap.

    The result is float64: in float32 the offset of group 1000 of a 1333 pixel image would round coordinates to 1/8
    pixel, and change overlaps.
    """
    boxes = boxes.double()
    if boxes.shape[0] == 0:
        return boxes
    low, high = boxes.aminmax()
    return boxes + (idxs.to(boxes.dtype) * (high - low + 1))[:, None]


def _nms_part_by_part(
    boxes: torch.Tensor, scores: torch.Tensor, parts: torch.Tensor, iou_threshold: float
) -> torch.Tensor:
    """Suppress the boxes of each part by themselves."""
    order = parts.argsort(stable=True)
    sizes = torch.unique_consecutive(parts[order], return_counts=True)[1].tolist()
    kept = [rows[nms(boxes[rows], scores[rows], iou_threshold)] for rows in order.split(sizes) if len(rows)]
    keep = torch.cat(kept).sort()[0] if kept else order
    return keep[scores[keep].argsort(descending=True, stable=True)]


def nms_rotated(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Suppress rotated boxes that overlap a better one.

    Only the regions that boxes cover count, not where they point: of a box and the same box turned by 180 degrees one
    goes.  Where direction tells objects apart (upside-down text), give the directions groups of their own and call
    :func:`batched_nms_rotated`.

    Args:
        boxes: ``(N, 5)``.
        scores: ``(N,)``.
        iou_threshold: a box goes when its IoU with a better box that stays is greater than this.

    Returns:
        int64 indices of the boxes that stay, by decreasing score.

    Raises:
        ValueError: ``boxes`` is not ``(N, 5)``, or ``scores`` is not ``(N,)``.
    """
    _check_rotated("nms_rotated", boxes, scores)
    return greedy_nms(boxes, scores, iou_threshold)


def batched_nms_rotated(
    boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float
) -> torch.Tensor:
    """Suppress rotated boxes within each group; boxes of different groups never suppress one another.

    Args:
        boxes: ``(N, 5)``.
        scores: ``(N,)``.
        idxs: ``(N,)`` integers, the group (class, pyramid level …) of each box.
        iou_threshold: a box goes when its IoU with a better box of its group that stays is greater than this.

    Returns:
        int64 indices of the boxes that stay, by decreasing score.

    Raises:
        ValueError: ``boxes`` is not ``(N, 5)``, or ``scores`` or ``idxs`` is not ``(N,)``.
    """
    _check_rotated("batched_nms_rotated", boxes, scores, idxs)
    return greedy_nms(boxes, scores, iou_threshold, groups=idxs)


def _check_rotated(function: str, boxes: torch.Tensor, *per_box: torch.Tensor) -> None:
    if boxes.dim() != 2 or boxes.shape[1] != 5:
        raise ValueError(
            f"{function} expects boxes of shape (N, 5), rows of (x_center, y_center, width, height, angle); "
            f"got {tuple(boxes.shape)}."
        )
    for values in per_box:
        if values.shape != boxes.shape[:1]:
            raise ValueError(
                f"{function} expects one score (and one group) for each of {boxes.shape[0]} boxes; "
                f"got shape {tuple(values.shape)}."
            )
