#!/usr/bin/env python
"""Count the operations, activations and parameters of a model, or show its structure.

python tools/analyze_model.py --num-inputs 100 --tasks flop --config-file cfg.yaml MODEL.WEIGHTS /path/to/model.pth
python tools/analyze_model.py --tasks flop activation --random-input 800 1280 --config-file cfg.yaml MODEL.WEIGHTS ""
python tools/analyze_model.py --tasks parameter structure --config-file cfg.py
python tools/analyze_model.py --tasks flop --exported exported/model.onnx --random-input 800 1216

Operations and activations of detectors depend on the images, through their sizes and the number of objects found, so
they are averaged over images of the test set, and the weights matter. One multiply-add counts as one operation.
Exported files (.onnx, .pt2) are run once, on an image without content.
"""

import argparse
import itertools
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from fvcore.nn import flop_count_table
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, instantiate
from detectron2.data import build_detection_test_loader
from detectron2.engine import default_argument_parser, default_setup
from detectron2.export.operations import count_exported_operations
from detectron2.inference.loading import find_config_file, load_config
from detectron2.modeling import build_model
from detectron2.utils.analysis import FlopCountAnalysis, activation_count_operators, parameter_count_table
from detectron2.utils.logger import setup_logger

logger = logging.getLogger("detectron2")


def build(cfg: Any, load_weights: bool) -> nn.Module:
    """Build the model, in evaluation mode."""
    if isinstance(cfg, CfgNode):
        model, weights = build_model(cfg), cfg.MODEL.WEIGHTS
    else:
        model, weights = instantiate(cfg.model).to(cfg.train.device), cfg.train.get("init_checkpoint", "")
    if load_weights and weights:
        DetectionCheckpointer(model).load(weights)
    return model.eval()


def inputs(cfg: Any, args: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """Batches of one image: random ones, or those of the test set."""
    if args.random_input:
        height, width = args.random_input
        for _ in range(args.num_inputs):
            yield [{"image": torch.rand(3, height, width) * 255, "height": height, "width": width}]
        return
    if isinstance(cfg, CfgNode):
        if not cfg.DATASETS.TEST:
            raise ValueError("DATASETS.TEST is empty; name a data set, or use --random-input HEIGHT WIDTH.")
        loader = build_detection_test_loader(cfg, cfg.DATASETS.TEST[0])
    else:
        loader = instantiate(cfg.dataloader.test)
    for batch in itertools.islice(loader, args.num_inputs):
        if args.use_fixed_input_size:
            batch[0]["image"] = torch.zeros(3, *fixed_size_hw(cfg))
        yield batch


def fixed_size_hw(cfg: Any) -> tuple[int, int]:
    """Height and width of a square: INPUT.CROP.SIZE where that is in pixels, else the shorter side when testing."""
    if not isinstance(cfg, CfgNode):
        raise ValueError("--use-fixed-input-size reads a YAML config; use --random-input HEIGHT WIDTH.")
    side = cfg.INPUT.CROP.SIZE[0] if cfg.INPUT.CROP.TYPE.startswith("absolute") else cfg.INPUT.MIN_SIZE_TEST
    return int(side), int(side)


@torch.no_grad()
def count_flops(cfg: Any, args: argparse.Namespace) -> float:
    """Count the operations for an image, on average, in billions."""
    model = build(cfg, load_weights=True)
    counts: Counter[str] = Counter()
    totals: list[float] = []
    analysis = None
    for batch in inputs(cfg, args):
        analysis = FlopCountAnalysis(model, batch)
        if totals:
            analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        counts += analysis.by_operator()
        totals.append(analysis.total() / 1e9)
    if analysis is None:
        raise ValueError("No images to count on: the data set is empty.")
    logger.info("Operations of the last image:\n%s", flop_count_table(analysis))
    _log_operators("operations", {name: count / 1e9 / len(totals) for name, count in counts.items()}, "billion")
    logger.info("Total: %.1f +- %.1f billion operations (%d images)", np.mean(totals), np.std(totals), len(totals))
    return float(np.mean(totals))


def count_exported_flops(path: str, size_hw: tuple[int, int]) -> float:
    """Count the operations of an exported file for one image, in billions."""
    counts = count_exported_operations(path, size_hw)
    _log_operators("operations", {name: count / 1e9 for name, count in counts.items()}, "billion")
    total = counts.total() / 1e9
    logger.info("Total: %.1f billion operations for %d x %d pixels (height x width)", total, *size_hw)
    return total


def count_activations(cfg: Any, args: argparse.Namespace) -> float:
    """Count the activations for an image, on average, in millions."""
    model = build(cfg, load_weights=True)
    counts: Counter[str] = Counter()
    totals: list[float] = []
    for batch in inputs(cfg, args):
        found = activation_count_operators(model, batch)
        counts += Counter(found)
        totals.append(sum(found.values()))
    if not totals:
        raise ValueError("No images to count on: the data set is empty.")
    _log_operators("activations", {name: count / len(totals) for name, count in counts.items()}, "million")
    logger.info("Total: %.1f +- %.1f million activations (%d images)", np.mean(totals), np.std(totals), len(totals))
    return float(np.mean(totals))


def _log_operators(what: str, mean: dict[str, float], unit: str) -> None:
    lines = [f"  {name}: {value:.3f} {unit}" for name, value in sorted(mean.items(), key=lambda item: -item[1])]
    logger.info("Average %s of an image by operator:\n%s", what, "\n".join(lines))


def count_parameters(cfg: Any, args: argparse.Namespace) -> None:
    """Show the table."""
    logger.info("Parameters:\n%s", parameter_count_table(build(cfg, load_weights=False), max_depth=5))


def show_structure(cfg: Any, args: argparse.Namespace) -> None:
    """Show the modules."""
    logger.info("Structure:\n%s", build(cfg, load_weights=False))


TASKS = {
    "flop": count_flops,
    "activation": count_activations,
    "parameter": count_parameters,
    "structure": show_structure,
}


def main() -> dict[str, Any]:
    """Parse the command line and do the tasks."""
    parser = default_argument_parser(epilog=__doc__)
    parser.add_argument("--tasks", choices=list(TASKS), nargs="+", required=True, help="what to count or show")
    parser.add_argument(
        "-n", "--num-inputs", type=int, default=100, help="images to average operations and activations over"
    )
    parser.add_argument(
        "--use-fixed-input-size",
        action="store_true",
        help="count with empty square images (INPUT.CROP.SIZE in pixels, else INPUT.MIN_SIZE_TEST)",
    )
    parser.add_argument(
        "--random-input", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="count with noise; needs no data set"
    )
    parser.add_argument(
        "--exported", metavar="FILE", help="count the operations of an exported .onnx or .pt2; needs --random-input"
    )
    args = parser.parse_args()
    if args.exported:
        if args.tasks != ["flop"] or not args.random_input:
            parser.error("--exported goes with --tasks flop and --random-input HEIGHT WIDTH, the size of the image")
        setup_logger()
        return {"flop": count_exported_flops(args.exported, tuple(args.random_input))}
    if not args.config_file:
        parser.error("--config-file is needed, or --exported")
    if args.num_inputs < 1:
        parser.error("--num-inputs must be at least 1")
    args.config_file = find_config_file(args.config_file)
    cfg = load_config(args.config_file, args.opts)
    default_setup(cfg, args)
    return {task: TASKS[task](cfg, args) for task in args.tasks}


if __name__ == "__main__":
    main()
