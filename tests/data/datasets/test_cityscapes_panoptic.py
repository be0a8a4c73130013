"""Cityscapes for panoptic segmentation."""

import json

import pytest

from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from detectron2.data.datasets.cityscapes_panoptic import load_cityscapes_panoptic

META = _get_builtin_metadata("cityscapes_panoptic")


def make(tmp_path, *categories, prepared=True):
    segments = [{"id": i, "category_id": c} for i, c in enumerate(categories)]
    annotations = [{"image_id": "ulm_0_0", "file_name": "ulm_0_0_gtFine_panoptic.png", "segments_info": segments}]
    gt_json = tmp_path / "gtFine" / "panoptic.json"
    (tmp_path / "gtFine" / "train" / "ulm").mkdir(parents=True)
    gt_json.write_text(json.dumps({"annotations": annotations if categories else []}))
    if prepared:
        (tmp_path / "gtFine" / "train" / "ulm" / "ulm_0_0_gtFine_labelTrainIds.png").touch()
    return tmp_path / "leftImg8bit" / "train", tmp_path / "gtFine" / "panoptic", gt_json, META


def test_empty(tmp_path):
    with pytest.raises(ValueError, match="no annotations"):
        load_cityscapes_panoptic(*make(tmp_path))


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="createPanopticImgs"):
        load_cityscapes_panoptic("a", "b", tmp_path / "c.json", META)
    with pytest.raises(FileNotFoundError, match="createTrainIdLabelImgs"):
        load_cityscapes_panoptic(*make(tmp_path, 7, prepared=False))


def test_by_hand(tmp_path):
    assert load_cityscapes_panoptic(*make(tmp_path, 7, 26)) == [
        {
            "file_name": str(tmp_path / "leftImg8bit/train/ulm/ulm_0_0_leftImg8bit.png"),
            "image_id": "ulm_0_0",
            "sem_seg_file_name": str(tmp_path / "gtFine/train/ulm/ulm_0_0_gtFine_labelTrainIds.png"),
            "pan_seg_file_name": str(tmp_path / "gtFine/panoptic/ulm_0_0_gtFine_panoptic.png"),
            "segments_info": [
                {"id": 0, "category_id": 0, "isthing": False},
                {"id": 1, "category_id": 13, "isthing": True},
            ],
        }
    ]


@pytest.mark.parametrize("meta", [{}, {k: v for k, v in META.items() if k != "stuff_dataset_id_to_contiguous_id"}])
def test_missing_tables(tmp_path, meta):
    with pytest.raises(ValueError, match=r"meta needs .*stuff_dataset_id_to_contiguous_id.*cityscapes_fine_panoptic"):
        load_cityscapes_panoptic(*make(tmp_path, 7)[:3], meta)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "expected the key 'annotations'"),
        ({"annotations": [{"image_id": "a"}]}, "needs 'image_id', 'file_name' and 'segments_info'"),
        ({"annotations": [{"image_id": "a", "file_name": "a", "segments_info": [{}]}]}, "needs 'id' and 'category_id'"),
        ({"annotations": [{"image_id": None, "file_name": "a", "segments_info": []}]}, "'image_id' must be a"),
    ],
)
def test_missing_keys(tmp_path, content, message):
    arguments = make(tmp_path, 7)
    arguments[2].write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_cityscapes_panoptic(*arguments)


def test_unknown_category(tmp_path):
    with pytest.raises(ValueError, match="segment 0 of image id ulm_0_0: it has category_id 5"):
        load_cityscapes_panoptic(*make(tmp_path, 5))
