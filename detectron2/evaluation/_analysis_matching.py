"""Which detections find which objects, for :mod:`detectron2.evaluation.analysis`.

Letters: ``D`` detections, ``G`` annotated objects, ``I`` images, ``K`` classes, ``T`` IoUs, ``P`` pairs of a
detection and an object.
"""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hotcoco
import numpy as np
from pycocotools import mask as mask_util

from ._analysis_inputs import Found, Truth

_EVERYTHING = [0.0, 1e10]


@dataclass(frozen=True)
class Matches:
    """COCO's matching at one IoU: best score first, within the class, the 100 best of each image and class.

    Args:
        is_used: bool array (D,), False for detections beyond the 100 best.
        is_ignored: bool array (D,), True for detections that are neither right nor wrong: on a crowd region.
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


def in_coco_order(chosen: np.ndarray, found: Found) -> np.ndarray:
    """-> positions of the detections that are chosen (bool array (D,)), by image: COCO's order of equal scores."""
    order = np.argsort(found.image, kind="stable")
    return order[chosen[order]]


def build_engine(truth: Truth, found: Found, ious: Sequence[float] | None = None) -> hotcoco.COCOeval:
    """Match, at COCO's IoUs and for all its area ranges, or at others.

    Args:
        truth: ground truth.
        found: detections; their ids are their positions + 1.
        ious: the IoUs, without area ranges; None for those of COCO.

    Returns:
        The engine, on which ``evaluate`` has run.
    """
    content = {
        "images": [{**truth.api.imgs[i], "id": n} for n, i in enumerate(truth.image_ids)],
        "categories": [{"id": n + 1, "name": name} for n, name in enumerate(truth.class_names)],
        "annotations": [
            {**a, "id": g + 1, "image_id": int(image), "category_id": int(label) + 1}
            for g, (a, image, label) in enumerate(zip(truth.objects, truth.image, truth.label, strict=True))
        ],
    }
    geometry = "bbox" if truth.iou_type == "bbox" else "segmentation"  # a box would give the masks the wrong area
    rows = [
        {"image_id": int(image), "category_id": int(label) + 1, "score": float(score), geometry: result[geometry]}
        for result, image, label, score in zip(found.results, found.image, found.label, found.score, strict=True)
    ]
    data = hotcoco.COCO(content)
    engine: Any = hotcoco.COCOeval(data, data.load_res(rows), truth.iou_type)
    engine.params.imgIds = list(range(len(truth.image_ids)))
    engine.params.catIds = list(range(1, len(truth.class_ids) + 1))
    if ious is not None:
        engine.params.iouThrs = list(ious)
        engine.params.areaRng, engine.params.areaRngLbl = [_EVERYTHING], ["all"]
    with contextlib.redirect_stdout(io.StringIO()):
        engine.evaluate()
    return engine


def match(truth: Truth, found: Found, iou: float) -> Matches:
    """Match at one IoU.

    Args:
        truth: ground truth.
        found: detections.
        iou: from which on a detection finds an object.

    Returns:
        The matches.
    """
    used, (ignored,), (matched,) = match_at(truth, found, [iou])
    found_by = np.full(len(truth.objects), -1)
    hits = np.flatnonzero((matched >= 0) & ~ignored)
    found_by[matched[hits]] = hits
    return Matches(used, ignored, matched, found_by)


def match_at(truth: Truth, found: Found, ious: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match at several IoUs.

    Args:
        truth: ground truth.
        found: detections.
        ious: T of them.

    Returns:
        ``is_used`` (bool array (D,)), ``is_ignored`` (bool array (T, D)) and ``matched`` (int array (T, D)) of
        :class:`Matches`.
    """
    used, ignored = np.zeros(len(found.score), bool), np.zeros((len(ious), len(found.score)), bool)
    matched = np.full(ignored.shape, -1)
    for entry in build_engine(truth, found, ious).eval_imgs:
        if entry is None or not entry["dtIds"]:
            continue
        rows = np.asarray(entry["dtIds"]) - 1
        used[rows] = True
        ignored[:, rows] = entry["dtIgnore"]
        matched[:, rows] = np.asarray(entry["dtMatches"], np.int64) - 1
    return used, ignored, matched


def confusion_matrix(truth: Truth, found: Found, iou: float, score_threshold: float) -> np.ndarray:
    """Count which class was predicted for which, whatever the class.

    Pairs are formed one to one by falling IoU, those of the same class first among equals. Detections on crowd regions
    that find no object do not count.

    Args:
        truth: ground truth.
        found: detections.
        iou: the least of a pair.
        score_threshold: the least score of a detection.

    Returns:
        Int array (K + 1, K + 1): rows are true classes, columns predicted ones, the last of both is the background.
    """
    count = len(truth.class_ids)
    chosen = np.flatnonzero(found.score >= score_threshold)
    detections, objects, ious = _overlaps(truth, found, chosen, iou)
    on_crowd = truth.is_crowd[objects]
    in_crowd = np.unique(detections[on_crowd])
    detections, objects, ious = detections[~on_crowd], objects[~on_crowd], ious[~on_crowd]
    same = found.label[detections] == truth.label[objects]
    order = np.lexsort((objects, detections, ~same, -ious))
    d, g = _one_to_one(detections[order], objects[order])
    rows, columns = [truth.label[g]], [found.label[d]]
    missed = np.setdiff1d(np.flatnonzero(~truth.is_crowd), g)
    rows, columns = [*rows, truth.label[missed]], [*columns, np.full(len(missed), count)]
    wrong = np.setdiff1d(chosen, np.union1d(d, in_crowd))
    rows, columns = [*rows, np.full(len(wrong), count)], [*columns, found.label[wrong]]
    cells = np.concatenate(rows) * (count + 1) + np.concatenate(columns)
    return np.bincount(cells, minlength=(count + 1) ** 2).reshape(count + 1, count + 1)


def _one_to_one(detections: np.ndarray, objects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """-> the pairs that remain when the first takes both its members, then the first of the rest, and so on."""
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


def _overlaps(truth: Truth, found: Found, chosen: np.ndarray, iou: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """-> (P,) detections, (P,) objects, (P,) IoUs of all pairs in one image that overlap enough."""
    by_image, starts = _grouped(found.image[chosen], len(truth.image_ids))
    objects_by_image, object_starts = _grouped(truth.image, len(truth.image_ids))
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for image in np.intersect1d(found.image[chosen], truth.image):
        d = chosen[by_image[starts[image] : starts[image + 1]]]
        g = objects_by_image[object_starts[image] : object_starts[image + 1]]
        ious = mask_util.iou(
            _geometry([found.results[i] for i in d], truth),
            _geometry([truth.objects[i] for i in g], truth),
            truth.is_crowd[g].astype(np.uint8).tolist(),
        )
        rows, columns = np.nonzero(np.asarray(ious) >= iou)
        parts.append((d[rows], g[columns], np.asarray(ious)[rows, columns]))
    detections, objects, values = (np.concatenate(p) for p in zip(*parts, strict=True))
    return detections, objects, values


def _grouped(groups: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """-> positions sorted by group, and where each of the groups begins among them (and the last ends)."""
    return np.argsort(groups, kind="stable"), np.concatenate([[0], np.cumsum(np.bincount(groups, minlength=count))])


def _geometry(entries: Sequence[dict[str, Any]], truth: Truth) -> Any:
    if truth.iou_type == "bbox":
        return np.array([e["bbox"] for e in entries], float)
    return [truth.api.annToRLE(e) for e in entries]
