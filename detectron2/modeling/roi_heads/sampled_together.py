"""Label and sample the proposals of a whole batch on a GPU, with one wait for all of its numbers.

`N` images, `R` proposals of an image, `S` places of its sample.
"""

from collections.abc import Sequence
from typing import Any

import torch

from detectron2.modeling.fixed_shapes import PaddedProposals, draw_samples, mark_foreground, read_together
from detectron2.modeling.proposal_generator.proposal_utils import add_ground_truth_to_proposals
from detectron2.structures import Instances, PolygonMasks
from detectron2.utils.events import put_scalar

from .matched_masks import take_matched

__all__ = ["sampled_together"]


def sampled_together(heads: Any, proposals: Sequence[Instances], targets: list[Instances]) -> list[Instances]:
    """Do what `ROIHeads.label_and_sample_proposals` does.

    The samples of all images are drawn to places of fixed number. Then the host reads, in one copy, how many of them
    are filled and how many of these are foreground, and of ground truth that is kept on the host (polygons), which
    objects were matched, with the boxes that their masks are cut out for.

    Args:
        heads: the `ROIHeads`, of which the matcher and the options of sampling are used.
        proposals: for each image its proposals, or `PaddedProposals`, which are not waited for before.
        targets: for each image its ground truth.

    Returns:
        For each image the sampled proposals, foreground first.

    Raises:
        FloatingPointError: see `PaddedProposals`.
    """
    is_padded = isinstance(proposals, PaddedProposals)
    regions: list[Instances] = proposals.padded if is_padded else list(proposals)
    lengths = [len(x) for x in regions]
    if heads.proposal_append_gt:
        regions = add_ground_truth_to_proposals(targets, regions)
    drawn: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    numbers: list[torch.Tensor] = [proposals.state] if is_padded else []
    for i, (per_image, target) in enumerate(zip(regions, targets, strict=True)):
        overlaps = heads._overlaps(target.gt_boxes, per_image.proposal_boxes)
        matched, match_labels = heads.proposal_matcher(overlaps)
        labels = heads._class_labels(matched, match_labels, target.gt_classes)
        if is_padded:
            labels[: lengths[i]].masked_fill_(~proposals.valid(i), -1)
        index, num_foreground, num_drawn = draw_samples(
            labels, heads.batch_size_per_image, heads.positive_fraction, heads.num_classes
        )
        drawn.append((index, labels, matched))
        numbers += [num_foreground, num_drawn]
        if _is_partly_on_host(target):
            numbers += [matched[index], per_image.proposal_boxes.tensor[index]]
    read = iter(read_together(*numbers))
    if is_padded:
        proposals.check(next(read))

    sampled, num_positive, num_negative = [], 0, 0
    for per_image, target, (index, labels, matched) in zip(regions, targets, drawn, strict=True):
        foreground, count = int(next(read)), int(next(read))
        on_host = (next(read)[:count].long(), next(read)[:count].float()) if _is_partly_on_host(target) else None
        index = index[:count]
        chosen = per_image[index]
        chosen.gt_classes = labels[index]
        mark_foreground(chosen, foreground)
        _add_ground_truth(chosen, target, matched[index], on_host)
        sampled.append(chosen)
        num_positive, num_negative = num_positive + foreground, num_negative + count - foreground
    put_scalar("roi_head/num_fg_samples", num_positive / max(len(targets), 1))
    put_scalar("roi_head/num_bg_samples", num_negative / max(len(targets), 1))
    return sampled


def _is_on_host(value: Any, device: torch.device) -> bool:
    return isinstance(value, PolygonMasks) or getattr(value, "device", None) != device


def _is_partly_on_host(target: Instances) -> bool:
    device = target.gt_classes.device
    on_host = (_is_on_host(value, device) for name, value in target.get_fields().items() if name.startswith("gt_"))
    return len(target) > 0 and any(on_host)


def _add_ground_truth(chosen: Instances, target: Instances, matched: torch.Tensor, on_host: Any) -> None:
    """Add the fields of the matched objects, indexed where they are kept."""
    if len(target) == 0:
        return
    for name, value in target.get_fields().items():
        if not name.startswith("gt_") or chosen.has(name):
            continue
        if on_host is not None and _is_on_host(value, matched.device):
            index, boxes = on_host
            chosen.set(name, take_matched(value, index, (chosen.proposal_boxes.tensor, boxes)))
        else:
            chosen.set(name, take_matched(value, matched))
