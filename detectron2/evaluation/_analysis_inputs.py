"""Reading and checking what :mod:`detectron2.evaluation.analysis` works on.

Letters: ``D`` detections, ``G`` annotated objects, ``I`` images, ``K`` classes. Images and classes are numbered from 0
in the order of their ids, so that ids of any type will do.
"""

import contextlib
import copy
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO

from detectron2.utils.file_io import PathManager

from ._coco_format import _complete_areas, _complete_dataset, load_coco_api

_NEEDED = {
    "bbox": ("image_id", "category_id", "bbox", "score"),
    "segm": ("image_id", "category_id", "segmentation", "score"),
}

_COMPLETE = {"id", "image_id", "category_id", "bbox", "area", "iscrowd"}


@dataclass(frozen=True)
class Truth:
    """The ground truth.

    Args:
        api: a pycocotools data set.
        iou_type: ``"bbox"`` or ``"segm"``.
        image_ids: I ids, sorted.
        class_ids: K ids, sorted.
        class_names: K names.
        objects: G annotations.
        image: int array (G,), the number of the image of each object.
        label: int array (G,), from 0 to K - 1.
        is_crowd: bool array (G,); crowd regions are neither to be found nor missed.
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


@dataclass(frozen=True)
class Found:
    """The detections.

    Args:
        results: D dictionaries in COCO's result format, as given.
        image: int array (D,), the number of the image of each.
        label: int array (D,), from 0 to K - 1.
        score: float array (D,).
    """

    results: Sequence[dict[str, Any]]
    image: np.ndarray
    label: np.ndarray
    score: np.ndarray


def read_truth(coco_gt: Any, iou_type: str) -> Truth:
    """Take ground truth from a file, a dictionary, or a pycocotools data set.

    Args:
        coco_gt: in COCO format; not changed.
        iou_type: ``"bbox"`` or ``"segm"``.

    Returns:
        The ground truth.

    Raises:
        TypeError: it is something else.
        ValueError: it is not in COCO format, is empty, or has ids that do not fit.
    """
    if iou_type not in _NEEDED:
        raise ValueError(f"iou_type is 'bbox' or 'segm', not {iou_type!r}.")
    api = _as_api(coco_gt)
    for key in ("images", "categories"):
        if not api.dataset[key]:
            raise ValueError(f"The ground truth has no {key}; there is nothing to compare the predictions with.")
    image_ids, class_ids = (_sorted_ids(api.dataset[key]) for key in ("images", "categories"))
    objects = api.dataset.get("annotations", [])
    names = {c["id"]: str(c.get("name", c["id"])) for c in api.dataset["categories"]}
    image = _numbers(objects, "image_id", image_ids, "annotation", "an image")
    label = _numbers(objects, "category_id", class_ids, "annotation", "a category")
    if iou_type == "segm":
        _check_masks(api, objects)
    crowd = np.array([bool(a.get("iscrowd", 0)) for a in objects], bool)
    return Truth(api, iou_type, image_ids, class_ids, [names[c] for c in class_ids], objects, image, label, crowd)


def _as_api(coco_gt: Any) -> Any:
    if isinstance(coco_gt, (str, os.PathLike)):
        path = os.fspath(coco_gt)
        content = _read_json(path)
        if isinstance(content, list):
            raise ValueError(f"{path} is a list, as predictions are; ground truth in COCO format is wanted.")
        return load_coco_api(path)
    content = coco_gt if isinstance(coco_gt, dict) else getattr(coco_gt, "dataset", None)
    if not isinstance(content, dict):
        raise TypeError(f"coco_gt is a file, a dictionary or a pycocotools COCO object, not {type(coco_gt).__name__}.")
    if content is coco_gt or not all(a.keys() >= _COMPLETE for a in content.get("annotations", [])):
        api: Any = COCO()
        api.dataset = copy.deepcopy(content)
        _complete_dataset(api.dataset, "coco_gt")
        with contextlib.redirect_stdout(io.StringIO()):
            api.createIndex()
        _complete_areas(api)
        return api
    return coco_gt


def _sorted_ids(entries: Sequence[dict[str, Any]]) -> list[Any]:
    ids = [entry["id"] for entry in entries]
    if len(set(ids)) < len(ids):
        repeated = next(i for i in ids if ids.count(i) > 1)
        raise ValueError(f"The ground truth has the id {repeated!r} twice among its images or categories.")
    return sorted(ids, key=lambda i: (isinstance(i, str), i))


def _numbers(entries: Sequence[dict[str, Any]], key: str, ids: list[Any], entry_name: str, wanted: str) -> np.ndarray:
    """-> for each entry the position of its id in ``ids``."""
    number = {known: n for n, known in enumerate(ids)}
    unknown = [(i, entry[key]) for i, entry in enumerate(entries) if entry[key] not in number]
    if unknown:
        place, value = unknown[0]
        hint = ""
        if any(str(value) == str(known) for known in ids):
            hint = f" There is {wanted} with this id as another type; {key} keeps its type."
        raise ValueError(
            f"{len(unknown)} of {len(entries)} {entry_name}s have an unknown {key}; the first "
            f"is {entry_name} {place} (counted from 0): {value!r}. The ground truth has {len(ids)} ids such as "
            f"{ids[:3]!r}. Is it the data set that was predicted on?{hint}"
        )
    return np.array([number[entry[key]] for entry in entries], np.int64)


def _check_masks(api: Any, objects: Sequence[dict[str, Any]]) -> None:
    for annotation in objects:
        image = api.imgs[annotation["image_id"]]
        if not annotation.get("segmentation"):
            raise ValueError(f"Annotation {annotation['id']} has no 'segmentation'; analyze boxes (iou_type='bbox').")
        if not {"height", "width"} <= image.keys():
            raise ValueError(f"Image {image['id']} of the ground truth lacks 'height' or 'width', which masks need.")


def read_found(results: Any, truth: Truth) -> Found:
    """Take predictions from a file or a list.

    Args:
        results: in COCO's result format; not changed.
        truth: what they belong to.

    Returns:
        The detections.

    Raises:
        TypeError: they are something else.
        ValueError: keys are missing, scores are not finite, or ids are not in the ground truth.
    """
    origin = "results"
    if isinstance(results, (str, os.PathLike)):
        origin = os.fspath(results)
        results = _read_json(origin)
    if isinstance(results, dict):
        kind = "ground truth in COCO format" if "images" in results else f"a dictionary with {sorted(results)[:5]}"
        raise ValueError(
            f"{origin} is {kind}; predictions are a list of dictionaries, as COCOEvaluator writes them to "
            "coco_instances_results.json."
        )
    if not isinstance(results, (list, tuple)):
        raise TypeError(f"{origin} is of type {type(results).__name__}; predictions are a list of dictionaries.")
    for place, result in enumerate(results):
        _check_result(result, place, truth.iou_type, origin)
    image = _numbers(results, "image_id", truth.image_ids, "prediction", "an image")
    label = _numbers(results, "category_id", truth.class_ids, "prediction", "a category")
    return Found(results, image, label, np.array([r["score"] for r in results], float))


def _check_result(result: Any, place: int, iou_type: str, origin: str) -> None:
    if not isinstance(result, dict):
        raise ValueError(f"{origin}: prediction {place} is of type {type(result).__name__}, not a dictionary.")
    missing = [key for key in _NEEDED[iou_type] if key not in result]
    if missing:
        advice = " Boxes can be analyzed with iou_type='bbox'." if missing == ["segmentation"] else ""
        raise ValueError(f"{origin}: prediction {place} lacks {', '.join(missing)}; it has {sorted(result)}.{advice}")
    if not isinstance(result["score"], (int, float)) or not np.isfinite(result["score"]):
        raise ValueError(f"{origin}: the score of prediction {place} is {result['score']!r}, not a finite number.")
    if iou_type == "bbox" and (len(result["bbox"]) != 4 or not np.isfinite(result["bbox"]).all()):
        raise ValueError(
            f"{origin}: the bbox of prediction {place} is {result['bbox']!r}; expected 4 finite numbers, (x, y, width, "
            "height) in pixels."
        )


def _read_json(path: str) -> Any:
    try:
        with PathManager.open(path, "r") as f:
            return json.load(f)
    except FileNotFoundError:
        raise FileNotFoundError(f"No such file: {path} (working directory: {os.getcwd()}).") from None
    except ValueError as e:
        raise ValueError(f"{path} is not JSON: {e}") from None
