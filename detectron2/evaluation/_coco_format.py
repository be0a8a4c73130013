"""Conversions between model outputs, COCO result dictionaries and COCO data sets, for `coco_evaluation`.

Boxes in COCO files are ``(x, y, width, height)`` in absolute pixels.
"""

import contextlib
import io
import json
import logging
from typing import Any

import hotcoco
import numpy as np
import pycocotools.mask as mask_util
from pycocotools.coco import COCO

from detectron2.structures import Instances
from detectron2.utils.file_io import PathManager

logger = logging.getLogger(__name__)


def instances_to_coco_json(instances: Instances, img_id: int | str) -> list[dict[str, Any]]:
    """Turn one image's predictions into a list of COCO result dictionaries.

    Args:
        instances: predictions on the CPU with ``pred_boxes`` (x1, y1, x2, y2), ``scores``, ``pred_classes``, and
            optionally ``pred_masks`` (N, height, width) or ``pred_masks_rle``, and ``pred_keypoints`` (N, K, 3), in
            absolute pixels of the original image, continuous coordinates.
        img_id: written to ``image_id`` of every entry.

    Returns:
        one dictionary per instance; ``category_id`` is still the contiguous id of the model.
    """
    count = len(instances)
    if count == 0:
        return []
    boxes_xywh = instances.pred_boxes.tensor.numpy().copy()
    if boxes_xywh.shape[1] == 4:
        boxes_xywh[:, 2:] -= boxes_xywh[:, :2]
    columns: dict[str, list] = {
        "image_id": [img_id] * count,
        "category_id": instances.pred_classes.tolist(),
        "bbox": boxes_xywh.tolist(),
        "score": instances.scores.tolist(),
    }
    if instances.has("pred_masks"):
        columns["segmentation"] = _encode_masks(instances.pred_masks)
    elif instances.has("pred_masks_rle"):
        columns["segmentation"] = [_with_text_counts(rle) for rle in instances.pred_masks_rle]
    if instances.has("pred_keypoints"):
        keypoints = instances.pred_keypoints.numpy().copy()
        # COCO files hold the index of the pixel, predictions its continuous centre
        keypoints[:, :, :2] -= 0.5
        columns["keypoints"] = keypoints.reshape(count, -1).tolist()
    names = list(columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _encode_masks(masks) -> list[dict[str, Any]]:
    """RLE of each mask of (N, height, width), with ``counts`` as text so that it can go into JSON."""
    masks = masks if hasattr(masks, "numpy") else masks.tensor
    dense = masks.numpy()
    dense = dense.view(np.uint8) if dense.dtype == np.bool_ else (dense > 0).view(np.uint8)
    if 0 in dense.shape[1:]:
        return [{"size": list(dense.shape[1:]), "counts": ""} for _ in dense]
    # hotcoco encodes several masks at a time and takes any order of axes; pycocotools would need a transposed copy
    rles: Any = hotcoco.mask.encode(dense.transpose(1, 2, 0))
    return [_with_text_counts(rle) for rle in rles]


def _with_text_counts(rle: dict[str, Any]) -> dict[str, Any]:
    counts = rle["counts"]
    return {"size": [int(n) for n in rle["size"]], "counts": counts.decode() if isinstance(counts, bytes) else counts}


def load_coco_api(json_file: str) -> COCO:
    """Read a COCO annotation file with pycocotools, quietly, and complete what hand-made files often lack."""
    path = PathManager.get_local_path(json_file)
    with contextlib.redirect_stdout(io.StringIO()):
        api: Any = COCO()
        with open(path, encoding="utf-8") as f:
            api.dataset = json.load(f)
        _complete_dataset(api.dataset, json_file)
        api.createIndex()
        _complete_areas(api)
    return api


def _complete_dataset(dataset: dict[str, Any], origin: str) -> None:
    """Fill in ``info``, ``licenses``, ``iscrowd``, and usable annotation ids, in place."""
    for key in ("images", "categories"):
        if key not in dataset:
            raise ValueError(f"{origin} is not a COCO annotation file: it has no {key!r} list.")
    dataset.setdefault("info", {})
    dataset.setdefault("licenses", [])
    annotations = dataset.get("annotations", [])
    ids = {annotation.get("id", 0) for annotation in annotations}
    if len(ids) != len(annotations) or 0 in ids:
        # COCO's matching writes "no match" as 0, so an object with this id can never be found
        logger.warning(f"{origin}: annotation ids are missing, repeated or 0; numbering them from 1 for evaluation.")
        for number, annotation in enumerate(annotations, start=1):
            annotation["id"] = number
    for annotation in annotations:
        annotation.setdefault("iscrowd", 0)
        if "bbox" not in annotation and not annotation.get("segmentation"):
            raise ValueError(f"{origin}: annotation {annotation['id']} has neither 'bbox' nor 'segmentation'.")


def _complete_areas(api: Any) -> None:
    """Fill in missing ``area`` (pixels; decides small, medium or large) and ``bbox`` from the mask."""
    for annotation in api.dataset.get("annotations", []):
        if "area" in annotation and "bbox" in annotation:
            continue
        rle: Any = api.annToRLE(annotation) if annotation.get("segmentation") else None
        if "bbox" not in annotation:
            annotation["bbox"] = mask_util.toBbox(rle).tolist()
        if "area" not in annotation:
            width, height = annotation["bbox"][2:4]
            annotation["area"] = float(mask_util.area(rle)) if rle is not None else float(width * height)
