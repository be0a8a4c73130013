"""Ground truth and detections as columns, which every part of the analysis works on.

Letters: `D` detections, `G` annotated objects, `I` images, `K` classes, `P` keypoints. Images and classes are numbered
from 0 in the order of their ids, so ids of any type work. Boxes are `(x, y, width, height)` in pixels of the image.
"""

import contextlib
import copy
import io
import math
import os
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import hotcoco
import numpy as np
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import Params

from detectron2.data.formats.reading import describe, is_polygon, load_json
from detectron2.data.formats.run_lengths import is_compressed, run_length_totals
from detectron2.evaluation._coco_format import _check_dataset, _complete_areas, _complete_dataset

__all__ = ["FIELDS", "TASKS", "Found", "Truth", "read_found", "read_json", "read_truth"]

FIELDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}
"""Task -> the field of an annotation that it evaluates."""
TASKS = tuple(FIELDS)
"""The tasks that can be analyzed."""
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
        >>> truth = {"images": [{"id": 1, "height": 100, "width": 100}], "categories": [{"id": 1, "name": "cat"}]}
        >>> truth["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20]}]
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
        >>> truth = {"images": [{"id": 1, "height": 100, "width": 100}], "categories": [{"id": 1, "name": "cat"}]}
        >>> truth["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20]}]
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
        >>> truth = {"images": [{"id": 1, "height": 100, "width": 100}], "categories": [{"id": 1, "name": "cat"}]}
        >>> truth["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20]}]
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
    keypoints, ignored = np.zeros((len(objects), 0, 3)), crowd
    if iou_type == "keypoints":
        keypoints = _true_keypoints(objects)
        labelled = (keypoints[:, :, 2] > 0).sum(1).tolist()
        number = [a.get("num_keypoints", n) for a, n in zip(objects, labelled, strict=True)]
        ignored = crowd | (np.array(number, int) == 0)
    image = _numbers(objects, "image_id", image_ids, "annotation")
    label = _numbers(objects, "category_id", class_ids, "annotation")
    searched, partial = _federation(images, image_ids, class_ids, image, label)
    return Truth(
        api=api,
        iou_type=iou_type,
        image_ids=image_ids,
        class_ids=class_ids,
        class_names=_class_names(categories, class_ids),
        objects=objects,
        image=image,
        label=label,
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
    _check_dataset(content, origin)
    _complete_dataset(content, origin)
    with contextlib.redirect_stdout(io.StringIO()):
        api.createIndex()
    _complete_areas(api, origin)
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


def _numbers(entries: Sequence[dict[str, Any]], key: str, ids: list[Any], entry_name: str) -> np.ndarray:
    """Return the position of the id of each annotation or prediction in `ids`."""
    number = {known: n for n, known in enumerate(ids)}
    try:
        if bool not in {type(entry[key]) for entry in entries}:  # True is not an id, although it equals 1
            return np.array([number[entry[key]] for entry in entries], np.int64)
    except (KeyError, TypeError):
        pass
    values = [(place, entry.get(key)) for place, entry in enumerate(entries)]
    unknown = [(p, v) for p, v in values if isinstance(v, bool) or not (isinstance(v, Hashable) and v in number)]
    place, value = unknown[0]
    has_other_type = any(str(value) == str(i) for i in ids)
    hint = f" There is such an id of another type; {key} keeps its type." if has_other_type else ""
    raise ValueError(
        f"{len(unknown)} of {len(entries)} {entry_name}s have an unknown {key}; the first is {entry_name} {place} "
        f"(counted from 0): {value!r}. The ground truth has {len(ids)} ids such as {ids[:3]!r}. Is it the data set "
        f"that was predicted on?{hint}"
    )


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


def _sigmas(count: int, given: Sequence[float]) -> np.ndarray:
    sigmas = np.array(given if len(given) else Params(iouType="keypoints").kpt_oks_sigmas, float)
    if count and len(sigmas) != count:
        raise ValueError(
            f"The objects have {count} keypoints, but there are {len(sigmas)} sigmas (COCO's persons have 17). Give "
            "one for each, as in TEST.KEYPOINT_OKS_SIGMAS of the config."
        )
    return sigmas[:count]


def _federation(
    images: Sequence[dict[str, Any]], image_ids: list[Any], class_ids: list[Any], image: np.ndarray, label: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return `is_searched` and `is_partial` of `Truth` (Gupta et al., LVIS, arXiv:1908.03195, section 2)."""
    keys = ("neg_category_ids", "not_exhaustive_category_ids")
    if not any(key in entry for entry in images for key in keys):
        return None, None
    row, column = ({known: n for n, known in enumerate(ids)} for ids in (image_ids, class_ids))
    tables = np.zeros((2, len(image_ids), len(class_ids)), bool)
    for table, key in zip(tables, keys, strict=True):
        for entry in images:
            table[row[entry["id"]], [column[c] for c in entry.get(key) or () if c in column]] = True
    tables[0, image, label] = True
    return tables[0], tables[1]


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
        >>> truth = {"images": [{"id": 1, "height": 100, "width": 100}], "categories": [{"id": 1, "name": "cat"}]}
        >>> truth["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20]}]
        >>> found = [{"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 18], "score": 0.8}]
        >>> read_found(found, read_truth(truth, "bbox")).area.tolist()
        [360.0]
    """
    if isinstance(results, (str, os.PathLike)):
        origin = os.fspath(results)
        results = read_json(origin)
    if isinstance(results, dict):
        kind = "ground truth in COCO format" if "images" in results else f"a dictionary with {sorted(results)[:5]}"
        raise ValueError(
            f"{origin} is {kind}; predictions are a list of dictionaries, as COCOEvaluator writes them to "
            "coco_instances_results.json."
        )
    if not isinstance(results, Sequence) or isinstance(results, (str, bytes)):
        raise TypeError(f"{origin} is of type {type(results).__name__}; predictions are a list of dictionaries.")
    score, boxes, keypoints = _columns(results, truth, origin)
    image = _numbers(results, "image_id", truth.image_ids, "prediction")
    label = _numbers(results, "category_id", truth.class_ids, "prediction")
    masks: Any = _found_masks(results, truth, origin) if truth.iou_type == "segm" else []
    area = boxes[:, 2] * boxes[:, 3]
    if masks:
        # pycocotools fails to measure more than 255 masks in one call.
        boxes, area = mask_util.toBbox(masks), np.asarray(hotcoco.mask.area(masks), dtype=float)
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
    masks, texts = [], []
    for place, result in enumerate(results):
        image, given = truth.api.imgs[result["image_id"]], result["segmentation"]
        if not _is_mask(given):
            raise ValueError(
                f"{origin}: the segmentation of prediction {place} is {describe(given)}; expected run lengths, "
                "{'size': [height, width], 'counts': ...}, or a list of polygons."
            )
        mask = to_rle(result)
        if list(mask["size"]) != [image["height"], image["width"]]:
            raise ValueError(
                f"{origin}: the mask of prediction {place} is {mask['size'][0]} pixels high and {mask['size'][1]} "
                f"wide, its image {result['image_id']!r} {image['height']} and {image['width']}."
            )
        counts = mask["counts"]
        texts.append(counts.decode("latin1") if isinstance(counts, bytes) else counts)
        if not is_compressed(texts[-1]):
            raise ValueError(f"{origin}: the 'counts' of prediction {place} are not run lengths: {counts[:80]!r}.")
        masks.append(mask)
    pixels = np.array([mask["size"][0] * mask["size"][1] for mask in masks], np.int64)
    for place in np.flatnonzero(run_length_totals(texts) != pixels)[:1]:
        raise ValueError(f"{origin}: the run lengths of prediction {place} do not cover its {pixels[place]} pixels.")
    return masks


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _is_mask(given: Any) -> bool:
    if isinstance(given, list):
        return bool(given) and all(is_polygon(p) and all(map(_is_finite, p)) for p in given)
    size = given.get("size") if isinstance(given, dict) else None
    if not isinstance(size, (list, tuple)) or len(size) != 2:
        return False
    counts = given.get("counts")
    return isinstance(counts, (str, bytes)) or (isinstance(counts, list) and all(type(c) is int for c in counts))


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
        return load_json(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"No such file: {path} (working directory: {os.getcwd()}).") from None


_EXPECTED = {
    "score": "a finite number",
    "bbox": "4 finite numbers, (x, y, width, height) in pixels, with a width and a height of at least 0",
    "keypoints": "finite numbers one after the other: x, y, score of each",
}


def _columns(results: Sequence[Any], truth: Truth, origin: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores (D,), boxes (D, 4), zeros for masks, and keypoints (D, P, 3), or say which prediction is wrong."""
    count, field, num_keypoints = len(results), FIELDS[truth.iou_type], truth.keypoints.shape[1]
    boxes, points = np.zeros((count, 4)), np.zeros((count, num_keypoints, 3))
    needed = {"image_id", "category_id", "score", field}
    if not count:
        return np.zeros(0), boxes, points
    try:
        if not all(needed <= result.keys() for result in results):
            raise ValueError("a key is missing")
        has_boxes = field != "segmentation" and all("bbox" in result for result in results)
        if has_boxes:
            boxes = _column(results, "bbox", num_keypoints)
        if field == "keypoints":
            points = _column(results, field, num_keypoints)
            if not has_boxes:  # COCO takes the box around the keypoints for the size of a detection
                low, high = points[:, :, :2].min(1), points[:, :, :2].max(1)
                boxes = np.concatenate([low, high - low], axis=1)
        return _column(results, "score", num_keypoints), boxes, points
    except (AttributeError, TypeError, ValueError):
        for place, result in enumerate(results):
            _check_result(result, f"{origin}: prediction {place}", needed, num_keypoints)
        raise  # found nothing to say about it


def _column(results: Sequence[Any], key: str, num_keypoints: int) -> np.ndarray:
    """Return one key of predictions as an array, and fail unless it holds finite numbers and has the right shape."""
    column = np.array([result[key] for result in results])  # no dtype: text must not be taken for numbers
    shape = {"score": (), "bbox": (4,), "keypoints": (num_keypoints or -1, 3)}[key]
    is_fine = column.dtype.kind in "fiu" and np.isfinite(column).all() and column.ndim == (1 if key == "score" else 2)
    if not is_fine or (key == "bbox" and (column[:, 2:] < 0).any()):
        raise ValueError(_EXPECTED[key])
    return column.astype(float).reshape(len(results), *shape)


def _check_result(result: Any, name: str, needed: set[str], num_keypoints: int) -> None:
    """Raise an error that says what is wrong with a prediction, if anything is."""
    if not isinstance(result, dict):
        raise ValueError(f"{name} is of type {type(result).__name__}, not a dictionary.")
    if missing := needed - result.keys():
        advice = " Boxes can be analyzed with iou_type='bbox'." if missing < {"segmentation", "keypoints"} else ""
        raise ValueError(f"{name} lacks {', '.join(sorted(missing))}; it has {sorted(result)}.{advice}")
    for key in ("score", "bbox", "keypoints"):
        if key in needed or (key == "bbox" and "keypoints" in needed and key in result):
            try:
                _column([result], key, num_keypoints)
            except (TypeError, ValueError):
                value, advice = result[key], ""
                if key == "keypoints" and num_keypoints:
                    advice = f" The objects of the ground truth have {num_keypoints} keypoints."
                elif key == "bbox" and isinstance(value, (list, tuple)) and len(value) == 5:
                    advice = " Rotated boxes cannot be analyzed."
                shown = repr(value)[:80]
                raise ValueError(f"{name} has the {key} {shown}; expected {_EXPECTED[key]}.{advice}") from None
