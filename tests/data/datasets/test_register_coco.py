"""The older import path gives the same functions."""

from detectron2.data import datasets
from detectron2.data.datasets import register_coco


def test_same_functions():
    assert register_coco.register_coco_instances is datasets.register_coco_instances
    assert register_coco.register_coco_panoptic_separated is datasets.register_coco_panoptic_separated
