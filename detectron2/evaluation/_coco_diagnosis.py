"""Why a COCO evaluation gives nothing, or less than it could: sentences for the log, made of the predictions."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from ._coco_table import ResultTable

_HISTOGRAM_EDGES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
_CAPPED_PART_OF_IMAGES = 0.01


def explain_cap(counts: Sequence[int], limit: int) -> str | None:
    """What to say where many images have as many detections as are counted.

    Args:
        counts: detections of each image.
        limit: how many of an image count for AP.

    Returns:
        None where fewer than one image in a hundred has.
    """
    reached = sum(count >= limit for count in counts)
    if not reached or reached < _CAPPED_PART_OF_IMAGES * len(counts):
        return None
    return (
        f"{reached} of {len(counts)} images have {limit} detections or more, and no more than {limit} of an image "
        "count for AP. Where images hold that many objects, raise the limits of the model (TEST.DETECTIONS_PER_IMAGE) "
        "and of the evaluator (max_dets_per_image) together."
    )


def score_histogram(scores: np.ndarray) -> str:
    """Numbers of scores between a few edges, those without any left out."""
    edges = np.array(_HISTOGRAM_EDGES)
    edges[-1] = np.inf
    bins = np.searchsorted(edges, np.nan_to_num(scores, nan=0.0), side="right") - 1
    numbers = np.bincount(bins.clip(0), minlength=len(edges) - 1)
    parts = [
        f"{low:g} to {high:g}: {number}"
        for low, high, number in zip(_HISTOGRAM_EDGES, _HISTOGRAM_EDGES[1:], numbers.tolist(), strict=False)
        if number
    ]
    not_numbers = int(np.isnan(scores).sum())
    return ", ".join(parts) + (f"; {not_numbers} are not a number" if not_numbers else "")


def explain_class_overlap(
    predicted: Collection[int], annotated: Collection[int], maps: str = "`thing_dataset_id_to_contiguous_id`"
) -> str | None:
    """What to say where no class that was predicted has an object in the ground truth.

    Args:
        predicted: category ids of the predictions.
        annotated: category ids of the ground truth.
        maps: what in the metadata leads from labels to category ids.

    Returns:
        None where some have.
    """
    if set(predicted) & set(annotated):
        return None
    return (
        f"no predicted class has an object in the ground truth: predicted are the categories {_some(predicted)}, "
        f"annotated {_some(annotated)}. The model's classes do not belong to this data set, or {maps} in its metadata "
        "is wrong"
    )


def check_category_ids(metadata: Any, in_file: Collection[int]) -> None:
    """Refuse a map from other category ids than those of the annotation file: no prediction could count.

    Args:
        metadata: of the data set.
        in_file: category ids of the annotation file.
    """
    mapping = metadata.get("thing_dataset_id_to_contiguous_id")
    if mapping and in_file and not set(mapping) & set(in_file):
        raise ValueError(
            f"`thing_dataset_id_to_contiguous_id` in the metadata of {metadata.get('name')!r} has the category ids "
            f"{_some(mapping)}, and {metadata.get('json_file') or 'the data set'} has {_some(in_file)}: no prediction "
            "could count. The keys of the map must be the category ids of the file."
        )


def explain_zero_ap(coco_results: "ResultTable | list[dict[str, Any]]", annotated: Collection[int]) -> str:
    """What to say where predictions were made and none of them counted for AP.

    Args:
        coco_results: at least one, with the category ids of the data set.
        annotated: category ids of the objects in the ground truth.

    Returns:
        the numbers, the likely reason, and how the scores are distributed.
    """
    if isinstance(coco_results, ResultTable):
        scores, predicted = coco_results.scores, np.unique(coco_results.category_ids).tolist()
        images = len(np.unique(coco_results.image_index))
    else:
        scores = np.array([result["score"] for result in coco_results])
        predicted = sorted({result["category_id"] for result in coco_results})
        images = len({result["image_id"] for result in coco_results})
    reason = explain_class_overlap(predicted, annotated)
    if reason is None:
        shared = len(set(predicted) & set(annotated))
        reason = (
            f"{shared} predicted categories do have objects, so the classes fit and the places do not: untrained or "
            "wrong weights, boxes in another frame than the original image (`height` and `width` of the inputs), or "
            "images in another channel order (INPUT.FORMAT)"
        )
    return (
        f"None of {len(scores)} detections on {images} images matches an object; {reason}. Scores: "
        f"{score_histogram(scores)}."
    )


def _some(ids: Collection[int], count: int = 10) -> str:
    shown = sorted(ids)[:count]
    return f"{shown}{f' and {len(ids) - count} more' if len(ids) > count else ''}"
