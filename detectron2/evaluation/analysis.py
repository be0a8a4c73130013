"""What a detector does well and badly, from its saved predictions in COCO format.

>>> found = analyze_detections("instances_val.json", "coco_instances_results.json")
>>> found.overall.ap, found.errors["missed"].delta_ap

Letters: ``D`` detections, ``G`` annotated objects, ``I`` images, ``K`` classes. All scores lie between 0 and 1; what is
not defined, such as the recall of a class without objects, is NaN.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ._analysis_buckets import PartScores, score_parts
from ._analysis_compare import Comparison, Difference, compare_detections
from ._analysis_inputs import Found, Truth, read_found, read_truth
from ._analysis_matching import Matches, build_engine, confusion_matrix, in_coco_order, match
from ._analysis_scores import (
    RECALLS,
    CalibrationBin,
    OperatingPoint,
    best_point,
    calibrate,
    f1_curve,
    mean_defined,
    point_at,
    precision_curve,
    without_nan,
)

__all__ = [
    "CalibrationBin",
    "Comparison",
    "DetectionAnalysis",
    "DetectionScores",
    "Difference",
    "ErrorType",
    "ImageScores",
    "OperatingPoint",
    "PartScores",
    "analyze_detections",
    "compare_detections",
]

_ERRORS = {
    "classification": "Cls",
    "localization": "Loc",
    "both": "Both",
    "duplicate": "Dupe",
    "background": "Bkg",
    "missed": "Miss",
}
_BACKGROUND_IOU = 0.1
_BINS = 10


@dataclass(frozen=True)
class DetectionScores:
    """Scores of one class, or of all.

    Args:
        name: of the class.
        num_objects: annotated, without crowd regions.
        num_detections: that count, which is at most 100 per image and class.
        ap: average precision, the mean over IoUs 0.50, 0.55 … 0.95.
        ap50: at an IoU of 0.5.
        ap75: at an IoU of 0.75.
        ar: recall with all detections, the mean over the same IoUs.
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
    at_threshold: OperatingPoint
    best: OperatingPoint
    calibration_error: float


@dataclass(frozen=True)
class ErrorType:
    """One of the errors of TIDE (Bolya et al., arXiv:2008.08115, section 2).

    Args:
        count: how often.
        delta_ap: how much AP (at the IoU threshold of the analysis) would rise if only these were corrected; NaN where
            there are no objects at all.
    """

    count: int
    delta_ap: float


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


@dataclass(frozen=True)
class DetectionAnalysis:
    """All that is known about the predictions of one detector.

    Args:
        iou_type: ``"bbox"`` or ``"segm"``.
        iou_threshold: from which on a detection finds an object, where COCO's mean over ten is not used.
        score_threshold: of what is counted rather than averaged.
        overall: all classes: AP and AR are means over classes, the rest is counted over all detections.
        area_ap: COCO's AP of ``small``, ``medium`` and ``large`` objects.
        per_class: K scores.
        precision: float array (K, 101), precision at recalls 0, 0.01 … 1; NaN for classes without objects.
        f1: falling scores and the F1 with each as the threshold, over all classes.
        confusion: int array (K + 1, K + 1), rows are true classes, columns predicted ones, last the background.
        parts: by property (area, aspect, crowdedness) and part.
        errors: by type: classification, localization, both, duplicate, background, missed.
        calibration: the bins of the reliability diagram.
        per_image: I scores, by image id.
        is_right: bool array (D,), for each prediction in its order: it has found an object.
        is_counted: bool array (D,): it is right or wrong; False on crowd regions, and beyond the 100 best of its image
            and class.
        is_found: bool array (G,), for each annotation in its order: found by a detection above the score threshold.
    """

    iou_type: str
    iou_threshold: float
    score_threshold: float
    overall: DetectionScores
    area_ap: dict[str, float]
    per_class: list[DetectionScores]
    precision: np.ndarray
    f1: tuple[np.ndarray, np.ndarray]
    confusion: np.ndarray
    parts: dict[str, dict[str, PartScores]]
    errors: dict[str, ErrorType]
    calibration: list[CalibrationBin]
    per_image: list[ImageScores]
    is_right: np.ndarray
    is_counted: np.ndarray
    is_found: np.ndarray

    def worst_images(self, count: int) -> list[ImageScores]:
        """Find the images with the most errors.

        Args:
            count: at most so many.

        Returns:
            Images with errors, most first; among equals, that with fewer right detections.
        """
        bad = [s for s in self.per_image if s.num_wrong + s.num_missed]
        return sorted(bad, key=lambda s: (-s.num_wrong - s.num_missed, s.num_right))[:count]

    def to_dict(self) -> dict[str, Any]:
        """-> the numbers as JSON takes them, without what belongs to single predictions; NaN is None."""
        content = {
            "iou_type": self.iou_type,
            "iou_threshold": self.iou_threshold,
            "score_threshold": self.score_threshold,
            "overall": asdict(self.overall),
            "area_ap": self.area_ap,
            "per_class": [asdict(s) for s in self.per_class],
            "errors": {name: asdict(e) for name, e in self.errors.items()},
            "parts": {name: {p: asdict(s) for p, s in parts.items()} for name, parts in self.parts.items()},
            "calibration": [asdict(b) for b in self.calibration],
            "confusion": {
                "classes": [*(s.name for s in self.per_class), "background"],
                "rows_are": "truth",
                "counts": self.confusion.tolist(),
            },
            "precision_recall": {"recall": RECALLS.tolist(), "precision": self.precision.tolist()},
            "per_image": [asdict(s) for s in self.per_image],
        }
        return without_nan(content)


def analyze_detections(
    coco_gt: Any, results: Any, iou_type: str = "bbox", iou_threshold: float = 0.5, score_threshold: float = 0.5
) -> DetectionAnalysis:
    """Analyze predictions.

    Args:
        coco_gt: ground truth in COCO format: a file, a dictionary, or a pycocotools ``COCO``.
        results: predictions in COCO's result format: a file or a list, such as ``COCOEvaluator`` writes.
        iou_type: ``"bbox"`` or ``"segm"``.
        iou_threshold: from which on a detection finds an object; above 0.1.
        score_threshold: of what is counted rather than averaged.

    Returns:
        The analysis.

    Raises:
        ValueError: the two do not fit together, or a threshold is out of range.
    """
    if not _BACKGROUND_IOU < iou_threshold <= 1:
        raise ValueError(f"iou_threshold lies above {_BACKGROUND_IOU} and is at most 1, but is {iou_threshold}.")
    truth = read_truth(coco_gt, iou_type)
    found = read_found(results, truth)
    engine: Any = build_engine(truth, found)
    engine.accumulate()
    matches = match(truth, found, iou_threshold)
    labels = _per_class(truth.label[~truth.is_crowd], len(truth.class_ids))
    per_class, precision = [], np.full((len(labels), len(RECALLS)), np.nan)
    for k, name in enumerate(truth.class_names):
        chosen = in_coco_order(matches.counts & (found.label == k), found)
        averages = _coco_averages(engine, slice(k, k + 1))
        score, right = found.score[chosen], matches.matched[chosen] >= 0
        precision[k] = precision_curve(score, right, labels[k])
        per_class.append(_scores(name, score, right, labels[k], averages, score_threshold))
    chosen = in_coco_order(matches.counts, found)
    score, right = found.score[chosen], matches.matched[chosen] >= 0
    per_image, is_found = _per_image(truth, found, matches, score_threshold)
    return DetectionAnalysis(
        iou_type=iou_type,
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
        overall=_scores("all", score, right, sum(labels), _coco_averages(engine, slice(None)), score_threshold),
        area_ap={name: _mean(engine.eval["precision"][:, :, :, a, -1]) for a, name in _areas(engine)},
        per_class=per_class,
        precision=precision,
        f1=f1_curve(score, right, sum(labels)),
        confusion=confusion_matrix(truth, found, iou_threshold, score_threshold),
        parts=score_parts(truth, found, matches, score_threshold),
        errors=_errors(engine, iou_threshold, sum(labels)),
        calibration=calibrate(score, right, _BINS)[0],
        per_image=per_image,
        is_right=(matches.matched >= 0) & matches.counts,
        is_counted=matches.counts,
        is_found=is_found,
    )


def _per_class(labels: np.ndarray, count: int) -> list[int]:
    return np.bincount(labels, minlength=count).tolist()


def _areas(engine: Any) -> list[tuple[int, str]]:
    return [(n, name) for n, name in enumerate(engine.params.areaRngLbl) if name != "all"]


def _mean(table: Any) -> float:
    """-> the mean of what is defined; COCO writes -1 for the rest."""
    table = np.asarray(table)
    return mean_defined(np.where(table < 0, np.nan, table).ravel())


def _coco_averages(engine: Any, classes: slice) -> tuple[float, float, float, float]:
    """-> AP, AP50, AP75 and AR of COCO over some classes, all sizes, at most 100 detections."""
    precision = np.asarray(engine.eval["precision"])[:, :, classes, 0, -1]  # (IoUs, recalls, classes)
    recall = np.asarray(engine.eval["recall"])[:, classes, 0, -1]
    ious = np.asarray(engine.params.iouThrs)
    at = [precision[np.isclose(ious, iou)] for iou in (0.5, 0.75)]
    return _mean(precision), _mean(at[0]), _mean(at[1]), _mean(recall)


def _scores(
    name: str,
    score: np.ndarray,
    right: np.ndarray,
    num_objects: int,
    averages: tuple[float, float, float, float],
    threshold: float,
) -> DetectionScores:
    return DetectionScores(
        name,
        num_objects,
        len(score),
        *averages,
        at_threshold=point_at(score, right, num_objects, threshold),
        best=best_point(score, right, num_objects),
        calibration_error=calibrate(score, right, _BINS)[1],
    )


def _errors(engine: Any, iou: float, num_objects: int) -> dict[str, ErrorType]:
    report = engine.tide_errors(pos_thr=iou, bg_thr=_BACKGROUND_IOU)
    return {
        name: ErrorType(int(report["counts"][key]), float(report["delta_ap"][key]) if num_objects else math.nan)
        for name, key in _ERRORS.items()
    }


def _per_image(truth: Truth, found: Found, matches: Matches, threshold: float) -> tuple[list[ImageScores], np.ndarray]:
    """-> scores of all images; bool array (G,) of the objects that were found above the threshold."""
    shown = matches.counts & (found.score >= threshold)
    by = matches.found_by
    is_found = (by >= 0) & (np.append(found.score, -np.inf)[by] >= threshold)
    count = len(truth.image_ids)
    columns: Sequence[np.ndarray] = (
        np.bincount(found.image[shown & (matches.matched >= 0)], minlength=count),
        np.bincount(found.image[shown & (matches.matched < 0)], minlength=count),
        np.bincount(truth.image[~truth.is_crowd & ~is_found], minlength=count),
    )
    rows = zip(truth.image_ids, *(c.tolist() for c in columns), strict=True)
    return [ImageScores(*row) for row in rows], is_found
