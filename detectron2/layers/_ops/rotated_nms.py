"""Greedy non-maximum suppression of rotated boxes.

Letters: `N` boxes, `P` pairs. Boxes are `(x_center, y_center, width, height, angle)`, see `rotated_overlap`.
"""

import torch

from .rotated_overlap import BoxTable, as_computable, box_table, candidate_pairs, paired_iou

__all__ = ["greedy_nms"]

# Boxes are judged in blocks by decreasing score. The first blocks are small, because in them most boxes survive to be
# compared with each other; later ones mostly lose members to boxes kept before.
_FIRST_BLOCK = 256
_LARGEST_BLOCK = 4096


def greedy_nms(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    iou_threshold: float,
    groups: torch.Tensor | None = None,
    limit: int = -1,
) -> torch.Tensor:
    """From the best box down, drop every box that overlaps a kept one of its group too much.

    Args:
        boxes: `(N, 5)`.
        scores: `(N,)`.
        iou_threshold: a box goes when its IoU with a kept one is greater than this.
        groups: integers `(N,)`; boxes of different groups never suppress one another. None: all are of one group.
        limit: stop when so many are kept; negative: keep all that survive.

    Returns:
        int64 indices of the kept boxes, by decreasing score; of equal scores the first one wins.
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
    """Which of `count` ranked boxes stay, bool `(count,)`, when `losers[p]` may not stand beside `winners[p]`.

    Each round keeps the boxes that no box left can beat, and drops those that they beat; it takes as many rounds as
    the longest chain of boxes that depend on each other, which is short, and not as many as there are boxes.
    """
    dropped = torch.zeros(count, dtype=torch.bool, device=winners.device)
    while winners.shape[0] > 0:
        free = torch.ones_like(dropped)
        free[losers] = False
        dropped[losers[free[winners]]] = True
        open_ = ~(dropped[winners] | dropped[losers])
        winners, losers = winners[open_], losers[open_]
    return ~dropped
