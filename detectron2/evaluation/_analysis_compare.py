"""Two detectors on the same data, for :mod:`detectron2.evaluation.analysis`.

Letters: ``B`` resamples, ``K`` classes, ``M`` metrics.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._analysis_averages import (
    Averages,
    Metric,
    average,
    can_vary,
    frequencies_of,
    mean_of_classes,
    metrics_of,
    percentiles,
    resample,
    weights_of_resamples,
)
from ._analysis_inputs import Found, Truth, read_found, read_truth
from ._analysis_matching import COCO_IOUS, Matching, match, protocol_of
from ._analysis_overlaps import find_overlaps

_OF_CLASSES = ("AP", "APs", "APm", "APl")


@dataclass(frozen=True)
class Difference:
    """A metric of two runs.

    Args:
        first: of the first run.
        second: of the second.
        delta: second minus first; NaN where one is not defined.
        low: lower end of the interval; NaN where there is none.
        high: upper end.
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
        metrics: by name (``AP``, ``AP50`` … ``ARl``).
        per_class: AP by class name.
        per_class_areas: by class name ``APs``, ``APm`` and ``APl``, as far as the task has them.
    """

    num_images: int
    num_resamples: int
    confidence: float
    metrics: dict[str, Difference]
    per_class: dict[str, Difference]
    per_class_areas: dict[str, dict[str, Difference]]


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
        coco_gt: ground truth, as for :func:`analyze_detections`.
        first: predictions of the first run.
        second: predictions of the second.
        iou_type: ``"bbox"``, ``"segm"`` or ``"keypoints"``.
        num_resamples: how often images are drawn, with replacement; 0 for no intervals.
        confidence: share of the resamples that the interval holds.
        seed: the same seed gives the same intervals.
        kpt_oks_sigmas: of keypoints; empty for those of COCO's persons.

    Returns:
        The comparison.

    Raises:
        ValueError: predictions and ground truth do not fit, or a number is out of range.
    """
    check_resamples(num_resamples, confidence)
    truth = read_truth(coco_gt, iou_type, kpt_oks_sigmas)
    protocol = protocol_of(truth, COCO_IOUS)
    metrics = metrics_of(truth, protocol)
    frequencies = frequencies_of(truth)
    weights = weights_of_resamples(len(truth.image_ids), num_resamples, seed)
    values, draws = [], []
    for results in (first, second):  # one after the other: only numbers of the first stay in memory
        found = read_found(results, truth)
        matching = match(truth, found, find_overlaps(truth, found, min(COCO_IOUS)), protocol)
        values.append(class_values(average(truth, matching, protocol), metrics))
        draws.append(resample(truth, found, matching, protocol, metrics, weights))
    of_all = [mean_of_classes(v[None], metrics, frequencies)[0] for v in values]
    ends = percentiles(
        mean_of_classes(draws[1], metrics, frequencies) - mean_of_classes(draws[0], metrics, frequencies), confidence
    )
    class_ends = percentiles(draws[1] - draws[0], confidence)
    *of_classes, of_data = can_vary(truth, protocol, metrics)
    ends[:, ~of_data] = math.nan
    class_ends[:, ~np.array(of_classes)] = math.nan
    place = {name: m for m, name in enumerate(metrics)}

    def of_class(k: int, name: str) -> Difference:
        m = place[name]
        return _difference(*(v[k, m] for v in values), *class_ends[:, k, m])

    return Comparison(
        num_images=len(truth.image_ids),
        num_resamples=num_resamples,
        confidence=confidence,
        metrics={name: _difference(*(v[m] for v in of_all), *ends[:, m]) for name, m in place.items()},
        per_class={name: of_class(k, "AP") for k, name in enumerate(truth.class_names)},
        per_class_areas={
            name: {key: of_class(k, key) for key in _OF_CLASSES[1:] if key in place}
            for k, name in enumerate(truth.class_names)
        },
    )


def check_resamples(num_resamples: int, confidence: float) -> None:
    """Raise an error unless a bootstrap can be done with these numbers."""
    if num_resamples < 0 or not 0 < confidence < 1:
        raise ValueError(
            f"num_resamples is at least 0 and confidence between 0 and 1; they are {num_resamples} and {confidence}."
        )


def class_values(averages: Averages, metrics: dict[str, Metric]) -> np.ndarray:
    """-> float array (K, M)."""
    return np.stack([averages.of_classes(metric) for metric in metrics.values()], axis=1)


def interval_of_run(
    truth: Truth, found: Found, matching: Matching, num_resamples: int, confidence: float, seed: int
) -> tuple[dict[str, tuple[float, float]], np.ndarray]:
    """Find the intervals of one run's metrics, from a bootstrap over images.

    The best precision at a recall or a greater one is a maximum, so that AP of resampled images is a little too high on
    average. The percentiles are moved back by that much, within 0 and 1. (In differences of two runs it cancels out.)

    Args:
        truth: ground truth.
        found: detections.
        matching: of both, at least at COCO's overlaps.
        num_resamples: how often images are drawn.
        confidence: of the intervals.
        seed: of the draws.

    Returns:
        Ends by metric, and those of AP of each class, float array (K, 2).
    """
    protocol = protocol_of(truth, COCO_IOUS)
    metrics = metrics_of(truth, protocol)
    frequencies = frequencies_of(truth)
    weights = weights_of_resamples(len(truth.image_ids), num_resamples, seed)
    draws = resample(truth, found, matching, protocol, metrics, weights)
    values = class_values(average(truth, matching, protocol), metrics)
    means = mean_of_classes(values[None], metrics, frequencies)[0]
    ends = _centred(mean_of_classes(draws, metrics, frequencies), means, confidence)
    class_ends = _centred(draws[:, :, 0], values[:, 0], confidence)
    varies = can_vary(truth, protocol, metrics)
    ends[:, ~varies[-1]] = math.nan
    class_ends[:, ~varies[:-1, 0]] = math.nan
    intervals = {name: (float(low), float(high)) for name, low, high in zip(metrics, *ends, strict=True)}
    return intervals, class_ends.T


def _centred(draws: np.ndarray, values: np.ndarray, confidence: float) -> np.ndarray:
    """-> percentiles (2, ...) of draws (B, ...), moved so that the mean of the draws comes to lie on the values."""
    known = (~np.isnan(draws)).sum(0)
    means = np.where(known, np.nansum(draws, axis=0) / np.maximum(known, 1), np.nan)
    return np.clip(percentiles(draws, confidence) + values - means, 0.0, 1.0)


def _difference(first: float, second: float, low: float, high: float) -> Difference:
    delta = float(second - first)
    if math.isnan(delta):
        low = high = math.nan
    return Difference(float(first), float(second), delta, float(low), float(high))
