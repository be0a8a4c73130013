#!/usr/bin/env python
"""Train or evaluate instance segmentation with labelled points in place of masks.

python projects/PointSup/train_net.py --num-gpus 8 --config-file \
    projects/PointSup/configs/mask_rcnn_R_50_FPN_3x_point_sup_point_aug.yaml
python projects/PointSup/train_net.py --config-file ... --eval-only MODEL.WEIGHTS /path/to/checkpoint
"""

import argparse
from typing import Any

from point_sup import PointSupDatasetMapper, add_point_sup_config

import detectron2.utils.comm as comm
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data import build_detection_train_loader
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.projects.point_rend import add_pointrend_config


class Trainer(DefaultTrainer):
    """The default trainer with labelled points."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        """Images with boxes and points where INPUT.POINT_SUP is set, else the default loader."""
        if not cfg.INPUT.POINT_SUP:
            return build_detection_train_loader(cfg)
        mapper = PointSupDatasetMapper(cfg, is_train=True)
        without_masks = cfg.clone()
        without_masks.defrost()
        without_masks.MODEL.MASK_ON = False  # else the checks of the data would miss the masks
        return build_detection_train_loader(without_masks, mapper=mapper)


def setup(args: argparse.Namespace) -> CfgNode:
    """Config from file and command line, then logging, seed and output folder."""
    cfg = get_cfg()
    add_pointrend_config(cfg)
    add_point_sup_config(cfg)
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
