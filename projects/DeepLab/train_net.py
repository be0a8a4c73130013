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
import detectron2.utils.comm as comm
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.data.detection_utils import build_augmentation
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.projects.deeplab import add_deeplab_config, build_lr_scheduler


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


def setup(args: argparse.Namespace) -> CfgNode:
    """Config from file and command line, then logging, seed and output folder."""
    cfg = get_cfg()
    add_deeplab_config(cfg)
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    default_setup(cfg, args)
    return cfg


def main(args: argparse.Namespace) -> Any:
    """Body of each process."""
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).load_for_inference(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    parser = default_argument_parser()
    arguments = parser.parse_args()
    if not arguments.config_file:
        parser.error("--config-file is needed")
    launch(
        main,
        arguments.num_gpus,
        num_machines=arguments.num_machines,
        machine_rank=arguments.machine_rank,
        dist_url=arguments.dist_url,
        args=(arguments,),
    )
