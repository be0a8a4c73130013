"""Why a COCO evaluation gives nothing, or less than it could: sentences for the log, made of the predictions."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from ._coco_table import values_of

_HISTOGRAM_EDGES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
_CAPPED_PART_OF_IMAGES = 0.01


def explain_cap(counts: Sequence[int], limit: int) -> str | None:
    """What to say where an image in a hundred, or more, has as many detections (`counts`) as count for AP."""
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
    """What to say where no predicted category has an object in the ground truth; `maps` are those of the metadata."""
    if set(predicted) & set(annotated):
        return None
    return (
        f"no predicted class has an object in the ground truth: predicted are the categories {_some(predicted)}, "
        f"annotated {_some(annotated)}. The model's classes do not belong to this data set, or {maps} in its metadata "
        "is wrong"
    )


def check_category_ids(metadata: Any, in_file: Collection[int]) -> None:
    """Refuse a map from other category ids than those of the annotation file: no prediction could count."""
    mapping = metadata.get("thing_dataset_id_to_contiguous_id")
    if mapping and in_file and not set(mapping) & set(in_file):
        raise ValueError(
            f"`thing_dataset_id_to_contiguous_id` in the metadata of {metadata.get('name')!r} has the category ids "
            f"{_some(mapping)}, and {metadata.get('json_file') or 'the data set'} has {_some(in_file)}: no prediction "
            "could count. The keys of the map must be the category ids of the file."
        )


def explain_zero_ap(
    coco_results: Sequence[dict[str, Any]], annotated: Collection[int], mistakes: Sequence[str] = ()
) -> str:
    """What to say where none of the results counts for AP, with the categories that have objects and bad boxes."""
    predicted, images = (set(values_of(coco_results, key)) for key in ("category_id", "image_id"))
    reason = explain_class_overlap(predicted, annotated)
    if mistakes:
        reason = f"look at the ground truth first: {' '.join(mistakes)}".rstrip(".")
    elif reason is None:
        reason = (
            f"{len(predicted & set(annotated))} predicted categories do have objects, so the classes fit and the "
            "places do not: untrained or wrong weights, boxes in another frame than the original image (`height` and "
            "`width` of the inputs), or images in another channel order (INPUT.FORMAT)"
        )
    return (
        f"None of {len(coco_results)} detections on {len(images)} images matches an object; {reason}. Scores: "
        f"{score_histogram(np.array(values_of(coco_results, 'score')))}."
    )


def _some(ids: Collection[int], count: int = 10) -> str:
    shown = sorted(ids)[:count]
    return f"{shown}{f' and {len(ids) - count} more' if len(ids) > count else ''}"
