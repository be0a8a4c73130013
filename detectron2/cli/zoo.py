"""`detectron2 zoo`: list the models of the model zoo, say what is known about one, download its weights.

detectron2 zoo list mask R_50
detectron2 zoo info COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x
detectron2 zoo download COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x
"""

import argparse
import contextlib
import dataclasses
import importlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

from tabulate import tabulate

from detectron2.model_zoo import get_config_file
from detectron2.model_zoo.published import ZooModel, find_model, list_models
from detectron2.utils.file_io import Detectron2Handler, PathManager

__all__ = ["describe", "table_of"]


def run(args: argparse.Namespace) -> int:
    """Do what the action says."""
    if args.action == "list":
        words = " ".join(args.filter)
        models = list_models(words)
        if "quick" not in words.lower():  # these train for some iterations, to test the library
            models = [m for m in models if not m.name.startswith("quick_schedules/")]
        if not models:
            raise ValueError(f"No model of the zoo has all of these words in its name or task: {words}")
        sys.stdout.write(json.dumps([_plain(m) for m in models], indent=2) + "\n" if args.json else table_of(models))
        return 0
    models = [find_model(name) for name in args.name]
    if args.action == "info":
        texts = json.dumps([_plain(m) for m in models], indent=2) if args.json else "\n".join(map(describe, models))
        sys.stdout.write(texts.rstrip() + "\n")
        return 0
    if lacking := [m.name for m in models if not m.url]:
        raise ValueError(f"There are no trained weights for {', '.join(lacking)}; 'detectron2 zoo list' shows who has.")
    if any(m.url.startswith("torchvision:") for m in models):
        importlib.import_module("detectron2.checkpoint")  # which knows these addresses
    with _log_to_stderr("detectron2.utils"):
        for model in models:
            path = PathManager.get_local_path(model.url, force=args.force)
            sys.stderr.write(f"{model.name}, {os.path.getsize(path) / 1e6:.1f} MB:\n")
            sys.stderr.flush()
            sys.stdout.write(f"{path}\n")
    return 0


@contextlib.contextmanager
def _log_to_stderr(name: str) -> Iterator[None]:
    """Show what a logger says, such as where a download continues, beside the result."""
    log, printer = logging.getLogger(name), logging.StreamHandler()
    level = log.level
    log.addHandler(printer)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(printer)
        log.setLevel(level)


_COLUMNS = {
    "box AP": "box AP",
    "mask AP": "mask AP",
    "keypoint AP": "kp. AP",
    "PQ": "PQ",
    "seconds per image": "s/image",
}


def table_of(models: list[ZooModel]) -> str:
    """Return a table for people, without the columns that are empty."""
    columns = {key: title for key, title in _COLUMNS.items() if any(key in m.results for m in models)}
    rows = [[m.name, m.task, *(m.results.get(key) for key in columns), "yes" if m.url else ""] for m in models]
    text = tabulate(rows, ["config", "task", *columns.values(), "weights"], "simple", missingval="")
    return f"{text}\n\n{len(models)} configs. AP and PQ in percent on the validation split, s/image on one V100 GPU.\n"


def describe(model: ZooModel) -> str:
    """Return all that is known about a model, and what to do with it, for people."""
    file = get_config_file(model.name)
    units = {"AP": "percent", "PQ": "percent", "AR": "percent"}
    facts: dict[str, Any] = {"task": model.task, "config": f"{file} ({model.kind})"}
    for name, value in model.results.items():
        unit = next((f" {unit}" for word, unit in units.items() if word in name), "")
        facts[name] = f"{value:g}{unit}" if isinstance(value, float) else value
    lines = [model.name]
    if model.url:
        facts["weights"] = model.url.replace(Detectron2Handler.S3_DETECTRON2_PREFIX, Detectron2Handler.PREFIX)
        facts["address"] = model.url
        facts["licence of weights"] = model.license_of_weights or "not recorded"
    else:
        facts["weights"] = "none published"
    width = max(map(len, facts))
    lines += [f"  {name:{width}}  {value}" for name, value in facts.items()]
    if model.url:
        lines += ["", "Predict:  " + _command("predict IMAGE.jpg", model.name, f"--weights {facts['weights']}")]
        lines += ["Evaluate: " + _command("eval", model.name, f"--weights {facts['weights']}")]
    lines += ([] if model.url else [""]) + ["Train:    " + _command("train", model.name, "--output DIR")]
    return "\n".join(lines) + "\n"


def _command(words: str, config: str, options: str) -> str:
    return f"detectron2 {words} --config-file {config} {options}"


def _plain(model: ZooModel) -> dict[str, Any]:
    return {**dataclasses.asdict(model), "kind": model.kind, "license_of_weights": model.license_of_weights}
