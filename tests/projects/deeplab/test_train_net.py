"""The training script of DeepLab on a data set of two images."""

import runpy

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.projects.deeplab import WarmupPolyLR, add_deeplab_config

NAME = "deeplab_train_net_two_images"


@pytest.fixture
def config(tmp_path):
    rng, records = np.random.default_rng(0), []
    for i in range(2):
        image, labels = tmp_path / f"{i}.png", tmp_path / f"{i}_labels.png"
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(image)
        Image.fromarray(rng.choice(np.array([0, 1, 2, 255], dtype=np.uint8), (40, 60))).save(labels)
        records.append(
            {"file_name": str(image), "sem_seg_file_name": str(labels), "height": 40, "width": 60, "image_id": i}
        )
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(stuff_classes=["a", "b", "c"], ignore_label=255, evaluator_type="sem_seg")
    cfg = get_cfg()
    add_deeplab_config(cfg)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.DATALOADER.NUM_WORKERS = [NAME], [NAME], 0
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = "cpu", "", str(tmp_path / "out")
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_resnet_deeplab_backbone", 0
    options = cfg.MODEL.RESNETS
    options.OUT_FEATURES, options.NORM = ["res2", "res3"], "BN"
    options.STEM_OUT_CHANNELS = options.RES2_OUT_CHANNELS = 8
    head = cfg.MODEL.SEM_SEG_HEAD
    head.NAME, head.IN_FEATURES, head.NUM_CLASSES, head.NORM = "DeepLabV3PlusHead", ["res2", "res3"], 3, "BN"
    head.CONVS_DIM = head.ASPP_CHANNELS = 8
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = [64], 32, 48
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [32, 48]
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.75
    cfg.SOLVER.LR_SCHEDULER_NAME, cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH = "WarmupPolyLR", 2, 2
    yield cfg
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def test_trains_and_evaluates(config, repo_root):
    script = runpy.run_path(str(repo_root / "projects" / "DeepLab" / "train_net.py"))
    augmentations = script["build_sem_seg_augmentation"](config)
    assert [type(a).__name__ for a in augmentations] == [
        "ResizeShortestEdge",
        "RandomCrop_CategoryAreaConstraint",
        "RandomFlip",
    ]
    assert (augmentations[1].single_category_max_area, augmentations[1].ignored_category) == (0.75, 255)
    trainer = script["Trainer"](config)
    assert isinstance(trainer.scheduler, WarmupPolyLR)
    batch = next(iter(trainer.data_loader))
    assert [tuple(x["image"].shape) for x in batch] == [(3, 32, 48)] * 2
    assert [tuple(x["sem_seg"].shape) for x in batch] == [(32, 48)] * 2
    results = trainer.train()
    assert trainer.iter == 2
    assert 0 <= results["sem_seg"]["mIoU"] <= 100
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    assert torch.is_tensor(trainer.model.sem_seg_head.predictor.weight)
