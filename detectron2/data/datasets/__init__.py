"""Loaders and registration for data sets in common formats, and the built-in data sets."""

from detectron2.data.datasets import builtin, register_coco  # the built-in names register themselves, lazily
from detectron2.data.datasets.coco import (
    convert_to_coco_dict,
    convert_to_coco_json,
    load_coco_json,
    load_sem_seg,
    register_coco_instances,
)
from detectron2.data.datasets.coco_panoptic import register_coco_panoptic, register_coco_panoptic_separated
from detectron2.data.datasets.lvis import get_lvis_instances_meta, load_lvis_json, register_lvis_instances
from detectron2.data.datasets.pascal_voc import load_voc_instances, register_pascal_voc
from detectron2.data.datasets.sharded import load_sharded_dataset, register_sharded_dataset

__all__ = [
    "builtin",
    "convert_to_coco_dict",
    "convert_to_coco_json",
    "get_lvis_instances_meta",
    "load_coco_json",
    "load_lvis_json",
    "load_sem_seg",
    "load_sharded_dataset",
    "load_voc_instances",
    "register_coco",
    "register_coco_instances",
    "register_coco_panoptic",
    "register_coco_panoptic_separated",
    "register_lvis_instances",
    "register_pascal_voc",
    "register_sharded_dataset",
]
