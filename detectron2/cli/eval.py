"""``detectron2 eval``: evaluate a trained model on the test sets of its config.

detectron2 eval --config-file output/config.yaml --weights output/model_final.pth
"""

import argparse
import os
import sys
from pathlib import Path

from detectron2.cli._common import (
    add_config_arguments,
    add_dataset_arguments,
    find_config_file,
    load_config,
    load_model,
    register_datasets,
    write_json,
)
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, default_setup, lazy_test


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``detectron2 eval``."""
    add_config_arguments(parser)
    add_dataset_arguments(parser)
    parser.add_argument("--weights", default="", metavar="FILE", help="a checkpoint; default: that of the config")
    parser.add_argument("--output", metavar="DIR", help="where logs and results.json go; default: beside the weights")


def run(args: argparse.Namespace) -> int:
    """Evaluate and write ``results.json``."""
    register_datasets(args)
    beside = "" if "://" in args.weights else os.path.dirname(args.weights)
    output = args.output or os.path.join(beside, "eval")
    args.config_file = find_config_file(args.config_file)
    cfg = load_config(args.config_file, args.opts, output)
    if isinstance(cfg, CfgNode) and not cfg.DATASETS.TEST:
        raise ValueError("There is nothing to evaluate on: DATASETS.TEST is empty.")
    if not isinstance(cfg, CfgNode) and "evaluator" not in cfg.dataloader:
        raise ValueError(f"There is no evaluation to do: {args.config_file} does not define dataloader.evaluator.")
    args.eval_only = True
    default_setup(cfg, args)
    model, _ = load_model(cfg, args.weights)
    results = DefaultTrainer.test(cfg, model) if isinstance(cfg, CfgNode) else lazy_test(cfg, model)
    path = Path(output, "results.json")
    write_json(path, results)
    sys.stdout.write(f"Results: {path}\n")
    return 0
