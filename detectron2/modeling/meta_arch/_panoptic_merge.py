"""One map of things and stuff from overlapping instances and a semantic map.

The rule is that of Panoptic Segmentation (https://arxiv.org/abs/1801.00868, section 6) and Panoptic FPN: instances
claim pixels in the order of their scores, one that is mostly covered gives up; stuff takes what is left.

`D` instances, `K` classes of stuff (0 is "thing"), `H` and `W` height and width in pixels.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from detectron2.layers.mask_ops import paste_masks_in_boxes, paste_masks_in_image
from detectron2.layers.run_lengths import decode_part
from detectron2.structures import Instances, ROIMasks

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
        instance_results: with `scores`, `pred_classes` and masks in any format of `detector_postprocess`: boolean
            `pred_masks`, `Tensor[D, H, W]`; `ROIMasks` with `pred_boxes`, pasted one at a time at the threshold 0.5; or
            `pred_masks_rle`.
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
    panoptic, winners = _claim(instance_results, rows, tuple(semantic_results.shape), overlap_threshold)
    panoptic = panoptic.to(semantic_results.device)  # run lengths are on the CPU

    classes = instance_results.pred_classes.tolist()
    segments: list[dict[str, Any]] = [
        {"id": i, "isthing": True, "score": scores[w], "category_id": classes[rows[w]], "instance_id": rows[w]}
        for i, w in enumerate(winners, start=1)
    ]
    return _add_stuff(panoptic, segments, semantic_results, stuff_area_thresh)


def _claim(
    instances: Instances, rows: list[int], size_hw: tuple[int, ...], threshold: float
) -> tuple[torch.Tensor, list[int]]:
    """Let instances claim pixels, one after the other, whatever their masks come as.

    Args:
        instances: with masks in one of the formats.
        rows: which instances, best first.
        size_hw: size of the image.
        threshold: share of an instance that may be covered.

    Returns:
        Map of 1, 2 ... for those that got their pixels, 0 where there is none; and their positions in `rows`.
    """
    if not instances.has("pred_masks"):
        parts = (decode_part(instances.pred_masks_rle[row]) for row in rows)
        return _claim_on_cpu(_pixels(parts, size_hw[1]), size_hw, threshold)
    masks = instances.pred_masks
    on_cpu = masks.device.type == "cpu"
    if isinstance(masks, ROIMasks):
        boxes = instances.pred_boxes.tensor
        if on_cpu:
            parts = paste_masks_in_boxes(masks.tensor[rows], boxes[rows], (size_hw[0], size_hw[1]))
            return _claim_on_cpu(_pixels(parts, size_hw[1]), size_hw, threshold)
        one_by_one = (_pasted(masks.tensor[row : row + 1], boxes[row : row + 1], size_hw) for row in rows)
        return _claim_on_device(one_by_one, size_hw, masks.device, threshold)
    masks = masks if masks.dtype == torch.bool else masks > 0
    if on_cpu:
        flat = masks.flatten(1).numpy()
        return _claim_on_cpu((flat[row].nonzero()[0] for row in rows), size_hw, threshold)
    return _claim_on_device((masks[row] for row in rows), size_hw, masks.device, threshold)


def _pasted(masks: torch.Tensor, boxes: torch.Tensor, size_hw: tuple[int, ...]) -> torch.Tensor:
    """One mask, `Tensor[H, W]`."""
    return paste_masks_in_image(masks, boxes, (size_hw[0], size_hw[1]))[0]


def _pixels(parts: Iterable[tuple[np.ndarray, tuple[int, int]]], width: int) -> Iterator[np.ndarray]:
    """The indices of the pixels of masks that are given by a part of the image, and where this begins."""
    for bits, (left, top) in parts:
        y, x = bits.nonzero()
        yield (y + top) * width + x + left


def _claim_on_cpu(
    pixels_of_each: Iterable[np.ndarray], size_hw: tuple[int, ...], threshold: float
) -> tuple[torch.Tensor, list[int]]:
    """Let instances claim pixels: the work is that of the pixels in masks, not of the image.

    Args:
        pixels_of_each: for each instance, best first, the indices of its pixels, row by row of the image, ascending.
        size_hw: size of the image.
        threshold: share of an instance that may be covered.

    Returns:
        As `_claim`.
    """
    owner = np.zeros(size_hw[0] * size_hw[1], dtype=np.int32)
    winners: list[int] = []
    for position, pixels in enumerate(pixels_of_each):
        free = pixels[owner[pixels] == 0]
        # An instance of which nothing is left is none, even where everything may be covered (threshold 1).
        if len(free) == 0 or (len(pixels) - len(free)) / len(pixels) > threshold:
            continue
        winners.append(position)
        owner[free] = len(winners)
    return torch.from_numpy(owner).view(size_hw), winners


def _claim_on_device(
    masks: Iterable[torch.Tensor], size_hw: tuple[int, ...], device: torch.device, threshold: float
) -> tuple[torch.Tensor, list[int]]:
    """The same as `_claim_on_cpu` where asking for a number means to wait: all decisions stay on the device.

    Args:
        masks: for each instance, best first, its boolean mask, `Tensor[H, W]`.
        size_hw: size of the image.
        device: where the masks are.
        threshold: share of an instance that may be covered.

    Returns:
        As `_claim`.
    """
    owner = torch.zeros(size_hw, dtype=torch.int32, device=device)
    winners = torch.zeros((), dtype=torch.int32, device=device)
    decisions = []
    for mask in masks:
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
