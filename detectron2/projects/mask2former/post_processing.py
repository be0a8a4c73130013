"""From classes and masks of queries to semantic, instance and panoptic results (section 3 and appendix of the paper).

Letters: `Q` queries, `K` classes, `D` detections, `H` and `W` height and width of the result in pixels. Logits of
classes are `Tensor[Q, K + 1]`, of which the last is "no object"; logits of masks are `Tensor[Q, H, W]`.
"""

from collections.abc import Collection
from typing import Any

import torch

from detectron2.modeling.postprocessing import areas_and_certainties
from detectron2.structures import BitMasks, Instances

__all__ = ["instances_of_queries", "panoptic_of_queries", "semantic_of_queries"]


def semantic_of_queries(class_logits: torch.Tensor, mask_logits: torch.Tensor) -> torch.Tensor:
    """Scores of classes: for each pixel the sum over queries of the probabilities of class and mask.

    Args:
        class_logits: `Tensor[Q, K + 1]`.
        mask_logits: `Tensor[Q, H, W]`.

    Returns:
        `Tensor[K, H, W]`.

    Example:
        >>> from detectron2.projects.mask2former.post_processing import semantic_of_queries
        >>> semantic_of_queries(torch.tensor([[9.0, 0.0, 0.0]]), torch.zeros(1, 1, 1)).flatten().round(decimals=2)
        tensor([0.5000, 0.0000])
    """
    return torch.einsum("qk,qhw->khw", class_logits.softmax(-1)[:, :-1], mask_logits.sigmoid())


def instances_of_queries(
    class_logits: torch.Tensor, mask_logits: torch.Tensor, max_detections: int, classes: Collection[int] | None = None
) -> Instances:
    """The best pairs of a query and a class.

    The score is the probability of the class times the mean probability of the pixels of the mask.

    Args:
        class_logits: `Tensor[Q, K + 1]`.
        mask_logits: `Tensor[Q, H, W]`.
        max_detections: how many pairs of the most probable classes to take, before those without a pixel are dropped.
        classes: the classes that count; None for all.

    Returns:
        `pred_masks`, bool `Tensor[D, H, W]`, `pred_boxes` around them in pixels, `scores` and `pred_classes`, best
        first.

    Example:
        >>> from detectron2.projects.mask2former.post_processing import instances_of_queries
        >>> masks = torch.tensor([[[9.0, 9.0], [-9.0, -9.0]]])
        >>> found = instances_of_queries(torch.tensor([[9.0, 0.0, 0.0]]), masks, 1)
        >>> found.pred_boxes.tensor.tolist(), found.pred_classes.tolist()
        ([[0.0, 0.0, 2.0, 1.0]], [0])
    """
    probabilities = class_logits.softmax(-1)[:, :-1]
    scores, best = probabilities.flatten().topk(min(max_detections, probabilities.numel()))
    rows, labels = best // probabilities.shape[1], best % probabilities.shape[1]
    if classes is not None:
        counts = torch.isin(labels, torch.tensor(sorted(classes), dtype=labels.dtype, device=labels.device))
        scores, rows, labels = scores[counts], rows[counts], labels[counts]
    area, certainty = areas_and_certainties(mask_logits, rows)
    scores = scores * certainty
    order = scores.argsort(descending=True, stable=True)
    order = order[area[order] > 0]
    masks = mask_logits[rows[order]] > 0
    return Instances(
        (masks.shape[1], masks.shape[2]),
        pred_masks=masks,
        pred_boxes=BitMasks(masks).get_bounding_boxes(),
        scores=scores[order],
        pred_classes=labels[order],
    )


def panoptic_of_queries(
    class_logits: torch.Tensor,
    mask_logits: torch.Tensor,
    thing_classes: Collection[int],
    object_mask_threshold: float,
    overlap_threshold: float,
) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """Give each pixel to the query that is surest of it, and merge the stuff of a class.

    Args:
        class_logits: `Tensor[Q, K + 1]`.
        mask_logits: `Tensor[Q, H, W]`.
        thing_classes: those of the K classes that are things.
        object_mask_threshold: queries have a part in the result if their class has a higher probability than this.
        overlap_threshold: a segment is dropped if less than this share of the query's mask is left to it.

    Returns:
        The map, int32 `Tensor[H, W]` of ids, 0 for none; and for each segment a dictionary: "id", "isthing",
        "category_id", one of the K classes, and "score", the probability of the class.

    Example:
        >>> from detectron2.projects.mask2former.post_processing import panoptic_of_queries
        >>> masks = torch.tensor([[[9.0, -9.0]], [[-9.0, 9.0]]])
        >>> classes = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]])
        >>> segmentation, segments = panoptic_of_queries(classes, masks, {0}, 0.8, 0.8)
        >>> segmentation.tolist(), [(x["id"], x["isthing"], x["category_id"]) for x in segments]
        ([[1, 2]], [(1, True, 0), (2, False, 1)])
    """
    num_classes = class_logits.shape[1] - 1
    scores, labels = class_logits.softmax(-1).max(1)
    keep = (labels < num_classes) & (scores > object_mask_threshold)
    scores, labels, masks = scores[keep], labels[keep], mask_logits[keep].sigmoid()
    segments: list[dict[str, Any]] = []
    if not len(scores):
        return torch.zeros(mask_logits.shape[1:], dtype=torch.int32, device=mask_logits.device), segments
    owner = (masks * scores[:, None, None]).argmax(0)
    whole = masks >= 0.5
    left = whole.gather(0, owner[None])[0]  # where the owner's mask is: the others get no segment
    area, left_area = (torch.bincount(x.flatten(), minlength=len(scores)) for x in (owner, owner[left]))
    whole_area = whole.flatten(1).sum(1, dtype=torch.int32)
    stays = (left_area > 0) & (area / whole_area >= overlap_threshold)
    id_of_query, id_of_stuff = [0] * len(scores), {}
    for row, (label, score, is_kept) in enumerate(zip(labels.tolist(), scores.tolist(), stays.tolist(), strict=True)):
        if not is_kept:
            continue
        number = len(segments) + 1
        is_thing = label in thing_classes
        if not is_thing and id_of_stuff.setdefault(label, number) != number:
            id_of_query[row] = id_of_stuff[label]
            continue
        id_of_query[row] = number
        segments.append({"id": number, "isthing": is_thing, "category_id": label, "score": score})
    ids = torch.tensor(id_of_query, dtype=torch.int32, device=masks.device)
    return torch.where(left, ids[owner], 0), segments
