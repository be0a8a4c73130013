"""The mapper: files in, targets out, and a record that cannot be used."""

import copy
import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.projects.panoptic_deeplab import (
    PanopticDeeplabDatasetMapper,
    PanopticDeepLabTargetGenerator,
    add_panoptic_deeplab_config,
)


@pytest.fixture
def record(tmp_path):
    """An image of 20 x 30 pixels with an object of the id 1 + 2 * 256 + 3 * 256 ** 2 on stuff of the id 5."""
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    panoptic = np.zeros((20, 30, 3), dtype=np.uint8)
    panoptic[..., 0] = 5
    panoptic[4:10, 6:12] = 1, 2, 3
    Image.fromarray(panoptic).save(tmp_path / "panoptic.png")
    segments = [
        {"id": 1 + 2 * 256 + 3 * 256**2, "category_id": 0, "iscrowd": 0},
        {"id": 5, "category_id": 1, "iscrowd": 0},
    ]
    return {
        "file_name": str(tmp_path / "image.png"),
        "pan_seg_file_name": str(tmp_path / "panoptic.png"),
        "segments_info": segments,
        "height": 20,
        "width": 30,
        "image_id": 3,
    }


def _mapper(augmentations=()):
    generator = PanopticDeepLabTargetGenerator(255, [0], sigma=1)
    return PanopticDeeplabDatasetMapper(
        augmentations=list(augmentations), image_format="BGR", panoptic_target_generator=generator
    )


def test_image_and_targets(record):
    before = copy.deepcopy(record)
    found = _mapper()(record)
    assert record == before
    assert found["image"].dtype == torch.uint8 and found["image"].is_contiguous()
    pixels = np.asarray(Image.open(record["file_name"]))
    np.testing.assert_array_equal(found["image"].numpy(), pixels[..., ::-1].transpose(2, 0, 1))
    expected = torch.ones(20, 30, dtype=torch.int64)
    expected[4:10, 6:12] = 0
    assert torch.equal(found["sem_seg"], expected)
    assert found["center_points"] == [[6.5, 8.5]]
    assert found["image_id"] == 3 and "pan_seg_file_name" not in found


def test_targets_follow_the_augmentations(record):
    found = _mapper([T.Resize((40, 60)), T.HFlipTransform(60), T.CropTransform(20, 0, 40, 40)])(record)
    assert found["image"].shape == (3, 40, 40)
    expected = torch.ones(40, 40, dtype=torch.int64)
    expected[8:20, 60 - 24 - 20 : 60 - 12 - 20] = 0
    assert torch.equal(found["sem_seg"], expected)
    assert found["center_points"] == [[13.5, 21.5]]


def test_from_config(record):
    cfg = get_cfg()
    add_panoptic_deeplab_config(cfg)
    cfg.DATASETS.TRAIN = ["coco_2017_train_panoptic"]
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = [40], 80
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [32, 48]
    cfg.INPUT.SMALL_INSTANCE_AREA, cfg.INPUT.GAUSSIAN_SIGMA = 77, 3
    mapper = PanopticDeeplabDatasetMapper(cfg)
    generator = mapper.panoptic_target_generator
    things = MetadataCatalog.get("coco_2017_train_panoptic").thing_dataset_id_to_contiguous_id
    assert generator.thing_ids == set(things.values()) == set(range(80))
    assert (generator.ignore_label, generator.sigma, generator.small_instance_area) == (255, 3, 77)
    assert (generator.small_instance_weight, generator.ignore_stuff_in_offset) == (3, True)
    names = [type(a).__name__ for a in mapper.augmentations.augs]
    assert names == ["ResizeShortestEdge", "RandomCrop", "RandomFlip"]
    assert mapper(record)["image"].shape == (3, 32, 48)


def test_a_record_that_is_not_panoptic(record):
    del record["segments_info"]
    with pytest.raises(KeyError, match="segments_info"):
        _mapper()(record)


def test_maps_of_another_size(record):
    Image.fromarray(np.zeros((10, 30, 3), dtype=np.uint8)).save(record["pan_seg_file_name"])
    with pytest.raises(ValueError, match="panoptic map"):
        _mapper()(record)


def test_real_data(shared_dir):
    """In a COCO image every category gets as many pixels as the file says."""
    folder = shared_dir / "data" / "coco_panoptic_sample" / "sample_data"
    annotation = json.loads((folder / "panoptic_examples.json").read_text())["annotations"][0]
    record = {
        "file_name": str(folder / "input_images" / annotation["file_name"].replace(".png", ".jpg")),
        "pan_seg_file_name": str(folder / "panoptic_examples" / annotation["file_name"]),
        "segments_info": annotation["segments_info"],
    }
    areas = Counter()
    for segment in annotation["segments_info"]:
        areas[segment["category_id"]] += segment["area"]
    labels = _mapper()(record)["sem_seg"]
    found = Counter(labels[labels != 255].tolist())
    assert found == areas
