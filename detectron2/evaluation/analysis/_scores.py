"""Scores of classes, images, object parts and keypoints, computed from matches.

Letters: `D` detections, `G` annotated objects, `I` images, `K` classes, `M` metrics, `P` keypoints, `n` detections of
one class. What is not defined, such as the recall of a class without objects, is NaN.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

import hotcoco
import numpy as np

from ._averages import RECALLS, mean_defined
from ._matching import Matching, keypoint_similarity
from .inputs import Found, Truth

BINS = 10


@dataclass(frozen=True)
class OperatingPoint:
    """What happens when detections below a score are dropped.

    Args:
        threshold: the score; NaN if there is none because nothing is ever right.
        precision: right ones among the detections; NaN if there are no detections.
        recall: found ones among the objects; NaN if there are no objects.
        f1: harmonic mean of both; 0 where one of them is not defined and there is anything at all, else NaN.

    Example:
        >>> OperatingPoint(threshold=0.5, precision=0.8, recall=0.5, f1=0.615).recall
        0.5
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

    Example:
        >>> bin = CalibrationBin(low=0.7, high=0.8, count=20, confidence=0.75, accuracy=0.5)
        >>> bin.confidence - bin.accuracy  # the scores are too high
        0.25
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def precision_curve(score: np.ndarray, is_right: np.ndarray, num_objects: int) -> np.ndarray:
    """Interpolate precision at 101 recalls as COCO does, from scores and rightness (n,): the best there or further on.

    Float array (101,), NaN without objects; equal scores count in their order. Its mean is the AP.
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
    """Return precision, recall and F1 of the detections with at least a score."""
    kept = score >= threshold
    right, count = int(is_right[kept].sum()), int(kept.sum())
    return OperatingPoint(
        float(threshold),
        right / count if count else np.nan,
        right / num_objects if num_objects else np.nan,
        2 * right / (count + num_objects) if count + num_objects else np.nan,
    )


def best_point(score: np.ndarray, is_right: np.ndarray, num_objects: int) -> OperatingPoint:
    """Return the numbers at the threshold with the best F1; of several such thresholds the highest."""
    thresholds, f1 = f1_curve(score, is_right, num_objects)
    best = float(thresholds[f1.argmax()]) if len(f1) and f1.max() > 0 else np.nan
    return point_at(score, is_right, num_objects, best)


def f1_curve(score: np.ndarray, is_right: np.ndarray, num_objects: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct scores, falling, and the F1 with each as the threshold."""
    order = np.argsort(-score, kind="stable")
    score, right = score[order], np.cumsum(is_right[order])
    last = np.append(np.flatnonzero(np.diff(score)), len(score) - 1) if len(score) else np.zeros(0, np.int64)
    return score[last], 2 * right[last] / (last + 1 + num_objects)


def calibrate(score: np.ndarray, is_right: np.ndarray, num_bins: int) -> tuple[list[CalibrationBin], float]:
    """Compare scores with how often they are right (Guo et al., arXiv:1706.04599, section 2).

    The bins are of equal width from 0 to 1, the outermost with what lies outside. The expected calibration error is the
    mean over detections of the gap of their bin, NaN without any.
    """
    bins = [
        CalibrationBin(
            b["bin_lower"],
            b["bin_upper"],
            b["count"],
            b["avg_confidence"] if b["count"] else np.nan,
            b["avg_accuracy"] if b["count"] else np.nan,
        )
        for b in hotcoco.metrics.calibration_curve(score, is_right, num_bins)
    ]
    return bins, hotcoco.metrics.calibration_error(score, is_right, num_bins)[0] if len(score) else np.nan


def most_frequent(counts: np.ndarray, names: Sequence[str]) -> list[tuple[str, str, int]]:
    """Return (true class, predicted class, count) of each pair in a confusion matrix, most frequent first."""
    rows, columns = np.nonzero(counts)
    order = np.lexsort((columns, rows, -counts[rows, columns]))
    pairs = ((int(rows[i]), int(columns[i])) for i in order)
    return [(names[t], names[p], int(counts[t, p])) for t, p in pairs]


def as_json(content: Any) -> Any:
    """Return nested dataclasses, dictionaries and lists as JSON takes them; NaN becomes None."""
    if is_dataclass(content):
        content = vars(content)
    if isinstance(content, dict):
        return {key: as_json(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [as_json(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content


@dataclass(frozen=True)
class DetectionScores:
    """Scores of one class, or of all.

    Args:
        name: of the class.
        num_objects: annotated, without crowd regions.
        num_detections: that count, the best of each image and class: 100, of keypoints 20; for LVIS 300 of an image.
        ap: average precision, the mean over IoUs (for keypoints OKS) of 0.50, 0.55 … 0.95.
        ap50: at an IoU of 0.5.
        ap75: at an IoU of 0.75.
        ar: recall with all these detections, the mean over the same IoUs.
        area_ap: AP of `small`, `medium` and `large` objects, as far as the task has them.
        ap_interval: ends of the confidence interval of AP; NaN without resamples.
        at_threshold: precision, recall and F1 at the score threshold of the analysis.
        best: the same where F1 is best.
        calibration_error: expected calibration error.

    Example:
        >>> point = OperatingPoint(0.5, 1.0, 0.5, 0.667)
        >>> scores = DetectionScores("cat", 2, 1, 0.45, 0.5, 0.5, 0.45, {"small": 0.45}, (0.4, 0.5), point, point, 0.1)
        >>> scores.area_ap["small"]
        0.45
    """

    name: str
    num_objects: int
    num_detections: int
    ap: float
    ap50: float
    ap75: float
    ar: float
    area_ap: dict[str, float]
    ap_interval: tuple[float, float]
    at_threshold: OperatingPoint
    best: OperatingPoint
    calibration_error: float


@dataclass(frozen=True)
class ImageScores:
    """What happened in one image, at the thresholds of the analysis.

    Args:
        image_id: of the ground truth.
        num_right: detections that have found an object.
        num_wrong: detections that have not.
        num_missed: objects that were not found.

    Example:
        >>> ImageScores(image_id=7, num_right=4, num_wrong=1, num_missed=0)
        ImageScores(image_id=7, num_right=4, num_wrong=1, num_missed=0)
    """

    image_id: Any
    num_right: int
    num_wrong: int
    num_missed: int


def score_classes(
    truth: Truth, found: Found, matching: Matching, averages: list[dict[str, Any]], threshold: float
) -> tuple[DetectionScores, list[DetectionScores], np.ndarray]:
    """Score all classes together, and each; also return the precision of each at 101 recalls, float array (K, 101).

    The averages are those of each class and, last, of all.
    """
    objects = truth.objects_per_class.tolist()
    of_classes = [matching.of_class(k) for k in range(len(objects))]
    rows = [r[matching.is_counted[r]] for r in (*of_classes, np.arange(len(found.score)))]
    columns = [(found.score[r], matching.is_right[r], n) for r, n in zip(rows, [*objects, sum(objects)], strict=True)]
    *per_class, overall = (
        DetectionScores(
            name=name,
            num_objects=count,
            num_detections=len(score),
            at_threshold=point_at(score, right, count, threshold),
            best=best_point(score, right, count),
            calibration_error=calibrate(score, right, BINS)[1],
            **known,
        )
        for name, (score, right, count), known in zip([*truth.class_names, "all"], columns, averages, strict=True)
    )
    return overall, per_class, np.stack([precision_curve(*column) for column in columns[:-1]])


def score_images(
    truth: Truth, found: Found, matching: Matching, threshold: float
) -> tuple[list[ImageScores], np.ndarray]:
    """Score each image; also return which objects were found above the score threshold, bool array (G,)."""
    shown = found.score >= threshold
    is_found = (matching.found_by >= 0) & np.append(shown, False)[matching.found_by]
    kinds = (
        found.image[shown & matching.is_right],
        found.image[shown & matching.is_counted & ~matching.is_right],
        truth.image[~truth.is_ignored & ~is_found],
    )
    columns = [np.bincount(kind, minlength=len(truth.image_ids)).tolist() for kind in kinds]
    return [ImageScores(*row) for row in zip(truth.image_ids, *columns, strict=True)], is_found


# Each part goes from its first number up to, and without, its second.
_PARTS = {
    "area": {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, np.inf)},
    "width / height": {"below 1/2": (0.0, 0.5), "1/2 to 2": (0.5, 2.0), "2 and more": (2.0, np.inf)},
    "objects in the image": {"1": (1, 2), "2 to 5": (2, 6), "6 to 15": (6, 16), "16 and more": (16, np.inf)},
}


@dataclass(frozen=True)
class PartScores:
    """Scores of a part of the objects.

    A detection belongs to the part of the object it has found; one that has found none to the part that it would be in
    itself.

    Args:
        num_objects: how many.
        ap: mean over classes, at the IoU threshold of the analysis.
        recall: of all classes together, at its score threshold.

    Example:
        >>> PartScores(num_objects=12, ap=0.31, recall=0.5).recall
        0.5
    """

    num_objects: int
    ap: float
    recall: float


@dataclass(frozen=True)
class KeypointScores:
    """How well one keypoint is placed, in the detections that are right and above the score threshold.

    Args:
        name: of the keypoint.
        count: labelled ones among the objects they have found.
        similarity: mean contribution to OKS, from 0 to 1.

    Example:
        >>> KeypointScores("nose", count=8, similarity=0.92).name
        'nose'
    """

    name: str
    count: int
    similarity: float


def score_parts(truth: Truth, found: Found, matching: Matching, threshold: float) -> dict[str, dict[str, PartScores]]:
    """Score small and large, tall and wide, lone and crowded objects: by property and part."""
    per_image = np.bincount(truth.image[~truth.is_ignored], minlength=len(truth.image_ids)).astype(float)
    of_objects, of_detections = _properties(truth, per_image), _properties(found, per_image)
    scores: dict[str, dict[str, PartScores]] = {}
    for name, parts in _PARTS.items():
        objects, values = of_objects[name], of_detections[name]
        values = np.where(matching.is_right, np.append(objects, np.nan)[matching.matched], values)
        scores[name] = {
            part: _score_part(
                truth,
                found,
                matching,
                (objects >= low) & (objects < high) & ~truth.is_ignored,
                matching.is_counted & (values >= low) & (values < high),
                threshold,
            )
            for part, (low, high) in parts.items()
        }
    return scores


def _properties(entries: Truth | Found, per_image: np.ndarray) -> dict[str, np.ndarray]:
    wh = entries.box_xywh[:, 2:]
    ratio, crowd = wh[:, 0] / np.maximum(wh[:, 1], 1e-9), per_image[entries.image]
    return {"area": entries.area, "width / height": ratio, "objects in the image": crowd}


def _score_part(
    truth: Truth, found: Found, matching: Matching, objects: np.ndarray, detections: np.ndarray, threshold: float
) -> PartScores:
    """Score the chosen objects, bool array (G,), with the chosen detections, bool array (D,)."""
    per_class = np.bincount(truth.label[objects], minlength=len(truth.class_ids))
    averages = []
    for k in np.flatnonzero(per_class).tolist():
        rows = matching.of_class(k)
        rows = rows[detections[rows]]
        averages.append(precision_curve(found.score[rows], matching.is_right[rows], int(per_class[k])).mean())
    count, hits = int(objects.sum()), detections & matching.is_right & (found.score >= threshold)
    return PartScores(count, float(mean_defined(np.array(averages))), int(hits.sum()) / count if count else np.nan)


def score_keypoints(truth: Truth, found: Found, matching: Matching, threshold: float) -> list[KeypointScores]:
    """Score each of the P keypoints on its own; none for other tasks."""
    if not truth.keypoints.shape[1]:
        return []
    rows = np.flatnonzero(matching.is_right & (found.score >= threshold))
    similar, counts = keypoint_similarity(truth, found, rows, matching.matched[rows])
    number = counts.sum(0)
    means = np.where(number, similar.sum(0) / np.maximum(number, 1), np.nan)
    names: list[str] = next((c["keypoints"] for c in truth.api.dataset["categories"] if c.get("keypoints")), [])
    if len(names) != len(number):
        names = [str(n) for n in range(1, len(number) + 1)]
    columns = (names, number.tolist(), means.tolist())
    return [KeypointScores(str(name), count, mean) for name, count, mean in zip(*columns, strict=True)]
