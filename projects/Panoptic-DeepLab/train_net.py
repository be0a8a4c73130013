#!/usr/bin/env python
"""Train or evaluate Panoptic-DeepLab.

python projects/Panoptic-DeepLab/train_net.py --num-gpus 8 --config-file projects/Panoptic-DeepLab/configs/\
Cityscapes-PanopticSegmentation/panoptic_deeplab_R_52_os16_mg124_poly_90k_bs32_crop_512_1024_dsconv.yaml
python projects/Panoptic-DeepLab/train_net.py --config-file ... --eval-only MODEL.WEIGHTS /path/to/checkpoint
"""

import argparse
from typing import Any

from detectron2.projects.panoptic_deeplab import PanopticDeepLabTrainer, add_panoptic_deeplab_config
from detectron2.projects.training import launch_script, train_or_evaluate


def main(args: argparse.Namespace) -> Any:
    """Body of each process."""
    return train_or_evaluate(args, add_panoptic_deeplab_config, trainer=PanopticDeepLabTrainer)


if __name__ == "__main__":
    launch_script(main)
