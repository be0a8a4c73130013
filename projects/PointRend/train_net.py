#!/usr/bin/env python
"""Train or evaluate PointRend, for instance or semantic segmentation.

python projects/PointRend/train_net.py --num-gpus 8 --config-file \
    projects/PointRend/configs/InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coco.yaml
python projects/PointRend/train_net.py --config-file ... --eval-only MODEL.WEIGHTS /path/to/checkpoint
"""

import argparse
from typing import Any

import detectron2.data.transforms as T
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.data.detection_utils import build_augmentation
from detectron2.engine import DefaultTrainer
from detectron2.projects.point_rend import ColorAugSSDTransform, add_pointrend_config
from detectron2.projects.training import launch_script, train_or_evaluate


def build_sem_seg_augmentation(cfg: CfgNode) -> list[T.Augmentation | T.Transform]:
    """Resizing, a crop in which no category prevails, distorted colours, and flips."""
    augmentations: list[T.Augmentation | T.Transform] = list(build_augmentation(cfg, is_train=True))
    extra: list[T.Augmentation | T.Transform] = []
    crop = cfg.INPUT.CROP
    if crop.ENABLED:
        ignored = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        extra.append(T.RandomCrop_CategoryAreaConstraint(crop.TYPE, crop.SIZE, crop.SINGLE_CATEGORY_MAX_AREA, ignored))
    if cfg.INPUT.COLOR_AUG_SSD:
        extra.append(ColorAugSSDTransform(img_format=cfg.INPUT.FORMAT))
    return augmentations[:1] + extra + augmentations[1:]


class Trainer(DefaultTrainer):
    """The default trainer, with the augmentations of semantic segmentation where that is trained."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        """The default loader for instances; images with label maps, cropped alike, for semantic segmentation."""
        if "SemanticSegmentor" not in cfg.MODEL.META_ARCHITECTURE:
            return build_detection_train_loader(cfg)
        mapper = DatasetMapper(cfg, is_train=True, augmentations=build_sem_seg_augmentation(cfg))
        return build_detection_train_loader(cfg, mapper=mapper)


def main(args: argparse.Namespace) -> Any:
    """Body of each process."""
    return train_or_evaluate(args, add_pointrend_config, trainer=Trainer)


if __name__ == "__main__":
    launch_script(main)
