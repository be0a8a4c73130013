#!/usr/bin/env python
"""Train or evaluate instance segmentation with labelled points in place of masks.

python projects/PointSup/train_net.py --num-gpus 8 --config-file \
    projects/PointSup/configs/mask_rcnn_R_50_FPN_3x_point_sup_point_aug.yaml
python projects/PointSup/train_net.py --config-file ... --eval-only MODEL.WEIGHTS /path/to/checkpoint
"""

import argparse
from typing import Any

from point_sup import PointSupDatasetMapper, add_point_sup_config

from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader
from detectron2.engine import DefaultTrainer
from detectron2.projects.point_rend import add_pointrend_config
from detectron2.projects.training import launch_script, train_or_evaluate


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


def main(args: argparse.Namespace) -> Any:
    """Body of each process."""
    return train_or_evaluate(args, add_pointrend_config, add_point_sup_config, trainer=Trainer)


if __name__ == "__main__":
    launch_script(main)
