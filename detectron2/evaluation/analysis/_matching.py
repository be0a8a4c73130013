"""Which detections find which objects, as COCO and LVIS match them.

Letters: `D` detections, `G` annotated objects, `A` ranges of areas, `T` overlap thresholds, `C` detections that overlap
an object of their class, `N` pairs of a detection and an object in one image, `K` classes, `P` keypoints. Boxes are
`(x, y, width, height)` in pixels.

hotcoco matches in the same way (tests/evaluation/analysis/test_against_hotcoco.py) but hands the matches out as Python
lists only (`COCOeval.eval_imgs`): 3.9 s for 49,000 detections of 80 classes, where the whole analysis takes 0.8 s. The
bootstrap, the scores of object parts and the pictures need the match of every detection.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import hotcoco
import numpy as np

from .inputs import Found, Truth


@dataclass(frozen=True)
class Overlaps:
    """N pairs by detection and then by object: both, int arrays (N,), and IoU or OKS, float array (N,).

    With a crowd region the value is the share of the detection that it covers.
    """

    detection: np.ndarray
    object: np.ndarray
    value: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> "Overlaps":
        return Overlaps(self.detection[chosen], self.object[chosen], self.value[chosen])


def find_overlaps(truth: Truth, found: Found, least: float) -> Overlaps:
    """Find all pairs that overlap enough, whatever their classes; detections that were not searched for have none."""
    count = len(truth.image_ids)
    detections = _by_image(np.flatnonzero(found.is_searched), found.image, count)
    objects = _by_image(np.arange(len(truth.objects)), truth.image, count)
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for d, g in zip(detections, objects, strict=True):
        if len(d) and len(g):
            values = _measure(truth, found, d, g)
            rows, columns = np.nonzero(values >= least)
            parts.append((d[rows], g[columns], values[rows, columns]))
    pairs = Overlaps(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    return pairs[np.lexsort((pairs.object, pairs.detection))]


def _by_image(rows: np.ndarray, image: np.ndarray, num_images: int) -> list[np.ndarray]:
    rows = rows[np.argsort(image[rows], kind="stable")]
    return np.split(rows, np.searchsorted(image[rows], np.arange(1, num_images)))


def _measure(truth: Truth, found: Found, d: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Return the overlaps of detections and objects of one image; float array (len(d), len(g))."""
    if truth.iou_type == "keypoints":
        similar, counts = keypoint_similarity(truth, found, np.repeat(d, len(g)), np.tile(g, len(d)))
        return (similar.sum(1) / np.maximum(counts.sum(1), 1)).reshape(len(d), len(g))
    if truth.iou_type == "segm":
        masks = [found.masks[i] for i in d], [truth.masks[i] for i in g]
        return hotcoco.primitives.mask_iou(*masks, truth.is_crowd[g])
    return hotcoco.primitives.bbox_iou(found.box_xywh[d], truth.box_xywh[g], truth.is_crowd[g])


def keypoint_similarity(
    truth: Truth, found: Found, detection: np.ndarray, object_: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compare keypoints one by one (http://cocodataset.org/#keypoints-eval), for N pairs.

    Where an object has no labelled keypoints, those of the detection are compared with a region of three times the
    object's width and height. The result is similarity (N, P), from 0 to 1, 0 where a keypoint does not count, and
    whether it counts, bool (N, P); the mean over those that count is the OKS.
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


COCO_IOUS = tuple(np.linspace(0.5, 0.95, 10).tolist())
# Square pixels, both ends belong to the range.
_AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
_LIMITS = {"bbox": 100, "segm": 100, "keypoints": 20}  # of an image and class
_LVIS_LIMIT = 300  # of an image
_ALMOST_ONE = 1 - 1e-10  # an IoU of 1 comes out a little less


def areas_of(truth: Truth) -> dict[str, tuple[float, float]]:
    """Return the A ranges of areas of a task, the first with everything; COCO has no small persons with keypoints."""
    return {name: ends for name, ends in _AREAS.items() if not (truth.iou_type == "keypoints" and name == "small")}


def is_outside(area: np.ndarray, truth: Truth) -> np.ndarray:
    """Mark areas, float array (n,), that are out of each range; bool array (A, n)."""
    ends = np.array(list(areas_of(truth).values()))
    return (area < ends[:, :1]) | (area > ends[:, 1:])


@dataclass(frozen=True)
class Matching:
    """COCO's matching: best score first, within the class, the best of each image and class.

    Args:
        rank: int array (D,), place among the detections of its image and class, by falling score.
        is_used: bool array (D,), False beyond the limit and where the class was not searched for.
        right: bool array (A, T, D): has found an object.
        counted: bool array (A, T, D): right or wrong, but not, for example, on a crowd.
        matched: int array (D,), the object that each has found, of any area at the last overlap; -1 for none.
        found_by: int array (G,), the detection that has found each; -1 for none.
        order: int array of the detections that are used, by class, then by falling score.
        ends: int array (K + 1,), where the classes begin and end in it.
    """

    rank: np.ndarray
    is_used: np.ndarray
    right: np.ndarray
    counted: np.ndarray
    matched: np.ndarray
    found_by: np.ndarray
    order: np.ndarray
    ends: np.ndarray

    @property
    def is_right(self) -> np.ndarray:
        """Bool array (D,): has found an object of any area at the last overlap."""
        return self.right[0, -1]

    @property
    def is_counted(self) -> np.ndarray:
        """Bool array (D,): right or wrong in the same sense."""
        return self.counted[0, -1]

    def of_class(self, label: int) -> np.ndarray:
        """Return the used detections of a class by falling score; int array."""
        return self.order[self.ends[label] : self.ends[label + 1]]


def match(truth: Truth, found: Found, overlaps: Overlaps, ious: Sequence[float]) -> Matching:
    """Match as COCO or LVIS does, at T overlaps; the pairs are at least those from the least of them on."""
    rank, used = _ranks(truth, found)
    thresholds = np.minimum(ious, _ALMOST_ONE)
    excused = is_outside(truth.area, truth) | truth.is_ignored
    same = found.label[overlaps.detection] == truth.label[overlaps.object]
    pairs = overlaps[same & used[overlaps.detection] & (overlaps.value >= thresholds.min())]
    candidates, which = np.unique(pairs.detection, return_inverse=True)
    objects = _match_by_rank(pairs, rank, which, excused, truth.is_crowd, thresholds, len(candidates))
    is_hit = objects >= 0
    a, t, c = np.nonzero(is_hit)
    is_hit[a, t, c] = ~excused[a, objects[a, t, c]]
    # without a match neither right nor wrong: of another area, or not all objects of its class are annotated
    counted = used & ~(is_outside(found.area, truth) | found.is_partial)
    counted = np.repeat(counted[:, None], len(thresholds), axis=1)
    counted[:, :, candidates] = np.where(objects >= 0, is_hit, counted[:, :, candidates])
    right = np.zeros(counted.shape, bool)
    right[:, :, candidates] = is_hit
    matched, found_by = np.full(len(rank), -1), np.full(len(truth.objects), -1)
    matched[candidates] = np.where(is_hit[0, -1], objects[0, -1], -1)
    hits = np.flatnonzero(matched >= 0)
    found_by[matched[hits]] = hits
    order = np.lexsort((rank, found.image, -found.score, found.label))
    order = order[used[order]]
    ends = np.searchsorted(found.label[order], np.arange(len(truth.class_ids) + 1))
    return Matching(rank, used, right, counted, matched, found_by, order, ends)


def _ranks(truth: Truth, found: Found) -> tuple[np.ndarray, np.ndarray]:
    """Return `rank` and `is_used` of `Matching`."""
    rank = _rank_in_groups(found.score, found.image, found.label)
    if truth.is_searched is None:
        return rank, rank < _LIMITS[truth.iou_type]
    return rank, found.is_searched & (_rank_in_groups(found.score, found.image) < _LVIS_LIMIT)


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
    """Match by rank, in all images and classes at once: int array (A, T, C) of objects or -1; of equals the last."""
    # Detections of one rank belong to different images or classes, so their choices are independent.
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
