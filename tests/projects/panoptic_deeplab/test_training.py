"""Training of Panoptic-DeepLab on a data set of two images, by the script and by the command."""

import runpy

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2.cli.train import trainer_of
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluators
from detectron2.projects.deeplab import WarmupPolyLR
from detectron2.projects.panoptic_deeplab import PanopticDeepLabTrainer, add_panoptic_deeplab_config

NAME = "panoptic_deeplab_train_net_two_images"


@pytest.fixture
def config(tmp_path):
    rng, records = np.random.default_rng(0), []
    for i in range(2):
        image, panoptic = tmp_path / f"{i}.png", tmp_path / f"{i}_panoptic.png"
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(image)
        ids = np.full((40, 60, 3), 0, dtype=np.uint8)
        ids[..., 1], ids[10:30, 10:30] = 1, (7, 0, 0)
        Image.fromarray(ids).save(panoptic)
        segments = [
            {"id": 256, "category_id": 1, "iscrowd": 0, "isthing": False},
            {"id": 7, "category_id": 0, "iscrowd": 0, "isthing": True},
        ]
        records.append(
            {
                "file_name": str(image),
                "pan_seg_file_name": str(panoptic),
                "segments_info": segments,
                "height": 40,
                "width": 60,
                "image_id": i,
            }
        )
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(
        thing_classes=["a"],
        stuff_classes=["a", "b"],
        thing_dataset_id_to_contiguous_id={0: 0},
        stuff_dataset_id_to_contiguous_id={1: 1},
        ignore_label=255,
        label_divisor=1000,
    )
    cfg = get_cfg()
    add_panoptic_deeplab_config(cfg)
    cfg.DATASETS.TRAIN, cfg.DATALOADER.NUM_WORKERS = [NAME], 0
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = "cpu", "", str(tmp_path / "out")
    cfg.MODEL.META_ARCHITECTURE = "PanopticDeepLab"
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_resnet_deeplab_backbone", 0
    options = cfg.MODEL.RESNETS
    options.OUT_FEATURES, options.NORM = ["res2", "res3"], "BN"
    options.STEM_OUT_CHANNELS = options.RES2_OUT_CHANNELS = 8
    cfg.MODEL.SEM_SEG_HEAD.NAME, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = "PanopticDeepLabSemSegHead", 2
    for head in (cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.INS_EMBED_HEAD):
        head.IN_FEATURES, head.PROJECT_CHANNELS, head.NORM = ["res2", "res3"], [8], "BN"
        head.CONVS_DIM = head.ASPP_CHANNELS = head.HEAD_CHANNELS = 8
    cfg.INPUT.MIN_SIZE_TRAIN = [64]
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [32, 48]
    cfg.SOLVER.LR_SCHEDULER_NAME, cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH = "WarmupPolyLR", 2, 2
    yield cfg
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def test_script_and_command_train_in_the_same_way(repo_root, config):
    script = runpy.run_path(str(repo_root / "projects" / "Panoptic-DeepLab" / "train_net.py"), run_name="train_net")
    assert script["PanopticDeepLabTrainer"] is trainer_of(config) is PanopticDeepLabTrainer


def test_trains(config):
    trainer = PanopticDeepLabTrainer(config)
    assert isinstance(trainer.scheduler, WarmupPolyLR) and isinstance(trainer.optimizer, torch.optim.Adam)
    batch = next(iter(trainer.data_loader))
    assert [tuple(x["offset"].shape) for x in batch] == [(2, 32, 48)] * 2
    trainer.train()
    assert trainer.iter == 2
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_optimizer(config):
    model = torch.nn.Linear(2, 2)
    config.SOLVER.WEIGHT_DECAY, config.SOLVER.WEIGHT_DECAY_BIAS, config.SOLVER.BASE_LR = 0.25, 0.0, 0.5
    optimizer = PanopticDeepLabTrainer.build_optimizer(config, model)
    assert isinstance(optimizer, torch.optim.Adam)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.5, 0.25), (0.5, 0.0)]
    config.SOLVER.OPTIMIZER = "SGD"
    assert isinstance(PanopticDeepLabTrainer.build_optimizer(config, model), torch.optim.SGD)
    config.SOLVER.OPTIMIZER = "LION"
    with pytest.raises(ValueError, match=r"SOLVER\.OPTIMIZER"):
        PanopticDeepLabTrainer.build_optimizer(config, model)


def test_nothing_is_evaluated_when_speed_is_measured(config):
    config.MODEL.PANOPTIC_DEEPLAB.BENCHMARK_NETWORK_SPEED = True
    evaluator = PanopticDeepLabTrainer.build_evaluator(config, NAME)
    assert isinstance(evaluator, DatasetEvaluators)
    evaluator.process([{"image_id": 0}], [])
    assert evaluator.evaluate() == {}
