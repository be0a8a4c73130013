"""Greedy non-maximum suppression by PyTorch's own operators, without any size that depends on values.

Letters: `N` images, `M` candidates of an image, `D` boxes to keep, `P` candidates that are looked at together.
"""

from typing import Any

import torch

__all__ = ["greedy_best"]

_TOGETHER = 256


def greedy_best(
    boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor, iou_threshold: float, limit: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best boxes that non-maximum suppression within each group keeps, at most `limit` of an image.

    Candidates are taken by descending score, `P` at a time, and compared with the at most `D` boxes that are kept
    already; the work ends when every image has its `D` boxes. Only a kept box can suppress another one, and those that
    would come after the `D` best are not asked for, so nothing else needs to be remembered and the result is exact.

    Args:
        boxes: `Tensor[N, M, 4]`, finite.
        scores: `Tensor[N, M]`; minus infinity marks a candidate that takes no part.
        groups: integer `Tensor[N, M]`; boxes of different groups do not suppress each other.
        iou_threshold: a box goes when its IoU with a better one that stays is greater than this.
        limit: `D`.

    Returns:
        int64 `Tensor[N, D]`, indices of the kept boxes, best first (of equal ones the first), and bool `Tensor[N, D]`,
        where there is one.

    Example:
        >>> from detectron2.export.graphs.greedy import greedy_best
        >>> boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]]])
        >>> greedy_best(boxes, torch.tensor([[0.9, 0.8, 0.7]]), torch.zeros(1, 3), 0.5, 2)
        (tensor([[0, 2]]), tensor([[True, True]]))
    """
    num_images, together = scores.shape[0], min(_TOGETHER, scores.shape[1])
    ranked = scores.sort(dim=1, descending=True, stable=True)
    order = ranked.indices
    # As many candidates that are none behind them that the last ones are not a special case.
    order = torch.cat((order, order[:, :1].expand(num_images, together)), dim=1)
    alive = torch.cat((ranked.values > -torch.inf, torch.zeros_like(order[:, :together], dtype=torch.bool)), dim=1)
    boxes = boxes.double()

    def block(start: torch.Tensor) -> tuple[torch.Tensor, ...]:
        places = (start + torch.arange(together, device=start.device)).expand(num_images, together)
        index = order.gather(1, places)
        return (
            index,
            boxes.gather(1, index[..., None].expand(-1, -1, 4)),
            groups.gather(1, index),
            alive.gather(1, places),
        )

    def unfinished(start: Any, count: Any, *_: Any) -> torch.Tensor:
        wanting = (count < limit) & alive.gather(1, start.expand(num_images, 1))[:, 0]
        return wanting.any()

    def step(start: Any, count: Any, kept: Any, kept_boxes: Any, kept_groups: Any, guess: Any) -> tuple[Any, ...]:
        """Improve the guess which candidates of a block stay; when it is right, keep them and go to the next block."""
        index, block_boxes, block_groups, candidate = block(start)
        taken = (torch.arange(limit + 1, device=start.device) < count[:, None])[:, :, None]
        beaten = _suppressed(kept_boxes, kept_groups, block_boxes, block_groups, iou_threshold) & taken
        candidate = candidate & ~beaten.any(dim=1)
        earlier = torch.ones(together, together, dtype=torch.bool, device=start.device).triu(1)
        inside = _suppressed(block_boxes, block_groups, block_boxes, block_groups, iou_threshold) & earlier
        better = candidate & ~(guess[:, :, None] & inside).any(dim=1)
        right = (better == guess).all()

        # What is kept goes behind the others; the last place of the lists is for all that is not.
        place = count[:, None] + guess.to(torch.int64).cumsum(dim=1) - 1
        place = torch.where(guess & (place < limit) & right, place, limit)
        kept = kept.scatter(1, place, index)
        kept_boxes = kept_boxes.scatter(1, place[..., None].expand(-1, -1, 4), block_boxes)
        kept_groups = kept_groups.scatter(1, place, block_groups)
        count = torch.where(right, (count + guess.sum(dim=1)).clamp(max=limit), count)
        start = torch.where(right, start + together, start).clamp(max=order.shape[1] - together)
        # The first guess of the next block: all stay.
        return start, count, kept, kept_boxes, kept_groups, better | right

    state = (
        torch.zeros(1, dtype=torch.int64, device=scores.device),
        torch.zeros(num_images, dtype=torch.int64, device=scores.device),
        order.new_zeros(num_images, limit + 1),
        boxes.new_zeros(num_images, limit + 1, 4),
        groups.new_zeros(num_images, limit + 1),
        torch.ones(num_images, together, dtype=torch.bool, device=scores.device),
    )
    if torch.compiler.is_compiling():
        from torch._higher_order_ops.while_loop import while_loop

        state = while_loop(unfinished, step, state)
    else:
        while bool(unfinished(*state)):
            state = step(*state)
    count, kept = state[1], state[2]
    return kept[:, :limit], torch.arange(limit, device=count.device) < count[:, None]


def _suppressed(
    boxes1: torch.Tensor, groups1: torch.Tensor, boxes2: torch.Tensor, groups2: torch.Tensor, iou_threshold: float
) -> torch.Tensor:
    """Which of `Tensor[N, Q, 4]` may not stand beside which of `Tensor[N, P, 4]`: bool `Tensor[N, Q, P]`."""
    a, b = boxes1[:, :, None], boxes2[:, None]
    shared = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    shared_area = shared[..., 0] * shared[..., 1]
    area1, area2 = ((x[..., 2] - x[..., 0]) * (x[..., 3] - x[..., 1]) for x in (a, b))
    # As torchvision computes it. Without any area it is 0 / 0, which is not greater.
    iou = shared_area / (area1 + area2 - shared_area)
    return (iou > iou_threshold) & (groups1[:, :, None] == groups2[:, None])
