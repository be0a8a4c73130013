"""COCO with labelled points in place of masks."""

import functools
import os
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.data.datasets.builtin import dataset_root
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata

__all__ = ["register_all_coco_point_annotations", "register_coco_point_annotations"]

# name: (image_root, json_file), below the data folder
_COCO_POINTS = {
    f"coco_2017_train_points_n{count}_v1_without_masks": (
        "coco/train2017",
        f"coco/annotations/instances_train2017_n{count}_v1_without_masks.json",
    )
    for count in (1, 2, 3, 5, 10, 20)
}


def _load(name: str) -> list[dict[str, Any]]:
    metadata = MetadataCatalog.get(name)
    return load_coco_json(metadata.json_file, metadata.image_root, name, ["point_coords", "point_labels"])


def _describe_builtin(name: str) -> dict[str, Any]:
    images, json_file = (os.path.join(dataset_root(), path) for path in _COCO_POINTS[name])
    return {**_get_builtin_metadata("coco"), "image_root": images, "json_file": json_file, "evaluator_type": "coco"}


def register_coco_point_annotations(name: str, metadata: dict[str, Any], json_file: str, image_root: str) -> None:
    """Register a data set in the COCO format whose annotations have "point_coords" and "point_labels".

    Args:
        name: its name.
        metadata: further metadata; may be empty.
        json_file: the annotation file.
        image_root: folder that the file names of the images are relative to.
    """
    DatasetCatalog.register(name, functools.partial(_load, name))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata)


def register_all_coco_point_annotations() -> None:
    """Register the data sets that `prepare_coco_point_annotations_without_masks.py` makes, below the data folder."""
    for name in _COCO_POINTS:
        if name not in MetadataCatalog:
            DatasetCatalog.register(name, functools.partial(_load, name))
            MetadataCatalog.register_lazy(name, functools.partial(_describe_builtin, name))
