"""Small tensor functions that the ROI heads share.

`R` regions, `K` classes.
"""

from collections.abc import Sequence

import torch

from detectron2.layers.nms import batched_nms, greedy_nms, nms_within_groups
from detectron2.structures import Instances
from detectron2.utils.tracing import when_compiled

__all__ = ["best_after_nms", "full_precision", "select_class", "split_by_image"]

# Up to this many boxes it does not pay to sort before non-maximum suppression, which sorts by itself.
_SMALL_SET = 4096


def full_precision(x: torch.Tensor) -> torch.Tensor:
    """`x` in float32 if it is in half precision, else `x` itself.

    Under autocast the last layer answers in half precision, in which a sum over thousands of cells loses digits.
    """
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def split_by_image(x: torch.Tensor, instances: Sequence[Instances]) -> list[torch.Tensor]:
    """Cut `Tensor[R, ...]`, the regions of all images after one another, into one tensor for each image."""
    return list(x.split([i.num_rows() for i in instances]))


def select_class(x: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """From `Tensor[R, K, ...]` the slice of each region's class, `Tensor[R, ...]`; `K == 1` serves every class."""
    if x.shape[1] == 1:
        return x[:, 0]
    return x[torch.arange(x.shape[0], device=x.device), classes]


def best_after_nms(
    boxes: torch.Tensor, scores: torch.Tensor, classes: torch.Tensor, iou_thresh: float, limit: int
) -> torch.Tensor:
    """Return the indices of the best boxes that non-maximum suppression within each class keeps.

    The suppression is greedy from the best score down, so what survives among the best `m` boxes does not depend on
    the others. A large set is therefore searched in a growing prefix until that holds enough survivors: the answer
    is the same, without comparing a million boxes to keep a hundred.

    Args:
        boxes: `Tensor[R, 4]`, `(x1, y1, x2, y2)`, or rotated, `Tensor[R, 5]`,
            `(x_center, y_center, width, height, angle)`.
        scores: `Tensor[R]`.
        classes: `Tensor[R]`.
        iou_thresh: of two boxes of one class that overlap by more than this, the one with the lower score goes.
        limit: the largest number of indices to return; negative for all.

    Returns:
        Indices, best first.
    """
    if boxes.shape[1] == 5:
        return greedy_nms(boxes, scores, iou_thresh, classes, limit=limit)
    return _best_upright(boxes, scores, classes, iou_thresh, limit, _SMALL_SET)


def _best_of_all(
    boxes: torch.Tensor, scores: torch.Tensor, classes: torch.Tensor, iou_thresh: float, limit: int, small_set: int
) -> torch.Tensor:
    return batched_nms(boxes, scores, classes, iou_thresh)[: limit if limit >= 0 else None]


@when_compiled(_best_of_all)  # a compiled graph would end at each prefix
@torch.jit.script_if_tracing  # a traced graph would search as large a prefix as the first image needed
def _best_upright(
    boxes: torch.Tensor, scores: torch.Tensor, classes: torch.Tensor, iou_thresh: float, limit: int, small_set: int
) -> torch.Tensor:
    total = scores.shape[0]
    if limit < 0 or total <= small_set:
        keep = nms_within_groups(boxes, scores, classes, iou_thresh)
        return keep if limit < 0 else keep[:limit]
    order = torch.sort(scores, dim=0, descending=True, stable=True)[1]
    size = max(small_set, 8 * limit)
    prefix, keep = order[:0], order[:0]
    while keep.shape[0] < limit and prefix.shape[0] < total:
        prefix = order[:size]
        keep = nms_within_groups(boxes[prefix], scores[prefix], classes[prefix], iou_thresh)
        size *= 4
    return prefix[keep[:limit]]
