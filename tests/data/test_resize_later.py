import logging

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, get_cfg
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.data import transforms as T
from detectron2.data.resize_later import ResizeLater, resize_later, resize_stored
from detectron2.engine import DefaultTrainer, lazy_train, train_loop
from detectron2.structures import BoxMode
from tests.engine.conftest import restore_logging  # noqa: F401


def described(file):
    box = {"bbox": [10, 5, 40, 30], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    box["segmentation"] = [[10, 5, 50, 5, 50, 35, 10, 35]]
    return {"file_name": file, "height": 60, "width": 90, "image_id": 1, "annotations": [box]}


@pytest.fixture
def record(tmp_path):
    coarse = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((90, 60)).save(tmp_path / "a.png")
    return described(str(tmp_path / "a.png"))


def mapper(augmentations, **options):
    return DatasetMapper(True, augmentations=augmentations, image_format="BGR", use_instance_mask=True, **options)


def test_nothing_to_resize():
    assert resize_stored([]) == [] and resize_stored(None) is None
    image = torch.zeros(3, 4, 5)
    batch = [{"image": image}, {}, "text"]
    assert resize_stored(batch) is batch and batch[0]["image"] is image


@pytest.mark.parametrize("size_hw", [(120, 171), (30, 45), (60, 90), (17, 200)])
@pytest.mark.parametrize("flips", [(), (T.HFlipTransform,), (T.VFlipTransform,), (T.HFlipTransform, T.VFlipTransform)])
def test_images_are_those_of_the_mapper(record, size_hw, flips):
    chosen = [T.RandomFlip(1.0, horizontal=f is T.HFlipTransform, vertical=f is T.VFlipTransform) for f in flips]
    augmentations = [T.CropTransform(4, 2, 80, 50), T.Resize(size_hw), *chosen]
    usual = mapper(augmentations)(record)
    later = mapper(augmentations)
    later.augmentations = ResizeLater(later.augmentations.augs)
    sample = later(record)
    assert "image" not in sample and sample["stored_image"].shape == (3, 50, 80) and sample["image_size_hw"] == size_hw
    assert resize_stored([sample]) == [sample] and sample.keys() == usual.keys()
    assert sample["image"].dtype == torch.uint8
    assert (sample["image"].int() - usual["image"].int()).abs().max() <= 1
    first, second = sample["instances"], usual["instances"]
    assert first.image_size == second.image_size == size_hw
    assert torch.equal(first.gt_boxes.tensor, second.gt_boxes.tensor)
    np.testing.assert_array_equal(first.gt_masks.polygons[0][0], second.gt_masks.polygons[0][0])


def test_label_maps_and_boxes_undergo_all_transforms():
    rng = np.random.default_rng(1)
    image, labels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8), rng.integers(0, 9, (20, 30), dtype=np.uint8)
    augmentations = [T.Resize((40, 45)), T.RandomFlip(1.0)]
    inputs = [T.AugInput(image, boxes=np.array([[2.0, 3, 10, 12]], np.float32), sem_seg=labels) for _ in range(2)]
    transforms = ResizeLater(augmentations)(inputs[0])
    expected = T.AugmentationList(augmentations)(inputs[1])
    assert [type(t) for t in transforms.transforms] == [type(t) for t in expected.transforms]
    np.testing.assert_array_equal(inputs[0].boxes, inputs[1].boxes)
    np.testing.assert_array_equal(inputs[0].sem_seg, inputs[1].sem_seg)
    assert inputs[0].image.shape == inputs[1].image.shape


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_other_types_are_resized_at_once(dtype):
    image = np.arange(20 * 30 * 3).reshape(20, 30, 3).astype(dtype)
    aug_input = T.AugInput(image)
    ResizeLater([T.Resize((40, 45))])(aug_input)
    assert not hasattr(aug_input, "stored_image")
    np.testing.assert_array_equal(aug_input.image, T.Resize((40, 45)).get_transform(image).apply_image(image))


@pytest.mark.parametrize(
    ("augmentations", "why"),
    [
        ([], "none of the augmentations is Resize or ResizeShortestEdge"),
        ([T.RandomFlip()], "none of the augmentations is"),
        ([T.Resize((4, 4), Image.Resampling.NEAREST)], "Resize is not bilinear"),
        ([T.ResizeShortestEdge(4), T.RandomFlip(), T.RandomBrightness(0.5, 2)], "RandomBrightness after the resize"),
    ],
)
def test_what_cannot_be_left_for_later_is_said(caplog, record, augmentations, why):
    loader = build_detection_train_loader([record], mapper=mapper(augmentations), total_batch_size=1)
    with caplog.at_level(logging.WARNING):
        resize_later(loader)
    assert f"TRAIN.RESIZE_ON_DEVICE (train.resize_on_device) has no effect: {why}" in caplog.text
    assert "image" in next(iter(loader))[0]


class Own(DatasetMapper):
    def __call__(self, dataset_dict):
        return super().__call__(dataset_dict)


def test_images_of_other_mappers_stay(caplog, record):
    own = Own(True, augmentations=[T.Resize((8, 9))], image_format="BGR")
    for loader in (
        [[{"image": 1}]],
        build_detection_train_loader([record], mapper=own, total_batch_size=1),
        build_detection_train_loader([record], mapper=mapper([T.Resize((8, 9))]), total_batch_size=1, collate_fn=list),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            resize_later(loader)
        assert "has no effect: the images do not come from a DatasetMapper" in caplog.text
        assert "image" in next(iter(loader))[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_gives_images_as_they_are_stored(record, workers):
    made = mapper([T.ResizeShortestEdge(40), T.RandomFlip()])
    loader = build_detection_train_loader([record], mapper=made, total_batch_size=2, num_workers=workers)
    resize_later(loader)
    batch = next(iter(loader))
    assert [sample["stored_image"].shape for sample in batch] == [(3, 60, 90)] * 2
    assert [sample["image"].shape for sample in resize_stored(batch)] == [(3, 40, 60)] * 2


class MeanLevel(nn.Module):
    """Learns how bright images are, and notes their sizes."""

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.zeros(1))
        self.sizes = []

    def forward(self, batch):
        if not self.training:
            return []
        self.sizes += [tuple(sample["image"].shape) for sample in batch]
        return {"loss": sum((sample["image"].float().mean() / 255 - self.level) ** 2 for sample in batch).sum()}


def endless(file):
    return build_detection_train_loader(
        [described(file)], mapper=mapper([T.ResizeShortestEdge(40)]), total_batch_size=2
    )


def trained_by_default_trainer(record, folder, **options):
    class Trainer(DefaultTrainer):
        @classmethod
        def build_model(cls, cfg):
            return MeanLevel()

        @classmethod
        def build_train_loader(cls, cfg):
            return endless(record["file_name"])

    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.DATASETS.TEST, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = str(folder), (), 3, ()
    cfg.merge_from_list([item for key, value in options.items() for item in (f"TRAIN.{key.upper()}", value)])
    trainer = Trainer(cfg)
    trainer.train()
    return trainer.model


def trained_by_lazy_config(record, folder, **options):
    cfg = LazyConfig.load(model_zoo.get_config_file("common/train.py"))
    cfg.model, cfg.optimizer = L(MeanLevel)(), model_zoo.get_config("common/optim.py").SGD
    cfg.lr_multiplier = model_zoo.get_config("common/coco_schedule.py").lr_multiplier_1x
    cfg.dataloader = {"train": L(endless)(file=record["file_name"])}
    cfg.train.update({"output_dir": str(folder), "device": "cpu", "max_iter": 3, "eval_period": 0, **options})
    return lazy_train(cfg)


@pytest.mark.usefixtures("restore_logging")
@pytest.mark.parametrize("train", [trained_by_default_trainer, trained_by_lazy_config])
@pytest.mark.parametrize("ahead", [False, True])
def test_a_model_learns_the_same(monkeypatch, caplog, tmp_path, record, train, ahead):
    monkeypatch.setattr(train_loop, "_prefetches_to", lambda device: ahead)
    usual = train(record, tmp_path / "usual")
    later = train(record, tmp_path / "later", resize_on_device=True)
    assert later.sizes == usual.sizes == [(3, 40, 60)] * 6
    assert later.level.item() == pytest.approx(usual.level.item(), abs=1e-4) and usual.level.item() > 0
    assert "has no effect" not in caplog.text
