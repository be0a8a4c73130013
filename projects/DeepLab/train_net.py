#!/usr/bin/env python
"""Train or evaluate DeepLabv3 or DeepLabv3+.

python projects/DeepLab/train_net.py --num-gpus 8 --config-file \
    projects/DeepLab/configs/Cityscapes-SemanticSegmentation/deeplab_v3_plus_R_103_os16_mg124_poly_90k_bs16.yaml
python projects/DeepLab/train_net.py --config-file ... --eval-only MODEL.WEIGHTS /path/to/checkpoint
"""

import argparse
from typing import Any

import torch

import detectron2.data.transforms as T
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.data.detection_utils import build_augmentation
from detectron2.engine import DefaultTrainer
from detectron2.projects.deeplab import add_deeplab_config, build_lr_scheduler
from detectron2.projects.training import launch_script, train_or_evaluate


def build_sem_seg_augmentation(cfg: CfgNode) -> list[T.Augmentation]:
    """Resizing, a crop in which no category prevails, and flips."""
    augmentations = build_augmentation(cfg, is_train=True)
    crop = cfg.INPUT.CROP
    if crop.ENABLED:
        ignored = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        # Behind resizing: crops are of a fixed size, the one that ASPP averages over.
        augmentations.insert(
            1, T.RandomCrop_CategoryAreaConstraint(crop.TYPE, crop.SIZE, crop.SINGLE_CATEGORY_MAX_AREA, ignored)
        )
    return augmentations


class Trainer(DefaultTrainer):
    """The default trainer with DeepLab's schedule and augmentations."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        """Images with label maps, cropped alike."""
        mapper = DatasetMapper(cfg, is_train=True, augmentations=build_sem_seg_augmentation(cfg))
        return build_detection_train_loader(cfg, mapper=mapper)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        """The polynomial schedule, or another that the config names."""
        return build_lr_scheduler(cfg, optimizer)


def main(args: argparse.Namespace) -> Any:
    """Body of each process."""
    return train_or_evaluate(args, add_deeplab_config, trainer=Trainer)


if __name__ == "__main__":
    launch_script(main)
