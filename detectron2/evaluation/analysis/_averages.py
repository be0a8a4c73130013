"""COCO's and LVIS's averages of each class, also of resampled images, and their confidence intervals.

Letters: `D` detections, `G` annotated objects, `I` images, `K` classes, `M` metrics, `A` ranges of areas, `T` overlap
thresholds, `B` resamples, `n` detections of one class. What is not defined, such as the AP of a class without objects,
is NaN.

`hotcoco.compare` has intervals of the differences of the mean metrics only: none for a class, and none for a single
run. 20 resamples of two runs with 49,000 detections each take it 1.5 to 1.7 s, and the functions below 0.7 to 1.0 s.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._matching import COCO_IOUS, Matching, areas_of, is_outside
from .inputs import Found, Truth

RECALLS = np.linspace(0.0, 1.0, 101)
_AT_ONCE = 1 << 20  # numbers in a temporary array


@dataclass(frozen=True)
class Metric:
    """One number of COCO's summary.

    Args:
        is_recall: average recall rather than precision.
        area: place among the ranges of areas.
        iou: place among COCO's overlaps; None for the mean over them.
        limit: how many detections of an image and class count.
        frequency: of the classes it is the mean of, as in LVIS: `"r"`, `"c"`, `"f"`; empty for all.
    """

    is_recall: bool
    area: int = 0
    iou: int | None = None
    limit: int | None = None
    frequency: str = ""


def metrics_of(truth: Truth) -> dict[str, Metric]:
    """Return the M metrics that COCO or LVIS has for this task, by name."""
    places = {name[0]: n for n, name in enumerate(areas_of(truth)) if n}
    middle = COCO_IOUS.index(0.75)
    found = {"AP": Metric(False), "AP50": Metric(False, iou=0), "AP75": Metric(False, iou=middle)}
    found |= {f"AP{letter}": Metric(False, area) for letter, area in places.items()}
    if truth.iou_type == "keypoints":
        found |= {"AR": Metric(True), "AR50": Metric(True, iou=0), "AR75": Metric(True, iou=middle)}
    elif truth.is_searched is not None:
        found |= {f"AP{letter}": Metric(False, frequency=letter) for letter in "rcf"}
        found["AR300"] = Metric(True)
    else:
        found |= {"AR1": Metric(True, limit=1), "AR10": Metric(True, limit=10), "AR100": Metric(True)}
    return found | {f"AR{letter}": Metric(True, area) for letter, area in places.items()}


_ByArea = dict[Any, np.ndarray]


def objects_per_area(truth: Truth) -> np.ndarray:
    """Mark the objects that count in each range of areas; bool array (A, G)."""
    return ~is_outside(truth.area, truth) & ~truth.is_ignored


def average(truth: Truth, found: Found, matching: Matching, weights: np.ndarray | None = None) -> np.ndarray:
    """Average as COCO does; float array (B, K + 1, M), the last row for all classes.

    Weights, int array (B, I), say how often each image occurs; without, it is once, and B is 1. The matching is at
    COCO's overlaps and perhaps more.
    """
    metrics = list(metrics_of(truth).values())
    wanted = objects_per_area(truth)
    num_draws = 1 if weights is None else len(weights)
    table = np.full((num_draws, len(truth.class_ids), len(metrics)), np.nan)
    by_class = np.argsort(truth.label, kind="stable")
    bounds = np.searchsorted(truth.label[by_class], np.arange(len(truth.class_ids) + 1))
    for k in np.flatnonzero(truth.objects_per_class).tolist():
        objects, rows = by_class[bounds[k] : bounds[k + 1]], matching.of_class(k)
        right, counted = (of_all[:, : len(COCO_IOUS), rows] for of_all in (matching.right, matching.counted))
        if weights is None:
            totals = wanted[:, objects].sum(1)[:, None]
            aps = interpolated_ap(np.cumsum(right, -1), np.cumsum(counted, -1), totals[..., None])[..., None]
            table[:, k] = _chosen(metrics, aps, _recalls(right, totals, matching.rank[rows], metrics), totals)
            continue
        step = max(_AT_ONCE // max(len(rows), 1), 1)
        for start in range(0, num_draws, step):
            part = weights[start : start + step]
            totals = np.stack([part[:, truth.image[objects[w[objects]]]].sum(1) for w in wanted])
            times = np.take(part, found.image[rows], axis=1)
            aps = _resampled_ap(times, right, counted, totals)
            recalls = _recalls(right, totals, matching.rank[rows], metrics, times)
            table[start : start + step, k] = _chosen(metrics, aps, recalls, totals)
    return _with_means(table, truth, metrics)


def _chosen(metrics: list[Metric], aps: np.ndarray, recalls: _ByArea, totals: np.ndarray) -> np.ndarray:
    """Return the metrics of a class, (B, M), from AP (A, T, B), recalls (T, B), and the numbers of objects (A, B)."""
    columns = []
    for metric in metrics:
        values = recalls[metric.area, metric.limit] if metric.is_recall else aps[metric.area]
        value = values.mean(0) if metric.iou is None else values[metric.iou]
        columns.append(np.where(totals[metric.area] > 0, value, np.nan))
    return np.stack(columns, axis=1)


def _recalls(
    right: np.ndarray, totals: np.ndarray, rank: np.ndarray, metrics: list[Metric], times: np.ndarray | None = None
) -> _ByArea:
    """Return recall by range and limit, float arrays (T, B), of detections (n,) that occur `times` (B, n), or once."""
    recalls = {}
    for area, limit in {(m.area, m.limit) for m in metrics if m.is_recall}:
        kept = right[area] if limit is None else right[area] & (rank < limit)
        if times is None:
            hits = kept.sum(1)[:, None]
        else:
            hits = np.stack([np.take(times, np.flatnonzero(k), axis=1).sum(1) for k in kept])
        recalls[area, limit] = hits / np.maximum(totals[area], 1)
    return recalls


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


def _resampled_ap(times: np.ndarray, right: np.ndarray, counted: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Return AP, float array (A, T, B), of detections with their outcome (A, T, n) that occur `times`, (B, n)."""
    num_areas, num_ious, _ = right.shape
    ap = np.zeros((num_areas, num_ious, len(times)))
    for a in range(num_areas):
        in_range = np.flatnonzero(counted[a].any(0))
        # np.take, since what an index list gives lies in memory the other way round
        inside = times if len(in_range) == times.shape[1] else np.take(times, in_range, axis=1)
        first = counted[a, 0, in_range]
        running = np.cumsum(inside * first, axis=1, dtype=np.int32)
        for t in range(num_ious):
            if t and (right[a, t] == right[a, t - 1]).all() and (counted[a, t] == counted[a, t - 1]).all():
                ap[a, t] = ap[a, t - 1]
                continue
            at = np.flatnonzero(right[a, t, in_range])  # elsewhere precision only falls
            if not len(at):
                continue
            seen = np.take(running, at, axis=1)
            # only few change between overlaps: what was matched to an object of another size, or no longer is
            changed = np.flatnonzero(counted[a, t, in_range] != first)
            if len(changed):
                sign = np.where(first[changed], -1, 1).astype(np.int32)
                change = np.cumsum(np.take(inside, changed, axis=1) * sign, axis=1, dtype=np.int32)
                before = np.searchsorted(changed, at, side="right") - 1
                seen += np.where(before >= 0, np.take(change, before, axis=1), 0)
            ap[a, t] = interpolated_ap(np.cumsum(np.take(inside, at, axis=1), axis=1), seen, totals[a][:, None])
    return ap


def _with_means(table: np.ndarray, truth: Truth, metrics: list[Metric]) -> np.ndarray:
    """Append the mean over the classes of which a metric is defined, and in LVIS of its frequency."""
    by_id = {c["id"]: str(c.get("frequency", "")) for c in truth.api.dataset["categories"]}
    frequencies = np.array([by_id[c] for c in truth.class_ids], dtype="U1")
    means = [
        mean_defined(table[:, frequencies == metric.frequency if metric.frequency else slice(None), m], axis=1)
        for m, metric in enumerate(metrics)
    ]
    return np.concatenate([table, np.stack(means, axis=1)[:, None]], axis=1)


def mean_defined(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Return the mean of the values that are not NaN; NaN where there are none."""
    known = (~np.isnan(values)).sum(axis)
    return np.where(known, np.nansum(values, axis, dtype=float) / np.maximum(known, 1), np.nan)


def check_resamples(num_resamples: int, confidence: float) -> None:
    """Raise an error unless a bootstrap can be done with these numbers."""
    if num_resamples < 0 or not 0 < confidence < 1:
        raise ValueError(
            f"num_resamples is at least 0 and confidence between 0 and 1; they are {num_resamples} and {confidence}."
        )


def weights_of_resamples(num_images: int, num_resamples: int, seed: int) -> np.ndarray:
    """Draw images with replacement and count each; int32 array (B, I)."""
    draws = np.random.default_rng(seed).multinomial(num_images, np.full(num_images, 1 / num_images), num_resamples)
    return draws.astype(np.int32)


def intervals(draws: np.ndarray, truth: Truth, confidence: float, values: np.ndarray | None = None) -> np.ndarray:
    """Find the ends of intervals; float array (2, K + 1, M), NaN where nothing varies or no resample has the metric.

    The best precision at a recall or a greater one is a maximum, so that AP of resampled images is a little too high on
    average. With the values of the images as they are, (K + 1, M), the percentiles of the draws, (B, K + 1, M), are
    moved back by that much, within 0 and 1. In differences of two runs, which have no values, it cancels out.
    """
    ends = _percentiles(draws, confidence)
    if values is not None:
        ends = np.clip(ends + values - mean_defined(draws), 0.0, 1.0)
    ends[:, ~_can_vary(truth)] = math.nan
    return ends


def _can_vary(truth: Truth) -> np.ndarray:
    """Mark the metrics that depend on several images, bool array (K + 1, M): what lies in one cannot vary."""
    num_classes, num_images = len(truth.class_ids), len(truth.image_ids)
    spread = []
    for wanted in objects_per_area(truth):
        pairs = np.unique(truth.label[wanted] * num_images + truth.image[wanted])
        images = np.bincount(pairs // num_images, minlength=num_classes)
        spread.append(np.append(images, len(np.unique(pairs % num_images))) > 1)
    return np.stack([spread[metric.area] for metric in metrics_of(truth).values()], axis=1)


def _percentiles(draws: np.ndarray, confidence: float) -> np.ndarray:
    """Return the ends between which a share of the draws (B, ...) lies that are not NaN; float array (2, ...)."""
    if not draws.size:
        return np.full((2, *draws.shape[1:]), np.nan)
    known = (~np.isnan(draws)).sum(0)
    ordered = np.sort(draws, axis=0)  # NaN comes last
    ends: list[Any] = []
    for share in ((1 - confidence) / 2, (1 + confidence) / 2):
        position = share * np.maximum(known - 1, 0)
        low = np.floor(position).astype(int)
        high = np.minimum(low + 1, np.maximum(known - 1, 0))
        at_low, at_high = (np.take_along_axis(ordered, i[None], 0)[0] for i in (low, high))
        value = at_low + (at_high - at_low) * (position - low)
        ends.append(np.where(known > 0, value, np.nan))
    return np.stack(ends)
