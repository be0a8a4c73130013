"""The examples in the docstrings run and give what they say; every public name has one."""

import ast
import doctest
import importlib
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import detectron2.evaluation
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation.analysis import analyze_detections
from detectron2.structures import Boxes, Instances

ROOT = Path(detectron2.evaluation.__file__).parent
MODULES = sorted(p for p in ROOT.rglob("*.py") if p.name != "__init__.py")
# These need folders of files in the layout of their benchmark; docs/tutorials/evaluation.md shows them.
NEED_FILES = {
    "COCOPanopticEvaluator",
    "CityscapesEvaluator",
    "CityscapesInstanceEvaluator",
    "CityscapesSemSegEvaluator",
    "LVISEvaluator",
    "PascalVOCDetectionEvaluator",
    "RotatedCOCOEvaluator",
    "SemSegEvaluator",
    "analyze_panoptic",
    "analyze_sem_seg",
}
# What examples may use without an import.
NAMES = {
    "Boxes": Boxes,
    "Instances": Instances,
    "analyze_detections": analyze_detections,
    "get_cfg": get_cfg,
    "nn": nn,
    "np": np,
    "os": os,
    "tempfile": tempfile,
    "torch": torch,
}


@pytest.fixture
def one_cat(tmp_path):
    """A data set of one image with one object."""
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 100, "width": 100}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0},
        ],
    }
    (tmp_path / "one_cat.json").write_text(json.dumps(content))
    register_coco_instances("one_cat", {}, str(tmp_path / "one_cat.json"), str(tmp_path))
    DatasetCatalog.get("one_cat")  # fills its metadata
    yield
    DatasetCatalog.remove("one_cat")
    MetadataCatalog.remove("one_cat")


def module_of(path):
    return importlib.import_module(".".join(["detectron2.evaluation", *path.relative_to(ROOT).with_suffix("").parts]))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_examples_run(path, one_cat):
    module = module_of(path)
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in finder.find(module, globs={**NAMES, **vars(module)}):
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


def test_every_public_name_has_an_example():
    public = {*detectron2.evaluation.__all__, *detectron2.evaluation.analysis.__all__}
    defined = {
        node.name: ast.get_docstring(node) or ""
        for path in MODULES
        for node in ast.parse(path.read_text()).body
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name in public
    }
    assert defined.keys() == public
    without = {name for name, text in defined.items() if ">>>" not in text}
    assert without == NEED_FILES
