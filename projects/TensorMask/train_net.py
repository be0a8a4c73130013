#!/usr/bin/env python
"""Train or evaluate TensorMask.

python projects/TensorMask/train_net.py --num-gpus 8 \
    --config-file projects/TensorMask/configs/tensormask_R_50_FPN_1x.yaml
python projects/TensorMask/train_net.py --config-file ... --eval-only MODEL.WEIGHTS /path/to/checkpoint
"""

import argparse
from typing import Any

from tensormask import add_tensormask_config

from detectron2.projects.training import launch_script, train_or_evaluate


def main(args: argparse.Namespace) -> Any:
    """Body of each process."""
    return train_or_evaluate(args, add_tensormask_config)


if __name__ == "__main__":
    launch_script(main)
