"""Two detectors on the same data, for :mod:`detectron2.evaluation.analysis`.

Letters: ``D`` detections, ``I`` images, ``K`` classes, ``T`` IoUs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hotcoco
import numpy as np

from ._analysis_inputs import Found, Truth, read_found, read_truth
from ._analysis_matching import build_engine, in_coco_order, match_at
from ._analysis_scores import RECALLS

_IOUS = np.linspace(0.5, 0.95, 10).tolist()
_RESAMPLED = ("AP", "AP50", "AP75", "AR100")


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
        metrics: by name (``AP``, ``AP50`` … ``ARl``); AP, AP50, AP75 and AR100 have intervals.
        per_class: AP by class name, without intervals.
    """

    num_images: int
    num_resamples: int
    confidence: float
    metrics: dict[str, Difference]
    per_class: dict[str, Difference]


def compare_detections(
    coco_gt: Any,
    first: Any,
    second: Any,
    iou_type: str = "bbox",
    num_resamples: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare two runs, with intervals from a paired bootstrap over images (percentiles).

    The intervals say how the difference varies with the choice of the images, not with the seed of a training.

    Args:
        coco_gt: ground truth, as for :func:`analyze_detections`.
        first: predictions of the first run.
        second: predictions of the second.
        iou_type: ``"bbox"`` or ``"segm"``.
        num_resamples: how often images are drawn, with replacement; 0 for no intervals.
        confidence: share of the resamples that the interval holds.
        seed: the same seed gives the same intervals.

    Returns:
        The comparison.

    Raises:
        ValueError: predictions and ground truth do not fit, or a number is out of range.
    """
    if num_resamples < 0 or not 0 < confidence < 1:
        raise ValueError(
            f"num_resamples is at least 0 and confidence between 0 and 1; they are {num_resamples} and {confidence}."
        )
    truth = read_truth(coco_gt, iou_type)
    engines = [_accumulated(truth, results) for results in (first, second)]
    report = hotcoco.compare(*(e for e, _ in engines), n_bootstrap=0)
    # Its own bootstrap counts an image that is drawn twice once, so that the intervals come out too narrow.
    intervals = _bootstrap(truth, [found for _, found in engines], num_resamples, confidence, seed)
    metrics = {
        name: _difference(report["metrics_a"][name], report["metrics_b"][name], intervals.get(name))
        for name in report["metric_keys"]
    }
    known = {row["cat_id"] - 1: _difference(row["ap_a"], row["ap_b"], None) for row in report["per_category"]}
    absent = _difference(-1.0, -1.0, None)
    per_class = {name: known.get(k, absent) for k, name in enumerate(truth.class_names)}
    return Comparison(len(truth.image_ids), num_resamples, confidence, metrics, per_class)


def _accumulated(truth: Truth, results: Any) -> tuple[Any, Found]:
    found = read_found(results, truth)
    engine: Any = build_engine(truth, found)
    engine.accumulate()
    return engine, found


def _bootstrap(
    truth: Truth, runs: Sequence[Found], num_resamples: int, confidence: float, seed: int
) -> dict[str, tuple[float, float]]:
    """-> the ends of the intervals of second minus first, by metric; both runs see the same images."""
    if not num_resamples:
        return {}
    tables = [_class_tables(truth, found) for found in runs]
    count = len(truth.image_ids)
    objects = np.zeros((count, len(truth.class_ids)), np.int64)
    np.add.at(objects, (truth.image[~truth.is_crowd], truth.label[~truth.is_crowd]), 1)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=num_resamples)
    first, second = (np.array([_weighted_metrics(t, objects, weights) for weights in draws]) for t in tables)
    intervals = {}
    for name, deltas in zip(_RESAMPLED, (second - first).T, strict=True):
        defined = deltas[~np.isnan(deltas)]  # a resample may have no objects at all
        if len(defined):
            low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
            intervals[name] = (low, high)
    return intervals


_ClassTable = tuple[np.ndarray, np.ndarray, np.ndarray]


def _class_tables(truth: Truth, found: Found) -> list[_ClassTable]:
    """-> per class, by falling score: images (D,), whether they count (T, D), whether they are right (T, D)."""
    used, ignored, matched = match_at(truth, found, _IOUS)
    tables = []
    for k in range(len(truth.class_ids)):
        chosen = in_coco_order(used & (found.label == k), found)
        chosen = chosen[np.argsort(-found.score[chosen], kind="stable")]
        counts = ~ignored[:, chosen]
        tables.append((found.image[chosen], counts, counts & (matched[:, chosen] >= 0)))
    return tables


def _weighted_metrics(tables: Sequence[_ClassTable], objects: np.ndarray, weights: np.ndarray) -> list[float]:
    """-> AP, AP50, AP75 and AR when image i occurs ``weights[i]`` times; ``objects`` is (I, K), per image and class."""
    totals = weights @ objects
    known = [k for k, total in enumerate(totals.tolist()) if total]
    if not known:
        return [np.nan] * len(_RESAMPLED)
    ap, ar = np.zeros((len(known), len(_IOUS))), np.zeros((len(known), len(_IOUS)))
    for row, k in enumerate(known):
        image, counts, is_right = tables[k]
        times = weights[image]
        for t in range(len(_IOUS)):
            at = np.flatnonzero(is_right[t])  # elsewhere precision only falls
            right, all_ = np.cumsum(times[at]), np.cumsum(times * counts[t])[at]
            best = np.maximum.accumulate((right / np.maximum(all_, 1))[::-1])[::-1]
            recall = right / totals[k]
            ap[row, t] = np.append(best, 0.0)[np.searchsorted(recall, RECALLS, side="left")].mean()
            ar[row, t] = recall[-1] if len(recall) else 0.0
    return [float(ap.mean()), float(ap[:, 0].mean()), float(ap[:, 5].mean()), float(ar.mean())]


def _difference(first: float, second: float, interval: tuple[float, float] | None) -> Difference:
    first, second = (math.nan if value < 0 else value for value in (first, second))  # COCO's -1: not defined
    delta = second - first
    if interval is None or math.isnan(delta):
        return Difference(first, second, delta, math.nan, math.nan)
    return Difference(first, second, delta, *interval)
