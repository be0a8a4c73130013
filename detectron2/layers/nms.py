"""Non-maximum suppression of axis-aligned and of rotated boxes.

Letters: `N` boxes. Axis-aligned boxes are `(x1, y1, x2, y2)`, rotated ones `(x_center, y_center, width, height,
angle)` with the angle in degrees, counter-clockwise; the rest is in any one unit.
"""

import sys

import torch
from torchvision.ops import nms

from detectron2.utils.tracing import when_compiled, when_traced, whole_in_trace

from .rotated_boxes import BoxTable, as_computable, box_table, candidate_pairs, paired_iou

__all__ = ["batched_nms", "batched_nms_rotated", "greedy_nms", "nms", "nms_rotated"]

# The CPU kernel takes time quadratic in the number of boxes: from this number on, several small calls beat a large one.
_SPLIT_FROM = 1000
# Boxes are judged in blocks by decreasing score. The first blocks are small, because in them most boxes survive to be
# compared with each other; later ones mostly lose members to boxes kept before.
_FIRST_BLOCK = 256
_LARGEST_BLOCK = 4096


def batched_nms(boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Suppress boxes within each group; boxes of different groups never suppress one another.

    Args:
        boxes: `(N, 4)`.
        scores: `(N,)`.
        idxs: `(N,)` integers, the group (class, pyramid level …) of each box.
        iou_threshold: a box is dropped if its IoU with a better box of its group is greater than this.

    Returns:
        int64 indices of the boxes that stay, by decreasing score.

    Raises:
        ValueError: `boxes` is not `(N, 4)`, or `scores` or `idxs` is not `(N,)`.

    Example:
        >>> from detectron2.layers import batched_nms
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10]])
        >>> scores, classes = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 0, 1])
        >>> batched_nms(boxes, scores, classes, iou_threshold=0.5)
        tensor([0, 2])
    """
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"batched_nms expects boxes of shape (N, 4), got {tuple(boxes.shape)}.")
    _expect_one_each("batched_nms", boxes, scores, idxs)
    return nms_within_groups(boxes, scores, idxs, iou_threshold, _split_from())


# A graph that records one run would repeat its branches and counts. As a script they are asked anew in each run.
@torch.jit.script_if_tracing
def nms_within_groups(
    boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float, split_from: int = _SPLIT_FROM
) -> torch.Tensor:
    """Do the work of `batched_nms`."""
    if boxes.device.type == "mps":  # has no float64
        return _nms_part_by_part(boxes.float(), scores.float(), idxs, iou_threshold)
    apart = _move_groups_apart(boxes, idxs)
    if boxes.device.type == "cpu" and boxes.shape[0] > split_from:
        return _nms_part_by_part(apart, scores.double(), idxs % 32, iou_threshold)  # at most 32 calls
    return nms(apart, scores.double(), iou_threshold)


@when_compiled(lambda: sys.maxsize)  # the sizes of the parts are numbers for Python, which would cut a graph in two
def _split_from() -> int:
    return _SPLIT_FROM


def _move_groups_apart(boxes: torch.Tensor, idxs: torch.Tensor) -> torch.Tensor:
    """Give each group a place of its own, so that boxes of two groups do not overlap."""
    # In float32 the offset of group 1000 of a 1333 pixel image would round coordinates to 1/8 pixel.
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
    sizes: list[int] = torch.unique_consecutive(parts[order], return_counts=True)[1].tolist()
    kept = [rows[nms(boxes[rows], scores[rows], iou_threshold)] for rows in order.split(sizes)]
    keep = torch.cat(kept).sort()[0] if len(kept) > 0 else order
    return keep[scores[keep].argsort(descending=True, stable=True)]


def nms_rotated(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Suppress rotated boxes that overlap a better one.

    Only the regions that boxes cover count, not where they point: a box suppresses the same box turned by 180
    degrees. Where direction tells objects apart (upside-down text), give the directions groups of their own and call
    `batched_nms_rotated`.

    Args:
        boxes: `(N, 5)`.
        scores: `(N,)`.
        iou_threshold: a box is dropped if its IoU with a better box that stays is greater than this.

    Returns:
        int64 indices of the boxes that stay, by decreasing score.

    Raises:
        ValueError: `boxes` is not `(N, 5)`, or `scores` is not `(N,)`.

    Example:
        >>> from detectron2.layers import nms_rotated
        >>> boxes = torch.tensor([[5.0, 5, 8, 2, 0], [5, 5, 8, 2, 180], [5, 5, 8, 2, 90]])
        >>> nms_rotated(boxes, torch.tensor([0.9, 0.8, 0.7]), iou_threshold=0.5)
        tensor([0, 2])
    """
    _check_rotated("nms_rotated", boxes, scores)
    return greedy_nms(boxes, scores, iou_threshold)


def batched_nms_rotated(
    boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float
) -> torch.Tensor:
    """Suppress rotated boxes within each group; boxes of different groups never suppress one another.

    Args:
        boxes: `(N, 5)`.
        scores: `(N,)`.
        idxs: `(N,)` integers, the group (class, pyramid level …) of each box.
        iou_threshold: a box is dropped if its IoU with a better box of its group that stays is greater than this.

    Returns:
        int64 indices of the boxes that stay, by decreasing score.

    Raises:
        ValueError: `boxes` is not `(N, 5)`, or `scores` or `idxs` is not `(N,)`.

    Example:
        >>> from detectron2.layers import batched_nms_rotated
        >>> boxes = torch.tensor([[5.0, 5, 8, 2, 0], [5, 5, 8, 2, 180], [5, 5, 8, 2, 0]])
        >>> scores, classes = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 0, 1])
        >>> batched_nms_rotated(boxes, scores, classes, iou_threshold=0.5)
        tensor([0, 2])
    """
    _check_rotated("batched_nms_rotated", boxes, scores, idxs)
    return greedy_nms(boxes, scores, iou_threshold, groups=idxs)


def _check_rotated(function: str, boxes: torch.Tensor, *per_box: torch.Tensor) -> None:
    if boxes.dim() != 2 or boxes.shape[1] != 5:
        raise ValueError(
            f"{function} expects boxes of shape (N, 5), rows of (x_center, y_center, width, height, angle); "
            f"got {tuple(boxes.shape)}."
        )
    _expect_one_each(function, boxes, *per_box)


@when_compiled(lambda *_: None)  # of two lengths that a graph computes, it need not know that they are one
@when_traced(lambda *_: None)
def _expect_one_each(function: str, boxes: torch.Tensor, *per_box: torch.Tensor) -> None:
    for values in per_box:
        if values.shape != boxes.shape[:1]:
            raise ValueError(
                f"{function} expects one score (and one group) for each of {boxes.shape[0]} boxes; "
                f"got shape {tuple(values.shape)}."
            )


@whole_in_trace(
    "greedy_nms(Tensor boxes, Tensor scores, float iou_threshold, Tensor? groups=None, int limit=-1) -> Tensor"
)
def greedy_nms(
    boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float, groups: torch.Tensor | None = None, limit: int = -1
) -> torch.Tensor:
    """From the best box down, drop every box that overlaps a kept one of its group too much.

    Args:
        boxes: `(N, 5)`.
        scores: `(N,)`.
        iou_threshold: a box is dropped if its IoU with a kept one is greater than this.
        groups: integers `(N,)`; boxes of different groups never suppress one another. None: all are of one group.
        limit: number of kept boxes at which to stop; negative to keep all that survive.

    Returns:
        int64 indices of the kept boxes, by decreasing score; of equal scores the first one wins.

    Example:
        >>> from detectron2.layers.nms import greedy_nms
        >>> boxes = torch.tensor([[5.0, 5, 8, 2, 0], [5, 5, 8, 2, 5], [50, 50, 8, 2, 0], [90, 90, 8, 2, 0]])
        >>> greedy_nms(boxes, torch.tensor([0.9, 0.8, 0.7, 0.6]), iou_threshold=0.5, limit=2)
        tensor([0, 2])
    """
    device = boxes.device
    order = scores.to(torch.promote_types(scores.dtype, torch.float32)).argsort(descending=True, stable=True)
    ranked = order.to(as_computable(boxes).device)
    table = box_table(as_computable(boxes)[ranked])
    ranked_groups = None if groups is None else groups.to(ranked.device)[ranked]
    count = boxes.shape[0]
    kept = ranked[:0]
    start, block = 0, _FIRST_BLOCK
    while start < count and not 0 <= limit <= kept.shape[0]:
        members = torch.arange(start, min(start + block, count), device=ranked.device)
        beaten = _losers(table, kept, members, iou_threshold, ranked_groups)[1]
        alive = torch.ones_like(members, dtype=torch.bool)
        alive[beaten] = False
        members = members[alive]
        winners, losers = _losers(table, members, members, iou_threshold, ranked_groups, only_later=True)
        kept = torch.cat((kept, members[_survivors(members.shape[0], winners, losers)]))
        start, block = start + block, min(2 * block, _LARGEST_BLOCK)
    kept = kept[:limit] if limit >= 0 else kept
    return ranked[kept].to(device)


def _losers(
    table: BoxTable,
    rows: torch.Tensor,
    columns: torch.Tensor,
    iou_threshold: float,
    groups: torch.Tensor | None,
    only_later: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The pairs of boxes `table[rows]` and `table[columns]` with an IoU above the threshold, as places in both."""
    first, second = table.rows(rows), table.rows(columns)
    sides = None if groups is None else (groups[rows], groups[columns])
    winners, losers = [columns[:0]], [columns[:0]]
    for row, column in candidate_pairs(first, second, sides, only_later=only_later):
        possible = _highest_possible_iou(first, second, row, column) > iou_threshold
        row, column = row[possible], column[possible]
        suppressed = paired_iou(first, second, row, column) > iou_threshold
        winners.append(row[suppressed])
        losers.append(column[suppressed])
    return torch.cat(winners), torch.cat(losers)


def _highest_possible_iou(first: BoxTable, second: BoxTable, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """A bound of the IoU of pairs, `(P,)`: they share no more than the smaller area, or than their bounds share."""
    a, b = first.bounds_xyxy[:, row], second.bounds_xyxy[:, column]
    size_wh = torch.minimum(a[2:], b[2:]).sub_(torch.maximum(a[:2], b[:2]))
    area1, area2 = first.area[row], second.area[column]
    shared = torch.minimum(size_wh[0].double().mul_(size_wh[1]), torch.minimum(area1, area2))
    # A little more, for the roundings of bounds and of this.
    return shared.div_(area1.add_(area2).sub_(shared)).mul_(1 + 1e-5)


def _survivors(count: int, winners: torch.Tensor, losers: torch.Tensor) -> torch.Tensor:
    """Which of `count` ranked boxes stay, bool `(count,)`, when `losers[p]` may not stand beside `winners[p]`."""
    # Each round keeps what no box left can beat: as many rounds as the longest chain of such pairs, which is short.
    dropped = torch.zeros(count, dtype=torch.bool, device=winners.device)
    while winners.shape[0] > 0:
        free = torch.ones_like(dropped)
        free[losers] = False
        dropped[losers[free[winners]]] = True
        open_ = ~(dropped[winners] | dropped[losers])
        winners, losers = winners[open_], losers[open_]
    return ~dropped
