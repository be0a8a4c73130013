"""Panoptic quality (Kirillov et al., Panoptic Segmentation, https://arxiv.org/abs/1801.00868, section 4).

A panoptic map is an integer array (height, width) of segment ids, 0 where there is no segment (void). A segment is a
dictionary with ``id``, ``category_id`` and, in the ground truth, optionally ``iscrowd``. ``K`` categories.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["COUNTS", "id_map_to_rgb", "match_segments", "quality", "rgb_to_id_map", "unmatched_truth"]

# Columns of a table of counts. An IoU sum is over the matched pairs of segments.
COUNTS = ("iou_sum", "tp", "fp", "fn")
_IOU, _TP, _FP, _FN = range(4)
# A pair of segments matches when its IoU is above this; no segment can then be in two pairs.
_MATCH_IOU = 0.5
_MAX_ID = 256**3


def rgb_to_id_map(colors: np.ndarray) -> np.ndarray:
    """Segment ids (height, width) from a picture (height, width, 3) that holds ``R + 256 G + 256**2 B``."""
    if colors.ndim != 3 or colors.shape[2] < 3:
        raise ValueError(
            f"a panoptic PNG has three channels that encode segment ids; this one has shape {colors.shape}"
        )
    wide = colors.astype(np.uint32)
    return wide[..., 0] | wide[..., 1] << 8 | wide[..., 2] << 16


def id_map_to_rgb(ids: np.ndarray) -> np.ndarray:
    """The inverse of :func:`rgb_to_id_map`."""
    if ids.size and not 0 <= ids.min() <= ids.max() < _MAX_ID:
        raise ValueError(
            f"segment ids from {ids.min()} to {ids.max()} do not fit a PNG, which takes 0 to {_MAX_ID - 1}"
        )
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], axis=-1).astype(np.uint8)


def _overlaps(truth_ids: np.ndarray, predicted_ids: np.ndarray) -> list[tuple[int, int, int]]:
    """The pairs of a true and a predicted id that share pixels, and how many.

    Segments are made of long runs of pixels, so runs are sorted and not pixels.
    """
    pairs = (truth_ids.astype(np.int64) << 32 | predicted_ids.astype(np.int64) & 0xFFFFFFFF).ravel()
    if pairs.size == 0:
        return []
    starts = np.concatenate([[0], np.flatnonzero(pairs[1:] != pairs[:-1]) + 1])
    lengths = np.diff(starts, append=pairs.size)
    distinct, inverse = np.unique(pairs[starts], return_inverse=True)
    pixels = np.bincount(inverse, weights=lengths).astype(np.int64)
    truth, predicted = distinct >> 32, distinct & 0xFFFFFFFF
    return list(zip(truth.tolist(), predicted.tolist(), pixels.tolist(), strict=True))


def match_segments(
    truth_ids: np.ndarray,
    truth_segments: Sequence[Mapping[str, Any]],
    predicted_ids: np.ndarray,
    predicted_segments: Sequence[Mapping[str, Any]],
    row_of_category: Mapping[int, int],
) -> np.ndarray:
    """Count the matches of one image.

    A predicted segment that lies mostly in void or in a crowd of its category is not counted as wrong. Ids of the
    prediction without a segment are void, and so are segments without a pixel.

    Args:
        truth_ids: panoptic map of the ground truth.
        truth_segments: its segments.
        predicted_ids: panoptic map of the prediction.
        predicted_segments: its segments.
        row_of_category: row of the result for each category.

    Returns:
        array (K, 4), the columns as in ``COUNTS``.
    """
    truth = {segment["id"]: segment for segment in truth_segments}
    predicted = {segment["id"]: segment for segment in predicted_segments if segment["id"] != 0}
    overlaps = _overlaps(truth_ids, predicted_ids)
    truth_area: defaultdict[int, int] = defaultdict(int)
    predicted_area: defaultdict[int, int] = defaultdict(int)
    in_void: defaultdict[int, int] = defaultdict(int)
    in_crowd: defaultdict[int, int] = defaultdict(int)  # of the prediction's category
    for true_id, predicted_id, pixels in overlaps:
        truth_area[true_id] += pixels
        if predicted_id not in predicted:
            continue
        predicted_area[predicted_id] += pixels
        if true_id == 0:
            in_void[predicted_id] = pixels
        elif true_id in truth and truth[true_id].get("iscrowd", 0):
            same = truth[true_id]["category_id"] == predicted[predicted_id]["category_id"]
            in_crowd[predicted_id] += pixels * same

    counts = np.zeros((len(row_of_category), len(COUNTS)))
    matched_truth, matched_predicted = set(), set()
    for true_id, predicted_id, pixels in overlaps:
        if true_id not in truth or predicted_id not in predicted:
            continue
        segment = truth[true_id]
        if segment.get("iscrowd", 0) or segment["category_id"] != predicted[predicted_id]["category_id"]:
            continue
        union = truth_area[true_id] + predicted_area[predicted_id] - pixels - in_void[predicted_id]
        if pixels / union > _MATCH_IOU:
            row = row_of_category[segment["category_id"]]
            counts[row, _TP] += 1
            counts[row, _IOU] += pixels / union
            matched_truth.add(true_id)
            matched_predicted.add(predicted_id)
    counts += unmatched_truth([s for s in truth_segments if s["id"] not in matched_truth], row_of_category)
    for predicted_id, area in predicted_area.items():
        excused = in_void[predicted_id] + in_crowd[predicted_id]
        if predicted_id not in matched_predicted and excused / area <= _MATCH_IOU:
            counts[row_of_category[predicted[predicted_id]["category_id"]], _FP] += 1
    return counts


def unmatched_truth(segments: Sequence[Mapping[str, Any]], row_of_category: Mapping[int, int]) -> np.ndarray:
    """Counts (K, 4) for segments that nothing was predicted for; crowds may be missed."""
    counts = np.zeros((len(row_of_category), len(COUNTS)))
    for segment in segments:
        if not segment.get("iscrowd", 0):
            counts[row_of_category[segment["category_id"]], _FN] += 1
    return counts


def quality(counts: np.ndarray) -> dict[str, float]:
    """Averages over the categories that occur, in the ground truth or in predictions.

    Args:
        counts: array (categories, 4).

    Returns:
        ``PQ``, ``SQ`` (mean IoU of matches), ``RQ`` (F1 of finding segments), 0 to 1, NaN where no category occurs; and
        ``categories``, how many do.
    """
    iou_sum, tp, fp, fn = counts.T
    occurs = tp + fp + fn > 0
    if not occurs.any():
        return {"PQ": np.nan, "SQ": np.nan, "RQ": np.nan, "categories": 0}
    iou_sum, tp, found = iou_sum[occurs], tp[occurs], (tp + 0.5 * fp + 0.5 * fn)[occurs]
    return {
        "PQ": float((iou_sum / found).mean()),
        "SQ": float(np.divide(iou_sum, tp, out=np.zeros_like(tp), where=tp > 0).mean()),
        "RQ": float((tp / found).mean()),
        "categories": int(occurs.sum()),
    }
