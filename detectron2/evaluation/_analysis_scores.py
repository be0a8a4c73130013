"""Numbers from matches, for :mod:`detectron2.evaluation.analysis`.

Letters: ``D`` detections, ``K`` classes, ``B`` bins. What is not defined, such as the recall of a class without
objects, is NaN.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class OperatingPoint:
    """What happens when detections below a score are dropped.

    Args:
        threshold: the score; NaN if there is none because nothing is ever right.
        precision: right ones among the detections; NaN if there are no detections.
        recall: found ones among the objects; NaN if there are no objects.
        f1: harmonic mean of both; 0 where one of them is not defined and there is anything at all, else NaN.
    """

    threshold: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class CalibrationBin:
    """Detections with similar scores.

    Args:
        low: the least score.
        high: the greatest.
        count: how many.
        confidence: mean of their scores.
        accuracy: share of those that are right.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def precision_curve(score: np.ndarray, is_right: np.ndarray, num_objects: int) -> np.ndarray:
    """Interpolate precision as COCO does: the best at this recall or a greater one.

    Args:
        score: float array (D,); equal scores count in this order.
        is_right: bool array (D,).
        num_objects: to be found.

    Returns:
        Float array (101,), for recalls 0, 0.01 … 1; NaN without objects. Its mean is the AP.
    """
    if num_objects == 0:
        return np.full(len(RECALLS), np.nan)
    is_right = is_right[np.argsort(-score, kind="stable")]
    right = np.cumsum(is_right)
    precision = right / np.arange(1, len(right) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(right / num_objects, RECALLS, side="left")
    return np.append(best, 0.0)[places]


def point_at(score: np.ndarray, is_right: np.ndarray, num_objects: int, threshold: float) -> OperatingPoint:
    """Precision, recall and F1 of the detections with at least a score.

    Args:
        score: float array (D,).
        is_right: bool array (D,).
        num_objects: to be found.
        threshold: the least score.

    Returns:
        The numbers.
    """
    kept = score >= threshold
    return _point(float(threshold), int(is_right[kept].sum()), int(kept.sum()), num_objects)


def best_point(score: np.ndarray, is_right: np.ndarray, num_objects: int) -> OperatingPoint:
    """The threshold with the best F1.

    Args:
        score: float array (D,).
        is_right: bool array (D,).
        num_objects: to be found.

    Returns:
        The numbers there; of several best thresholds the highest.
    """
    thresholds, f1 = f1_curve(score, is_right, num_objects)
    if not len(f1) or not f1.max() > 0:
        return _point(np.nan, 0, 0, num_objects)
    return point_at(score, is_right, num_objects, float(thresholds[f1.argmax()]))


def f1_curve(score: np.ndarray, is_right: np.ndarray, num_objects: int) -> tuple[np.ndarray, np.ndarray]:
    """F1 at every score that occurs.

    Args:
        score: float array (D,).
        is_right: bool array (D,).
        num_objects: to be found.

    Returns:
        Distinct scores, falling, and the F1 at each.
    """
    order = np.argsort(-score, kind="stable")
    score, right = score[order], np.cumsum(is_right[order])
    last = np.append(np.flatnonzero(np.diff(score)), len(score) - 1) if len(score) else np.zeros(0, np.int64)
    return score[last], 2 * right[last] / (last + 1 + num_objects)


def _point(threshold: float, right: int, kept: int, num_objects: int) -> OperatingPoint:
    return OperatingPoint(
        threshold,
        right / kept if kept else np.nan,
        right / num_objects if num_objects else np.nan,
        2 * right / (kept + num_objects) if kept + num_objects else np.nan,
    )


def calibrate(score: np.ndarray, is_right: np.ndarray, num_bins: int) -> tuple[list[CalibrationBin], float]:
    """Compare scores with how often they are right (Guo et al., arXiv:1706.04599, section 2).

    Args:
        score: float array (D,), probabilities.
        is_right: bool array (D,).
        num_bins: B, of equal width from 0 to 1; scores outside count in the outermost.

    Returns:
        B bins, and the expected calibration error: the mean over detections of the gap of their bin; NaN without any.
    """
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    index = np.clip(np.searchsorted(edges, score, side="right") - 1, 0, num_bins - 1)
    count = np.bincount(index, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(index, score, num_bins) / count
        accuracy = np.bincount(index, is_right, num_bins) / count
    error = float((count * np.nan_to_num(np.abs(confidence - accuracy))).sum() / count.sum()) if len(score) else np.nan
    columns = (edges[:-1].tolist(), edges[1:].tolist(), count.tolist(), confidence.tolist(), accuracy.tolist())
    return [CalibrationBin(*values) for values in zip(*columns, strict=True)], error


def mean_defined(values: np.ndarray) -> float:
    """-> the mean of what is not NaN; NaN without any."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else np.nan


def without_nan(content: Any) -> Any:
    """-> nested dictionaries and lists as JSON takes them: None in place of NaN."""
    if isinstance(content, dict):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content
