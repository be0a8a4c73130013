"""Which detections find which objects, as COCO and LVIS match them.

Letters: `D` detections, `G` annotated objects, `A` ranges of areas, `T` overlap thresholds, `C` detections that overlap
an object of their class, `N` pairs of a detection and an object in one image, `K` classes, `P` keypoints. Boxes are
`(x, y, width, height)` in pixels.

hotcoco matches in the same way (tests/evaluation/analysis/test_against_hotcoco.py) but hands the matches out as Python
lists only (`COCOeval.eval_imgs`): 3.9 s for 49,000 detections of 80 classes, where the whole analysis takes 0.8 s. The
bootstrap, the scores of object parts and the pictures need the match of every detection.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from pycocotools import mask as mask_util

from .inputs import Found, Truth

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


COCO_IOUS = tuple(np.linspace(0.5, 0.95, 10).tolist())
# Square pixels, both ends belong to the range.
_AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
_LIMITS = {"bbox": 100, "segm": 100, "keypoints": 20}
_LVIS_LIMIT = 300
_ALMOST_ONE = 1 - 1e-10  # an IoU of 1 comes out a little less


@dataclass(frozen=True)
class Protocol:
    """How COCO, or LVIS, counts.

    Args:
        ious: T overlaps from which on a detection finds an object.
        areas: A ranges by name, the first with everything.
        limit: how many detections count, the best ones.
        is_limit_per_class: they are counted in an image and class; otherwise in an image.
    """

    ious: tuple[float, ...]
    areas: dict[str, tuple[float, float]]
    limit: int
    is_limit_per_class: bool


def protocol_of(truth: Truth, ious: Sequence[float]) -> Protocol:
    """Return the protocol for a kind of ground truth, with these overlaps."""
    no_small = truth.iou_type == "keypoints"  # COCO has no small persons with keypoints
    areas = {name: ends for name, ends in _AREAS.items() if not (no_small and name == "small")}
    if truth.is_searched is not None:
        return Protocol(tuple(ious), areas, _LVIS_LIMIT, is_limit_per_class=False)
    return Protocol(tuple(ious), areas, _LIMITS[truth.iou_type], is_limit_per_class=True)


@dataclass(frozen=True)
class Matching:
    """COCO's matching: best score first, within the class, the best of each image and class.

    Args:
        rank: int array (D,), place among the detections of its image and class, by falling score.
        is_used: bool array (D,), False beyond the limit and where the class was not searched for.
        is_out: bool array (A, D), without a match neither right nor wrong: its own area is out of range, or not all
            objects of its class are annotated.
        candidates: int array (C,), rising.
        matched: int array (A, T, C), the object each of them has found; -1 for none.
        is_excused: bool array (A, T, C): that object need not be found.
        order: int array of the detections that are used, by class, then by falling score.
        ends: int array (K + 1,), where the classes begin and end in it.
    """

    rank: np.ndarray
    is_used: np.ndarray
    is_out: np.ndarray
    candidates: np.ndarray
    matched: np.ndarray
    is_excused: np.ndarray
    order: np.ndarray
    ends: np.ndarray
    _place: np.ndarray = field(repr=False)  # int array (D,), into candidates; -1 for the others

    def of_class(self, label: int) -> np.ndarray:
        """Return the used detections of a class by falling score; int array."""
        return self.order[self.ends[label] : self.ends[label + 1]]

    def outcome(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Look up what became of detections that are used.

        Args:
            rows: int array (n,).

        Returns:
            Whether each is right, and whether it is right or wrong: bool arrays (A, T, n).
        """
        shape = (*self.matched.shape[:2], len(rows))
        right = np.zeros(shape, bool)
        counts = np.broadcast_to(~self.is_out[:, None, rows], shape).copy()
        place = self._place[rows]
        known = np.flatnonzero(place >= 0)
        has_match = self.matched[:, :, place[known]] >= 0
        excused = self.is_excused[:, :, place[known]]
        right[:, :, known] = has_match & ~excused
        counts[:, :, known] = np.where(has_match, ~excused, counts[:, :, known])
        return right, counts

    def at(self, area: int, iou: int, num_objects: int) -> "Matches":
        """The matches of one range and overlap, given by their places, for a number of annotations."""
        matched = np.full(len(self.rank), -1)
        matched[self.candidates] = self.matched[area, iou]
        excused = np.zeros(len(self.rank), bool)
        excused[self.candidates] = self.is_excused[area, iou]
        ignored = np.where(matched >= 0, excused, self.is_out[area])
        found_by = np.full(num_objects, -1)
        hits = np.flatnonzero((matched >= 0) & ~ignored)
        found_by[matched[hits]] = hits
        return Matches(self.is_used, ignored, matched, found_by)


@dataclass(frozen=True)
class Matches:
    """The matching at one overlap.

    Args:
        is_used: bool array (D,), False for detections beyond the limit.
        is_ignored: bool array (D,), True for detections that are neither right nor wrong, such as those on a crowd.
        matched: int array (D,), the object each has found; -1 for none.
        found_by: int array (G,), the detection that has found each; -1 for none.
    """

    is_used: np.ndarray
    is_ignored: np.ndarray
    matched: np.ndarray
    found_by: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """Bool array (D,): whether a detection is right or wrong."""
        return self.is_used & ~self.is_ignored

    @property
    def is_right(self) -> np.ndarray:
        """Bool array (D,): whether a detection has found an object."""
        return self.counts & (self.matched >= 0)


def match(truth: Truth, found: Found, overlaps: Overlaps, protocol: Protocol) -> Matching:
    """Match as COCO does.

    Args:
        truth: ground truth.
        found: detections.
        overlaps: at least those from the least overlap of the protocol on.
        protocol: how.

    Returns:
        The matching.
    """
    rank, used = _ranks(found, protocol)
    ranges = np.array(list(protocol.areas.values()))[:, :, None]
    out = (found.area < ranges[:, 0]) | (found.area > ranges[:, 1]) | found.is_partial
    excused = (truth.area < ranges[:, 0]) | (truth.area > ranges[:, 1]) | truth.is_ignored
    thresholds = np.minimum(protocol.ious, _ALMOST_ONE)
    same = found.label[overlaps.detection] == truth.label[overlaps.object]
    pairs = overlaps[same & used[overlaps.detection] & (overlaps.value >= thresholds.min())]
    candidates, which = np.unique(pairs.detection, return_inverse=True)
    matched = _match_by_rank(pairs, rank, which, excused, truth.is_crowd, thresholds, len(candidates))
    place = np.full(len(rank), -1)
    place[candidates] = np.arange(len(candidates))
    order = np.lexsort((rank, found.image, -found.score, found.label))
    order = order[used[order]]
    ends = np.searchsorted(found.label[order], np.arange(len(truth.class_ids) + 1))
    is_excused = np.zeros(matched.shape, bool)
    a, t, c = np.nonzero(matched >= 0)
    is_excused[a, t, c] = excused[a, matched[a, t, c]]
    return Matching(rank, used, out, candidates, matched, is_excused, order, ends, place)


def _ranks(found: Found, protocol: Protocol) -> tuple[np.ndarray, np.ndarray]:
    """Return `rank` and `is_used` of `Matching`."""
    rank = _rank_in_groups(found.score, found.image, found.label)
    if protocol.is_limit_per_class:
        return rank, found.is_searched & (rank < protocol.limit)
    in_image = _rank_in_groups(found.score, found.image, np.zeros(len(rank), np.int64))
    return rank, found.is_searched & (in_image < protocol.limit)


def _rank_in_groups(score: np.ndarray, *groups: np.ndarray) -> np.ndarray:
    """Rank detections by falling score within their groups; of equal scores the first comes first."""
    order = np.lexsort((-score, *groups))
    starts = np.zeros(len(order), np.int64)
    if len(order):
        is_new = np.any([np.diff(g[order], prepend=g[order[0]]) != 0 for g in groups], axis=0)
        starts = np.maximum.accumulate(np.where(is_new, np.arange(len(order)), 0))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - starts
    return rank


def _match_by_rank(
    pairs: Overlaps,
    rank: np.ndarray,
    which: np.ndarray,
    excused: np.ndarray,
    is_crowd: np.ndarray,
    thresholds: np.ndarray,
    num_candidates: int,
) -> np.ndarray:
    """Match detections by rank, in all images and classes at the same time.

    Detections of one rank belong to different images or classes, so their choices are independent. Each takes the free
    object that overlaps most (of equals the last), and an ignored object only if no other overlaps enough.

    Args:
        pairs: N of one class each.
        rank: of each detection.
        which: int array (N,), the detection of each pair as a number below `num_candidates`.
        excused: bool array (A, G), objects that need not be found.
        is_crowd: bool array (G,), objects that are left although they were taken.
        thresholds: T least overlaps.
        num_candidates: C.

    Returns:
        Int array (A, T, C), the objects; -1 for none.
    """
    shape = (len(excused), len(thresholds))
    matched = np.full((*shape, num_candidates), -1, np.int32)
    taken = np.zeros((*shape, excused.shape[1]), bool)
    turns = rank[pairs.detection]
    order = np.lexsort((pairs.object, pairs.detection, turns))
    bounds = np.flatnonzero(np.diff(turns[order], prepend=-1, append=-1))
    for start, stop in pairwise(bounds.tolist()):
        rows = order[start:stop]
        object_, value, chooser = pairs.object[rows], pairs.value[rows], which[rows]
        starts = np.flatnonzero(np.diff(chooser, prepend=-1))
        free = (~taken[:, :, object_] | is_crowd[object_]) & (value >= thresholds[:, None])
        # what need not be found comes after all that must
        wish = np.where(free, np.where(excused[:, object_], value - 2.0, value)[:, None], -np.inf)
        best = np.maximum.reduceat(wish, starts, axis=-1)
        is_best = free & (wish == np.repeat(best, np.diff(starts, append=len(rows)), axis=-1))
        last = np.maximum.reduceat(np.where(is_best, np.arange(len(rows)), -1), starts, axis=-1)
        taking = np.where(last >= 0, object_[last], -1)
        matched[:, :, chooser[starts]] = taking
        a, t, n = np.nonzero(last >= 0)
        taken[a, t, taking[a, t, n]] = True
    return matched
