"""Overlap of rotated boxes given as tensors; :mod:`detectron2.structures.rotated_boxes` has the class for them.

Letters: `N`, `M` boxes.
"""

import torch

from ._ops.rotated_overlap import iou_matrix

__all__ = ["pairwise_iou_rotated"]


def pairwise_iou_rotated(boxes1: torch.Tensor, boxes2: torch.Tensor) -> torch.Tensor:
    """Intersection over union of every pair of rotated boxes.

    The areas are exact (computed in float64), for any angle and for boxes that touch, coincide or contain each other.
    Angles matter only by the region they make a box cover: turned by 180 degrees, a box has an IoU of 1 with itself.
    No gradient flows.

    Args:
        boxes1: ``(N, 5)``, rows of ``(x_center, y_center, width, height, angle)``; angle in degrees,
            counter-clockwise; the rest in any one unit.
        boxes2: ``(M, 5)``.

    Returns:
        ``(N, M)``, float32, or float64 if both inputs are; 0 for boxes without area or with numbers that are not
        finite.

    Raises:
        ValueError: the boxes are not of five columns.
    """
    for boxes in (boxes1, boxes2):
        if boxes.dim() != 2 or boxes.shape[1] != 5:
            raise ValueError(
                "pairwise_iou_rotated expects boxes of shape (N, 5), rows of (x_center, y_center, width, height, "
                f"angle); got {tuple(boxes.shape)}."
            )
    return iou_matrix(boxes1, boxes2)
