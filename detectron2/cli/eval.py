"""``detectron2 eval``: evaluate a trained model on the test sets of its config.

detectron2 eval --config-file output/config.yaml --weights output/model_final.pth
"""

import argparse
import json
import os
import sys
from pathlib import Path

from detectron2.cli._common import (
    add_config_arguments,
    add_dataset_arguments,
    load_config,
    load_model,
    register_datasets,
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
    output = args.output or os.path.join(os.path.dirname(args.weights) or ".", "eval")
    lazy = args.config_file.endswith(".py")
    cfg = load_config(args.config_file, [*args.opts, *([f"train.output_dir={output}"] if lazy else ["OUTPUT_DIR", output])])
    args.eval_only = True
    default_setup(cfg, args)
    model, _ = load_model(cfg, args.weights)
    results = DefaultTrainer.test(cfg, model) if isinstance(cfg, CfgNode) else lazy_test(cfg, model)
    path = Path(output, "results.json")
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=2, default=float))
    os.replace(temporary, path)
    sys.stdout.write(f"Results: {path}\n")
    return 0
