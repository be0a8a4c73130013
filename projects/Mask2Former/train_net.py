#!/usr/bin/env python
"""Train or evaluate Mask2Former, for instance, panoptic or semantic segmentation.

python projects/Mask2Former/train_net.py --num-gpus 8 --config-file \
    projects/Mask2Former/configs/coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml
python projects/Mask2Former/train_net.py --config-file ... --eval-only MODEL.WEIGHTS /path/to/checkpoint
"""

import argparse
from typing import Any

from detectron2.projects.deeplab import add_deeplab_config
from detectron2.projects.mask2former import MaskFormerTrainer, add_maskformer2_config
from detectron2.projects.training import launch_script, train_or_evaluate


def main(args: argparse.Namespace) -> Any:
    """Body of each process. Published configs have a few keys of DeepLab."""
    return train_or_evaluate(args, add_deeplab_config, add_maskformer2_config, trainer=MaskFormerTrainer)


if __name__ == "__main__":
    launch_script(main)
