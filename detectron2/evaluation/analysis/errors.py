"""Types of errors, and which class is taken for which.

Letters: `D` detections, `G` annotated objects, `K` classes, `N` pairs of a detection and an object.

`hotcoco.COCOeval.tide_errors` gives the same counts and AP won for all classes, but not for keypoints
(tests/evaluation/analysis/test_against_hotcoco.py); it does not say which detection has which error, which the pictures
show, nor the errors of each class. `hotcoco.COCOeval.confusion_matrix` lets detections choose by falling score whatever
their class, so that an object can count as confused there that the average precision counts as found.
"""

import math
from dataclasses import dataclass

import numpy as np

from ._averages import mean_defined
from ._matching import Matching, Overlaps
from ._scores import precision_curve
from .inputs import Found, Truth

__all__ = ["BACKGROUND_IOU", "ERROR_NAMES", "ErrorType", "count_confusion", "count_errors", "find_errors"]

BACKGROUND_IOU = 0.1
"""A detection that overlaps every object less than this lies on background."""
ERROR_NAMES = ("classification", "localization", "both", "duplicate", "background", "missed")
"""The types of errors; `missed` is of objects, the others are of detections."""
_CLASS, _PLACE, _BOTH, _AGAIN, _NOTHING, _MISSED = range(len(ERROR_NAMES))


@dataclass(frozen=True)
class ErrorType:
    """One of the errors of TIDE (Bolya et al., arXiv:2008.08115, section 2).

    Args:
        count: how often.
        delta_ap: how much AP (at the IoU threshold of the analysis) would rise if only these were corrected; NaN where
            there are no objects at all.

    Example:
        >>> ErrorType(count=3, delta_ap=0.021)
        ErrorType(count=3, delta_ap=0.021)
    """

    count: int
    delta_ap: float


def find_errors(
    truth: Truth, found: Found, overlaps: Overlaps, matching: Matching, iou: float
) -> tuple[np.ndarray, np.ndarray]:
    """Assign each wrong detection to one type, at the IoU from which on a detection finds an object.

    Where several fit, the order is localization, classification, duplicate, background; the rest is both, as in the
    authors' program. The result is the place in `ERROR_NAMES`, -1 for what is right or does not count, and the object
    that was meant by a wrong class or place, -1 for none: int arrays (D,).
    """
    count = len(found.score)
    wrong = matching.is_counted & ~matching.is_right
    pairs = overlaps[wrong[overlaps.detection] & ~truth.is_ignored[overlaps.object]]
    same = found.label[pairs.detection] == truth.label[pairs.object]
    own, own_object = _best(pairs[same], count)
    other, other_object = _best(pairs[~same], count)
    fits = {
        _PLACE: (own >= BACKGROUND_IOU) & (own < iou),
        _CLASS: other >= iou,
        _AGAIN: own >= iou,
        _NOTHING: np.maximum(own, other) < BACKGROUND_IOU,
    }
    kind = np.where(wrong, np.select(list(fits.values()), list(fits), _BOTH), -1)
    return kind, np.select([kind == _PLACE, kind == _CLASS], [own_object, other_object], -1)


def _best(pairs: Overlaps, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the greatest overlap of each of `count` detections (0 for none) and its object (-1 for none)."""
    value, object_ = np.zeros(count), np.full(count, -1)
    order = np.lexsort((-pairs.object, pairs.value))  # the last that is written stays; of equals the first object
    value[pairs.detection[order]] = pairs.value[order]
    object_[pairs.detection[order]] = pairs.object[order]
    return value, object_


def count_errors(
    truth: Truth, found: Found, matching: Matching, kind: np.ndarray, target: np.ndarray
) -> tuple[dict[str, ErrorType], list[dict[str, ErrorType]], dict[str, float]]:
    """Count errors, and find what AP would be without each type.

    An object is missed if nothing has found it and no detection with the wrong class or place was meant for it. The
    result is the errors of all classes; of each class, which are wrong detections of it and its objects that were
    missed; and by how much AP would rise without any `"false positives"` or `"false negatives"`.
    """
    num_classes, is_error = len(truth.class_ids), kind >= 0
    is_missed = ~truth.is_ignored & (matching.found_by < 0)
    is_missed[target[target >= 0]] = False
    missed = np.bincount(truth.label[is_missed], minlength=num_classes)
    counts = np.zeros((len(ERROR_NAMES), num_classes), np.int64)
    np.add.at(counts, (kind[is_error], found.label[is_error]), 1)
    counts[_MISSED] = missed
    known = np.flatnonzero(truth.objects_per_class)
    base, *corrected = (
        _class_ap(*case, known, num_classes) for case in _corrections(truth, found, matching, kind, target, missed)
    )
    gains = [ap - base for ap in corrected]
    types = [
        {n: ErrorType(int(c[k]), float(g[k])) for n, c, g in zip(ERROR_NAMES, counts, gains, strict=False)}
        for k in range(num_classes)
    ]
    means = [float(mean_defined(ap) - mean_defined(base)) for ap in corrected]
    total = {n: ErrorType(int(c.sum()), m) for n, c, m in zip(ERROR_NAMES, counts, means, strict=False)}
    return total, types, {"false positives": means[-2], "false negatives": means[-1]}


_Case = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _corrections(
    truth: Truth, found: Found, matching: Matching, kind: np.ndarray, target: np.ndarray, missed: np.ndarray
) -> list[_Case]:
    """Return scores, labels, rightness (best first) and numbers of objects: as they are, and with each correction."""
    order = np.lexsort((found.image, -found.score))
    order = order[matching.is_counted[order]]
    score, label, right, kind, target = (
        column[order] for column in (found.score, found.label, matching.is_right, kind, target)
    )
    objects = truth.objects_per_class
    cases: list[_Case] = [(score, label, right, objects)]
    meant = np.flatnonzero(target >= 0)
    meant = meant[matching.found_by[target[meant]] < 0]
    is_first = np.zeros(len(order), bool)  # of all that were meant for one object the best is corrected, the others go
    is_first[meant[np.unique(target[meant], return_index=True)[1]]] = True
    for error in range(_MISSED):
        is_this = kind == error
        fixed = is_this & is_first  # only those with the wrong class or place were meant for an object
        kept = ~is_this | fixed
        new_label = np.where(fixed, np.append(truth.label, -1)[target], label)
        cases.append((score[kept], new_label[kept], (right | fixed)[kept], objects))
    found_objects = np.bincount(truth.label[matching.found_by >= 0], minlength=len(objects))
    return [
        *cases,
        (score, label, right, objects - missed),
        (score[right], label[right], right[right], objects),
        (score, label, right, found_objects),
    ]


def _class_ap(
    score: np.ndarray, label: np.ndarray, right: np.ndarray, objects: np.ndarray, known: np.ndarray, num_classes: int
) -> np.ndarray:
    """Return the AP of each class at one overlap, from detections by falling score; NaN for classes without objects."""
    order = np.argsort(label, kind="stable")
    ends = np.searchsorted(label[order], np.arange(num_classes + 1))
    ap = np.full(num_classes, math.nan)
    for k in known.tolist():
        rows = order[ends[k] : ends[k + 1]]
        if objects[k]:
            ap[k] = precision_curve(score[rows], right[rows], int(objects[k])).mean()
        elif len(rows):  # all objects are gone, and wrong detections left
            ap[k] = 0.0
    return ap


def count_confusion(
    truth: Truth, found: Found, overlaps: Overlaps, matching: Matching, iou: float, threshold: float
) -> np.ndarray:
    """Count which class was predicted for which, from a score threshold on.

    Right detections, which are those of precision and recall, stand on the diagonal. The other detections that count
    are paired with the other objects one to one by falling overlap; what is left has the background as its partner. So
    each object is counted once in its row and each detection once in its column: int array (K + 1, K + 1), rows are
    true classes, columns predicted ones, last the background.
    """
    size = len(truth.class_ids) + 1
    counts = np.zeros((size, size), np.int64)
    shown = found.score >= threshold
    right, wrong = shown & matching.is_right, shown & matching.is_counted & ~matching.is_right
    missed = ~truth.is_ignored
    missed[matching.matched[right]] = False
    np.add.at(counts, (found.label[right], found.label[right]), 1)
    pairs = overlaps[wrong[overlaps.detection] & missed[overlaps.object] & (overlaps.value >= iou)]
    pairs = pairs[np.lexsort((pairs.object, pairs.detection, -pairs.value))]
    for d, g in zip(pairs.detection.tolist(), pairs.object.tolist(), strict=True):
        if wrong[d] and missed[g]:
            wrong[d] = missed[g] = False
            counts[truth.label[g], found.label[d]] += 1
    counts[:-1, -1] = np.bincount(truth.label[missed], minlength=size - 1)
    counts[-1, :-1] = np.bincount(found.label[wrong], minlength=size - 1)
    return counts
