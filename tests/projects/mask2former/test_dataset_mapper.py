"""The mappers: what objects are made of, and how images are augmented."""

import pytest
import torch

from detectron2.data import DatasetCatalog
from detectron2.projects.mask2former import MASK_FORMER_MAPPERS, MaskFormerDatasetMapper
from detectron2.structures import BitMasks
from tests.projects.mask2former.models import tiny_config


def mapper(name, changes=(), is_train=True):
    plain = {"INPUT.MIN_SIZE_TRAIN": (48,), "INPUT.RANDOM_FLIP": "none", "INPUT.IMAGE_SIZE": 64}
    cfg = tiny_config({"INPUT.DATASET_MAPPER_NAME": name, **plain, **dict(changes)})
    return MaskFormerDatasetMapper(cfg, is_train=is_train)


def test_nothing_in_the_image(datasets):
    record = {**DatasetCatalog.get(datasets["instances"])[0], "annotations": []}
    assert len(mapper("mask_former_instance")(record)["instances"]) == 0
    padded = mapper("mask_former_instance", {"INPUT.SIZE_DIVISIBILITY": 96})(record)["instances"]
    assert len(padded) == 0 and padded.image_size == (96, 96)
    record = {**DatasetCatalog.get(datasets["panoptic"])[0], "segments_info": []}
    found = mapper("mask_former_panoptic")(record)["instances"]
    assert len(found) == 0 and found.gt_masks.tensor.shape == (0, 48, 60)


def test_classes_of_a_label_map(datasets):
    record = DatasetCatalog.get(datasets["semantic"])[0]
    before = dict(record)
    found = mapper("mask_former_semantic")(record)
    assert record == before and found["image_id"] == 0 and "sem_seg_file_name" not in found
    objects = found["instances"]
    assert objects.gt_classes.tolist() == [0, 2, 3] and isinstance(objects.gt_masks, BitMasks)
    assert objects.gt_masks.tensor.flatten(1).sum(1).tolist() == [16 * 20, 16 * 60 - 12 * 20, 28 * 60 - 4 * 20]
    assert objects.gt_boxes.tensor[0].tolist() == [10, 8, 30, 24]


@pytest.mark.parametrize(("image", "classes"), [(0, [2, 3, 0]), (1, [2, 0])])
def test_segments_of_a_panoptic_map(datasets, image, classes):
    """Without crowds, and those of which nothing is seen."""
    record = DatasetCatalog.get(datasets["panoptic"])[image]
    found = mapper("mask_former_panoptic")(record)["instances"]
    assert found.gt_classes.tolist() == classes
    thing = found.gt_masks.tensor[-1]
    assert thing.sum() == 16 * 20 and thing[8:24, 10:30].all()


def test_padding_is_no_segment(datasets):
    """Also where a segment has the id that labels of padding have elsewhere."""
    record = DatasetCatalog.get(datasets["panoptic"])[0]
    scale = {"INPUT.MIN_SCALE": 0.5, "INPUT.MAX_SCALE": 0.5}
    found = mapper("coco_panoptic_lsj", scale)(record)
    assert found["image"].shape == (3, 64, 64) and (found["image"][:, 26:] == 128).all()
    objects = found["instances"]
    assert objects.image_size == (64, 64) and objects.gt_classes.tolist() == [2, 3, 0]
    assert not objects.gt_masks.tensor[:, 26:].any() and not objects.gt_masks.tensor[:, :, 32:].any()


@pytest.mark.parametrize("name", ["coco_instance_lsj", "mask_former_instance"])
def test_instances(datasets, name):
    record = DatasetCatalog.get(datasets["instances"])[0]
    found = mapper(name, {"INPUT.MIN_SCALE": 1.0, "INPUT.MAX_SCALE": 1.0, "INPUT.MIN_SIZE_TRAIN": (64,)})(record)
    objects = found["instances"]
    assert found["image"].shape[1:] == objects.image_size == ((64, 64) if "lsj" in name else (64, 80))
    assert objects.gt_classes.tolist() == [x["category_id"] for x in record["annotations"]]
    assert isinstance(objects.gt_masks, BitMasks) and objects.gt_masks.tensor.flatten(1).any(1).all()
    torch.testing.assert_close(objects.gt_boxes.tensor, objects.gt_masks.get_bounding_boxes().tensor)


def test_padding_to_a_square(datasets):
    record = DatasetCatalog.get(datasets["semantic"])[0]
    found = mapper("mask_former_semantic", {"INPUT.SIZE_DIVISIBILITY": 64})(record)
    assert found["image"].shape == (3, 64, 64) and (found["image"][:, 48:] == 128).all()
    assert found["instances"].image_size == (64, 64) and not found["instances"].gt_masks.tensor[:, 48:].any()
    # Images that are larger stay as they are.
    small = mapper("mask_former_semantic", {"INPUT.SIZE_DIVISIBILITY": 50})(record)
    assert small["image"].shape == (3, 50, 60)


def test_augmentations():
    crop = {"INPUT.CROP.ENABLED": True, "INPUT.COLOR_AUG_SSD": True, "INPUT.RANDOM_FLIP": "horizontal"}
    names = {name: [type(x).__name__ for x in mapper(name, crop).augmentations.augs] for name in MASK_FORMER_MAPPERS}
    jitter = ["RandomFlip", "ResizeScale", "FixedSizeCrop"]
    cut = ["ResizeShortestEdge", "RandomCrop_CategoryAreaConstraint", "TransformToAug", "RandomFlip"]
    assert names["coco_instance_lsj"] == names["coco_panoptic_lsj"] == jitter
    assert names["mask_former_semantic"] == names["mask_former_panoptic"]
    assert names["mask_former_semantic"][:2] == cut[:2] and names["mask_former_semantic"][3:] == cut[3:]
    assert names["mask_former_instance"][1] == "RandomCrop"
    assert len(mapper("mask_former_semantic", crop, is_train=False).augmentations.augs) == 1


def test_refused(datasets):
    with pytest.raises(ValueError, match=r"is one of coco_instance_lsj, .*; got 'coco_lsj'"):
        mapper("coco_lsj")
    with pytest.raises(ValueError, match='source is "instances"'):
        MaskFormerDatasetMapper(source="boxes", is_train=True, augmentations=[], image_format="RGB")
    record = DatasetCatalog.get(datasets["semantic"])[0]
    with pytest.raises(KeyError, match="has no pan_seg_file_name and no segments_info"):
        mapper("mask_former_panoptic")(record)
    with pytest.raises(KeyError, match="has no annotations"):
        mapper("coco_instance_lsj")(record)
    wrong = {**record, "sem_seg_file_name": DatasetCatalog.get(datasets["instances"])[0]["file_name"]}
    with pytest.raises(ValueError, match=r"has \(height, width\) \(64, 80\), but the image"):
        mapper("mask_former_semantic")(wrong)
