"""Types of errors, and which class is taken for which.

Letters: `D` detections, `G` annotated objects, `K` classes, `N` pairs of a detection and an object.

`hotcoco.COCOeval.tide_errors` gives the same counts and AP won for all classes, but not for keypoints
(tests/evaluation/analysis/test_against_hotcoco.py); it does not say which detection has which error, which the pictures
show, nor the errors of each class. `hotcoco.COCOeval.confusion_matrix` lets detections choose by falling score, and so
counts a detection of the wrong class before a better placed one of the right class; here pairs are formed by falling
overlap.
"""

import math
from dataclasses import dataclass

import numpy as np

from ._matching import Matches, Overlaps
from ._scores import mean_defined, precision_curve
from .inputs import Found, Truth

__all__ = [
    "BACKGROUND_IOU",
    "ERROR_NAMES",
    "ErrorType",
    "Errors",
    "count_confusion",
    "count_errors",
    "find_errors",
]

BACKGROUND_IOU = 0.1
ERROR_NAMES = ("classification", "localization", "both", "duplicate", "background", "missed")
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


@dataclass(frozen=True)
class Errors:
    """What is wrong with each detection, and with each object.

    Args:
        kind: int array (D,), place in `ERROR_NAMES`; -1 for what is right or does not count.
        target: int array (D,), the object that was meant; -1 for none.
        is_missed: bool array (G,): not found, and no detection with the wrong class or place was meant for it.
    """

    kind: np.ndarray
    target: np.ndarray
    is_missed: np.ndarray


def find_errors(truth: Truth, found: Found, overlaps: Overlaps, matches: Matches, iou: float) -> Errors:
    """Assign each wrong detection to one type.

    Where several fit, the order is localization, classification, duplicate, background; the rest is both, as in the
    authors' program.

    Args:
        truth: ground truth.
        found: detections.
        overlaps: all pairs from `BACKGROUND_IOU` on.
        matches: at an overlap.
        iou: that overlap.

    Returns:
        The errors.
    """
    count = len(found.score)
    wrong = matches.counts & (matches.matched < 0)
    pairs = overlaps[wrong[overlaps.detection] & ~truth.is_ignored[overlaps.object]]
    same = found.label[pairs.detection] == truth.label[pairs.object]
    own, own_object = _best(pairs[same], count)
    other, other_object = _best(pairs[~same], count)
    fits = [
        ((own >= BACKGROUND_IOU) & (own < iou), _PLACE),
        (other >= iou, _CLASS),
        (own >= iou, _AGAIN),
        (np.maximum(own, other) < BACKGROUND_IOU, _NOTHING),
    ]
    kind = np.select([f for f, _ in fits], [k for _, k in fits], _BOTH)
    kind[~wrong] = -1
    target = np.select([kind == _PLACE, kind == _CLASS], [own_object, other_object], -1)
    is_missed = ~truth.is_ignored & (matches.found_by < 0)
    is_missed[target[target >= 0]] = False
    return Errors(kind, target, is_missed)


def _best(pairs: Overlaps, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the greatest overlap of each of `count` detections (0 for none) and its object (-1 for none)."""
    value, object_ = np.zeros(count), np.full(count, -1)
    order = np.lexsort((-pairs.object, pairs.value))  # the last that is written stays; of equals the first object
    value[pairs.detection[order]] = pairs.value[order]
    object_[pairs.detection[order]] = pairs.object[order]
    return value, object_


def count_errors(
    truth: Truth, found: Found, matches: Matches, errors: Errors
) -> tuple[dict[str, ErrorType], list[dict[str, ErrorType]], dict[str, float]]:
    """Count errors, and find what AP would be without each type.

    Args:
        truth: ground truth.
        found: detections.
        matches: with it.
        errors: of them.

    Returns:
        The errors of all classes; of each class: wrong detections of it, and its objects that were missed; and by how
        much AP would rise without any `"false positives"` or `"false negatives"`.
    """
    num_classes = len(truth.class_ids)
    counts = np.zeros((len(ERROR_NAMES), num_classes), np.int64)
    is_error = errors.kind >= 0
    np.add.at(counts, (errors.kind[is_error], found.label[is_error]), 1)
    counts[_MISSED] = np.bincount(truth.label[errors.is_missed], minlength=num_classes)
    corrections = _corrections(truth, found, matches, errors)
    known = np.flatnonzero(truth.objects_per_class)
    base, *corrected = (_class_ap(*c, known, num_classes) for c in corrections)
    gains = [ap - base for ap in corrected]
    types = [
        {n: ErrorType(int(c[k]), float(g[k])) for n, c, g in zip(ERROR_NAMES, counts, gains, strict=False)}
        for k in range(num_classes)
    ]
    means = [mean_defined(ap) - mean_defined(base) for ap in corrected]
    total = {n: ErrorType(int(c.sum()), m) for n, c, m in zip(ERROR_NAMES, counts, means, strict=False)}
    return total, types, {"false positives": means[-2], "false negatives": means[-1]}


_Case = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _corrections(truth: Truth, found: Found, matches: Matches, errors: Errors) -> list[_Case]:
    """Scores, labels and rightness of detections, best first, and the number of objects of each class.

    As they are, with each type of error corrected, without wrong detections, and without objects that were not found.
    """
    order = np.lexsort((found.image, -found.score))
    order = order[matches.counts[order]]
    score, label, right, kind = found.score[order], found.label[order], matches.is_right[order], errors.kind[order]
    objects = truth.objects_per_class
    target = errors.target[order]
    cases: list[_Case] = [(score, label, right, objects)]
    is_open = target >= 0
    is_open[is_open] = matches.found_by[target[is_open]] < 0
    is_first = _is_first(target, is_open)
    for error in range(len(ERROR_NAMES) - 1):
        is_this = kind == error
        kept, fixed = ~is_this, np.zeros(len(order), bool)
        if error in (_CLASS, _PLACE):
            fixed = is_this & is_first  # of all that were meant for one object the others go
            kept = kept | fixed
        new_label = np.where(fixed, truth.label[target], label) if len(truth.label) else label
        cases.append((score[kept], new_label[kept], (right | fixed)[kept], objects))
    missed = np.bincount(truth.label[errors.is_missed], minlength=len(objects))
    cases.append((score, label, right, objects - missed))
    cases.append((score[right], label[right], right[right], objects))
    found_objects = np.bincount(truth.label[matches.found_by >= 0], minlength=len(objects))
    return [*cases, (score, label, right, found_objects)]


def _is_first(target: np.ndarray, is_open: np.ndarray) -> np.ndarray:
    """Mark the best open detection of each object; detections come best first; bool array."""
    places = np.flatnonzero(is_open)
    first = np.zeros(len(target), bool)
    first[places[np.unique(target[places], return_index=True)[1]]] = True
    return first


def _class_ap(
    score: np.ndarray, label: np.ndarray, right: np.ndarray, objects: np.ndarray, known: np.ndarray, num_classes: int
) -> np.ndarray:
    """Return the AP of each class at one overlap, from detections by falling score; NaN for classes without objects.

    A class that has lost all its objects has none either, unless detections are left, which are wrong.
    """
    order = np.argsort(label, kind="stable")
    ends = np.searchsorted(label[order], np.arange(num_classes + 1))
    ap = np.full(num_classes, math.nan)
    for k in known.tolist():
        rows = order[ends[k] : ends[k + 1]]
        if objects[k]:
            ap[k] = precision_curve(score[rows], right[rows], int(objects[k])).mean()
        elif len(rows):
            ap[k] = 0.0
    return ap


def count_confusion(
    truth: Truth, found: Found, overlaps: Overlaps, iou: float, score_threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Find which class was predicted for which, whatever the class.

    Pairs are formed one to one by falling IoU, those of the same class first among equals. Detections on crowd regions
    that find no object do not count.

    Args:
        truth: ground truth.
        found: detections.
        overlaps: all pairs from `iou` on.
        iou: the least of a pair.
        score_threshold: the least score of a detection.

    Returns:
        True classes and predicted classes, int arrays of one length with a place for each pair, missed object and
        detection of nothing; K is the background.
    """
    background = len(truth.class_ids)
    is_shown = (found.score >= score_threshold) & found.is_searched
    pairs = overlaps[is_shown[overlaps.detection] & (overlaps.value >= iou)]
    ignored = truth.is_ignored[pairs.object]
    is_excused = found.is_partial.copy()
    is_excused[pairs.detection[ignored]] = True
    pairs = pairs[~ignored]
    same = found.label[pairs.detection] == truth.label[pairs.object]
    d, g = _one_to_one(pairs[np.lexsort((pairs.object, pairs.detection, ~same, -pairs.value))])
    is_missed, is_wrong = ~truth.is_ignored, is_shown & ~is_excused
    is_missed[g] = False
    is_wrong[d] = False
    missed, wrong = truth.label[is_missed], found.label[is_wrong]
    true = [truth.label[g], missed, np.full(len(wrong), background)]
    predicted = [found.label[d], np.full(len(missed), background), wrong]
    return np.concatenate(true), np.concatenate(predicted)


def _one_to_one(pairs: Overlaps) -> tuple[np.ndarray, np.ndarray]:
    """Pair greedily: the first pair takes both its members, then the first of the remaining pairs, and so on."""
    detections, objects = pairs.detection, pairs.object
    taken: list[tuple[np.ndarray, np.ndarray]] = [(detections[:0], objects[:0])]
    while len(detections):
        # A pair that comes first for both its members is taken whatever the others do.
        first = np.intersect1d(
            np.unique(detections, return_index=True)[1], np.unique(objects, return_index=True)[1], assume_unique=True
        )
        taken.append((detections[first], objects[first]))
        rest = ~(np.isin(detections, detections[first]) | np.isin(objects, objects[first]))
        detections, objects = detections[rest], objects[rest]
    return np.concatenate([t[0] for t in taken]), np.concatenate([t[1] for t in taken])
