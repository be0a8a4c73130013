"""Average precision and recall, of a data set and of resampled ones, for :mod:`detectron2.evaluation.analysis`.

Letters: ``K`` classes, ``A`` ranges of areas, ``T`` overlaps, ``I`` images, ``B`` resamples, ``n`` detections of one
class. What is not defined, such as the recall of a class without objects, is NaN.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ._analysis_inputs import Found, Truth
from ._analysis_matching import COCO_IOUS, Matching, Protocol
from ._analysis_scores import RECALLS

_AT_ONCE = 1 << 20  # numbers in a temporary array
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
    """-> the metrics that COCO or LVIS has for this task, by name."""
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
    """-> for each class ``"r"``, ``"c"``, ``"f"``, or nothing: how many images have it (LVIS); text array (K,)."""
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
        """-> a metric of each class; float array (K,)."""
        table = self.recall if metric.is_recall else self.ap
        values = table[:, metric.area] if metric.limit is None else self.limited[metric.limit]
        return values[:, : len(COCO_IOUS)].mean(1) if metric.iou is None else values[:, metric.iou]


def objects_per_area(truth: Truth, protocol: Protocol) -> np.ndarray:
    """-> which objects are to be found in each range of areas: bool array (A, G)."""
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
        ap[k] = _precision(np.cumsum(right, -1), np.cumsum(counts, -1), totals[k][..., None])
        recall[k] = right.sum(-1) / np.maximum(totals[k], 1)
        for limit, table in limited.items():
            table[k] = (right[0] & (matching.rank[rows] < limit)).sum(-1) / np.maximum(totals[k, 0], 1)
    for table in (ap, recall):
        table[np.broadcast_to(totals == 0, shape)] = np.nan
    for table in limited.values():
        table[totals[:, 0, 0] == 0] = np.nan
    return Averages(ap, recall, limited)


def _precision(right: np.ndarray, counts: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """-> COCO's AP from running totals (..., n) of right detections and of those that count, and of all objects.

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


def weights_of_resamples(num_images: int, num_resamples: int, seed: int) -> np.ndarray:
    """-> how often each image is drawn, with replacement: int32 array (B, I)."""
    draws = np.random.default_rng(seed).multinomial(num_images, np.full(num_images, 1 / num_images), num_resamples)
    return draws.astype(np.int32)


def can_vary(truth: Truth, protocol: Protocol, metrics: dict[str, Metric]) -> np.ndarray:
    """-> of which classes, and in the last row of all, a metric depends on more than one image; bool (K + 1, metrics).

    What lies in one image is the same in all resamples that have it, and says nothing about others.
    """
    num_classes, num_images = len(truth.class_ids), len(truth.image_ids)
    spread = []
    for wanted in objects_per_area(truth, protocol):
        pairs = np.unique(truth.label[wanted] * num_images + truth.image[wanted])
        images = np.bincount(pairs // num_images, minlength=num_classes)
        spread.append(np.append(images, len(np.unique(pairs % num_images))) > 1)
    return np.stack([spread[metric.area] for metric in metrics.values()], axis=1)


def resample(
    truth: Truth, found: Found, matching: Matching, protocol: Protocol, metrics: dict[str, Metric], weights: np.ndarray
) -> np.ndarray:
    """Compute metrics as if images occurred several times.

    Args:
        truth: ground truth.
        found: detections.
        matching: of both.
        protocol: of the matching.
        metrics: which.
        weights: int array (B, I), how often each image occurs.

    Returns:
        Float array (B, K, number of metrics), the metrics of each class.
    """
    wanted = objects_per_area(truth, protocol)
    table = np.full((len(weights), len(truth.class_ids), len(metrics)), np.nan)
    by_class = np.argsort(truth.label, kind="stable")
    bounds = np.searchsorted(truth.label[by_class], np.arange(len(truth.class_ids) + 1))
    for k in np.flatnonzero(truth.objects_per_class).tolist():
        objects, rows = by_class[bounds[k] : bounds[k + 1]], matching.of_class(k)
        right, counts = matching.outcome(rows)
        image, rank = found.image[rows], matching.rank[rows]
        step = max(_AT_ONCE // max(len(rows), 1), 1)
        for start in range(0, len(weights), step):
            part = weights[start : start + step]
            totals = np.stack([part[:, truth.image[objects[w[objects]]]].sum(1) for w in wanted])
            ap, recall = _resampled_class(np.take(part, image, axis=1), right, counts, totals, rank, metrics)
            for m, metric in enumerate(metrics.values()):
                values = recall[metric.area, metric.limit] if metric.is_recall else ap[metric.area]
                chosen = values.mean(0) if metric.iou is None else values[metric.iou]
                table[start : start + step, k, m] = np.where(totals[metric.area] > 0, chosen, np.nan)
    return table


def _resampled_class(
    times: np.ndarray,
    right: np.ndarray,
    counts: np.ndarray,
    totals: np.ndarray,
    rank: np.ndarray,
    metrics: dict[str, Metric],
) -> tuple[dict[int, np.ndarray], dict[Any, np.ndarray]]:
    """Compute the metrics of one class in resamples.

    Args:
        times: int array (B, n), how often each detection occurs.
        right: bool array (A, T, n).
        counts: bool array (A, T, n), whether a detection is right or wrong.
        totals: int array (A, B), objects.
        rank: int array (n,).
        metrics: what is wanted.

    Returns:
        AP by range, and recall by range and limit: float arrays (T, B).
    """
    num_ious = len(COCO_IOUS)
    ap, recall = {}, {}
    for a in sorted({m.area for m in metrics.values() if not m.is_recall}):
        in_range = np.flatnonzero(counts[a].any(0))
        # np.take, since what an index list gives lies in memory the other way round
        inside = times if len(in_range) == times.shape[1] else np.take(times, in_range, axis=1)
        ap[a] = np.zeros((num_ious, len(times)))
        first = counts[a, 0, in_range]
        running = np.cumsum(inside * first, axis=1, dtype=np.int32)
        for t in range(num_ious):
            if t and (right[a, t] == right[a, t - 1]).all() and (counts[a, t] == counts[a, t - 1]).all():
                ap[a][t] = ap[a][t - 1]
                continue
            at = np.flatnonzero(right[a, t, in_range])  # elsewhere precision only falls
            if not len(at):
                continue
            seen = np.take(running, at, axis=1)
            # only few change between overlaps: what was matched to an object of another size, or no longer is
            changed = np.flatnonzero(counts[a, t, in_range] != first)
            if len(changed):
                sign = np.where(first[changed], -1, 1).astype(np.int32)
                change = np.cumsum(np.take(inside, changed, axis=1) * sign, axis=1, dtype=np.int32)
                before = np.searchsorted(changed, at, side="right") - 1
                seen += np.where(before >= 0, np.take(change, before, axis=1), 0)
            ap[a][t] = _precision(np.cumsum(np.take(inside, at, axis=1), axis=1), seen, totals[a][:, None])
    for a, limit in sorted({(m.area, m.limit) for m in metrics.values() if m.is_recall}, key=str):
        kept = right[a, :num_ious] if limit is None else right[a, :num_ious] & (rank < limit)
        hits = [np.take(times, np.flatnonzero(k), axis=1).sum(1) for k in kept]
        recall[a, limit] = np.stack(hits) / np.maximum(totals[a], 1)
    return ap, recall


def mean_of_classes(values: np.ndarray, metrics: dict[str, Metric], frequencies: np.ndarray) -> np.ndarray:
    """Average metrics over the classes of which they are defined.

    Args:
        values: float array (B, K, number of metrics).
        metrics: which.
        frequencies: text array (K,), see :func:`frequencies_of`.

    Returns:
        Float array (B, number of metrics).
    """
    columns = []
    for m, metric in enumerate(metrics.values()):
        rows = values[:, :, m] if not metric.frequency else values[:, frequencies == metric.frequency, m]
        known = (~np.isnan(rows)).sum(1)
        columns.append(np.where(known, np.nansum(rows, 1, dtype=float) / np.maximum(known, 1), np.nan))
    return np.stack(columns, axis=1)


def percentiles(draws: np.ndarray, confidence: float) -> np.ndarray:
    """Find the ends of intervals, leaving out resamples in which a metric is not defined.

    Args:
        draws: float array (B, ...).
        confidence: the share of the resamples that lie inside.

    Returns:
        Float array (2, ...); NaN where no resample has the metric.
    """
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
