"""Scores of classes and of images, for :mod:`detectron2.evaluation.analysis`.

Letters: ``D`` detections, ``G`` annotated objects, ``I`` images, ``K`` classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._analysis_averages import Averages, Metric
from ._analysis_inputs import Found, Truth
from ._analysis_matching import Matches, Matching
from ._analysis_scores import RECALLS, OperatingPoint, best_point, calibrate, mean_defined, point_at, precision_curve

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
        area_ap: AP of ``small``, ``medium`` and ``large`` objects, as far as the task has them.
        ap_interval: ends of the confidence interval of AP; NaN without resamples.
        at_threshold: precision, recall and F1 at the score threshold of the analysis.
        best: the same where F1 is best.
        calibration_error: expected calibration error.
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
    """-> for each average float array (K,)."""
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
