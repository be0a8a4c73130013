"""Conversions between model outputs, COCO result dictionaries and COCO data sets, for `coco_evaluation`.

Boxes in COCO files are `(x, y, width, height)` in absolute pixels.
"""

import contextlib
import io
import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from pycocotools.coco import COCO

from detectron2.data.checks.annotations import box_findings, classify_boxes, overhang, small_boxes, structure_findings
from detectron2.data.checks.findings import AnnotationTable
from detectron2.data.formats.coco import COCO_MISTAKES, CocoReader
from detectron2.data.formats.reading import Report, is_polygon, read_json
from detectron2.layers.mask_ops import encode_masks, paste_masks_as_rle
from detectron2.structures import BoxMode, Instances, ROIMasks

from ._coco_table import ResultTable, run_length_columns

logger = logging.getLogger(__name__)

# What is taken where annotations lack a key, and what that decides.
_DEFAULTS = {
    "area": "it is that of the mask or else of the box, and decides between small, medium and large",
    "iscrowd": "they count as single objects, none as a crowd in which any detection may lie",
    "num_keypoints": "it is counted from 'keypoints'; objects without a visible one do not count for keypoints",
}


def instances_to_coco_json(instances: Instances, img_id: int | str) -> list[dict[str, Any]]:
    """Turn one image's predictions into a list of COCO result dictionaries.

    Args:
        instances: predictions on the CPU with `pred_boxes` (x1, y1, x2, y2), `scores`, `pred_classes`, and
            optionally masks (`pred_masks` (N, height, width), `pred_masks` as ROIMasks, which are pasted at the
            threshold 0.5, or `pred_masks_rle`) and `pred_keypoints` (N, K, 3), in absolute pixels of the original
            image, continuous coordinates.
        img_id: written to `image_id` of every entry.

    Returns:
        one dictionary per instance; `category_id` is still the contiguous id of the model.
    """
    return list(instances_to_table(instances, img_id))


def instances_to_table(instances: Instances, img_id: int | str) -> ResultTable:
    """The results of `instances_to_coco_json` as columns."""
    count = len(instances)
    boxes = _to_array(instances.pred_boxes.tensor)
    if boxes.shape[1] == 4:
        boxes[:, 2:] -= boxes[:, :2]
    optional: dict[str, Any] = {}
    if instances.has("pred_masks"):
        optional = run_length_columns(_encode_masks(instances))
    elif instances.has("pred_masks_rle"):
        optional = run_length_columns(instances.pred_masks_rle)
    if instances.has("pred_keypoints"):
        keypoints = _to_array(instances.pred_keypoints)
        # COCO files hold the index of the pixel, predictions its continuous centre
        keypoints[:, :, :2] -= 0.5
        optional["keypoints"] = keypoints.reshape(count, keypoints.shape[1] * 3)
    return ResultTable(
        [img_id],
        image_index=np.zeros(count, dtype=np.int64),
        category_ids=instances.pred_classes.numpy().astype(np.int64),
        boxes=boxes,
        scores=_to_array(instances.scores),
        **optional,
    )


def _to_array(values: torch.Tensor) -> np.ndarray:
    """A copy, for what a model gives may be a part of something large."""
    values = values.detach()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy().copy()


def _encode_masks(instances: Instances) -> list[dict[str, Any]]:
    """Compressed RLE of each mask."""
    masks = instances.pred_masks
    if isinstance(masks, ROIMasks):
        return paste_masks_as_rle(masks.tensor, instances.pred_boxes, instances.image_size)
    return encode_masks(masks if isinstance(masks, torch.Tensor) else masks.tensor)


def load_coco_api(json_file: str) -> COCO:
    """Read a COCO annotation file with pycocotools, quietly, and complete what hand-made files often lack."""
    with contextlib.redirect_stdout(io.StringIO()):
        api: Any = COCO()
        api.dataset = read_json(json_file)
        _check_dataset(api.dataset, json_file)
        _complete_dataset(api.dataset, json_file)
        api.createIndex()
        _complete_areas(api, json_file)
    return api


def box_mistakes(dataset: Mapping[str, Any], doubtful: bool = False) -> list[str]:
    """Say which boxes of a complete data set no detection can match, as the check before training says it.

    `doubtful` adds boxes that are beyond the edge of the image or tiny, where these are half of all.
    """
    objects: dict[Any, list[Any]] = {image["id"]: [] for image in dataset["images"]}
    for annotation in dataset.get("annotations", []):
        mode = BoxMode.XYWHA_ABS if len(annotation["bbox"]) == 5 else BoxMode.XYWH_ABS
        objects.setdefault(annotation["image_id"], []).append({**annotation, "bbox_mode": mode})
    dicts = [{**image, "image_id": image["id"], "annotations": objects[image["id"]]} for image in dataset["images"]]
    table = AnnotationTable.gather(dicts)
    if not len(table) or structure_findings(table):
        return []
    boxes_xyxy, bad = classify_boxes(table)
    findings = box_findings(table, bad, "No detection can match them.")
    if doubtful:
        others = overhang(table, boxes_xyxy, bad) + small_boxes(table, boxes_xyxy, bad)
        findings += [finding for finding in others if 2 * finding.count >= len(table)]
    return [finding.text for finding in findings]


# Of the mistakes that the reader knows, those that no evaluation survives.
_FATAL = (
    "format",
    "category-incomplete",
    "category-ids-mixed",
    "image-incomplete",
    "no-image_id",
    "no-annotation-fits",
    "annotation-unusable",
)


def _check_dataset(dataset: dict[str, Any], origin: str) -> None:
    """Raise an error if the file is not what loading for training would take."""
    for key in ("images", "categories"):
        if key not in dataset:
            raise ValueError(f"{origin} is not a COCO annotation file: it has no {key!r} list.")
    images = dataset["images"]
    if isinstance(images, list):  # where the files are does not matter here
        images = [{**i, "file_name": str(i.get("file_name") or "-")} if isinstance(i, dict) else i for i in images]
    reader = CocoReader(origin, {**dataset, "images": images}, "", Report(COCO_MISTAKES))
    if reader.categories and not any(f.kind in _FATAL for f in reader.report.findings):
        reader.read_annotations(None)
    for finding in reader.report.findings:
        if finding.kind in _FATAL:
            raise ValueError(f"{origin}: {finding.text}")


def _complete_dataset(dataset: dict[str, Any], origin: str) -> None:
    """Fill in `info`, `licenses`, `iscrowd`, and usable annotation ids, in place."""
    dataset.setdefault("info", {})
    dataset.setdefault("licenses", [])
    image_ids = {image["id"]: image["id"] for image in dataset["images"]}
    annotations = [a for a in dataset.get("annotations", []) if a["image_id"] in image_ids]
    if orphans := len(dataset.get("annotations", [])) - len(annotations):
        logger.warning(f"{origin}: {orphans} annotations belong to no image of the file and do not count.")
    usable = [a for a in annotations if not _has_no_usable_polygon(a)]
    if flat := len(annotations) - len(usable):
        logger.warning(
            f"{origin}: {flat} annotations have only polygons of less than three points or an odd count of numbers; "
            "they do not count, as loading leaves them out."
        )
    if orphans or flat:
        annotations = dataset["annotations"] = usable
    ids = {annotation.get("id") or 0 for annotation in annotations}
    if len(ids) != len(annotations) or not all(type(i) is int and 0 < i < 2**63 for i in ids):
        # COCO's matching writes "no match" as 0, so an object with this id can never be found
        logger.warning(
            f"{origin}: annotation ids are missing, repeated or no whole numbers above 0; numbering them from 1 for "
            "evaluation."
        )
        for number, annotation in enumerate(annotations, start=1):
            annotation["id"] = number
    has_keypoints = any(a.get("keypoints") for a in annotations)
    for annotation in annotations:
        annotation["image_id"] = image_ids[annotation["image_id"]]  # true and 1.0 are 1, too
        mask = annotation.get("segmentation")
        if isinstance(mask, list):  # what the check warns of
            annotation["segmentation"] = [p for p in mask if is_polygon(p)] or None
        elif mask is not None:
            annotation["segmentation"] = {**mask, "size": [int(side) for side in mask["size"]]} if mask else None
        for key in ("iscrowd", "bbox", "area", "segmentation", "keypoints"):
            if key in annotation and annotation[key] is None:
                del annotation[key]
        if not (isinstance(area := annotation.get("area"), (int, float)) and area >= 0):
            annotation.pop("area", None)
        if type(annotation.get("num_keypoints", 0)) is not int or annotation.get("num_keypoints", 0) < 0:
            del annotation["num_keypoints"]
        if not all(map(math.isfinite, annotation.get("bbox", ()))):
            raise ValueError(f"{origin}: annotation {annotation['id']} has the box {annotation['bbox']}: not finite.")
    for key, meaning in _DEFAULTS.items():
        lacking = sum(key not in a for a in annotations)
        if lacking and (key != "num_keypoints" or has_keypoints):
            logger.warning(f"{origin}: {lacking} of {len(annotations)} annotations have no usable {key!r}: {meaning}.")
    for annotation in annotations:
        annotation.setdefault("iscrowd", 0)
        if has_keypoints:
            annotation.setdefault("num_keypoints", sum(v > 0 for v in (annotation.get("keypoints") or ())[2::3]))
        if not isinstance(annotation.get("category_id"), (int, float, str)):
            raise ValueError(f"{origin}: annotation {annotation['id']} has no usable 'category_id'.")
        if "bbox" not in annotation and not annotation.get("segmentation"):
            raise ValueError(f"{origin}: annotation {annotation['id']} has neither 'bbox' nor 'segmentation'.")


def _has_no_usable_polygon(annotation: dict[str, Any]) -> bool:
    mask = annotation.get("segmentation")
    return bool(mask) and isinstance(mask, list) and not any(map(is_polygon, mask))


def _complete_areas(api: Any, origin: str) -> None:
    """Fill in missing `area` (pixels; decides small, medium or large) and `bbox` from the mask; warn of bad boxes."""
    for annotation in api.dataset.get("annotations", []):
        if "area" in annotation and "bbox" in annotation:
            continue
        rle: Any = api.annToRLE(annotation) if annotation.get("segmentation") else None
        if "bbox" not in annotation:
            annotation["bbox"] = mask_util.toBbox(rle).tolist()
        if "area" not in annotation:
            width, height = annotation["bbox"][2:4]
            annotation["area"] = float(mask_util.area(rle)) if rle is not None else float(width * height)
    for mistake in box_mistakes(api.dataset):
        logger.warning(f"{origin}: {mistake}")
