"""Match predictions with ground truth by a matrix of qualities, usually IoU.

Letters: `M` ground-truth elements, `R` predicted ones (anchors or proposals).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from detectron2.layers.wrappers import any_along
from detectron2.utils.memory import retry_if_cuda_oom

__all__ = ["Matcher", "match_boxes"]

# A matrix of more qualities than this is large. A part of it, and what is computed on the way, stays in a core's cache.
_MANY_QUALITIES = 1 << 21
_QUALITIES_AT_ONCE = 1 << 18


class Matcher:
    """Assign each predicted element the ground truth of highest quality, and a label by that quality.

    The thresholds cut the line of qualities into intervals, closed below and open above; the element gets the label of
    its interval: with thresholds `[0.3, 0.7]` and labels `[0, -1, 1]` a quality below 0.3 is labelled 0, one from 0.3
    up to but not including 0.7 is labelled -1, and the others are labelled 1.

    Args:
        thresholds: positive numbers in ascending order.
        labels: one more than thresholds, each of -1 (ignore), 0 (negative) and 1 (positive).
        allow_low_quality_matches: also label 1 the best predictions of each ground truth, however low their quality;
            see `set_low_quality_matches_`.
    """

    def __init__(self, thresholds: Sequence[float], labels: Sequence[int], allow_low_quality_matches: bool = False):
        thresholds, labels = list(thresholds), list(labels)
        if any(t <= 0 for t in thresholds) or thresholds != sorted(thresholds):
            raise ValueError(f"Matcher thresholds (IOU_THRESHOLDS) must be positive and ascending; got {thresholds}")
        if len(labels) != len(thresholds) + 1:
            text = f"{len(thresholds)} thresholds (IOU_THRESHOLDS) {thresholds} make {len(thresholds) + 1} intervals"
            raise ValueError(f"{text}; got labels (IOU_LABELS) {labels}")
        if any(label not in (-1, 0, 1) for label in labels):
            raise ValueError(
                f"Matcher labels (IOU_LABELS) must be -1 (ignore), 0 (negative) or 1 (positive); got {labels}"
            )
        self.thresholds = [-math.inf, *thresholds, math.inf]
        self.labels = labels
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, match_quality_matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Match.

        Args:
            match_quality_matrix: `Tensor[M, R]` of non-negative qualities.

        Returns:
            `Tensor[R]` int64, the row of the best ground truth (of several equal ones any), and
            `Tensor[R]` int8, the label. Without ground truth every row is 0 and every label the lowest one.
        """
        if match_quality_matrix.dim() != 2:
            raise ValueError(f"Matcher takes a matrix (M, R); got shape {tuple(match_quality_matrix.shape)}")
        if match_quality_matrix.numel() == 0:
            num_predictions = match_quality_matrix.shape[1]
            matches = match_quality_matrix.new_zeros(num_predictions, dtype=torch.int64)
            # Nothing can be missed where there is nothing to find.
            return matches, match_quality_matrix.new_full((num_predictions,), self.labels[0], dtype=torch.int8)

        quality, matches = match_quality_matrix.max(dim=0)
        match_labels = self.labels_of(quality)
        if self.allow_low_quality_matches:
            self.set_low_quality_matches_(match_labels, match_quality_matrix)
        return matches, match_labels

    def labels_of(self, quality: torch.Tensor) -> torch.Tensor:
        """Label predictions, int8, by the qualities of their best ground truth, of the same shape."""
        match_labels = torch.full_like(quality, self.labels[0], dtype=torch.int8)
        for threshold, label in zip(self.thresholds[1:-1], self.labels[1:], strict=True):
            match_labels.masked_fill_(quality >= threshold, label)
        return match_labels

    def set_low_quality_matches_(self, match_labels: torch.Tensor, match_quality_matrix: torch.Tensor) -> None:
        """Label 1, in place, every prediction that no other beats for some ground truth (Ren et al. 2015, rule (i)).

        The ground truth matched to it stays its own best one, which may be another. A ground truth that meets no
        prediction at all has no best one.

        Args:
            match_labels: `Tensor[R]` int8.
            match_quality_matrix: `Tensor[M, R]`.
        """
        best = match_quality_matrix.amax(dim=1, keepdim=True)
        # A degenerate box has quality 0 everywhere: without the second condition it would make all anchors positive.
        is_best = any_along((match_quality_matrix == best) & (best > 0), 0)
        match_labels.masked_fill_(is_best, 1)


def match_boxes(
    matcher: Matcher, overlaps: Callable[[Any, Any], torch.Tensor], gt_boxes: Any, boxes: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Match boxes with ground truth, without the matrix of all qualities where it is large.

    On the CPU a large matrix is made and used part by part. On a GPU, which would wait for each part, and for matchers
    of other classes, whose rule may need all of it, it is made at once.

    Args:
        matcher: says what matches.
        overlaps: gives the qualities `Tensor[M, r]` of ground truth with any `r` of the boxes.
        gt_boxes: `M` ground-truth boxes, `Boxes` or `RotatedBoxes`.
        boxes: `R` predicted ones.

    Returns:
        What the matcher returns for the whole matrix.

    Example:
        >>> from detectron2.modeling.matcher import Matcher, match_boxes
        >>> from detectron2.structures import Boxes, pairwise_iou
        >>> truth, anchors = Boxes([[0, 0, 10, 10]]), Boxes([[0, 0, 10, 9], [20, 20, 30, 30]])
        >>> match_boxes(Matcher([0.5], [0, 1]), pairwise_iou, truth, anchors)
        (tensor([0, 0]), tensor([1, 0], dtype=torch.int8))
    """
    if boxes.device.type != "cpu" or type(matcher) is not Matcher or len(gt_boxes) * len(boxes) <= _MANY_QUALITIES:
        return retry_if_cuda_oom(matcher)(retry_if_cuda_oom(overlaps)(gt_boxes, boxes))
    matches, match_labels, peaks = [], [], []
    size = max(1, _QUALITIES_AT_ONCE // len(gt_boxes))
    for start in range(0, len(boxes), size):
        quality_matrix = overlaps(gt_boxes, boxes[start : start + size])
        quality, match = quality_matrix.max(dim=0)
        matches.append(match)
        match_labels.append(matcher.labels_of(quality))
        if matcher.allow_low_quality_matches:
            peak = quality_matrix.amax(dim=1, keepdim=True)
            truth, prediction = ((quality_matrix == peak) & (peak > 0)).nonzero().unbind(1)
            peaks.append((truth, prediction + start, peak[truth, 0]))
    labels = torch.cat(match_labels)
    if matcher.allow_low_quality_matches:
        truth, prediction, peak = (torch.cat(parts) for parts in zip(*peaks, strict=True))
        best = peak.new_zeros(len(gt_boxes)).scatter_reduce_(0, truth, peak, "amax")
        labels[prediction[peak == best[truth]]] = 1
    return torch.cat(matches), labels
