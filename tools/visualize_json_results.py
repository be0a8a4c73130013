#!/usr/bin/env python
"""Draw saved detections beside the ground truth: one picture for each image, predictions on the left.

python tools/visualize_json_results.py --input output/inference/coco_instances_results.json --output pictures
python tools/visualize_json_results.py --input results.json --output pictures --dataset instances.json --images val
"""

import argparse
import json
import logging
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.data.detection_utils import read_image
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.file_io import PathManager, atomic_write
from detectron2.utils.logger import setup_logger
from detectron2.utils.visualizer import Visualizer

logger = logging.getLogger("detectron2.tools.visualize_json_results")


def create_instances(
    results: list[dict[str, Any]], image_size: tuple[int, int], conf_threshold: float, labels: Mapping[int, int]
) -> Instances:
    """Turn the results of one image into what a model predicts.

    Args:
        results: entries in COCO's result format.
        image_size: (height, width) of the image, in pixels.
        conf_threshold: lower scores are left out.
        labels: contiguous label of each category id.

    Returns:
        the objects, the one with the highest score last, so that it is drawn over the others.
    """
    chosen = [result for result in results if result.get("score", 1.0) >= conf_threshold]
    chosen.sort(key=lambda result: result.get("score", 1.0))
    if unknown := sorted({r["category_id"] for r in chosen} - set(labels)):
        raise ValueError(
            f"The results of image {chosen[0]['image_id']!r} have the categories {unknown}, which the data set does "
            f"not have: its category ids are {sorted(labels)[:10]}{' ...' if len(labels) > 10 else ''}. Give the data "
            "set that they belong to with --dataset."
        )
    fields: dict[str, Any] = {
        "scores": torch.tensor([r.get("score", 1.0) for r in chosen]),
        "pred_classes": torch.tensor([labels[r["category_id"]] for r in chosen], dtype=torch.int64),
    }
    if all("bbox" in r for r in chosen):
        boxes = torch.tensor([r["bbox"] for r in chosen], dtype=torch.float32).reshape(-1, 4)
        fields["pred_boxes"] = Boxes(BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS))
    if chosen and all("segmentation" in r for r in chosen):
        fields["pred_masks_rle"] = [r["segmentation"] for r in chosen]
    if chosen and all("keypoints" in r for r in chosen):
        keypoints = torch.tensor([r["keypoints"] for r in chosen], dtype=torch.float32).reshape(len(chosen), -1, 3)
        keypoints[..., :2] += 0.5  # files hold the index of the pixel
        fields["pred_keypoints"] = keypoints
    return Instances(image_size, **fields)


def read_results(path: str) -> dict[Any, list[dict[str, Any]]]:
    """Read a file in COCO's result format -> the entries of each image id."""
    with PathManager.open(path, "r") as f:
        content = json.load(f)
    if isinstance(content, dict):  # one in the format of annotations, with scores
        content = content.get("annotations")
    if not isinstance(content, list) or any(not {"image_id", "category_id"} <= entry.keys() for entry in content):
        raise ValueError(
            f"{path} is not in COCO's result format: a list of entries with image_id, category_id, score, and bbox or "
            "segmentation, such as coco_instances_results.json."
        )
    by_image = defaultdict(list)
    for entry in content:
        by_image[entry["image_id"]].append(entry)
    return by_image


def open_dataset(name: str, images: str | None) -> tuple[list[dict[str, Any]], Metadata]:
    """Load a registered data set, or a file in COCO format with its images in a folder or beside it."""
    if name in DatasetCatalog:
        return DatasetCatalog.get(name), MetadataCatalog.get(name)
    if not os.path.isfile(name):
        DatasetCatalog.get(name)  # raises, and names the similar ones
    given = images or os.path.dirname(name)
    return load_coco_json(name, given, name), MetadataCatalog.get(name)


def labels_of_categories(metadata: Metadata) -> dict[int, int]:
    """Contiguous label of each category id that results may have."""
    mapping = metadata.get("thing_dataset_id_to_contiguous_id")
    if mapping is not None:
        return dict(mapping)
    count = len(metadata.get("thing_classes") or ())
    if metadata.get("evaluator_type") == "lvis":  # ids begin with 1
        return {label + 1: label for label in range(count)}
    # a data set without category ids of its own is evaluated with its labels
    return {label: label for label in range(count)}


def draw(record: dict[str, Any], predictions: list[dict[str, Any]], metadata: Metadata, threshold: float) -> np.ndarray:
    """Draw predictions and ground truth of an image side by side -> RGB picture (height, 2 * width, 3)."""
    image = read_image(record["file_name"], "RGB")
    found = create_instances(predictions, image.shape[:2], threshold, labels_of_categories(metadata))
    left = Visualizer(image, metadata).draw_instance_predictions(found).get_image()
    right = Visualizer(image, metadata).draw_dataset_dict(record).get_image()
    return np.concatenate((left, right), axis=1)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="predictions: JSON in COCO's result format")
    parser.add_argument("--output", required=True, help="folder for the pictures")
    parser.add_argument("--dataset", default="coco_2017_val", help="a registered data set, or a JSON in COCO format")
    parser.add_argument("--images", help="folder of the images of a JSON; default: the folder of the file")
    parser.add_argument("--conf-threshold", default=0.5, type=float, help="lower scores are not drawn; default: 0.5")
    parser.add_argument("--num", type=int, help="number of images to draw, evenly spaced; default: all")
    args = parser.parse_args(argv)
    setup_logger(name="detectron2")

    results = read_results(args.input)
    records, metadata = open_dataset(args.dataset, args.images)
    known = {record["image_id"] for record in records}
    if results and not known & set(results):
        raise ValueError(
            f"No image of {args.input} is in {args.dataset}: the results are of the image ids {list(results)[:3]}, the "
            f"data set has {[r['image_id'] for r in records[:3]]}. Give the data set that they belong to (--dataset)."
        )
    if foreign := len(set(results) - known):
        logger.warning("%d images of the results are not in %s; they are left out.", foreign, args.dataset)
    if args.num is not None and args.num < len(records):
        records = [records[i] for i in np.linspace(0, len(records) - 1, args.num).round().astype(int)]
    # files of one name in several folders must not overwrite each other
    root = os.path.commonpath([os.path.dirname(os.path.abspath(r["file_name"])) for r in records]) if records else ""
    if records and os.path.realpath(args.output) == os.path.realpath(root):
        raise ValueError(
            f"--output {args.output} has the images themselves, which would be written over: give another."
        )
    for record in records:
        picture = draw(record, results.get(record["image_id"], []), metadata, args.conf_threshold)
        path = Path(args.output, os.path.relpath(os.path.abspath(record["file_name"]), root))
        with atomic_write(path, "wb") as f:
            Image.fromarray(picture).save(f, format="JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG")
    logger.info("%d pictures are in %s", len(records), args.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
