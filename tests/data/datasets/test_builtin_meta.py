"""Class tables of the built-in data sets, against the recorded ones."""

import json

import pytest

from detectron2.data.datasets.builtin_meta import (
    ADE20K_SEM_SEG_CATEGORIES,
    CITYSCAPES_CATEGORIES,
    COCO_CATEGORIES,
    COCO_PERSON_KEYPOINT_FLIP_MAP,
    COCO_PERSON_KEYPOINT_NAMES,
    KEYPOINT_CONNECTION_RULES,
    _get_builtin_metadata,
)


def plain(value):
    """As JSON would hold it: tuples as lists, keys as text."""
    return json.loads(json.dumps(value))


def test_unknown_family():
    with pytest.raises(KeyError, match="coco_person"):
        _get_builtin_metadata("nothing")


def test_sizes():
    assert len(COCO_CATEGORIES) == 133 and sum(c["isthing"] for c in COCO_CATEGORIES) == 80
    assert len(CITYSCAPES_CATEGORIES) == 19 and sum(c["isthing"] for c in CITYSCAPES_CATEGORIES) == 8
    assert len(ADE20K_SEM_SEG_CATEGORIES) == 150


@pytest.mark.parametrize("table", [COCO_CATEGORIES, CITYSCAPES_CATEGORIES])
def test_rows_are_well_formed(table):
    assert len({c["id"] for c in table}) == len({c["name"] for c in table}) == len(table)
    assert all(len(c["color"]) == 3 and all(0 <= v <= 255 for v in c["color"]) for c in table)


def test_keypoint_tables_agree():
    names = set(COCO_PERSON_KEYPOINT_NAMES)
    assert len(names) == 17
    assert {n for pair in COCO_PERSON_KEYPOINT_FLIP_MAP for n in pair} == names - {"nose"}
    assert {n for rule in KEYPOINT_CONNECTION_RULES for n in rule[:2]} == names


@pytest.mark.parametrize(
    ("family", "recorded"),
    [
        ("coco", "coco_2014_train"),
        ("coco_person", "keypoints_coco_2014_train"),
        ("coco_panoptic_separated", "coco_2017_train_panoptic_separated"),
        ("coco_panoptic_standard", "coco_2017_train_panoptic"),
        ("cityscapes", "cityscapes_fine_instance_seg_train"),
        ("cityscapes_panoptic", "cityscapes_fine_panoptic_train"),
        ("ade20k_sem_seg", "ade20k_sem_seg_train"),
    ],
)
def test_recorded_tables(shared_dir, family, recorded):
    tables = json.loads((shared_dir / "facts" / "builtin_datasets.json").read_text())["tables"]
    assert plain(_get_builtin_metadata(family)) == tables[recorded]


def test_real_coco_categories(shared_dir):
    path = shared_dir / "data" / "coco_panoptic_sample" / "panoptic_coco_categories.json"
    keys = ("id", "name", "isthing", "color")
    expected = [{k: c[k] for k in keys} for c in json.loads(path.read_text())]
    assert sorted(COCO_CATEGORIES, key=lambda c: c["id"]) == sorted(expected, key=lambda c: c["id"])
