"""Training on a GPU without waiting for it: steps in which no size depends on values.

The host queues work for the GPU ahead of time. To select by a condition (`nonzero`, indexing by a mask) it has to wait
for the number of elements that were found, and the GPU then waits for more work. Here losses weigh by masks, samples
are drawn to places whose number is fixed, and the lengths of all images come to the host in one copy.

What is drawn has the same distribution as on the CPU, but other random numbers; the losses are equal up to rounding.

Letters: `N` images, `R` elements of an image (anchors or proposals), `S` places of a sample, `K` classes, `B` numbers
of a box, `D` places for proposals of an image.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from detectron2.layers import batched_nms, cat
from detectron2.structures import Boxes, Instances

__all__ = [
    "PaddedProposals",
    "classification_loss_of_drawn",
    "draw_samples",
    "indices_of",
    "label_drawn_",
    "mark_foreground",
    "num_foreground",
    "padded_proposals",
    "pool_on_every_level",
    "read_together",
    "runs_ahead",
    "to_device",
]

# Suppression compares each box with each other one, so a call for all images of a large batch would take longer.
_BOXES_AT_ONCE = 20_000
_OFF_THE_MAP = -1e5  # pixels; at any stride farther than a cell from the map, where samples are 0


def runs_ahead(device: torch.device) -> bool:
    """Say whether work on a device is queued, so that reading a number from it waits for all work before.

    Args:
        device: the device.

    Returns:
        Whether the forms of this module are to be used.

    Example:
        >>> from detectron2.modeling.fixed_shapes import runs_ahead
        >>> runs_ahead(torch.device("cpu"))
        False
    """
    return device.type == "cuda"


def read_together(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Copy small tensors to the host, all in one copy, the only wait here.

    Args:
        *tensors: of any shapes, and of numbers that float64 holds.

    Returns:
        The same numbers as float64.

    Example:
        >>> from detectron2.modeling.fixed_shapes import read_together
        >>> read_together(torch.tensor([1, 2]), torch.tensor(0.5))
        [tensor([1., 2.], dtype=torch.float64), tensor(0.5000, dtype=torch.float64)]
    """
    if not tensors:
        return []
    together = torch.cat([tensor.detach().reshape(-1).double() for tensor in tensors]).cpu()
    parts = together.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor from the host without waiting for work that is queued."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()  # from other memory no copy is asynchronous
    return tensor.to(device, non_blocking=True)


def indices_of(masks: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Find where masks are true, with one wait for all of them.

    Args:
        masks: bool vectors on one device.

    Returns:
        For each mask the indices, int64, on the device.

    Example:
        >>> from detectron2.modeling.fixed_shapes import indices_of
        >>> indices_of([torch.tensor([True, False, True]), torch.tensor([False])])
        [tensor([0, 2]), tensor([], dtype=torch.int64)]
    """
    if not masks or not runs_ahead(masks[0].device):
        return [mask.nonzero()[:, 0] for mask in masks]
    return [to_device(mask.nonzero()[:, 0], masks[0].device) for mask in read_together(*masks)]


# ------------------------------------------------------------------------------------------------------------ sampling


def draw_samples(
    labels: torch.Tensor, num_samples: int, positive_fraction: float, bg_label: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw positives and negatives at random, as `detectron2.modeling.sampling.subsample_labels` does.

    Args:
        labels: `Tensor[R]`: -1 (ignore), `bg_label` (negative), anything else is positive.
        num_samples: how many to draw at most.
        positive_fraction: the largest share of positives.
        bg_label: the label of negatives.

    Returns:
        Indices `Tensor[S]`, `S = min(R, num_samples)`: positives, then negatives, then places without meaning; and two
        numbers as tensors: how many are positives, and how many are drawn at all.

    Example:
        >>> from detectron2.modeling.fixed_shapes import draw_samples
        >>> index, num_positive, num_drawn = draw_samples(torch.tensor([3, -1, 0, 3]), 3, 0.5, bg_label=3)
        >>> index[0], num_positive, num_drawn
        (tensor(2), tensor(1), tensor(3))
    """
    size = labels.shape[0]
    most, most_positive = min(num_samples, size), min(int(num_samples * positive_fraction), size)
    is_negative = labels == bg_label
    is_positive = (labels != -1) & ~is_negative
    keys = torch.rand(size, device=labels.device)
    positive = torch.where(is_positive, keys, -1.0).topk(most_positive).indices
    negative = torch.where(is_negative, keys, -1.0).topk(most).indices
    num_positive = is_positive.sum().clamp(max=most_positive)
    num_drawn = num_positive + torch.minimum(is_negative.sum(), num_samples - num_positive)
    place = torch.arange(most, device=labels.device)
    of_negative = most_positive + (place - num_positive).clamp(min=0)
    source = torch.where(place < num_positive, place, of_negative)
    return torch.cat([positive, negative])[source], num_positive, num_drawn


def label_drawn_(labels: torch.Tensor, num_samples: int, positive_fraction: float) -> torch.Tensor:
    """Draw from labels `Tensor[R]` of 1, 0 and -1, and set in place every label that is not drawn to -1."""
    index, num_positive, num_drawn = draw_samples(labels, num_samples, positive_fraction, 0)
    size = labels.shape[0]
    place = torch.arange(index.shape[0], device=labels.device)
    is_positive = place < num_positive
    # One place more than there are labels takes what is not drawn, so that no two writes meet.
    new = labels.new_full((size + 1,), -1)
    new.scatter_(0, torch.where(is_positive, index, size), 1)
    new.scatter_(0, torch.where((place < num_drawn) & ~is_positive, index, size), 0)
    return labels.copy_(new[:size])


def mark_foreground(regions: Instances, count: int) -> None:
    """Remember that of these labelled regions the first `count` are foreground."""
    regions._foreground = (regions.gt_classes, count)


def num_foreground(regions: Instances) -> int | None:
    """How many of the first regions are foreground, if that is known and `gt_classes` is what it was then."""
    labels, count = getattr(regions, "_foreground", (None, None))
    return count if labels is not None and regions.get("gt_classes") is labels else None


# ----------------------------------------------------------------------------------------------------------- proposals


class PaddedProposals(Sequence[Instances]):
    """The proposals of a batch, of which only the GPU knows yet how many there are.

    As a sequence it has for each image its proposals, best first. The first access waits for the numbers; who can do
    without them takes `padded`, and passes `state` to `read_together` and what that returns to `check`.

    Args:
        padded: for each image `D` proposals with `proposal_boxes` and `objectness_logits`; those behind the last one
            have no meaning.
        counts: int64 `Tensor[N]`, how many there are.
        is_finite: whether all predictions are finite numbers, bool tensor.
        explain: makes the message of the error that is raised if not.

    Raises:
        FloatingPointError: at the first access, when a prediction was not finite.
    """

    def __init__(
        self, padded: list[Instances], counts: torch.Tensor, is_finite: torch.Tensor, explain: Callable[[], str]
    ) -> None:
        self.padded = padded
        self.counts = counts
        self.state = is_finite
        self._explain = explain
        self._exact: list[Instances] | None = None

    def check(self, state: torch.Tensor) -> None:
        """Raise a `FloatingPointError` if `state`, which came from the GPU, says so."""
        if not bool(state):
            raise FloatingPointError(self._explain())

    def valid(self, image: int) -> torch.Tensor:
        """Which of `padded[image]` are proposals, bool `Tensor[D]`."""
        places = torch.arange(len(self.padded[image]), device=self.counts.device)
        return places < self.counts[image]

    def _all(self) -> list[Instances]:
        if self._exact is None:
            counts, state = read_together(self.counts, self.state)
            self.check(state)
            self._exact = [x[: int(count)] for x, count in zip(self.padded, counts.tolist(), strict=True)]
        return self._exact

    def __len__(self) -> int:
        return len(self.padded)

    def __getitem__(self, index: Any) -> Any:
        return self._all()[index]

    def __iter__(self) -> Iterator[Instances]:
        return iter(self._all())


def padded_proposals(
    boxes: torch.Tensor,
    logits: torch.Tensor,
    usable: torch.Tensor,
    level: torch.Tensor,
    num_levels: int,
    image_sizes: Sequence[tuple[int, int]],
    nms_thresh: float,
    limit: int,
    is_finite: torch.Tensor,
    explain: Callable[[], str],
) -> PaddedProposals:
    """Suppress within each level, and keep the best of each image; one wait for about two images.

    Args:
        boxes: `Tensor[N, R, 4]`, clipped.
        logits: `Tensor[N, R]`.
        usable: bool `Tensor[N, R]`; the others take no part.
        level: int64 `Tensor[R]`.
        num_levels: how many there are.
        image_sizes: `(height, width)` of each image.
        nms_thresh: IoU above which the lower of two boxes goes.
        limit: how many an image keeps.
        is_finite: see `PaddedProposals`.
        explain: see `PaddedProposals`.

    Returns:
        The proposals, best first.
    """
    num_images, size = logits.shape
    boxes = torch.where(usable[..., None], boxes, 0.0)
    ranks = torch.where(usable, logits, -torch.inf)
    # A box without area suppresses nothing, so that those that take no part may be in any group.
    together = max(1, _BOXES_AT_ONCE // max(size, 1))
    kept = torch.zeros_like(usable)
    for first in range(0, num_images, together):
        part = slice(first, min(first + together, num_images))
        count = part.stop - part.start
        groups = (torch.arange(count, device=level.device)[:, None] * num_levels + level).flatten()
        best = batched_nms(boxes[part].flatten(0, 1), ranks[part].flatten(), groups, nms_thresh)
        of_part = kept.new_zeros(count * size)
        kept[part] = of_part.index_fill_(0, best, True).view(count, size)
    scores, index = torch.where(kept & usable, logits, -torch.inf).topk(min(limit, size), dim=1)
    picked = boxes.gather(1, index[..., None].expand(-1, -1, boxes.shape[2]))
    padded = [
        Instances(image_size, proposal_boxes=Boxes(b), objectness_logits=s)
        for image_size, b, s in zip(image_sizes, picked, scores, strict=False)
    ]
    return PaddedProposals(padded, (scores > -torch.inf).sum(dim=1)[: len(padded)], is_finite, explain)


# -------------------------------------------------------------------------------------------------------------- losses


def classification_loss_of_drawn(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum the binary cross entropy over all elements with a label of 0 or 1; both are `Tensor[N, R]`."""
    drawn = labels >= 0
    safe = torch.where(drawn, logits, 0.0)
    of_each = F.binary_cross_entropy_with_logits(safe, labels.clamp(min=0).to(safe.dtype), reduction="none")
    return torch.where(drawn, of_each, 0.0).sum()


# ------------------------------------------------------------------------------------------------------------- pooling


def pool_on_every_level(
    poolers: nn.ModuleList, maps: Sequence[torch.Tensor], regions: torch.Tensor, levels: torch.Tensor
) -> torch.Tensor:
    """Pool all regions from every level, but from a place off the map, where all is 0, if they belong to another.

    Args:
        poolers: one for each level, which takes a map and regions.
        maps: for each level `Tensor[N, C, H, W]`.
        regions: `Tensor[R, 5]`, the index of an image, and the box.
        levels: int64 `Tensor[R]`, the level of each region.

    Returns:
        `Tensor[R, C, height, width]`.
    """
    boxes = regions[:, 1:]
    total: Any = None
    for i, (pooler, level_map) in enumerate(zip(poolers, maps, strict=True)):
        here = cat([regions[:, :1], torch.where((levels == i)[:, None], boxes, _OFF_THE_MAP)], dim=1)
        pooled = pooler(level_map, here)
        total = pooled if total is None else total + pooled
    return total
