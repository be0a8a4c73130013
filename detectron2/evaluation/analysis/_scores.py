"""Scores of classes, images, object parts and keypoints, computed from matches.

Letters: `D` detections, `G` annotated objects, `I` images, `K` classes, `A` ranges of areas, `T` overlap thresholds,
`B` resamples, `P` keypoints, `n` detections of one class. What is not defined, such as the recall of a class without
objects, is NaN.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._matching import COCO_IOUS, Matches, Matching, Protocol, keypoint_similarity
from .inputs import Found, Truth

RECALLS = np.linspace(0.0, 1.0, 101)


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
    index = np.clip(np.floor(score * num_bins).astype(np.int64), 0, num_bins - 1)  # 0.3 is below edges[3]
    count = np.bincount(index, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(index, score, num_bins) / count
        accuracy = np.bincount(index, is_right, num_bins) / count
    error = float((count * np.nan_to_num(np.abs(confidence - accuracy))).sum() / count.sum()) if len(score) else np.nan
    columns = (edges[:-1].tolist(), edges[1:].tolist(), count.tolist(), confidence.tolist(), accuracy.tolist())
    return [CalibrationBin(*values) for values in zip(*columns, strict=True)], error


def mean_defined(values: np.ndarray) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else np.nan


def without_nan(content: Any) -> Any:
    """Return nested dictionaries and lists with None in place of NaN, as JSON needs it."""
    if isinstance(content, dict):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content


_LETTERS = {"small": "s", "medium": "m", "large": "l"}
_FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}


@dataclass(frozen=True)
class Metric:
    """One number of COCO's summary.

    Args:
        is_recall: average recall rather than precision.
        area: place among the ranges of the protocol.
        iou: place among its overlaps; None for the mean over all.
        limit: how many detections of an image and class count.
        frequency: of the classes it is the mean of, as in LVIS; empty for all.
    """

    is_recall: bool
    area: int = 0
    iou: int | None = None
    limit: int | None = None
    frequency: str = ""


def metrics_of(truth: Truth, protocol: Protocol) -> dict[str, Metric]:
    """Return the metrics that COCO or LVIS has for this task, by name."""
    places = {name: n for n, name in enumerate(protocol.areas) if name != "all"}
    middle = COCO_IOUS.index(0.75)
    found = {"AP": Metric(False), "AP50": Metric(False, iou=0), "AP75": Metric(False, iou=middle)}
    found |= {f"AP{_LETTERS[name]}": Metric(False, area) for name, area in places.items()}
    if truth.iou_type == "keypoints":
        found |= {"AR": Metric(True), "AR50": Metric(True, iou=0), "AR75": Metric(True, iou=middle)}
    elif truth.is_searched is not None:
        found |= {f"AP{letter}": Metric(False, frequency=letter) for letter in _FREQUENCIES}
        found["AR300"] = Metric(True)
    else:
        found |= {"AR1": Metric(True, limit=1), "AR10": Metric(True, limit=10), "AR100": Metric(True)}
    return found | {f"AR{_LETTERS[name]}": Metric(True, area) for name, area in places.items()}


def frequencies_of(truth: Truth) -> np.ndarray:
    """Return the frequency of each class in LVIS, `"r"`, `"c"`, `"f"` or an empty string; text array (K,)."""
    by_id = {c["id"]: str(c.get("frequency", "")) for c in truth.api.dataset["categories"]}
    return np.array([by_id[c] for c in truth.class_ids], dtype="U1")


@dataclass(frozen=True)
class Averages:
    """Average precision and recall of every class.

    Args:
        ap: float array (K, A, T).
        recall: float array (K, A, T), with all detections up to the limit of the protocol.
        limited: recall with fewer detections, by limit: float arrays (K, T), for all areas.
    """

    ap: np.ndarray
    recall: np.ndarray
    limited: dict[int, np.ndarray]

    def of_classes(self, metric: Metric) -> np.ndarray:
        """Return a metric of each class; float array (K,)."""
        table = self.recall if metric.is_recall else self.ap
        values = table[:, metric.area] if metric.limit is None else self.limited[metric.limit]
        return values[:, : len(COCO_IOUS)].mean(1) if metric.iou is None else values[:, metric.iou]


def objects_per_area(truth: Truth, protocol: Protocol) -> np.ndarray:
    """Return a mask of the objects that count in each range of areas: bool array (A, G)."""
    ends = np.array(list(protocol.areas.values()))[:, :, None]
    return (truth.area >= ends[:, 0]) & (truth.area <= ends[:, 1]) & ~truth.is_ignored


def average(truth: Truth, matching: Matching, protocol: Protocol) -> Averages:
    """Average as COCO does.

    Args:
        truth: ground truth.
        matching: of the detections with it.
        protocol: of the matching.

    Returns:
        The averages.
    """
    wanted = objects_per_area(truth, protocol)
    shape = (len(truth.class_ids), *matching.matched.shape[:2])
    totals = np.stack([np.bincount(truth.label[w], minlength=shape[0]) for w in wanted], axis=1)[:, :, None]
    ap, recall = np.zeros(shape), np.zeros(shape)
    limited = {limit: np.zeros((shape[0], shape[2])) for limit in (1, 10)}
    for k in np.flatnonzero(np.diff(matching.ends)).tolist():
        rows = matching.of_class(k)
        right, counts = matching.outcome(rows)
        ap[k] = interpolated_ap(np.cumsum(right, -1), np.cumsum(counts, -1), totals[k][..., None])
        recall[k] = right.sum(-1) / np.maximum(totals[k], 1)
        for limit, table in limited.items():
            table[k] = (right[0] & (matching.rank[rows] < limit)).sum(-1) / np.maximum(totals[k, 0], 1)
    for table in (ap, recall):
        table[np.broadcast_to(totals == 0, shape)] = np.nan
    for table in limited.values():
        table[totals[:, 0, 0] == 0] = np.nan
    return Averages(ap, recall, limited)


def interpolated_ap(right: np.ndarray, counts: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Return COCO's AP from running totals (..., n) of right and of counted detections, and the number of objects.

    The mean over recalls of the best precision at that recall or a greater one.
    """
    precision = right / np.maximum(counts, 1)
    best = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    # a detection stands for the recalls between that of the one before and its own
    recall = right / np.maximum(totals, 1)
    index = (recall * (len(RECALLS) - 1) + 1e-6).astype(np.int32)
    reached = index + (RECALLS[index] <= recall)  # how many are not above; as searchsorted, which is much slower
    share = reached.copy()
    share[..., 1:] -= reached[..., :-1]
    return np.einsum("...n,...n->...", best, share) / len(RECALLS)


def mean_of_classes(values: np.ndarray, metrics: dict[str, Metric], frequencies: np.ndarray) -> np.ndarray:
    """Average metrics over the classes of which they are defined.

    Args:
        values: float array (B, K, number of metrics).
        metrics: which.
        frequencies: text array (K,), see `frequencies_of`.

    Returns:
        Float array (B, number of metrics).
    """
    columns = []
    for m, metric in enumerate(metrics.values()):
        rows = values[:, :, m] if not metric.frequency else values[:, frequencies == metric.frequency, m]
        known = (~np.isnan(rows)).sum(1)
        columns.append(np.where(known, np.nansum(rows, 1, dtype=float) / np.maximum(known, 1), np.nan))
    return np.stack(columns, axis=1)


BINS = 10
_NO_INTERVAL = (math.nan, math.nan)


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
    truth: Truth,
    found: Found,
    matching: Matching,
    matches: Matches,
    averages: Averages,
    areas: Sequence[str],
    score_threshold: float,
) -> tuple[DetectionScores, list[DetectionScores], np.ndarray]:
    """Score all classes together, and each.

    Args:
        truth: ground truth.
        found: detections.
        matching: of both, at COCO's overlaps.
        matches: at that of the analysis.
        averages: of the matching.
        areas: names of its ranges.
        score_threshold: of what is counted.

    Returns:
        Scores of all, K scores, and for each class the precision at 101 recalls, float array (K, 101).
    """
    table = _average_table(averages, areas)
    objects = truth.objects_per_class.tolist()
    per_class, precision = [], np.full((len(objects), len(RECALLS)), np.nan)
    for k, name in enumerate(truth.class_names):
        rows = matching.of_class(k)
        rows = rows[matches.counts[rows]]
        score, right = found.score[rows], matches.matched[rows] >= 0
        precision[k] = precision_curve(score, right, objects[k])
        values = {key: float(column[k]) for key, column in table.items()}
        per_class.append(_scores(name, score, right, objects[k], values, score_threshold))
    means = {key: mean_defined(column) for key, column in table.items()}
    score, right = found.score[matches.counts], matches.is_right[matches.counts]
    return _scores("all", score, right, sum(objects), means, score_threshold), per_class, precision


def _average_table(averages: Averages, areas: Sequence[str]) -> dict[str, np.ndarray]:
    """Return each average as a float array (K,)."""
    wanted = {"ap": Metric(False), "ap50": Metric(False, iou=0), "ap75": Metric(False, iou=5), "ar": Metric(True)}
    wanted |= {f"area {name}": Metric(False, a) for a, name in enumerate(areas) if name != "all"}
    return {key: averages.of_classes(metric) for key, metric in wanted.items()}


def _scores(
    name: str, score: np.ndarray, right: np.ndarray, num_objects: int, averages: dict[str, float], threshold: float
) -> DetectionScores:
    return DetectionScores(
        name=name,
        num_objects=num_objects,
        num_detections=len(score),
        ap=averages["ap"],
        ap50=averages["ap50"],
        ap75=averages["ap75"],
        ar=averages["ar"],
        area_ap={key.removeprefix("area "): value for key, value in averages.items() if key.startswith("area ")},
        ap_interval=_NO_INTERVAL,
        at_threshold=point_at(score, right, num_objects, threshold),
        best=best_point(score, right, num_objects),
        calibration_error=calibrate(score, right, BINS)[1],
    )


def score_images(
    truth: Truth, found: Found, matches: Matches, threshold: float
) -> tuple[list[ImageScores], np.ndarray]:
    """Score each image.

    Args:
        truth: ground truth.
        found: detections.
        matches: of both.
        threshold: least score of a detection.

    Returns:
        I scores; and which objects were found above the threshold, bool array (G,).
    """
    shown = matches.counts & (found.score >= threshold)
    by = matches.found_by
    is_found = (by >= 0) & (np.append(found.score, -np.inf)[by] >= threshold)
    count = len(truth.image_ids)
    columns: Sequence[np.ndarray] = (
        np.bincount(found.image[shown & (matches.matched >= 0)], minlength=count),
        np.bincount(found.image[shown & (matches.matched < 0)], minlength=count),
        np.bincount(truth.image[~truth.is_ignored & ~is_found], minlength=count),
    )
    rows = zip(truth.image_ids, *(c.tolist() for c in columns), strict=True)
    return [ImageScores(*row) for row in rows], is_found


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


def score_parts(
    truth: Truth, found: Found, matching: Matching, matches: Matches, score_threshold: float
) -> dict[str, dict[str, PartScores]]:
    """Score small and large, tall and wide, lone and crowded objects.

    Args:
        truth: ground truth.
        found: detections.
        matching: of both.
        matches: at the IoU threshold.
        score_threshold: for recall.

    Returns:
        For each property (area in square pixels, aspect ratio of the box, number of objects in the image) and each of
        its parts the scores.
    """
    per_image = np.bincount(truth.image[~truth.is_ignored], minlength=len(truth.image_ids)).astype(float)
    of_objects = _properties(truth, per_image)
    of_detections = _properties(found, per_image)
    is_found = matches.matched >= 0
    scores = {}
    for name, parts in _PARTS.items():
        values = of_detections[name].copy()
        values[is_found] = of_objects[name][matches.matched[is_found]]
        scores[name] = {
            part: _score_part(
                truth,
                found,
                matching,
                matches,
                (of_objects[name] >= low) & (of_objects[name] < high) & ~truth.is_ignored,
                matches.counts & (values >= low) & (values < high),
                score_threshold,
            )
            for part, (low, high) in parts.items()
        }
    return scores


def _properties(entries: Truth | Found, per_image: np.ndarray) -> dict[str, np.ndarray]:
    wh = entries.box_xywh[:, 2:]
    return {
        "area": entries.area,
        "width / height": wh[:, 0] / np.maximum(wh[:, 1], 1e-9),
        "objects in the image": per_image[entries.image],
    }


def _score_part(
    truth: Truth,
    found: Found,
    matching: Matching,
    matches: Matches,
    objects: np.ndarray,
    detections: np.ndarray,
    score_threshold: float,
) -> PartScores:
    """Score the chosen objects, bool array (G,), with the chosen detections, bool array (D,)."""
    per_class = np.bincount(truth.label[objects], minlength=len(truth.class_ids))
    averages = []
    for k in np.flatnonzero(per_class).tolist():
        rows = matching.of_class(k)
        rows = rows[detections[rows]]
        averages.append(precision_curve(found.score[rows], matches.matched[rows] >= 0, int(per_class[k])).mean())
    count, hits = int(objects.sum()), detections & (matches.matched >= 0) & (found.score >= score_threshold)
    return PartScores(count, mean_defined(np.array(averages)), int(hits.sum()) / count if count else np.nan)


def score_keypoints(truth: Truth, found: Found, matches: Matches, score_threshold: float) -> list[KeypointScores]:
    """Score each keypoint on its own.

    Args:
        truth: ground truth.
        found: detections.
        matches: at the OKS threshold.
        score_threshold: of detections.

    Returns:
        P scores; none for other tasks.
    """
    if not truth.keypoints.shape[1]:
        return []
    rows = np.flatnonzero(matches.is_right & (found.score >= score_threshold))
    similar, counts = keypoint_similarity(truth, found, rows, matches.matched[rows])
    number = counts.sum(0)
    means = np.where(number, similar.sum(0) / np.maximum(number, 1), np.nan)
    names: list[str] = next((c["keypoints"] for c in truth.api.dataset["categories"] if c.get("keypoints")), [])
    if len(names) != len(number):
        names = [str(n) for n in range(1, len(number) + 1)]
    columns = (names, number.tolist(), means.tolist())
    return [KeypointScores(str(name), count, mean) for name, count, mean in zip(*columns, strict=True)]
