"""Checks of the predictions that :mod:`detectron2.evaluation.analysis` is given, and what to say about bad ones.

Letters: ``D`` detections, ``P`` keypoints.
"""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np

_NEEDED = {
    "bbox": ("image_id", "category_id", "bbox", "score"),
    "segm": ("image_id", "category_id", "segmentation", "score"),
    "keypoints": ("image_id", "category_id", "keypoints", "score"),
}


def check_kind(results: Any, origin: str) -> None:
    """Raise an error unless the predictions are a list.

    Args:
        results: what a file or a caller gave.
        origin: its name, for messages.

    Raises:
        TypeError: it is neither a list nor a dictionary.
        ValueError: it is a dictionary, such as ground truth.
    """
    if isinstance(results, dict):
        kind = "ground truth in COCO format" if "images" in results else f"a dictionary with {sorted(results)[:5]}"
        raise ValueError(
            f"{origin} is {kind}; predictions are a list of dictionaries, as COCOEvaluator writes them to "
            "coco_instances_results.json."
        )
    if not isinstance(results, Sequence) or isinstance(results, (str, bytes)):
        raise TypeError(f"{origin} is of type {type(results).__name__}; predictions are a list of dictionaries.")


def check_columns(
    results: Sequence[Any], iou_type: str, origin: str, num_keypoints: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Take the numbers out of predictions, all at once, and where this fails say which is wrong.

    Args:
        results: in COCO's result format.
        iou_type: what they must have.
        origin: for messages.
        num_keypoints: P, of the ground truth; 0 where it has no objects.

    Returns:
        Scores (D,), boxes ``(x, y, width, height)`` (D, 4), zeros for masks, and keypoints (D, P, 3).

    Raises:
        ValueError: a key is missing, or a value is not what it should be.
    """
    count, needed = len(results), _NEEDED[iou_type]
    empty = np.zeros((count, 0, 3))
    try:
        if any(key not in result for result in results for key in needed):
            raise KeyError("a key is missing")
        score = _numeric([r["score"] for r in results], (count,))
        if iou_type == "segm":
            return score, np.zeros((count, 4)), empty
        if iou_type == "bbox":
            boxes = _numeric([r["bbox"] for r in results], (count, 4))
            if (boxes[:, 2:] < 0).any():
                raise ValueError("a negative size")
            return score, boxes, empty
        points = _numeric([r["keypoints"] for r in results], (count, -1)).reshape(count, -1, 3)
        if num_keypoints and points.shape[1] != num_keypoints and count:
            raise ValueError("another number of keypoints")
        return score, _boxes_of_keypoints(results, points), points
    except (KeyError, TypeError, ValueError):
        for place, result in enumerate(results):
            _check_result(result, place, iou_type, origin, num_keypoints)
        raise  # found nothing to say about it


def _numeric(values: list[Any], shape: tuple[int, ...]) -> np.ndarray:
    """-> finite numbers of a shape; of no values zeros."""
    if not values:
        return np.zeros((0, *(abs(n) * (3 if n < 0 else 1) for n in shape[1:])))
    array = np.array(values)  # no dtype: text must not be taken for numbers
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise ValueError("not finite numbers")
    fits = array.ndim == len(shape) and all(n in (-1, m) for n, m in zip(shape, array.shape, strict=True))
    if not fits:
        raise ValueError("another shape")
    return array.astype(float)


def _boxes_of_keypoints(results: Sequence[Any], points: np.ndarray) -> np.ndarray:
    """-> boxes as predicted, else around the keypoints, which is what COCO takes for the size of a detection."""
    if results and all("bbox" in r for r in results):
        return _numeric([r["bbox"] for r in results], (len(results), 4))
    if not points.size:
        return np.zeros((len(points), 4))
    low, high = points[:, :, :2].min(1), points[:, :, :2].max(1)
    return np.concatenate([low, high - low], axis=1)


def _check_result(result: Any, place: int, iou_type: str, origin: str, num_keypoints: int) -> None:
    if not isinstance(result, dict):
        raise ValueError(f"{origin}: prediction {place} is of type {type(result).__name__}, not a dictionary.")
    missing = [key for key in _NEEDED[iou_type] if key not in result]
    if missing:
        advice = " Boxes can be analyzed with iou_type='bbox'." if missing in (["segmentation"], ["keypoints"]) else ""
        raise ValueError(f"{origin}: prediction {place} lacks {', '.join(missing)}; it has {sorted(result)}.{advice}")
    score = result["score"]
    if not isinstance(score, Real) or not math.isfinite(score):
        raise ValueError(f"{origin}: the score of prediction {place} is {score!r}, not a finite number.")
    if iou_type == "bbox" or (iou_type == "keypoints" and "bbox" in result):
        _check_box(result["bbox"], place, origin)
    if iou_type == "keypoints":
        _check_keypoints(result["keypoints"], place, origin, num_keypoints)


def _check_box(box: Any, place: int, origin: str) -> None:
    is_list = isinstance(box, (list, tuple)) and all(isinstance(v, Real) for v in box)
    if not is_list or len(box) != 4 or not np.isfinite(box).all() or min(box[2:]) < 0:
        rotated = " Rotated boxes cannot be analyzed." if is_list and len(box) == 5 else ""
        raise ValueError(
            f"{origin}: the bbox of prediction {place} is {box!r}; expected 4 finite numbers, (x, y, width, height) in "
            f"pixels, with a width and a height of at least 0.{rotated}"
        )


def _check_keypoints(points: Any, place: int, origin: str, count: int) -> None:
    is_list = isinstance(points, (list, tuple)) and all(isinstance(v, Real) for v in points)
    if not is_list or len(points) % 3 or not np.isfinite(points).all():
        raise ValueError(
            f"{origin}: the keypoints of prediction {place} are {str(points)[:80]}; expected x, y, score of each, "
            "finite numbers one after the other."
        )
    if count and len(points) != 3 * count:
        raise ValueError(
            f"{origin}: prediction {place} has {len(points) // 3} keypoints, the objects of the ground truth {count}."
        )


def explain_unknown_id(
    entries: Sequence[dict[str, Any]], key: str, ids: list[Any], entry_name: str, wanted: str
) -> str:
    """What to say where ids of annotations or predictions are not those of the ground truth.

    Args:
        entries: of which at least one has an unknown id, or none.
        key: of the id.
        ids: those that are known.
        entry_name: ``"annotation"`` or ``"prediction"``.
        wanted: what the id names, with an article.

    Returns:
        The message.
    """
    known = set(ids)
    unknown = [(i, e.get(key)) for i, e in enumerate(entries) if _is_unknown(e.get(key), known)]
    place, value = unknown[0]
    hint = ""
    if any(str(value) == str(i) for i in ids):
        hint = f" There is {wanted} with this id as another type; {key} keeps its type."
    return (
        f"{len(unknown)} of {len(entries)} {entry_name}s have an unknown {key}; the first "
        f"is {entry_name} {place} (counted from 0): {value!r}. The ground truth has {len(ids)} ids such as "
        f"{ids[:3]!r}. Is it the data set that was predicted on?{hint}"
    )


def _is_unknown(value: Any, known: set[Any]) -> bool:
    try:
        return value not in known
    except TypeError:  # a list, for example
        return True
