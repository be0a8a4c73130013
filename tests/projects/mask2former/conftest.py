"""Registered data sets of a few images with instances, label maps and panoptic maps."""

import numpy as np
import pytest
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.synthetic import generate_shapes_dataset


def _register(name, records, **metadata):
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(ignore_label=255, **metadata)


@pytest.fixture(scope="session")
def datasets(tmp_path_factory):
    """Names of data sets: "instances" (six classes), "semantic" and "panoptic" (things 0 and 1, stuff 2 and 3)."""
    folder = tmp_path_factory.mktemp("mask2former")
    generate_shapes_dataset(folder / "shapes", 4, size_hw=(64, 80), seed=5)
    names = {kind: f"mask2former_{kind}" for kind in ("instances", "semantic", "panoptic")}
    register_coco_instances(
        names["instances"], {}, str(folder / "shapes/annotations.json"), str(folder / "shapes/images")
    )
    semantic, panoptic = [], []
    for i in range(2):
        image, labels, segments = (folder / f"{i}{kind}.png" for kind in ("", "_labels", "_segments"))
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (48, 60, 3), dtype=np.uint8)).save(image)
        values = np.full((48, 60), 2, dtype=np.uint8)
        values[20:], values[:4], values[8:24, 10:30] = 3, 255, 0
        Image.fromarray(values).save(labels)
        ids = np.zeros((48, 60, 3), dtype=np.uint8)
        for label, colour in ((2, (255, 0, 0)), (3, (0, 1, 0)), (0, (7, 0, 0))):
            ids[values == label] = colour
        Image.fromarray(ids).save(segments)
        base = {"file_name": str(image), "height": 48, "width": 60, "image_id": i}
        semantic.append({**base, "sem_seg_file_name": str(labels)})
        infos = [
            {"id": 255, "category_id": 2, "iscrowd": 0, "isthing": False},
            {"id": 256, "category_id": 3, "iscrowd": i, "isthing": False},  # in the second image a crowd
            {"id": 7, "category_id": 0, "iscrowd": 0, "isthing": True},
            {"id": 9, "category_id": 1, "iscrowd": 0, "isthing": True},  # not to be seen
        ]
        panoptic.append({**base, "pan_seg_file_name": str(segments), "segments_info": infos})
    classes = ["a", "b", "c", "d"]
    _register(names["semantic"], semantic, stuff_classes=classes, evaluator_type="sem_seg")
    _register(
        names["panoptic"],
        panoptic,
        thing_classes=classes,
        stuff_classes=classes,
        thing_dataset_id_to_contiguous_id={0: 0, 1: 1},
        stuff_dataset_id_to_contiguous_id={2: 2, 3: 3},
    )
    yield names
    for name in names.values():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
