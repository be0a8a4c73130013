#!/usr/bin/env python
"""Train or evaluate a model from a LazyConfig file.

python tools/lazyconfig_train_net.py --config-file configs/COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.py --num-gpus 8
python tools/lazyconfig_train_net.py --config-file configs/... --eval-only train.init_checkpoint=/path/to/checkpoint
"""

import argparse
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import (
    create_ddp_model,
    default_argument_parser,
    default_setup,
    launch,
    lazy_test,
    lazy_train,
)


def main(args: argparse.Namespace) -> Any:
    """Body of each process."""
    cfg = LazyConfig.apply_overrides(LazyConfig.load(args.config_file), args.opts)
    default_setup(cfg, args)
    if not args.eval_only:
        return lazy_train(cfg, resume=args.resume)
    model = create_ddp_model(instantiate(cfg.model).to(cfg.train.device))
    DetectionCheckpointer(model).load_for_inference(cfg.train.init_checkpoint)
    return lazy_test(cfg, model)


def invoke_main() -> None:
    """Parse the command line and start the processes."""
    parser = default_argument_parser()
    args = parser.parse_args()
    if not args.config_file:
        parser.error("--config-file is needed")
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


if __name__ == "__main__":
    invoke_main()
