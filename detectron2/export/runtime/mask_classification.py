"""From classes and masks of queries to semantic, instance and panoptic results, with NumPy.

Letters: `Q` queries, `K` classes, `R` queries that have a part in a result, `h`, `w` height and width of a mask in
cells, `H`, `W` those of the original image in pixels.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .resizing import labels_of, linear_weights

__all__ = ["results_of_queries"]

_NUMBERS_AT_ONCE = 1 << 23  # of enlarged masks that are in memory together

Size = tuple[int, int]


def results_of_queries(
    scores: np.ndarray,
    logits: np.ndarray,
    rules: Mapping[str, Any],
    sizes: Sequence[Size],
    threshold: float = 0.0,
    limit: int | None = None,
) -> dict[str, Any]:
    """Make of the queries of an image the results that its model is configured for.

    Args:
        scores: probabilities of classes `[Q, K + 1]`, of which the last is "no object".
        logits: of masks, `[Q, h, w]`.
        rules: what `model.json` says of "mask_classification".
        sizes: three times `(height, width)` in pixels: of the padded input, which the masks cover; of the image in it;
            and of the original image.
        threshold: instances have a higher score.
        limit: the most instances; None for no limit.

    Returns:
        Results as `postprocess` gives them.
    """
    scores, masks = scores.astype(np.float32), _Masks(logits.astype(np.float32), *sizes)
    result: dict[str, Any] = {}
    if rules["instances"]:
        result = _instances_of(scores, masks, rules["instances"], threshold, limit)
    if rules["semantic"]:
        result["sem_seg"] = _labels_of_queries(scores, masks, rules["semantic"])
    if rules["panoptic"]:
        result["panoptic"], result["segments"] = _panoptic_of(scores, masks, rules["panoptic"])
    return result


class _Masks:
    """Logits of masks, enlarged as the model does it: to the padded input, and what the image fills to its size."""

    def __init__(self, logits: np.ndarray, padded: Size, image: Size, original: Size):
        self.logits, self.size, self._image = logits, original, image
        cells = zip(logits.shape[1:], padded, image, strict=True)
        self._to_image = [linear_weights(n, whole)[:part] for n, whole, part in cells]

    def of_query(self, row: int) -> np.ndarray:
        """Logits `[H, W]` of one query."""
        ((_, logits),) = self.bands([row], self.size, at_once=1 << 62)
        return logits[0]

    def bands(
        self, rows: Any, size: Size | None = None, at_once: int = _NUMBERS_AT_ONCE
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Logits `[R, rows, W]` of some queries, a band of rows after the other, at a size or that of the image."""
        axes = zip(self._to_image, self._image, size or self._image, strict=True)
        vertical, horizontal = (w if old == new else linear_weights(old, new) @ w for w, old, new in axes)
        maps = self.logits[rows]
        step = max(1, at_once // max(1, len(maps) * len(horizontal)))
        for start in range(0, len(vertical), step):
            band = slice(start, min(start + step, len(vertical)))
            yield band, vertical[band] @ maps @ horizontal.T


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return (1 + np.tanh(x / 2)) / 2


def _instances_of(
    scores: np.ndarray, masks: _Masks, options: Mapping[str, Any], threshold: float, limit: int | None
) -> dict[str, np.ndarray]:
    """The best pairs of a query and a class; the score is that of the class times the mean one of the mask's pixels."""
    candidates = np.array(options["classes"], np.int64)
    of_class = scores[:, candidates]
    if options["one_for_each_query"]:
        rows, columns = np.arange(len(scores)), of_class.argmax(axis=1)
    else:
        best = np.argsort(-of_class, axis=None, kind="stable")[: options["candidates"] or len(scores)]
        rows, columns = np.divmod(best, len(candidates))
    found, classes = of_class[rows, columns], candidates[columns]
    possible = np.isin(classes, options["kept_classes"]) & (found > threshold)  # no mask makes a score higher
    rows, found, classes = rows[possible], found[possible], classes[possible]
    queries, which = np.unique(rows, return_inverse=True)
    bits = np.zeros((len(queries), *masks.size), np.bool_)
    boxes, sureness = np.zeros((len(queries), 4), np.float32), np.zeros(len(queries), np.float32)
    for i, query in enumerate(queries):
        logits = masks.of_query(query)
        bits[i] = logits > 0
        inside = logits[bits[i]]
        if len(inside):
            y, x = (np.flatnonzero(bits[i].any(axis=axis)) for axis in (1, 0))
            boxes[i] = x[0], y[0], x[-1] + 1, y[-1] + 1
            sureness[i] = _sigmoid(inside).sum(dtype=np.float64) / (len(inside) + 1e-6)
    found = found * sureness[which]
    order = np.argsort(-found, kind="stable")
    order = order[(sureness[which] > 0)[order] & (found > threshold)[order]][:limit]
    which = which[order]
    return {"boxes": boxes[which], "scores": found[order], "classes": classes[order], "masks": bits[which]}


def _labels_of_queries(scores: np.ndarray, masks: _Masks, options: Mapping[str, Any]) -> np.ndarray:
    """For each pixel the class with the highest sum over queries of the probabilities of class and mask."""
    weights = np.ascontiguousarray(scores[:, :-1].T)
    things = options["merged_things"]  # the first classes, which count as one

    def of_classes(logits: np.ndarray) -> np.ndarray:
        found = np.tensordot(weights, _sigmoid(logits), 1)
        return np.concatenate([found[:things].max(axis=0, keepdims=True), found[things:]]) if things else found

    everyone = slice(None)
    if options["enlarge"] == "scores":
        return labels_of(np.concatenate([of_classes(x) for _, x in masks.bands(everyone)], axis=1), masks.size)
    parts = [of_classes(x).argmax(axis=0) for _, x in masks.bands(everyone, masks.size)]
    return np.concatenate(parts).astype(np.int32)


def _panoptic_of(
    scores: np.ndarray, masks: _Masks, options: Mapping[str, Any]
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Give each pixel to the query that is surest of it, and merge the stuff of a class."""
    best, classes = scores.max(axis=1), scores.argmax(axis=1)
    kept = np.flatnonzero((classes < scores.shape[1] - 1) & (best > options["object_threshold"]))
    panoptic, segments = np.zeros(masks.size, np.int32), []
    if not len(kept):
        return panoptic, segments
    best, classes = best[kept], classes[kept].tolist()
    owner, mine = np.zeros(masks.size, np.int64), np.zeros(masks.size, np.bool_)
    whole_area = np.zeros(len(kept), np.int64)
    for band, logits in masks.bands(kept, masks.size):
        of_masks = _sigmoid(logits)
        weighted = of_masks * best[:, None, None]
        owner[band] = weighted.argmax(axis=0)
        whole = (of_masks if options["whole"] == "mask" else weighted) >= 0.5
        whole_area += whole.sum(axis=(1, 2))
        # Of masks alone, what is outside of the mask of its owner has no owner.
        mine[band] = options["whole"] != "mask" or np.take_along_axis(whole, owner[band][None], axis=0)[0]
    area, left = (np.bincount(x, minlength=len(kept)) for x in (owner.ravel(), owner[mine]))
    share, least = area / np.maximum(whole_area, 1), options["overlap_threshold"]
    stays = (left > 0) & (whole_area > 0) & ((share >= least) if options["may_equal_threshold"] else (share > least))
    ids, id_of_stuff = np.zeros(len(kept), np.int32), {}
    for row in np.flatnonzero(stays).tolist():
        label, number = classes[row], len(segments) + 1
        is_thing = label in options["things"]
        ids[row] = number if is_thing else id_of_stuff.setdefault(label, number)
        if ids[row] == number:
            category = label if is_thing else label - options["first_stuff"]
            segments.append({"id": number, "isthing": is_thing, "category_id": category, "score": float(best[row])})
    panoptic[mine] = ids[owner[mine]]
    return panoptic, segments
