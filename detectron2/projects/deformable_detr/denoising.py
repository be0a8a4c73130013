"""Queries that training makes of noisy objects, which the decoder is to restore: contrastive denoising.

Zhang et al., "DINO" (https://arxiv.org/abs/2203.03605), section 3.3, after Li et al., "DN-DETR"
(https://arxiv.org/abs/2203.01305).

Letters: `N` images, `T` objects of the image with most, `G` groups, `P = 2 * T * G` denoising queries, `Q` queries that
search for objects, `K` classes. Each group has the objects twice: first with little noise, to be restored, then with
more, to be called background. Boxes are `(centre x, centre y, width, height)` in parts of the image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torchvision.ops import box_convert

from .matcher import Match, Targets

__all__ = ["NoisyQueries", "noisy_queries"]


class NoisyQueries(NamedTuple):
    """Denoising queries of a batch."""

    labels: torch.Tensor
    """int64 `Tensor[N, P]`; `K` where an image has fewer objects than another."""
    boxes: torch.Tensor
    """`Tensor[N, P, 4]`, at most 1; half of the image where it has fewer objects."""
    attention_mask: torch.Tensor
    """bool `Tensor[P + Q, P + Q]`, True where the query of a row does not see that of a column."""
    matches: list[Match]
    """Of each image the queries that are to be restored, and their objects."""
    num_groups: int
    """`G`."""


def noisy_queries(
    targets: Sequence[Targets],
    *,
    num_classes: int,
    num_queries: int,
    number: int = 100,
    label_noise_ratio: float = 0.5,
    box_noise_scale: float = 1.0,
) -> NoisyQueries | None:
    """Make denoising queries, with noise from the generator of torch.

    Args:
        targets: the objects of each image.
        num_classes: `K`.
        num_queries: `Q`.
        number: how many queries with little noise there are, about: `number // T` groups, at least one.
        label_noise_ratio: half of this share of labels is drawn anew from all classes.
        box_noise_scale: how far corners move: by up to this times half a side where there is little noise, and by
            once to twice as much where there is more.

    Returns:
        The queries; None where there is no object.

    Example:
        >>> from detectron2.projects.deformable_detr import Targets
        >>> from detectron2.projects.deformable_detr.denoising import noisy_queries
        >>> target = Targets(torch.tensor([2, 5]), torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.3, 0.3, 0.1, 0.2]]))
        >>> noisy = noisy_queries([target], num_classes=6, num_queries=10, number=4)
        >>> noisy.labels.shape, noisy.attention_mask.shape, noisy.matches[0].queries.tolist()
        (torch.Size([1, 8]), torch.Size([18, 18]), [0, 1, 4, 5])
    """
    counts = [len(target.labels) for target in targets]
    most = max(counts, default=0)
    if most == 0:
        return None
    groups = max(number // most, 1)
    device = targets[0].labels.device
    labels = torch.full((len(targets), most), num_classes, dtype=torch.int64, device=device)
    boxes = torch.full((len(targets), most, 4), 0.5, device=device)
    for row, box, target, count in zip(labels, boxes, targets, counts, strict=True):
        row[:count], box[:count] = target.labels, target.boxes
    labels, boxes = labels.repeat(1, 2 * groups), boxes.repeat(1, 2 * groups, 1)
    is_object = labels < num_classes
    is_negative = (torch.arange(labels.shape[1], device=device) // most % 2).bool()
    noisy_labels = _with_other_labels(labels, num_classes, label_noise_ratio)
    noisy_boxes = _with_moved_corners(boxes, is_negative, box_noise_scale)
    return NoisyQueries(
        torch.where(is_object, noisy_labels, labels),
        torch.where(is_object[..., None], noisy_boxes, boxes),
        _attention_mask(most, groups, num_queries, device),
        [_restored(count, most, groups, device) for count in counts],
        groups,
    )


def _with_other_labels(labels: torch.Tensor, num_classes: int, ratio: float) -> torch.Tensor:
    is_drawn = torch.rand(labels.shape, device=labels.device) < ratio / 2
    return torch.where(is_drawn, torch.randint_like(labels, num_classes), labels)


def _with_moved_corners(boxes: torch.Tensor, is_negative: torch.Tensor, scale: float) -> torch.Tensor:
    """Move corners, those of negative ones farther, but not out of the image."""
    sign = torch.randint_like(boxes, 2) * 2 - 1
    distance = torch.rand_like(boxes) + is_negative[:, None]
    half_sides = (boxes[..., 2:] / 2).repeat(1, 1, 2)
    corners = box_convert(boxes, "cxcywh", "xyxy") + sign * distance * half_sides * scale
    # Corners may have changed places: a side is then negative, and becomes 0 when the query is made.
    return box_convert(corners.clamp(0, 1), "xyxy", "cxcywh")


def _attention_mask(most: int, groups: int, num_queries: int, device: torch.device) -> torch.Tensor:
    """Groups do not see each other, and queries that search see no group."""
    group = torch.arange(2 * most * groups, device=device) // (2 * most)
    group = torch.cat([group, group.new_full((num_queries,), groups)])
    return (group[:, None] != group) & (group < groups)


def _restored(count: int, most: int, groups: int, device: torch.device) -> Match:
    objects = torch.arange(count, device=device).repeat(groups)
    first = torch.arange(groups, device=device).repeat_interleave(count) * 2 * most
    return Match(first + objects, objects)
