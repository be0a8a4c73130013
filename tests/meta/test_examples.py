"""The examples in docstrings run, and every public name of these packages has one."""

import doctest
import importlib
import json
import os
import pkgutil
import random
import tempfile
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import detectron2.evaluation
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import analyze_detections
from detectron2.structures import Boxes, BoxMode, Instances, RotatedBoxes

PACKAGES = (
    "structures",
    "layers",
    "data.transforms",
    "visualization",
    "tracking",
    "evaluation",
    "inference",
    "serving",
)
# Examples that need an optional library run where it is installed.
OPTIONAL = {
    "detectron2.data.transforms.albumentations_adapter": "albumentations",
    "detectron2.evaluation.cityscapes_evaluation": "cityscapesscripts",
    "detectron2.serving.app": "fastapi",
}
# What every example may use without importing it, as in PyTorch's own documentation.
GLOBALS = {
    "np": np, "torch": torch, "nn": torch.nn, "os": os, "tempfile": tempfile, "get_cfg": get_cfg,
    "Boxes": Boxes, "Instances": Instances, "RotatedBoxes": RotatedBoxes, "analyze_detections": analyze_detections,
}  # fmt: skip
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture
def data_sets(tmp_path):
    """`one_cat`: one image with one object, in the format of each evaluator; `one_car`: one image of a car."""
    names = {"file_name": "1.jpg", "height": 100, "width": 100}
    labels = np.zeros((100, 100), np.uint8)
    labels[10:30, 10:30] = 1
    ids = np.stack([labels + 1, 0 * labels, 0 * labels], -1)
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0}
    coco = {
        "images": [{"id": 1, **names, "neg_category_ids": [], "not_exhaustive_category_ids": []}],
        "categories": [{"id": 1, "name": "cat", "frequency": "f"}],
        "annotations": [box],
    }
    panoptic = {
        "categories": [{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "floor", "isthing": 0}],
        "annotations": [
            {
                "image_id": 1, "file_name": "ids.png",
                "segments_info": [{"id": 1, "category_id": 2}, {"id": 2, "category_id": 1}],
            }
        ],
    }  # fmt: skip
    voc = (
        "<annotation><object><name>cat</name><bndbox><xmin>11</xmin><ymin>11</ymin><xmax>30</xmax><ymax>30</ymax>"
        "</bndbox></object></annotation>"
    )
    files = {
        "coco.json": json.dumps(coco), "panoptic.json": json.dumps(panoptic),
        "Annotations/1.xml": voc, "ImageSets/Main/val.txt": "1",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    Image.fromarray(ids).save(tmp_path / "ids.png")
    frame = tmp_path / "ulm_000000_000019_gtFine"
    Image.fromarray(np.full((100, 100), 26000, np.uint16)).save(f"{frame}_instanceIds.png")
    Image.fromarray(np.full((100, 100), 26, np.uint8)).save(f"{frame}_labelIds.png")
    annotation = {"bbox": [10, 10, 20, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    record = {**names, "image_id": 1, "annotations": [annotation], "sem_seg_file_name": str(tmp_path / "labels.png")}
    DatasetCatalog.register("one_cat", lambda: [record])
    MetadataCatalog.get("one_cat").set(
        evaluator_type="coco", json_file=str(tmp_path / "coco.json"), dirname=str(tmp_path), split="val", year=2012,
        panoptic_json=str(tmp_path / "panoptic.json"), panoptic_root=str(tmp_path), ignore_label=255,
        thing_classes=["cat"], thing_dataset_id_to_contiguous_id={1: 0},
        stuff_classes=["floor", "cat"], stuff_dataset_id_to_contiguous_id={2: 0, 1: 1},
    )  # fmt: skip
    MetadataCatalog.get("one_car").set(gt_dir=str(tmp_path), thing_classes=["car"])
    yield
    DatasetCatalog.remove("one_cat")
    MetadataCatalog.remove("one_cat")
    MetadataCatalog.remove("one_car")


def modules() -> list[str]:
    names = []
    for package in PACKAGES:
        found = importlib.import_module(f"detectron2.{package}")
        names += [found.__name__, *(m.name for m in pkgutil.walk_packages(found.__path__, found.__name__ + "."))]
    return names


def defined_in(module: ModuleType) -> dict[str, Any]:
    """The functions and classes of `__all__` that the module defines itself."""
    public = {name: getattr(module, name) for name in getattr(module, "__all__", ())}
    return {name: o for name, o in public.items() if callable(o) and getattr(o, "__module__", "") == module.__name__}


@pytest.mark.parametrize("name", modules())
def test_examples_give_what_they_show(name, data_sets, tmp_path, monkeypatch):
    if name in OPTIONAL:
        pytest.importorskip(OPTIONAL[name])
    monkeypatch.chdir(tmp_path)  # examples may write files
    state = np.random.get_state(), random.getstate()
    module = importlib.import_module(name)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for public, documented in defined_in(module).items():
        for test in doctest.DocTestFinder().find(documented, public, module, extraglobs=GLOBALS):
            with torch.random.fork_rng():
                runner.run(test, out=report.append)
    np.random.set_state(state[0]), random.setstate(state[1])
    assert runner.failures == 0, "".join(report)


@pytest.mark.parametrize("name", modules())
def test_every_public_name_has_an_example(name):
    public = defined_in(importlib.import_module(name))
    if name.startswith("detectron2.evaluation"):  # its modules have other public names, for each other
        exported = {*detectron2.evaluation.__all__, *detectron2.evaluation.analysis.__all__}
        public = {n: o for n, o in public.items() if n in exported}
    missing = [n for n, o in public.items() if not _has_example(o)]
    assert missing == [], f"{name}: no example (>>>) in the docstring of {missing}"


def _has_example(public: Any) -> bool:
    return ">>>" in (public.__doc__ or "")
