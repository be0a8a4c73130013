"""How much detections and annotated objects overlap, for :mod:`detectron2.evaluation.analysis`.

Letters: ``D`` detections, ``G`` annotated objects, ``N`` pairs of a detection and an object in one image, ``P``
keypoints. Boxes are ``(x, y, width, height)`` in pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as mask_util

from ._analysis_inputs import Found, Truth

_PAIRS_AT_ONCE = 1 << 18  # of boxes or keypoints, whose numbers then fit the cache


@dataclass(frozen=True)
class Overlaps:
    """Pairs that overlap, by detection and then by object.

    Args:
        detection: int array (N,).
        object: int array (N,).
        value: float array (N,), IoU; with a crowd region the covered share of the detection. For keypoints OKS.
    """

    detection: np.ndarray
    object: np.ndarray
    value: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> "Overlaps":
        return Overlaps(self.detection[chosen], self.object[chosen], self.value[chosen])


def find_overlaps(truth: Truth, found: Found, least: float) -> Overlaps:
    """Find all pairs, whatever their classes.

    Args:
        truth: ground truth.
        found: detections. Those of classes that were not searched for have no pairs.
        least: the least overlap of a pair.

    Returns:
        The pairs.
    """
    by_image = np.argsort(truth.image, kind="stable")
    count = np.bincount(truth.image, minlength=len(truth.image_ids))
    first = np.cumsum(count) - count
    if truth.iou_type == "segm":
        return _mask_pairs(truth, found, by_image, first, count, least)
    measure = _box_overlaps if truth.iou_type == "bbox" else _keypoint_overlaps
    chosen = np.flatnonzero(found.is_searched)
    partners = count[found.image[chosen]]
    ends = np.cumsum(partners)
    parts, start = [], 0
    while start < len(chosen):
        done = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, done + _PAIRS_AT_ONCE, side="right")), start + 1)
        n = partners[start:stop]
        detection = np.repeat(chosen[start:stop], n)
        place = np.arange(len(detection)) - np.repeat(np.cumsum(n) - n, n)  # among the objects of the image
        parts.append(_kept(truth, found, detection, by_image[first[found.image[detection]] + place], measure, least))
        start = stop
    return _joined(parts)


_Measure = Callable[[Truth, Found, np.ndarray, np.ndarray], np.ndarray]


def _kept(
    truth: Truth, found: Found, detection: np.ndarray, object_: np.ndarray, measure: _Measure, least: float
) -> Overlaps:
    value = measure(truth, found, detection, object_)
    kept = value >= least
    return Overlaps(detection[kept], object_[kept], value[kept])


def _joined(parts: list[Overlaps]) -> Overlaps:
    empty = np.zeros(0, np.int64)
    parts = [Overlaps(empty, empty, np.zeros(0)), *parts]
    detection, object_ = (np.concatenate([getattr(p, name) for p in parts]) for name in ("detection", "object"))
    return Overlaps(detection, object_, np.concatenate([p.value for p in parts]))


def _box_overlaps(truth: Truth, found: Found, detection: np.ndarray, object_: np.ndarray) -> np.ndarray:
    a, b = found.box_xywh[detection], truth.box_xywh[object_]
    high, low = np.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:]), np.maximum(a[:, :2], b[:, :2])
    common = np.prod(np.maximum(high - low, 0.0), axis=1)
    own, other = np.prod(a[:, 2:], axis=1), np.prod(b[:, 2:], axis=1)
    union = np.where(truth.is_crowd[object_], own, own + other - common)
    return np.divide(common, union, out=np.zeros(len(common)), where=union > 0)


def _keypoint_overlaps(truth: Truth, found: Found, detection: np.ndarray, object_: np.ndarray) -> np.ndarray:
    similar, counts = keypoint_similarity(truth, found, detection, object_)
    return similar.sum(1) / np.maximum(counts.sum(1), 1)


def keypoint_similarity(
    truth: Truth, found: Found, detection: np.ndarray, object_: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compare keypoints one by one (http://cocodataset.org/#keypoints-eval).

    Where an object has no labelled keypoints, those of the detection are compared with a region of three times the
    object's width and height.

    Args:
        truth: ground truth.
        found: detections.
        detection: int array (N,).
        object_: int array (N,).

    Returns:
        Similarity (N, P), from 0 to 1, 0 where a keypoint does not count, and whether it counts, bool (N, P). The mean
        over those that count is the OKS.
    """
    true_xy, is_labelled = truth.keypoints[object_, :, :2], truth.keypoints[object_, :, 2] > 0
    xy, box = found.keypoints[detection, :, :2], truth.box_xywh[object_][:, None]
    low, high = box[..., :2] - box[..., 2:], box[..., :2] + 2 * box[..., 2:]
    outside = np.maximum(low - xy, 0) + np.maximum(xy - high, 0)
    has_any = np.any(is_labelled, axis=1, keepdims=True)
    squared = np.sum(np.where(has_any[..., None], xy - true_xy, outside) ** 2, axis=-1)
    size = truth.area[object_][:, None] + np.spacing(1)
    counts = is_labelled | ~has_any
    return np.where(counts, np.exp(-squared / (2 * truth.sigmas) ** 2 / size / 2), 0.0), counts


def _mask_pairs(
    truth: Truth, found: Found, by_image: np.ndarray, first: np.ndarray, count: np.ndarray, least: float
) -> Overlaps:
    chosen = np.flatnonzero(found.is_searched)
    chosen = chosen[np.argsort(found.image[chosen], kind="stable")]
    images, starts = np.unique(found.image[chosen], return_index=True)
    parts = []
    for image, detections in zip(images.tolist(), np.split(chosen, starts[1:]), strict=True):
        objects = by_image[first[image] : first[image] + count[image]]
        if not len(objects):
            continue
        # of one image, in one call: pycocotools looks at the boxes before it looks at the masks
        values = np.asarray(
            mask_util.iou(
                [found.masks[d] for d in detections],
                [truth.masks[g] for g in objects],
                truth.is_crowd[objects].astype(np.uint8).tolist(),
            )
        )
        rows, columns = np.nonzero(values >= least)
        parts.append(Overlaps(detections[rows], objects[columns], values[rows, columns]))
    pairs = _joined(parts)
    return pairs[np.lexsort((pairs.object, pairs.detection))]
