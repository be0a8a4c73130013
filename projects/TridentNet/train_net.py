#!/usr/bin/env python
"""Train or evaluate TridentNet.

cd projects/TridentNet
python train_net.py --config-file configs/tridentnet_fast_R_50_C4_1x.yaml --num-gpus 8
python train_net.py --config-file configs/... --eval-only MODEL.WEIGHTS /path/to/checkpoint
"""

import argparse
from typing import Any

from tridentnet import add_tridentnet_config

from detectron2.projects.training import launch_script, train_or_evaluate


def main(args: argparse.Namespace) -> Any:
    """Body of each process."""
    return train_or_evaluate(args, add_tridentnet_config)


if __name__ == "__main__":
    launch_script(main)
