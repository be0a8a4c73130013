import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluators,
    PascalVOCDetectionEvaluator,
    RotatedCOCOEvaluator,
    SemSegEvaluator,
    build_evaluator,
)
from detectron2.structures import BoxMode


def test_by_type(coco, tools, names, tmp_path):
    evaluator = build_evaluator(coco(tools.random_coco(0)), str(tmp_path), distributed=False)
    assert isinstance(evaluator, COCOEvaluator)
    assert evaluator._output_dir == str(tmp_path)
    assert evaluator._distributed is False
    voc = names()
    MetadataCatalog.get(voc).set(
        evaluator_type="pascal_voc", dirname=str(tmp_path), split="val", year=2007, thing_classes=["a"]
    )
    assert isinstance(build_evaluator(voc), PascalVOCDetectionEvaluator)


@pytest.mark.parametrize("as_keyword", [True, False])
def test_with_a_config(coco, tools, tmp_path, as_keyword):
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    cfg.TEST.KEYPOINT_OKS_SIGMAS = [0.1]
    name = coco(tools.random_coco(0))
    evaluator = build_evaluator(name, cfg=cfg) if as_keyword else build_evaluator(name, cfg)
    assert Path(evaluator._output_dir) == tmp_path / "run" / "inference"
    cfg.DATASETS.TEST = (name, "another")  # whose predictions have the same name
    assert Path(build_evaluator(name, cfg=cfg)._output_dir) == tmp_path / "run" / "inference" / name
    assert list(evaluator._kpt_oks_sigmas) == [0.1]


def test_by_fields(standard, tools, tmp_path):
    name = standard(tools.random_coco(0))
    assert isinstance(build_evaluator(name, str(tmp_path)), COCOEvaluator)


def test_rotated_boxes(names, coco, tools):
    name = names()
    box = {"bbox": [5, 5, 4, 4, 30], "bbox_mode": BoxMode.XYWHA_ABS, "category_id": 0}
    entry = {"file_name": "a.jpg", "image_id": 1, "height": 9, "width": 9, "annotations": [box]}
    DatasetCatalog.register(name, lambda: [entry])
    MetadataCatalog.get(name).set(thing_classes=["a"])
    assert isinstance(build_evaluator(name), RotatedCOCOEvaluator)
    cfg = get_cfg()
    upright = coco(tools.random_coco(0))
    assert type(build_evaluator(upright, cfg=cfg)) is COCOEvaluator
    cfg.MODEL.ANCHOR_GENERATOR.NAME = "RotatedAnchorGenerator"
    assert isinstance(build_evaluator(upright, cfg=cfg), RotatedCOCOEvaluator)


def test_several_kinds_of_ground_truth(names, tmp_path):
    name = names()
    Image.fromarray(np.zeros((2, 2), dtype=np.uint8)).save(tmp_path / "a.png")
    entry = {
        "file_name": "a.jpg",
        "image_id": 1,
        "height": 2,
        "width": 2,
        "annotations": [],
        "sem_seg_file_name": str(tmp_path / "a.png"),
    }
    DatasetCatalog.register(name, lambda: [entry])
    MetadataCatalog.get(name).set(thing_classes=["a"], stuff_classes=["b"])
    evaluator = build_evaluator(name)
    assert isinstance(evaluator, DatasetEvaluators)
    assert [type(member) for member in evaluator._evaluators] == [COCOEvaluator, SemSegEvaluator]


def test_panoptic_and_others(names, tmp_path, monkeypatch):
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a", "isthing": 1}]}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    panoptic = {
        "panoptic_json": str(path), "panoptic_root": str(tmp_path), "thing_dataset_id_to_contiguous_id": {1: 0},
        "stuff_dataset_id_to_contiguous_id": {}, "stuff_classes": [], "thing_classes": ["car"],
        "gt_dir": str(tmp_path),
    }  # fmt: skip
    instances, stuff = {"json_file": str(path)}, {"sem_seg_root": str(tmp_path)}
    monkeypatch.setitem(sys.modules, "cityscapesscripts", types.ModuleType("cityscapesscripts"))
    for kind, metadata, expected in (
        (
            "coco_panoptic_seg", {**panoptic, **instances, **stuff},
            "SemSegEvaluator COCOEvaluator COCOPanopticEvaluator",
        ),
        ("coco_panoptic_seg", {**panoptic, **instances}, "COCOEvaluator COCOPanopticEvaluator"),
        ("coco_panoptic_seg", panoptic, "COCOPanopticEvaluator"),
        ("lvis", instances, "LVISEvaluator"),
        ("cityscapes_instance", panoptic, "CityscapesInstanceEvaluator"),
        ("cityscapes_sem_seg", panoptic, "CityscapesSemSegEvaluator"),
        (
            "cityscapes_panoptic_seg", panoptic,
            "COCOPanopticEvaluator CityscapesSemSegEvaluator CityscapesInstanceEvaluator",
        ),
    ):  # fmt: skip
        name = names()
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).set(evaluator_type=kind, **metadata)
        built = build_evaluator(name, str(tmp_path / "out"))
        members = built._evaluators if isinstance(built, DatasetEvaluators) else [built]
        assert " ".join(type(member).__name__ for member in members) == expected


def test_nothing_to_evaluate_is_explained(names):
    name = names()
    DatasetCatalog.register(name, list)
    with pytest.raises(ValueError, match=r"fields \[\]"):
        build_evaluator(name)
    unknown = names()
    MetadataCatalog.get(unknown).set(evaluator_type="horoscope")
    with pytest.raises(ValueError, match="'horoscope'"):
        build_evaluator(unknown)
