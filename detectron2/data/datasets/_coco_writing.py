"""Writing a registered data set in the COCO format, so that COCO's own evaluation can read it."""

import datetime
import json
import logging
import os
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from iopath.common.file_io import file_lock

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets._reading import run_lengths
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager, atomic_write

__all__ = ["convert_to_coco_dict", "convert_to_coco_json"]

logger = logging.getLogger(__name__)


def convert_to_coco_dict(dataset_name: str) -> dict[str, Any]:
    """Convert a registered data set to the COCO format: boxes, masks, keypoints, categories.

    Labels become the category ids that the metadata's ``thing_dataset_id_to_contiguous_id`` came from, if it has
    that; keypoints become indices of pixels again (0.5 less).  Annotations are numbered from 1.

    Args:
        dataset_name: name in the catalogs; the metadata must have ``thing_classes``.

    Returns:
        what the JSON file is to hold. There is no key "annotations" if no image has any: evaluation takes that as
        a test set whose ground truth is not public.
    """
    metadata = MetadataCatalog.get(dataset_name)
    ids = metadata.get("thing_dataset_id_to_contiguous_id")
    category_of = {label: category_id for category_id, label in ids.items()} if ids is not None else None

    def category_id(label: int) -> int:
        return label if category_of is None else category_of[label]

    categories = [{"id": category_id(label), "name": name} for label, name in enumerate(metadata.thing_classes)]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    logger.info("Converting dataset '%s' to the COCO format ...", dataset_name)
    for index, record in enumerate(DatasetCatalog.get(dataset_name)):
        image_id = _plain(record.get("image_id", index))
        images.append(
            {
                "id": image_id,
                "width": int(record["width"]),
                "height": int(record["height"]),
                "file_name": str(record["file_name"]),
            }
        )
        for annotation in record.get("annotations", []):
            annotations.append(_coco_annotation(annotation, len(annotations) + 1, image_id, category_id))
    logger.info("Converted %d images with %d annotations.", len(images), len(annotations))

    result = {
        "info": {
            "date_created": str(datetime.datetime.now()),
            "description": f"Dataset '{dataset_name}', converted to the COCO format by detectron2.",
        },
        "images": images,
        "categories": categories,
        "licenses": None,
    }
    if annotations:
        result["annotations"] = annotations
    return result


def _plain(value: Any) -> Any:
    """Turn a number of NumPy or torch into one that JSON can hold."""
    return value.item() if hasattr(value, "item") else value


def _coco_annotation(
    annotation: dict[str, Any], annotation_id: int, image_id: Any, category_id: Callable[[int], int]
) -> dict[str, Any]:
    box = _coco_box(annotation, image_id)
    segmentation = annotation.get("segmentation")
    result: dict[str, Any] = {}
    if segmentation is not None:
        result["segmentation"], area = _coco_segmentation(segmentation)
    else:
        area = box[2] * box[3]
    keypoints = annotation.get("keypoints")
    if keypoints is not None:
        keypoints = [float(v) - 0.5 if i % 3 != 2 else v for i, v in enumerate(keypoints)]
        counted = sum(v > 0 for v in keypoints[2::3])
        result["keypoints"] = keypoints
        result["num_keypoints"] = int(annotation.get("num_keypoints", counted))
    return {
        "id": annotation_id,
        "image_id": image_id,
        "bbox": [round(v, 3) for v in box],
        "area": float(area),
        "iscrowd": int(annotation.get("iscrowd", 0)),
        "category_id": int(category_id(annotation["category_id"])),
        **result,
    }


def _coco_box(annotation: dict[str, Any], image_id: Any) -> list[float]:
    """Return ``(x, y, width, height)``, or ``(x_center, y_center, width, height, angle)`` of a rotated box."""
    box = [float(v) for v in annotation["bbox"]]
    mode = annotation["bbox_mode"]
    if len(box) not in (4, 5):
        raise ValueError(f"Image id {image_id}: a box has 4 numbers, or 5 if it is rotated, not {len(box)}: {box}.")
    if mode == BoxMode.XYXY_ABS:
        return [box[0], box[1], box[2] - box[0], box[3] - box[1]]
    target = BoxMode.XYWHA_ABS if len(box) == 5 else BoxMode.XYWH_ABS
    return box if mode == target else [float(v) for v in BoxMode.convert(box, mode, target)]


def _coco_segmentation(segmentation: Any) -> tuple[Any, float]:
    """Return polygons or run lengths that JSON can hold, and their area in square pixels."""
    if isinstance(segmentation, list):
        polygons = [np.asarray(p, dtype=np.float64) for p in segmentation]
        return [p.tolist() for p in polygons], sum(_polygon_area(p) for p in polygons)
    if isinstance(segmentation, dict):
        import pycocotools.mask as mask_util

        counts = segmentation["counts"]
        if isinstance(counts, list):
            segmentation = run_lengths(segmentation)
            counts = segmentation["counts"]
        area = float(mask_util.area(cast(Any, segmentation)))
        text = counts.decode("ascii") if isinstance(counts, bytes) else counts
        return {"size": [int(v) for v in segmentation["size"]], "counts": text}, area
    raise TypeError(
        f"A segmentation is a list of polygons or a dict of run lengths, not {type(segmentation).__name__}."
    )


def _polygon_area(polygon: np.ndarray) -> float:
    """Area of ``[x1, y1, ..., xn, yn]`` by the shoelace formula."""
    x, y = polygon[0::2], polygon[1::2]
    return 0.5 * abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))


def convert_to_coco_json(dataset_name: str, output_file: str, allow_cached: bool = True) -> None:
    """Convert a registered data set to a file in the COCO format.

    Args:
        dataset_name: name in the catalogs.
        output_file: path of the JSON file to write.
        allow_cached: keep the file as it is if it exists already. It may then be older than the data set.
    """
    folder = os.path.dirname(output_file)
    if folder:
        PathManager.mkdirs(folder)
    with file_lock(output_file):
        if allow_cached and PathManager.exists(output_file):
            logger.warning(
                "Using the existing annotation file '%s'. If the data set has changed since, delete that file.",
                output_file,
            )
            return
        content = convert_to_coco_dict(dataset_name)
        logger.info("Writing annotations in the COCO format to '%s' ...", output_file)
        with atomic_write(output_file, "w") as f:
            json.dump(content, f)
