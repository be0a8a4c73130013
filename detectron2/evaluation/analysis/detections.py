"""What a detector does well and badly, from its saved predictions in COCO format.

Boxes, masks and keypoints, with the ground truth of COCO or LVIS. Letters: `D` detections, `G` annotated objects, `I`
images, `K` classes. All scores lie between 0 and 1; what is not defined, such as the recall of a class without objects,
is NaN.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detectron2.evaluation._coco_diagnosis import explain_class_overlap, score_histogram

from ._averages import RECALLS, average, check_resamples, intervals, metrics_of, weights_of_resamples
from ._matching import COCO_IOUS, Matching, areas_of, find_overlaps, match
from ._scores import (
    BINS,
    CalibrationBin,
    DetectionScores,
    ImageScores,
    KeypointScores,
    PartScores,
    as_json,
    calibrate,
    f1_curve,
    most_frequent,
    score_classes,
    score_images,
    score_keypoints,
    score_parts,
)
from .errors import BACKGROUND_IOU, ERROR_NAMES, ErrorType, count_confusion, count_errors, find_errors
from .inputs import Found, Truth, read_found, read_truth

__all__ = ["DetectionAnalysis", "analyze_detections"]


@dataclass(frozen=True)
class DetectionAnalysis:
    """All that is known about the predictions of one detector.

    Args:
        iou_type: `"bbox"`, `"segm"` or `"keypoints"`; for the latter every IoU is an OKS.
        iou_threshold: from which on a detection finds an object, where COCO's mean over ten is not used.
        score_threshold: of what is counted rather than averaged.
        metrics: those of COCO's or LVIS's summary, by name: `AP`, `AP50` … `ARl`.
        intervals: their confidence intervals; empty without resamples.
        overall: all classes: AP and AR are means over classes, the rest is counted over all detections.
        per_class: K scores.
        precision: float array (K, 101), precision at recalls 0, 0.01 … 1; NaN for classes without objects.
        f1: falling scores and the F1 with each as the threshold, over all classes.
        confusion: int array (K + 1, K + 1), rows are true classes, columns predicted ones, last the background. What
            is right stands on the diagonal, which over a row gives the recall and over a column the precision at the
            score threshold.
        parts: by property (area, aspect, crowdedness) and part.
        errors: by type: classification, localization, both, duplicate, background, missed.
        class_errors: the same of each class: of wrong detections the predicted one, of missed objects their own.
        gains: how much AP would rise without any `"false positives"` or `"false negatives"`.
        calibration: the bins of the reliability diagram.
        keypoints: of each keypoint; none for other tasks.
        per_image: I scores, by image id.
        is_right: bool array (D,), for each prediction in its order: it has found an object.
        is_counted: bool array (D,): it is right or wrong; False on crowd regions, beyond the best of its image and
            class, and where the image was not searched for the class.
        error: int array (D,), the type of error as a place in `errors`; -1 for none.
        is_found: bool array (G,), for each annotation in its order: found by a detection above the score threshold.
        taken_for: int array (G,): the class, from 0 to K - 1, that a detection above the score threshold with the right
            place has in place of the true one; -1 for none.
        is_ignored: bool array (G,): neither to be found nor missed, such as crowd regions.
        notes: sentences about what makes numbers mean something else than they seem to.

    Example:
        >>> truth = {"images": [{"id": 1, "height": 100, "width": 100}], "categories": [{"id": 1, "name": "cat"}]}
        >>> truth["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20]}]
        >>> found = [{"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 18], "score": 0.8}]
        >>> analysis = analyze_detections(truth, found)
        >>> analysis.confused()
        [('cat', 'cat', 1)]
        >>> [image.num_right for image in analysis.per_image]
        [1]
    """

    iou_type: str
    iou_threshold: float
    score_threshold: float
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    overall: DetectionScores
    per_class: list[DetectionScores]
    precision: np.ndarray
    f1: tuple[np.ndarray, np.ndarray]
    confusion: np.ndarray
    parts: dict[str, dict[str, PartScores]]
    errors: dict[str, ErrorType]
    class_errors: list[dict[str, ErrorType]]
    gains: dict[str, float]
    calibration: list[CalibrationBin]
    keypoints: list[KeypointScores]
    per_image: list[ImageScores]
    is_right: np.ndarray
    is_counted: np.ndarray
    error: np.ndarray
    is_found: np.ndarray
    taken_for: np.ndarray
    is_ignored: np.ndarray
    notes: list[str]

    @property
    def area_ap(self) -> dict[str, float]:
        """COCO's AP of `small`, `medium` and `large` objects, mean over classes."""
        return self.overall.area_ap

    def worst_images(self, count: int) -> list[ImageScores]:
        """Find the images with the most errors.

        Args:
            count: the greatest number of images.

        Returns:
            Images with errors, most first; among equals, that with fewer right detections.
        """
        bad = [s for s in self.per_image if s.num_wrong + s.num_missed]
        return sorted(bad, key=lambda s: (-s.num_wrong - s.num_missed, s.num_right))[:count]

    def confused(self) -> list[tuple[str, str, int]]:
        """Return (true class, predicted class, count) of every pair that occurs, most frequent first."""
        return most_frequent(self.confusion, [*(s.name for s in self.per_class), "background"])

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON takes them, without those of single predictions; NaN is None."""
        names = [scores.name for scores in self.per_class]
        arrays = {"f1", "is_right", "is_counted", "error", "is_found", "taken_for", "is_ignored", "class_errors"}
        content = {key: value for key, value in vars(self).items() if key not in arrays}
        per_class = zip(self.per_class, self.class_errors, strict=True)
        return as_json(
            {
                **content,
                "area_ap": self.area_ap,
                "per_class": [{**vars(scores), "errors": errors} for scores, errors in per_class],
                "confusion": [{"true": t, "predicted": p, "count": n} for t, p, n in self.confused()],
                "recalls": RECALLS.round(2).tolist(),
                "precision": dict(zip(names, self.precision.round(5).tolist(), strict=True)),
            }
        )


def analyze_detections(
    coco_gt: Any,
    results: Any,
    iou_type: str = "bbox",
    iou_threshold: float = 0.5,
    score_threshold: float = 0.5,
    *,
    num_resamples: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
    kpt_oks_sigmas: Sequence[float] = (),
) -> DetectionAnalysis:
    """Analyze predictions.

    Args:
        coco_gt: ground truth in COCO's or LVIS's format: a file, a dictionary, or a pycocotools `COCO`.
        results: predictions in COCO's result format: a file or a list, such as `COCOEvaluator` writes.
        iou_type: `"bbox"`, `"segm"` or `"keypoints"`.
        iou_threshold: from which on a detection finds an object; above 0.1. For keypoints of OKS.
        score_threshold: of what is counted rather than averaged.
        num_resamples: how often images are drawn for confidence intervals; 0 for none.
        confidence: share of the resamples that an interval holds.
        seed: of the draws.
        kpt_oks_sigmas: of keypoints; empty for those of COCO's persons.

    Returns:
        The analysis.

    Raises:
        ValueError: the two do not fit together, or a number is out of range.

    Example:
        >>> truth = {"images": [{"id": 1, "height": 100, "width": 100}], "categories": [{"id": 1, "name": "cat"}]}
        >>> truth["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20]}]
        >>> found = [{"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 18], "score": 0.8}]
        >>> analysis = analyze_detections(truth, found)
        >>> round(analysis.overall.ap, 3), analysis.errors["missed"].count
        (0.9, 0)
    """
    if not BACKGROUND_IOU < iou_threshold <= 1:
        raise ValueError(f"iou_threshold lies above {BACKGROUND_IOU} and is at most 1, but is {iou_threshold}.")
    check_resamples(num_resamples, confidence)
    truth = read_truth(coco_gt, iou_type, kpt_oks_sigmas)
    found = read_found(results, truth)
    overlaps = find_overlaps(truth, found, BACKGROUND_IOU)
    matching = match(truth, found, overlaps, [*COCO_IOUS, iou_threshold])
    table, ends = average(truth, found, matching)[0], None
    if num_resamples:
        weights = weights_of_resamples(len(truth.image_ids), num_resamples, seed)
        ends = intervals(average(truth, found, matching, weights), truth, confidence, table)
    names = list(metrics_of(truth))
    averages = [_class_averages(truth, k, table, ends) for k in range(len(table))]
    overall, per_class, precision = score_classes(truth, found, matching, averages, score_threshold)
    kind, target = find_errors(truth, found, overlaps, matching, iou_threshold)
    errors, class_errors, gains = count_errors(truth, found, matching, kind, target)
    per_image, is_found = score_images(truth, found, matching, score_threshold)
    taken_for = np.full(len(truth.objects), -1)
    of_other_class = (kind == ERROR_NAMES.index("classification")) & (found.score >= score_threshold)
    taken_for[target[of_other_class]] = found.label[of_other_class]
    counted = matching.is_counted
    score, is_right = found.score[counted], matching.is_right[counted]
    return DetectionAnalysis(
        iou_type=iou_type,
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
        metrics=dict(zip(names, table[-1].tolist(), strict=True)),
        intervals={} if ends is None else dict(zip(names, map(tuple, ends[:, -1].T.tolist()), strict=True)),
        overall=overall,
        per_class=per_class,
        precision=precision,
        f1=f1_curve(score, is_right, overall.num_objects),
        confusion=count_confusion(truth, found, overlaps, matching, iou_threshold, score_threshold),
        parts=score_parts(truth, found, matching, score_threshold),
        errors=errors,
        class_errors=class_errors,
        gains=gains,
        calibration=calibrate(score, is_right, BINS)[0],
        keypoints=score_keypoints(truth, found, matching, score_threshold),
        per_image=per_image,
        is_right=matching.is_right,
        is_counted=counted,
        error=kind,
        is_found=is_found,
        taken_for=taken_for,
        is_ignored=truth.is_ignored,
        notes=_find_notes(truth, found, matching),
    )


def _class_averages(truth: Truth, k: int, table: np.ndarray, ends: np.ndarray | None) -> dict[str, Any]:
    """Return what `DetectionScores` has of a table of averages: of a class, or in the last row of all."""
    value = dict(zip(metrics_of(truth), table[k].tolist(), strict=True))
    recall = next(name for name in ("AR100", "AR300", "AR") if name in value)
    low, high = (np.nan, np.nan) if ends is None else ends[:, k, 0].tolist()
    return {
        "ap": value["AP"],
        "ap50": value["AP50"],
        "ap75": value["AP75"],
        "ar": value[recall],
        "area_ap": {name: value[f"AP{name[0]}"] for name in areas_of(truth) if name != "all"},
        "ap_interval": (low, high),
    }


_MOST_OUTSIDE = 0.1  # share of boxes that leave their image by more than a tenth of its size


def _find_notes(truth: Truth, found: Found, matching: Matching) -> list[str]:
    """Look for what makes numbers mean something else than they seem to."""
    if not truth.objects_per_class.any():
        return ["The ground truth has no objects (crowd regions aside), so no score can be given: all are NaN."]
    if not len(found.score):
        return ["There are no predictions."]
    notes = _about_images(truth, found) + _about_limits(truth, found, matching)
    if not matching.is_right.any() and truth.objects_per_class.any():
        annotated = [truth.class_ids[k] for k in np.flatnonzero(truth.objects_per_class)]
        predicted = [truth.class_ids[k] for k in np.unique(found.label)]
        reason = explain_class_overlap(predicted, annotated) or (
            "predicted classes do have objects, so the classes fit and the places do not: boxes in another frame than "
            "the images of the ground truth, another order than (x, y, width, height), another data set with the same "
            "ids, or untrained weights"
        )
        notes.append(f"No detection has found an object: {reason}. Scores: {score_histogram(found.score)}.")
    if found.score.min() < 0 or found.score.max() > 1:
        notes.append(
            f"Scores lie between {found.score.min():.3g} and {found.score.max():.3g}, so they are not probabilities; "
            "calibration says nothing."
        )
    return notes


def _about_images(truth: Truth, found: Found) -> list[str]:
    notes, count = [], len(truth.image_ids)
    is_empty = np.bincount(found.image, minlength=count) == 0
    lost = int((is_empty[truth.image] & ~truth.is_ignored).sum())
    if lost:
        notes.append(f"{is_empty.sum()} of {count} images have no predictions; their {lost} objects count as missed.")
    sizes = [truth.api.imgs[i] for i in truth.image_ids]
    if truth.iou_type == "bbox" and all({"width", "height"} <= s.keys() for s in sizes):
        wh = np.array([(s["width"], s["height"]) for s in sizes], float)[found.image]
        outside = ((found.box_xywh[:, :2] + found.box_xywh[:, 2:]) > 1.1 * wh).any(1)
        if outside.mean() > _MOST_OUTSIDE:
            notes.append(
                f"{outside.mean():.0%} of the predicted boxes reach far beyond their images. Boxes are (x, y, width, "
                "height), not two corners, in pixels of the image as annotated."
            )
    return notes


def _about_limits(truth: Truth, found: Found, matching: Matching) -> list[str]:
    notes = []
    if truth.is_searched is not None:
        notes.append(
            f"The images were searched for some classes each (LVIS). {int((~found.is_searched).sum())} of "
            f"{len(found.score)} detections are of others and do not count; nor do wrong ones of classes of which not "
            "all objects are annotated."
        )
    beyond = int((found.is_searched & ~matching.is_used).sum())
    if beyond:
        limit = "300 best of each image" if truth.is_searched is not None else "best of each image and class"
        notes.append(f"{beyond} of {len(found.score)} detections are not among the {limit} and do not count.")
    return notes
