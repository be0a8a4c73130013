"""The command line of the training scripts in `projects/`.

A script names the functions that add its config keys and a subclass of `DefaultTrainer`; the rest is the same for all.
"""

import argparse
from collections.abc import Callable
from typing import Any

import detectron2.utils.comm as comm
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results

__all__ = ["launch_script", "train_or_evaluate"]


def train_or_evaluate(
    args: argparse.Namespace, *add_config: Callable[[CfgNode], None], trainer: type[DefaultTrainer] = DefaultTrainer
) -> Any:
    """Train the model of a config file or, with `--eval-only`, evaluate it.

    `add_config` are functions that add the keys of a project to a config, and `trainer` builds the parts of training
    and evaluation. Returns the results of the (last) evaluation by task, if there is one.
    """
    cfg = get_cfg()
    for add in add_config:
        add(cfg)
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    default_setup(cfg, args)
    if not args.eval_only:
        training = trainer(cfg)
        training.resume_or_load(resume=args.resume)
        return training.train()
    model = trainer.build_model(cfg)
    DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).load_for_inference(cfg.MODEL.WEIGHTS, resume=args.resume)
    results = trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def launch_script(main: Callable[[argparse.Namespace], Any]) -> None:
    """Parse the command line and start the processes.

    `main`, the body of each process, is defined at the top level of the script, so that new processes can import it.
    """
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
