"""Ground truth and detections as columns, which every part of the analysis works on.

Letters: `D` detections, `G` annotated objects, `I` images, `K` classes, `P` keypoints. Images and classes are numbered
from 0 in the order of their ids, so ids of any type work. Boxes are `(x, y, width, height)` in pixels of the image.
"""

import contextlib
import copy
import io
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import Params

from detectron2.evaluation._coco_format import _complete_areas, _complete_dataset
from detectron2.utils.file_io import PathManager

__all__ = [
    "TASKS",
    "Found",
    "Truth",
    "read_found",
    "read_json",
    "read_truth",
]

TASKS = ("bbox", "segm", "keypoints")
_COMPLETE = {"id", "image_id", "category_id", "bbox", "area", "iscrowd"}


@dataclass(frozen=True)
class Truth:
    """The ground truth.

    Args:
        api: a pycocotools data set.
        iou_type: `"bbox"`, `"segm"` or `"keypoints"`.
        image_ids: I ids, sorted.
        class_ids: K ids, sorted.
        class_names: K names.
        objects: G annotations.
        image: int array (G,), the number of the image of each object.
        label: int array (G,), from 0 to K - 1.
        is_crowd: bool array (G,), regions that any number of detections may lie on.
        is_ignored: bool array (G,), crowd regions, and for keypoints what has none that are labelled: neither to be
            found nor missed.
        area: float array (G,), square pixels, as annotated.
        box_xywh: float array (G, 4).
        masks: G run-length encodings; empty unless masks are compared.
        keypoints: float array (G, P, 3) of x, y, visibility; P is 0 unless keypoints are compared.
        sigmas: float array (P,), how far apart annotators place each keypoint, as a share of the object's size.
        is_searched: bool array (I, K), whether an image was searched for a class; None: every image for all. LVIS names
            for each image the classes that were.
        is_partial: bool array (I, K), whether only some of the objects of a class are annotated; None: nowhere.

    Example:
        >>> truth = {
        ...     "images": [{"id": 1, "height": 100, "width": 100}],
        ...     "categories": [{"id": 1, "name": "cat"}],
        ...     "annotations": [
        ...         {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0}
        ...     ],
        ... }
        >>> found = [{"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 18], "score": 0.8}]
        >>> read_truth(truth, "bbox").objects_per_class.tolist()
        [1]
    """

    api: Any
    iou_type: str
    image_ids: list[Any]
    class_ids: list[Any]
    class_names: list[str]
    objects: list[dict[str, Any]]
    image: np.ndarray
    label: np.ndarray
    is_crowd: np.ndarray
    is_ignored: np.ndarray
    area: np.ndarray
    box_xywh: np.ndarray
    masks: list[Any]
    keypoints: np.ndarray
    sigmas: np.ndarray
    is_searched: np.ndarray | None
    is_partial: np.ndarray | None

    @property
    def objects_per_class(self) -> np.ndarray:
        """Int array (K,), without what is ignored."""
        return np.bincount(self.label[~self.is_ignored], minlength=len(self.class_ids))


@dataclass(frozen=True)
class Found:
    """The detections.

    Args:
        results: D dictionaries in COCO's result format, as given.
        image: int array (D,), the number of the image of each.
        label: int array (D,), from 0 to K - 1.
        score: float array (D,).
        area: float array (D,), square pixels.
        box_xywh: float array (D, 4).
        masks: D run-length encodings; empty unless masks are compared.
        keypoints: float array (D, P, 3); P is 0 unless keypoints are compared.
        is_searched: bool array (D,), False where the image was not searched for the class.
        is_partial: bool array (D,), True where not all objects of the class are annotated in the image.

    Example:
        >>> truth = {
        ...     "images": [{"id": 1, "height": 100, "width": 100}],
        ...     "categories": [{"id": 1, "name": "cat"}],
        ...     "annotations": [
        ...         {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0}
        ...     ],
        ... }
        >>> found = [{"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 18], "score": 0.8}]
        >>> read_found(found, read_truth(truth, "bbox")).score.tolist()
        [0.8]
    """

    results: Sequence[dict[str, Any]]
    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    area: np.ndarray
    box_xywh: np.ndarray
    masks: list[Any]
    keypoints: np.ndarray
    is_searched: np.ndarray
    is_partial: np.ndarray


def read_truth(coco_gt: Any, iou_type: str, sigmas: Sequence[float] = ()) -> Truth:
    """Take ground truth from a file, a dictionary, or a pycocotools data set.

    Args:
        coco_gt: in COCO's or LVIS's format; not changed.
        iou_type: `"bbox"`, `"segm"` or `"keypoints"`.
        sigmas: of keypoints; empty for those of COCO's persons.

    Returns:
        The ground truth.

    Raises:
        TypeError: it is something else.
        ValueError: it is not in COCO format, is empty, has ids that do not fit, or lacks masks or keypoints.

    Example:
        >>> truth = {
        ...     "images": [{"id": 1, "height": 100, "width": 100}],
        ...     "categories": [{"id": 1, "name": "cat"}],
        ...     "annotations": [
        ...         {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0}
        ...     ],
        ... }
        >>> found = [{"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 18], "score": 0.8}]
        >>> read_truth(truth, "bbox").class_names
        ['cat']
    """
    if iou_type not in TASKS:
        raise ValueError(f"iou_type is 'bbox', 'segm' or 'keypoints', not {iou_type!r}.")
    api = _as_api(coco_gt)
    images, categories = (api.dataset[key] for key in ("images", "categories"))
    for key, entries in (("images", images), ("categories", categories)):
        if not entries:
            raise ValueError(f"The ground truth has no {key}; there is nothing to compare the predictions with.")
    image_ids, class_ids = _sorted_ids(images), _sorted_ids(categories)
    objects = api.dataset.get("annotations", [])
    crowd = np.array([bool(a.get("iscrowd", 0)) for a in objects], bool)
    keypoints = _true_keypoints(objects) if iou_type == "keypoints" else np.zeros((len(objects), 0, 3))
    ignored = crowd | (_num_keypoints(objects, keypoints) == 0) if iou_type == "keypoints" else crowd
    searched, partial = _federation(images, objects, image_ids, class_ids)
    return Truth(
        api=api,
        iou_type=iou_type,
        image_ids=image_ids,
        class_ids=class_ids,
        class_names=_class_names(categories, class_ids),
        objects=objects,
        image=_numbers(objects, "image_id", image_ids, "annotation", "an image"),
        label=_numbers(objects, "category_id", class_ids, "annotation", "a category"),
        is_crowd=crowd,
        is_ignored=ignored,
        area=np.array([a["area"] for a in objects], float),
        box_xywh=np.array([a["bbox"][:4] for a in objects], float).reshape(-1, 4),
        masks=_true_masks(api, objects) if iou_type == "segm" else [],
        keypoints=keypoints,
        sigmas=_sigmas(keypoints.shape[1], sigmas) if iou_type == "keypoints" else np.zeros(0),
        is_searched=searched,
        is_partial=partial,
    )


def _as_api(coco_gt: Any) -> Any:
    if isinstance(coco_gt, (str, os.PathLike)):
        path = os.fspath(coco_gt)
        content = read_json(path)
        if not isinstance(content, dict):
            kind = "a list, as predictions are" if isinstance(content, list) else f"of type {type(content).__name__}"
            raise ValueError(f"{path} is {kind}; ground truth in COCO format is wanted.")
        return _complete_api(content, path)
    content = coco_gt if isinstance(coco_gt, dict) else getattr(coco_gt, "dataset", None)
    if not isinstance(content, dict):
        raise TypeError(f"coco_gt is a file, a dictionary or a pycocotools COCO object, not {type(coco_gt).__name__}.")
    if content is coco_gt or not all(a.keys() >= _COMPLETE for a in content.get("annotations", [])):
        return _complete_api(copy.deepcopy(content), "coco_gt")
    return coco_gt


def _complete_api(content: dict[str, Any], origin: str) -> Any:
    api: Any = COCO()
    api.dataset = content
    _complete_dataset(content, origin)
    with contextlib.redirect_stdout(io.StringIO()):
        api.createIndex()
    _complete_areas(api)
    return api


def _sorted_ids(entries: Sequence[dict[str, Any]]) -> list[Any]:
    ids = [entry["id"] for entry in entries]
    if len(set(ids)) < len(ids):
        repeated = next(i for i in ids if ids.count(i) > 1)
        raise ValueError(f"The ground truth has the id {repeated!r} twice among its images or categories.")
    return sorted(ids, key=lambda i: (isinstance(i, str), i))


def _class_names(categories: Sequence[dict[str, Any]], class_ids: Sequence[Any]) -> list[str]:
    """Return a distinct, printable name for each class; none of them is "background"."""
    names = {c["id"]: str(c.get("name", c["id"])).encode("utf-8", "replace").decode("utf-8") for c in categories}
    times = Counter([*names.values(), "background"])
    return [names[i] if times[names[i]] == 1 else f"{names[i]} ({i})" for i in class_ids]


def _numbers(entries: Sequence[dict[str, Any]], key: str, ids: list[Any], entry_name: str, wanted: str) -> np.ndarray:
    """Return the position of each entry's id in `ids`."""
    number = {known: n for n, known in enumerate(ids)}
    try:
        return np.array([number[entry[key]] for entry in entries], np.int64)
    except (KeyError, TypeError):
        raise ValueError(explain_unknown_id(entries, key, ids, entry_name, wanted)) from None


def _true_masks(api: Any, objects: Sequence[dict[str, Any]]) -> list[Any]:
    for annotation in objects:
        image = api.imgs[annotation["image_id"]]
        if not annotation.get("segmentation"):
            raise ValueError(f"Annotation {annotation['id']} has no 'segmentation'; analyze boxes (iou_type='bbox').")
        if not {"height", "width"} <= image.keys():
            raise ValueError(f"Image {image['id']} of the ground truth lacks 'height' or 'width', which masks need.")
    return [api.annToRLE(a) for a in objects]


def _true_keypoints(objects: Sequence[dict[str, Any]]) -> np.ndarray:
    """Return (G, P, 3); zeros for objects without keypoints."""
    lengths = {len(a["keypoints"]) for a in objects if a.get("keypoints")}
    if not lengths:
        if not objects:
            return np.zeros((0, 0, 3))
        raise ValueError("The ground truth has no 'keypoints'; analyze boxes (iou_type='bbox').")
    if len(lengths) > 1 or min(lengths) % 3:
        raise ValueError(f"Annotated 'keypoints' are x, y, visibility, equally many for all; got {sorted(lengths)}.")
    empty = [0.0] * lengths.pop()
    rows = np.array([a.get("keypoints") or empty for a in objects], float)
    return rows.reshape(len(objects), -1, 3)


def _num_keypoints(objects: Sequence[dict[str, Any]], keypoints: np.ndarray) -> np.ndarray:
    """Return the number of labelled keypoints of each object; int array (G,)."""
    counted = (keypoints[:, :, 2] > 0).sum(1).tolist()
    return np.array([a.get("num_keypoints", n) for a, n in zip(objects, counted, strict=True)], np.int64)


def _sigmas(count: int, given: Sequence[float]) -> np.ndarray:
    sigmas = np.array(given if len(given) else Params(iouType="keypoints").kpt_oks_sigmas, float)
    if count and len(sigmas) != count:
        raise ValueError(
            f"The objects have {count} keypoints, but there are {len(sigmas)} sigmas (COCO's persons have 17). Give "
            "one for each, as in TEST.KEYPOINT_OKS_SIGMAS of the config."
        )
    return sigmas[:count]


def _federation(
    images: Sequence[dict[str, Any]], objects: Sequence[dict[str, Any]], image_ids: list[Any], class_ids: list[Any]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return `is_searched` and `is_partial` of `Truth` (Gupta et al., LVIS, arXiv:1908.03195, section 2)."""
    keys = ("neg_category_ids", "not_exhaustive_category_ids")
    if not any(key in image for image in images for key in keys):
        return None, None
    row = {i: n for n, i in enumerate(image_ids)}
    column = {c: n for n, c in enumerate(class_ids)}
    tables = []
    for key in keys:
        table = np.zeros((len(image_ids), len(class_ids)), bool)
        for image in images:
            table[row[image["id"]], [column[c] for c in image.get(key) or () if c in column]] = True
        tables.append(table)
    searched, partial = tables
    for annotation in objects:  # with an unknown id it is reported elsewhere
        if annotation["image_id"] in row and annotation["category_id"] in column:
            searched[row[annotation["image_id"]], column[annotation["category_id"]]] = True
    return searched, partial


def read_found(results: Any, truth: Truth, origin: str = "results") -> Found:
    """Take predictions from a file or a list.

    Args:
        results: in COCO's result format; not changed.
        truth: what they belong to.
        origin: what messages call a list.

    Returns:
        The detections.

    Raises:
        TypeError: they are something else.
        ValueError: keys are missing, numbers are not finite, or ids are not in the ground truth.

    Example:
        >>> truth = {
        ...     "images": [{"id": 1, "height": 100, "width": 100}],
        ...     "categories": [{"id": 1, "name": "cat"}],
        ...     "annotations": [
        ...         {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0}
        ...     ],
        ... }
        >>> found = [{"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 18], "score": 0.8}]
        >>> read_found(found, read_truth(truth, "bbox")).area.tolist()
        [360.0]
    """
    if isinstance(results, (str, os.PathLike)):
        origin = os.fspath(results)
        results = read_json(origin)
    check_kind(results, origin)
    score, boxes, keypoints = check_columns(results, truth.iou_type, origin, truth.keypoints.shape[1])
    image = _numbers(results, "image_id", truth.image_ids, "prediction", "an image")
    label = _numbers(results, "category_id", truth.class_ids, "prediction", "a category")
    masks: Any = _found_masks(results, truth, origin) if truth.iou_type == "segm" else []
    if masks:
        import hotcoco

        # pycocotools fails to measure more than 255 masks in one call.
        boxes, area = mask_util.toBbox(masks), np.asarray(hotcoco.mask.area(masks), dtype=float)
    else:
        area = boxes[:, 2] * boxes[:, 3]
    searched, partial = truth.is_searched, truth.is_partial
    return Found(
        results=results,
        image=image,
        label=label,
        score=score,
        area=area,
        box_xywh=boxes,
        masks=masks,
        keypoints=keypoints,
        is_searched=np.ones(len(score), bool) if searched is None else searched[image, label],
        is_partial=np.zeros(len(score), bool) if partial is None else partial[image, label],
    )


def _found_masks(results: Sequence[dict[str, Any]], truth: Truth, origin: str) -> list[Any]:
    """Return run lengths that have the size of their images."""
    to_rle: Callable[[dict[str, Any]], Any] = truth.api.annToRLE
    masks = [to_rle(result) for result in results]
    for place, (result, mask) in enumerate(zip(results, masks, strict=True)):
        image = truth.api.imgs[result["image_id"]]
        if list(mask["size"]) != [image["height"], image["width"]]:
            raise ValueError(
                f"{origin}: the mask of prediction {place} is {mask['size'][0]} pixels high and {mask['size'][1]} "
                f"wide, its image {result['image_id']!r} {image['height']} and {image['width']}."
            )
    return masks


def read_json(path: str) -> Any:
    """Return the content of a JSON file; errors name the file.

    Args:
        path: the file.

    Returns:
        The content.

    Example:
        >>> path = os.path.join(tempfile.mkdtemp(), "found.json")
        >>> with open(path, "w") as f:
        ...     f.write("[]")
        2
        >>> read_json(path)
        []
    """
    try:
        with PathManager.open(path, "r") as f:
            return json.load(f)
    except FileNotFoundError:
        raise FileNotFoundError(f"No such file: {path} (working directory: {os.getcwd()}).") from None
    except ValueError as e:
        raise ValueError(f"{path} is not JSON: {e}") from None


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
        Scores (D,), boxes `(x, y, width, height)` (D, 4), zeros for masks, and keypoints (D, P, 3).

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
    """Return an array of finite numbers with the given shape; zeros where there are no values."""
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
    """Return the predicted boxes, or the boxes around the keypoints, which COCO takes for the size of a detection."""
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
        entry_name: `"annotation"` or `"prediction"`.
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
