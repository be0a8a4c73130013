"""Data sets in the Pascal VOC format; `detectron2.data.formats.voc` reads the files."""

import functools
import os
from collections.abc import Sequence
from typing import Any

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.data.formats.reading import Report, timed
from detectron2.data.formats.voc import VOC_MISTAKES, read_voc_records
from detectron2.structures import BoxMode

__all__ = ["CLASS_NAMES", "load_voc_instances", "register_pascal_voc"]

# The 20 classes of Pascal VOC; the position is the label.
CLASS_NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def load_voc_instances(dirname: str | os.PathLike[str], split: str, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Load boxes in the Pascal VOC format. No image is read but those whose size the annotations do not tell.

    Objects marked "difficult" are included. An image that the list names twice is loaded once, with a warning.

    Args:
        dirname: folder that contains `Annotations`, `ImageSets` and `JPEGImages`.
        split: name of the list of images in `ImageSets/Main`, such as "train", "val", "trainval", "test".
        class_names: the classes; the position in this list is the label.

    Returns:
        one dict per image in the standard format, in the order of the list; boxes are `(x1, y1, x2, y2)`.

    Raises:
        FileNotFoundError: a list or an annotation file is missing.
        ValueError: an annotation file is malformed, or an object's class is not among `class_names`.
    """
    labels = {name: label for label, name in enumerate(class_names)}
    report = Report(VOC_MISTAKES, strict=True)
    with timed(f"{dirname} ({split})"):
        records = read_voc_records(dirname, split, class_names, report)
        for record in records:
            record["annotations"] = [
                {"category_id": labels[o["name"]], "bbox": o["bbox"], "bbox_mode": BoxMode.XYXY_ABS}
                for o in record.pop("objects")
            ]
    report.log_warnings(dirname)
    return records


def register_pascal_voc(
    name: str, dirname: str | os.PathLike[str], split: str, year: int, class_names: Sequence[str] = CLASS_NAMES
) -> None:
    """Register a data set in the Pascal VOC format. Nothing is read yet.

    Args:
        name: the name to register.
        dirname: folder that contains `Annotations`, `ImageSets` and `JPEGImages`.
        split: name of the list of images in `ImageSets/Main`.
        year: 2007 or 2012; tells the evaluation which definition of average precision to use.
        class_names: the classes; the position in this list is the label.
    """
    DatasetCatalog.register(name, functools.partial(load_voc_instances, dirname, split, tuple(class_names)))
    MetadataCatalog.get(name).set(thing_classes=list(class_names), dirname=dirname, year=year, split=split)
