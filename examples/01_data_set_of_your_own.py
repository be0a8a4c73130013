#!/usr/bin/env python
"""Register a data set of your own, have it checked, and draw it.

python examples/01_data_set_of_your_own.py

A data set is a name and a function that returns a list of dictionaries. The annotations here are rows of a CSV file, as
many labelling tools write them; the images are drawn first, so that the example needs nothing else.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets.synthetic import SHAPE_CLASSES, generate_shapes_dataset
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode
from detectron2.utils.logger import setup_logger
from detectron2.utils.visualizer import Visualizer

FOLDER = Path("output/examples/own_data")


def make_table() -> Path:
    """Stands for your labelling tool: one row for each object, of file, class and box."""
    content = json.loads(generate_shapes_dataset(FOLDER, 6).read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    with open(FOLDER / "boxes.csv", "w", newline="") as f:
        for a in content["annotations"]:
            csv.writer(f).writerow([names[a["image_id"]], SHAPE_CLASSES[a["category_id"] - 1], *a["bbox"]])
    return FOLDER / "boxes.csv"


def load(table: Path) -> list[dict[str, Any]]:
    """What the name stands for. It is called when the data set is used, not when it is registered."""
    records: dict[str, dict[str, Any]] = {}
    for file_name, class_name, *box in csv.reader(table.read_text().splitlines()):
        new = {"file_name": str(table.parent / "images" / file_name), "image_id": file_name, "annotations": []}
        record = records.setdefault(file_name, {**new, "height": 160, "width": 160})
        bbox = {"bbox": [float(x) for x in box], "bbox_mode": BoxMode.XYWH_ABS}
        record["annotations"].append({**bbox, "category_id": SHAPE_CLASSES.index(class_name)})
    return list(records.values())


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    setup_logger()
    table = make_table()
    DatasetCatalog.register("own_train", lambda: load(table))
    MetadataCatalog.get("own_train").thing_classes = list(SHAPE_CLASSES)
    records = get_detection_dataset_dicts("own_train")  # what a loader does: load, check, count
    for record in records[:2]:
        visualizer = Visualizer(read_image(record["file_name"], "RGB"), MetadataCatalog.get("own_train"), scale=3)
        drawn = FOLDER / f"drawn_{record['image_id']}"
        visualizer.draw_dataset_dict(record).save(drawn)
        print(f"{len(record['annotations'])} objects: {drawn}")
