"""Compare two detectors on the same data, with confidence intervals from a bootstrap over images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ._averages import average, check_resamples, intervals, metrics_of, weights_of_resamples
from ._matching import COCO_IOUS, find_overlaps, match
from ._scores import as_json
from .inputs import read_found, read_truth

__all__ = ["Comparison", "Difference", "compare_detections"]


@dataclass(frozen=True)
class Difference:
    """A metric of two runs.

    Args:
        first: of the first run.
        second: of the second.
        delta: second minus first; NaN where one is not defined.
        low: lower end of the interval; NaN where there is none.
        high: upper end.

    Example:
        >>> Difference(first=0.40, second=0.43, delta=0.03, low=0.01, high=0.05).is_clear
        True
    """

    first: float
    second: float
    delta: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval does not contain 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Comparison:
    """Two runs, in COCO's metrics, between 0 and 1.

    Args:
        num_images: from which the resamples are drawn.
        num_resamples: of the bootstrap.
        confidence: of the intervals.
        metrics: by name (`AP`, `AP50` … `ARl`).
        per_class: AP by class name.
        per_class_areas: by class name `APs`, `APm` and `APl`, as far as the task has them.

    Example:
        >>> truth = {"images": [{"id": 1, "height": 100, "width": 100}], "categories": [{"id": 1, "name": "cat"}]}
        >>> truth["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20]}]
        >>> found = [{"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 18], "score": 0.8}]
        >>> comparison = compare_detections(truth, [], found, num_resamples=0)
        >>> round(comparison.per_class["cat"].second, 3)
        0.9
    """

    num_images: int
    num_resamples: int
    confidence: float
    metrics: dict[str, Difference]
    per_class: dict[str, Difference]
    per_class_areas: dict[str, dict[str, Difference]]

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON takes them; NaN is None."""
        return as_json(self)


def compare_detections(
    coco_gt: Any,
    first: Any,
    second: Any,
    iou_type: str = "bbox",
    num_resamples: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
    kpt_oks_sigmas: Sequence[float] = (),
) -> Comparison:
    """Compare two runs, with intervals from a paired bootstrap over images (percentiles).

    The intervals say how the difference varies with the choice of the images, not with the seed of a training. What
    rests on a single image has none.

    Args:
        coco_gt: ground truth, as for `analyze_detections`.
        first: predictions of the first run.
        second: predictions of the second.
        iou_type: `"bbox"`, `"segm"` or `"keypoints"`.
        num_resamples: how often images are drawn, with replacement; 0 for no intervals.
        confidence: share of the resamples that the interval holds.
        seed: the same seed gives the same intervals.
        kpt_oks_sigmas: of keypoints; empty for those of COCO's persons.

    Returns:
        The comparison.

    Raises:
        ValueError: predictions and ground truth do not fit, or a number is out of range.

    Example:
        >>> truth = {"images": [{"id": 1, "height": 100, "width": 100}], "categories": [{"id": 1, "name": "cat"}]}
        >>> truth["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20]}]
        >>> found = [{"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 18], "score": 0.8}]
        >>> better = [{**found[0], "bbox": [10, 10, 20, 20]}]
        >>> comparison = compare_detections(truth, found, better, num_resamples=0)
        >>> round(comparison.metrics["AP"].delta, 3)
        0.1
    """
    check_resamples(num_resamples, confidence)
    truth = read_truth(coco_gt, iou_type, kpt_oks_sigmas)
    weights = weights_of_resamples(len(truth.image_ids), num_resamples, seed)
    values, draws = [], []
    for results in (first, second):  # one after the other: only numbers of the first stay in memory
        found = read_found(results, truth)
        matching = match(truth, found, find_overlaps(truth, found, min(COCO_IOUS)), COCO_IOUS)
        values.append(average(truth, found, matching)[0])
        draws.append(average(truth, found, matching, weights))
    low, high = intervals(draws[1] - draws[0], truth, confidence)
    columns = [table.T.tolist() for table in (*values, low, high)]
    metrics = {
        name: [_difference(*ends) for ends in zip(*rows, strict=True)]
        for name, *rows in zip(metrics_of(truth), *columns, strict=True)
    }
    return Comparison(
        num_images=len(truth.image_ids),
        num_resamples=num_resamples,
        confidence=confidence,
        metrics={name: of_classes[-1] for name, of_classes in metrics.items()},
        per_class=dict(zip(truth.class_names, metrics["AP"], strict=False)),
        per_class_areas={
            name: {key: metrics[key][k] for key in ("APs", "APm", "APl") if key in metrics}
            for k, name in enumerate(truth.class_names)
        },
    )


def _difference(first: float, second: float, low: float, high: float) -> Difference:
    delta = second - first
    return Difference(first, second, delta, *((math.nan, math.nan) if math.isnan(delta) else (low, high)))
