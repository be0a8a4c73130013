"""A hand-made data set, and predictions for it."""

import json
import uuid

import numpy as np
import pytest
import torch

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances

HEIGHT, WIDTH = 120, 160


def predicted(boxes, scores, classes, **fields):
    """An `Instances` with boxes (x1, y1, x2, y2)."""
    instances = Instances((HEIGHT, WIDTH))
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.tensor(scores, dtype=torch.float32)
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    for name, value in fields.items():
        instances.set(name, value)
    return instances


def random_coco(seed, images=6, classes=3, objects=5):
    """A COCO data set with boxes and octagonal masks, category ids 11, 12 …"""
    rng = np.random.default_rng(seed)
    annotations = []
    for image in range(1, images + 1):
        for _ in range(int(rng.integers(0, objects + 1))):
            x, y = rng.uniform(0, [WIDTH - 45, HEIGHT - 45])
            w, h = rng.uniform(8, 40, 2)
            angle = np.linspace(0, 2 * np.pi, 8, endpoint=False)
            polygon = np.stack([x + w / 2 + w / 2 * np.cos(angle), y + h / 2 + h / 2 * np.sin(angle)], 1)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": 11 + int(rng.integers(classes)),
                    "bbox": [x, y, w, h],
                    "area": w * h * 0.7,
                    "iscrowd": int(rng.random() < 0.1),
                    "segmentation": [polygon.ravel().tolist()],
                }
            )
    return {
        "info": {},
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": 11 + c, "name": f"class{c}"} for c in range(classes)],
    }


def jittered(dataset, seed, extra=2):
    """Per image the (input, output) of a mediocre detector."""
    rng = np.random.default_rng(seed)
    pairs = []
    for image in dataset["images"]:
        boxes, classes = [], []
        for annotation in dataset["annotations"]:
            if annotation["image_id"] == image["id"]:
                x, y, w, h = annotation["bbox"]
                for _ in range(int(rng.integers(0, 3))):
                    boxes.append(np.array([x, y, x + w, y + h]) + rng.normal(0, 2, 4))
                    classes.append(annotation["category_id"] - 11)
        for _ in range(extra):
            corner = rng.uniform(0, 80, 2)
            boxes.append(np.concatenate([corner, corner + rng.uniform(5, 40, 2)]))
            classes.append(int(rng.integers(len(dataset["categories"]))))
        boxes = np.array(boxes)
        masks = np.zeros((len(boxes), HEIGHT, WIDTH), dtype=bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
            mask[max(y1, 0) : y2, max(x1, 0) : x2] = True
        # few distinct scores, so that there are ties
        scores = rng.integers(1, 12, len(boxes)) / 12
        instances = predicted(boxes, scores, classes, pred_masks=torch.from_numpy(masks))
        pairs.append(({"image_id": image["id"], "height": HEIGHT, "width": WIDTH}, {"instances": instances}))
    return pairs


@pytest.fixture
def names():
    """Names for data sets that are forgotten after the test."""
    given = []

    def new():
        given.append(f"test_{uuid.uuid4().hex}")
        return given[-1]

    yield new
    for name in given:
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
        if name in MetadataCatalog.list():
            MetadataCatalog.remove(name)


@pytest.fixture
def coco(names, tmp_path):
    """Register a COCO dictionary -> the name of the data set."""

    def register(dataset, **metadata):
        name = names()
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(dataset))
        MetadataCatalog.get(name).set(
            json_file=str(path),
            evaluator_type="coco",
            thing_classes=[c["name"] for c in dataset["categories"]],
            thing_dataset_id_to_contiguous_id={c["id"]: k for k, c in enumerate(dataset["categories"])},
            **metadata,
        )
        return name

    return register


@pytest.fixture
def standard(names):
    """Register a COCO dictionary as a data set in the standard format, without a file -> its name."""

    def register(dataset):
        name = names()

        def entries():
            return [
                {
                    "file_name": image["file_name"],
                    "image_id": image["id"],
                    "height": image["height"],
                    "width": image["width"],
                    "annotations": [
                        {
                            "bbox": a["bbox"],
                            "bbox_mode": BoxMode.XYWH_ABS,
                            "category_id": a["category_id"] - 11,
                            "iscrowd": a["iscrowd"],
                            "segmentation": a["segmentation"],
                        }
                        for a in dataset["annotations"]
                        if a["image_id"] == image["id"]
                    ],
                }
                for image in dataset["images"]
            ]

        DatasetCatalog.register(name, entries)
        MetadataCatalog.get(name).set(thing_classes=[c["name"] for c in dataset["categories"]])
        return name

    return register


@pytest.fixture
def tools():
    """The plain functions of this file."""
    from types import SimpleNamespace

    return SimpleNamespace(predicted=predicted, random_coco=random_coco, jittered=jittered)
