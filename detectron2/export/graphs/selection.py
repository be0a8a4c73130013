"""Choose a fixed number of boxes: by score, and by non-maximum suppression.

Letters: `N` images, `L` levels, `R` regions, `K` classes, `M` candidates, `D` boxes that are chosen.
A candidate with a score of minus infinity is none.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from .greedy import greedy_best
from .operators import first_k, first_k_aten, nms_keep, nms_keep_torchvision

__all__ = ["Chosen", "best_labelled", "best_of_levels", "best_of_regions", "clip_boxes", "top_k"]

_NONE = float("-inf")


class Chosen(NamedTuple):
    """The best candidates of each image, best first."""

    scores: torch.Tensor
    """`Tensor[N, D]`; minus infinity where there is no candidate left."""
    index: torch.Tensor
    """int64 `Tensor[N, D]`: which candidate, a valid index also where there is none."""

    @property
    def found(self) -> torch.Tensor:
        """Where there is a candidate, bool `Tensor[N, D]`."""
        return self.scores > _NONE


def top_k(scores: torch.Tensor, k: int, form: str | None = None) -> Chosen:
    """The `k` highest of `Tensor[N, M]`, also where `M` is smaller than `k`.

    Args:
        scores: `Tensor[N, M]`.
        k: how many.
        form: see `GraphOptions.nms`; of equal scores the first ones are taken. None: any, as by `torch.topk`.

    Returns:
        The highest, and minus infinity where there are none left.
    """
    size: Any = scores.shape[-1]
    # In a graph the length may be unknown; then as many candidates that are none are added as could be missing.
    missing = max(k - size, 0) if type(size) is int else k
    padded = F.pad(scores, (0, missing), value=_NONE) if missing else scores
    if form is None:
        values, index = padded.topk(k, dim=-1)
    else:
        values, index = (first_k if form == "operator" else first_k_aten)(padded, k)
    return Chosen(values, index.clamp(max=size - 1) if missing else index)


def clip_boxes(boxes: torch.Tensor, image_sizes: torch.Tensor) -> torch.Tensor:
    """Limit boxes `Tensor[N, ..., 4]` to the images of `(height, width)`, int64 `Tensor[N, 2]`."""
    height, width = image_sizes.to(boxes.dtype).unbind(dim=1)
    limits = torch.stack((width, height, width, height), dim=1)
    limits = limits.view(-1, *[1] * (boxes.dim() - 2), 4)
    return torch.minimum(boxes.clamp(min=0), limits)


def _keep(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float, form: str) -> torch.Tensor:
    """`nms_keep` as it is to be recorded."""
    if form == "torchvision":
        return nms_keep_torchvision(boxes, scores, iou_threshold)
    return nms_keep(boxes, scores, iou_threshold)


def _greedy(
    boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor, iou_threshold: float, limit: int
) -> Chosen:
    """`greedy_best` as `Chosen`."""
    index, found = greedy_best(boxes, scores, groups, iou_threshold, limit)
    return Chosen(torch.where(found, scores.gather(1, index), _NONE), index)


def best_of_levels(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float, limit: int, form: str) -> Chosen:
    """Suppress within each level and keep the best of all levels.

    Args:
        boxes: `Tensor[N, L, R, 4]`.
        scores: `Tensor[N, L, R]`.
        iou_threshold: IoU above which the lower of two boxes goes.
        limit: `D`.
        form: see `GraphOptions.nms`.

    Returns:
        Indices are those of `boxes.flatten(1, 2)`.
    """
    if form == "aten":
        levels = torch.arange(scores.shape[1], device=scores.device)[:, None].expand_as(scores).flatten(1)
        return _greedy(boxes.flatten(1, 2), scores.flatten(1), levels, iou_threshold, limit)
    keep = _keep(boxes.flatten(0, 1), scores.flatten(0, 1)[:, None], iou_threshold, form).view_as(scores)
    return top_k(torch.where(keep, scores, _NONE).flatten(1), limit, form)


def best_of_regions(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float, limit: int, form: str) -> Chosen:
    """Suppress within each class and keep the best of all classes.

    Args:
        boxes: `Tensor[N, R, K, 4]`, or `Tensor[N, R, 1, 4]` when boxes do not depend on the class.
        scores: `Tensor[N, R, K]`.
        iou_threshold: IoU above which the lower of two boxes of a class goes.
        limit: `D`.
        form: see `GraphOptions.nms`.

    Returns:
        An index is `region * K + class`.
    """
    if form == "aten":
        classes = torch.arange(scores.shape[2], device=scores.device).expand_as(scores).flatten(1)
        every = boxes.expand(*scores.shape, 4).flatten(1, 2)
        return _greedy(every, scores.flatten(1), classes, iou_threshold, limit)
    of_class = scores.transpose(1, 2)
    if boxes.shape[2] == 1:
        keep = _keep(boxes[:, :, 0], of_class, iou_threshold, form)
    else:
        lists = boxes.transpose(1, 2).flatten(0, 1)
        keep = _keep(lists, of_class.flatten(0, 1)[:, None], iou_threshold, form).view_as(of_class)
    return top_k(torch.where(keep.transpose(1, 2), scores, _NONE).flatten(1), limit, form)


def best_labelled(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    classes: torch.Tensor,
    num_classes: int,
    iou_threshold: float,
    limit: int,
    form: str,
) -> Chosen:
    """Suppress within each class and keep the best, of candidates that have one class each.

    Args:
        boxes: `Tensor[N, M, 4]`.
        scores: `Tensor[N, M]`.
        classes: int64 `Tensor[N, M]`.
        num_classes: `K`.
        iou_threshold: IoU above which the lower of two boxes of a class goes.
        limit: `D`.
        form: see `GraphOptions.nms`.

    Returns:
        Indices are those of the candidates.
    """
    if form == "aten":
        return _greedy(boxes, scores, classes, iou_threshold, limit)
    every_class = torch.arange(num_classes, device=classes.device)[:, None]
    of_class = torch.where(classes[:, None] == every_class, scores[:, None], _NONE)
    keep = _keep(boxes, of_class, iou_threshold, form).gather(1, classes[:, None])[:, 0]
    return top_k(torch.where(keep, scores, _NONE), limit, form)
