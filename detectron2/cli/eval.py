"""`detectron2 eval`: evaluate a trained model on the test sets of its config.

detectron2 eval --weights output/model_final.pth
detectron2 eval --config-file COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml --weights FILE --analyze

Checkpoints bring their YAML config along; --config-file is for those of other programs, and for LazyConfigs.
"""

import argparse
import inspect
import os
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from detectron2.cli import analyze
from detectron2.cli._analysis_run import find_sources
from detectron2.cli.arguments import parse
from detectron2.cli.common import (
    load_chosen_config,
    register_datasets,
    register_datasets_of_run,
    require_registered,
    require_weights,
    write_json,
)
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, get_detection_dataset_dicts
from detectron2.engine import DefaultTrainer, default_setup, lazy_test
from detectron2.evaluation import print_csv_format
from detectron2.evaluation.recorded import evaluate_rows
from detectron2.inference import read_shards
from detectron2.inference.loading import dataset_names, find_config_file, load_model
from detectron2.modeling.test_time_augmentation import build_model_with_tta
from detectron2.utils.registry import locate


def run(args: argparse.Namespace) -> int:
    """Evaluate and write `results.json`."""
    register_datasets(args)
    beside = "" if "://" in args.weights else os.path.dirname(args.weights)
    output = args.output or os.path.join(beside, "eval")
    args.config_file = find_config_file(args.config_file) if args.config_file else ""
    cfg = load_chosen_config(args, args.opts, output)
    if not isinstance(cfg, CfgNode) and not args.config_file:
        raise ValueError(
            f"The config in {args.weights} is a LazyConfig, whose evaluation may call anything: give it, with "
            "--config-file."
        )
    if isinstance(cfg, CfgNode) and not cfg.DATASETS.TEST:
        raise ValueError("There is nothing to evaluate on: DATASETS.TEST is empty.")
    if not isinstance(cfg, CfgNode) and "evaluator" not in cfg.dataloader:
        raise ValueError(f"There is no evaluation to do: {args.config_file} does not define dataloader.evaluator.")
    names = dataset_names(cfg, "test")
    register_datasets_of_run(beside, names)
    require_registered(names)
    if args.predictions:
        return _finish(args, output, names, _evaluate_shards(cfg, args, names))
    require_weights(cfg, args.weights)
    args.eval_only = True
    default_setup(cfg, args)
    model, _ = load_model(cfg, args.weights)
    if isinstance(cfg, CfgNode) and cfg.TEST.AUG.ENABLED:
        # Before the first evaluation, so that a model that cannot have it is refused at once.
        build_model_with_tta(cfg, model, MetadataCatalog.get(names[0]))
    results = DefaultTrainer.test(cfg, model) if isinstance(cfg, CfgNode) else _test_lazy(cfg, model, output)
    if isinstance(cfg, CfgNode) and cfg.TEST.AUG.ENABLED:
        results.update(DefaultTrainer.test_with_TTA(cfg, model))
    return _finish(args, output, names, results)


def _finish(args: argparse.Namespace, output: str, names: list[str], results: Any) -> int:
    """Write `results.json`, and the analysis if it is asked for."""
    path = Path(output, "results.json")
    write_json(path, results)
    sys.stdout.write(f"Results: {path}\n")
    if args.analyze:
        for name in names:
            _analyze(Path(output), name, is_only=len(names) == 1)
    return 0


def _evaluate_shards(cfg: Any, args: argparse.Namespace, names: list[str]) -> Any:
    """Evaluate what `detectron2 predict --shards` wrote, instead of running the model."""
    if not isinstance(cfg, CfgNode):
        raise ValueError("--predictions is for YAML configs, which say what to evaluate: give one with --config-file.")
    args.eval_only = True
    default_setup(cfg, args)
    results = {}
    for name in names:
        records = get_detection_dataset_dicts(name, filter_empty=False)
        evaluator = DefaultTrainer.build_evaluator(cfg, name)
        results[name] = evaluate_rows(read_shards(args.predictions), records, MetadataCatalog.get(name), evaluator)
        print_csv_format(results[name])
    return next(iter(results.values())) if len(results) == 1 else results


def _test_lazy(cfg: Any, model: Any, output: str) -> Any:
    evaluator = cfg.dataloader.evaluator
    if OmegaConf.is_dict(evaluator) and evaluator.get("output_dir") is None and _takes_folder(evaluator):
        evaluator.output_dir = os.path.join(output, "inference")
    return lazy_test(cfg, model)


def _takes_folder(evaluator: Any) -> bool:
    target = evaluator.get("_target_")
    target = locate(target) if isinstance(target, str) else target
    return callable(target) and "output_dir" in inspect.signature(target).parameters


def _analyze(output: Path, name: str, is_only: bool) -> None:
    """Analyze the predictions on one data set, as far as its evaluator has left any."""
    own = "" if is_only else name
    folder = output / "inference" / own
    try:
        sources = find_sources(str(folder), name)
    except FileNotFoundError:
        sys.stdout.write(f"{name}: its evaluator writes no predictions, so there is nothing to analyze.\n")
        return
    analyze.run_sources(sources, parse(["analyze", str(folder)]), output / "analysis" / own)
