"""One map of things and stuff from overlapping instances and a semantic map.

The rule is that of Panoptic Segmentation (https://arxiv.org/abs/1801.00868, section 6) and Panoptic FPN: instances
claim pixels in the order of their scores, one that is mostly covered gives up; stuff takes what is left.

`D` instances, `K` classes of stuff (0 is "thing"), `H` and `W` height and width in pixels.
"""

from typing import Any

import numpy as np
import torch

from detectron2.structures import Instances

__all__ = ["combine_semantic_and_instance_outputs"]


def combine_semantic_and_instance_outputs(
    instance_results: Instances,
    semantic_results: torch.Tensor,
    overlap_threshold: float,
    stuff_area_thresh: float,
    instances_score_thresh: float,
) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """Merge the detections and the semantic labels of an image, so that each pixel belongs to one segment at most.

    Args:
        instance_results: with `scores`, `pred_classes` and boolean `pred_masks`, `Tensor[D, H, W]`.
        semantic_results: integer `Tensor[H, W]`; label 0 stands for all things and is left out.
        overlap_threshold: an instance is dropped when more than this share of it is covered by better ones.
        stuff_area_thresh: stuff is dropped when fewer pixels than this are left of it.
        instances_score_thresh: instances with a lower score are dropped.

    Returns:
        int32 `Tensor[H, W]` with the id of each pixel's segment, 0 for none; and for each segment, in the order of ids
        1, 2 ..., a dictionary with "id", "isthing", "category_id", and for things "score" and "instance_id" (its row in
        `instance_results`), for stuff "area" in pixels.
    """
    order = torch.argsort(instance_results.scores, descending=True, stable=True)
    scores, rows = instance_results.scores[order].tolist(), order.tolist()
    rows = [row for row, score in zip(rows, scores, strict=True) if score >= instances_score_thresh]
    masks = instance_results.pred_masks
    masks = masks if masks.dtype == torch.bool else masks > 0
    claim = _claim_on_cpu if masks.device.type == "cpu" else _claim_on_device
    panoptic, winners = claim(masks, rows, overlap_threshold)

    classes = instance_results.pred_classes.tolist()
    segments: list[dict[str, Any]] = [
        {"id": i, "isthing": True, "score": scores[w], "category_id": classes[rows[w]], "instance_id": rows[w]}
        for i, w in enumerate(winners, start=1)
    ]
    return _add_stuff(panoptic, segments, semantic_results, stuff_area_thresh)


def _claim_on_cpu(masks: torch.Tensor, rows: list[int], threshold: float) -> tuple[torch.Tensor, list[int]]:
    """Let instances claim pixels, one after the other: the work is that of the pixels in masks, not of the image.

    Args:
        masks: boolean `Tensor[D, H, W]`.
        rows: which instances, best first.
        threshold: share of an instance that may be covered.

    Returns:
        Map of 1, 2 ... for those that got their pixels, 0 where there is none; and their positions in `rows`.
    """
    owner = np.zeros(masks.shape[1] * masks.shape[2], dtype=np.int32)
    flat = masks.flatten(1).numpy()
    winners: list[int] = []
    for position, row in enumerate(rows):
        pixels = flat[row].nonzero()[0]
        free = pixels[owner[pixels] == 0]
        # An instance of which nothing is left is none, even where everything may be covered (threshold 1).
        if len(free) == 0 or (len(pixels) - len(free)) / len(pixels) > threshold:
            continue
        winners.append(position)
        owner[free] = len(winners)
    return torch.from_numpy(owner).view(masks.shape[1:]), winners


def _claim_on_device(masks: torch.Tensor, rows: list[int], threshold: float) -> tuple[torch.Tensor, list[int]]:
    """The same as `_claim_on_cpu` where asking for a number means to wait: all decisions stay on the device."""
    owner = torch.zeros(masks.shape[1:], dtype=torch.int32, device=masks.device)
    winners = torch.zeros((), dtype=torch.int32, device=masks.device)
    decisions = []
    for row in rows:
        mask = masks[row]
        free = mask & (owner == 0)
        area, left = mask.sum(), free.sum()
        # In double precision, like the division of the numbers themselves; without pixels it is NaN, which is no "<=".
        won = ((area - left).double() / area.double() <= threshold) & (left > 0)
        winners = winners + won
        owner = torch.where(free & won, winners, owner)
        decisions.append(won)
    won = torch.stack(decisions).tolist() if decisions else []
    return owner, [position for position, yes in enumerate(won) if yes]


def _add_stuff(
    panoptic: torch.Tensor, segments: list[dict[str, Any]], labels: torch.Tensor, area_threshold: float
) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """Fill the free pixels of a map with the labels that have enough of them left."""
    free_labels = torch.where(panoptic == 0, labels, 0)
    areas = torch.bincount(free_labels.flatten()).tolist()
    id_of_label = [0] * max(len(areas), 1)
    for label, area in enumerate(areas):
        if label == 0 or area == 0 or area < area_threshold:
            continue
        id_of_label[label] = len(segments) + 1
        segments.append({"id": id_of_label[label], "isthing": False, "category_id": label, "area": area})
    table = torch.tensor(id_of_label, dtype=torch.int32, device=panoptic.device)
    return panoptic + table[free_labels.long()], segments
