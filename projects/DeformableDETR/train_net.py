#!/usr/bin/env python
"""Train or evaluate Deformable DETR or DINO, with the augmentations and the learning rates of the papers.

python projects/DeformableDETR/train_net.py --num-gpus 8 --config-file \
    projects/DeformableDETR/configs/deformable_detr_R_50_50ep.yaml
python projects/DeformableDETR/train_net.py --config-file ... --eval-only MODEL.WEIGHTS /path/to/checkpoint
"""

import argparse
from typing import Any

from detectron2.projects.deformable_detr import DeformableTrainer, add_deformable_detr_config
from detectron2.projects.training import launch_script, train_or_evaluate


def main(args: argparse.Namespace) -> Any:
    """Body of each process."""
    return train_or_evaluate(args, add_deformable_detr_config, trainer=DeformableTrainer)


if __name__ == "__main__":
    launch_script(main)
