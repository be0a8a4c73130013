"""`detectron2 demo`: the main job in one command, on data that it draws itself.

Generates a data set, trains a small Mask R-CNN on it, evaluates boxes and masks on images that it has not seen, draws
predictions beside the truth, and writes everything into one `report.html`.
"""

import argparse
import datetime
import html
import json
import math
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from detectron2 import model_zoo
from detectron2.cli._html import picture, write_page
from detectron2.cli.common import save_metadata, write_json
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.synthetic import SHAPE_CLASSES, generate_shapes_dataset
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultTrainer
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventWriter, JSONWriter, get_event_storage
from detectron2.utils.logger import setup_logger
from detectron2.utils.visualizer import Visualizer

_CONFIG = "Demo/mask_rcnn_R_18_FPN_shapes.yaml"
_SPLITS = {"train": (600, 1), "val": (120, 2)}  # images, seed
# What a run writes, and all that a clean start removes.
_MADE = ("config.yaml", "metadata.json", "metrics.json", "results.json", "report.html", "training_curve.png", "log.txt")
_MADE_FOLDERS = ("pictures", "inference")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `detectron2 demo`."""
    parser.add_argument("--output", default="output/demo", metavar="DIR", help="where everything goes")
    parser.add_argument("--resume", action="store_true", help="continue an earlier run instead of starting clean")
    parser.add_argument("--iters", type=int, metavar="N", help="train N iterations instead of those of the config")
    parser.add_argument("--pictures", type=int, default=12, metavar="N", help="held-out images to draw")
    parser.add_argument("--traceback", action="store_true", help="show the traceback of an error")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="changes to the config: pairs KEY VALUE, at the end")


def run(args: argparse.Namespace) -> int:
    """Do all steps."""
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    cfg = _config(args, output)
    _start_clean_or_resume(output, cfg, args.resume)
    setup_logger(str(output), configure_stdout=False)
    for split, (count, seed) in _SPLITS.items():
        _prepare_data(output / "data" / split, f"demo_shapes_{split}", count, seed)
    (output / "config.yaml").write_text(cfg.dump())
    save_metadata(cfg)
    seed_all_rng(cfg.SEED)

    trainer = _train(cfg, args.resume)
    results = trainer.results
    if results is None:
        _say("The model is already trained; evaluating it.")
        results = _DemoTrainer.test(cfg, trainer.model)
    write_json(output / "results.json", results)

    _say("Drawing predictions on images the model has not seen ...")
    pictures = draw_pairs(trainer.model.eval(), cfg, "demo_shapes_val", output / "pictures", args.pictures)
    metrics = read_metrics(output / "metrics.json")
    curve = draw_training_curve(metrics, output / "training_curve.png")
    write_report(output / "report.html", cfg, results, metrics, curve, pictures)
    _summary(output, results, trainer.checkpointer.file_name("model_final"))
    return 0


def _config(args: argparse.Namespace, output: Path) -> CfgNode:
    cfg = model_zoo.get_config(_CONFIG)
    assert isinstance(cfg, CfgNode)
    cfg.OUTPUT_DIR = str(output)
    if args.iters is not None:
        if args.iters < 1:
            raise ValueError(f"--iters must be at least 1, got {args.iters}.")
        cfg.SOLVER.STEPS = tuple(round(s * args.iters / cfg.SOLVER.MAX_ITER) for s in cfg.SOLVER.STEPS)
        cfg.SOLVER.WARMUP_ITERS = min(cfg.SOLVER.WARMUP_ITERS, args.iters // 2)
        cfg.SOLVER.MAX_ITER = args.iters
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    return cfg


def _start_clean_or_resume(output: Path, cfg: CfgNode, resume: bool) -> None:
    """Say what an earlier run left and, unless it is to be continued, remove that and nothing else."""
    last = output / "last_checkpoint"
    checkpoint = last.read_text().strip() if last.is_file() else None
    if checkpoint is None:
        if resume:
            _say(f"Nothing to resume in {output}; starting clean.")
        return
    finished = (output / "results.json").is_file()
    found = f"Found {'a finished' if finished else 'an unfinished'} run in {output} (last checkpoint {checkpoint}"
    if finished:
        results = json.loads((output / "results.json").read_text())
        found += f", box AP {results['bbox']['AP']:.1f}, mask AP {results['segm']['AP']:.1f}"
    _say(found + ").")
    if resume:
        _say("Resuming it.")
        return
    _say("Starting clean (--resume continues it instead). Its data set is kept.")
    models = [path for ending in (".pth", ".safetensors", ".state*.pt") for path in output.glob(f"model_*{ending}")]
    for path in [output / name for name in _MADE] + models + [last]:
        path.unlink(missing_ok=True)
    for folder in _MADE_FOLDERS:
        shutil.rmtree(output / folder, ignore_errors=True)


def _prepare_data(folder: Path, name: str, count: int, seed: int) -> None:
    """Draw a split, unless it is there, and register it."""
    annotations = folder / "annotations.json"
    if annotations.is_file():
        _say(f"Data: {folder} is there.")
    else:
        _say(f"Data: drawing {count} images of {len(SHAPE_CLASSES)} classes into {folder} ...")
        generate_shapes_dataset(folder, count, max_objects=5, seed=seed)
    if name in DatasetCatalog:  # a second run in the same process, perhaps in another folder
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_coco_instances(name, {}, str(annotations), str(folder / "images"))


class _DemoTrainer(DefaultTrainer):
    """The default trainer with another optimizer, and a progress line in the terminal."""

    results: Any = None

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Return AdamW: from scratch and in so few iterations it gets twice as far as the usual SGD."""
        groups = get_default_optimizer_params(model, weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM)
        optimizer = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
        return optimizer(groups, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)

    def build_writers(self) -> list[EventWriter]:
        """Return the progress line, and `metrics.json`."""
        return [
            _ProgressLine(self.max_iter, self.cfg.SOLVER.IMS_PER_BATCH),
            JSONWriter(os.path.join(self.cfg.OUTPUT_DIR, "metrics.json")),
        ]


class _ProgressLine(EventWriter):
    """Loss, speed and remaining time: one line that is rewritten in a terminal, many lines elsewhere."""

    def __init__(self, max_iter: int, images_per_iter: int) -> None:
        self._max_iter = max_iter
        self._images_per_iter = images_per_iter
        self._in_terminal = sys.stdout.isatty()
        self._started = time.perf_counter()

    def write(self) -> None:
        """Print the line."""
        storage = get_event_storage()
        done = storage.iter + 1
        known = storage.histories()
        if done > self._max_iter or "time" not in known:
            return
        seconds = known["time"].avg(20)
        line = (
            f"iteration {done:4d}/{self._max_iter}   loss {known['total_loss'].median(20):6.3f}   "
            f"{self._images_per_iter / seconds:5.1f} images/s   "
            f"ETA {datetime.timedelta(seconds=round(seconds * (self._max_iter - done)))}"
        )
        sys.stdout.write(f"\r{line}  " if self._in_terminal else f"{line}\n")
        if self._in_terminal and done == self._max_iter:
            sys.stdout.write("\n")
        sys.stdout.flush()


def _train(cfg: CfgNode, resume: bool) -> _DemoTrainer:
    """Train, or, where nothing is left to train, just load the weights."""
    trainer = _DemoTrainer(cfg)
    last = trainer.checkpointer.get_checkpoint_file() if trainer.checkpointer.has_checkpoint() else ""
    if resume and os.path.basename(last) == trainer.checkpointer.file_name("model_final"):
        trainer.checkpointer.load(last, checkpointables=[])
        return trainer
    trainer.resume_or_load(resume=resume)
    size = sum(p.numel() for p in trainer.model.parameters()) / 1e6
    _say(
        f"Training Mask R-CNN ({size:.1f} million parameters, {torch.get_num_threads()} threads), "
        f"iterations {trainer.start_iter} to {trainer.max_iter}. Ctrl-C stops; --resume continues."
    )
    start = time.perf_counter()
    try:
        trainer.results = trainer.train()
    except KeyboardInterrupt:
        trainer.iter -= 1  # the one that was interrupted is not done
        if trainer.iter >= trainer.start_iter:
            trainer.checkpointer.save(f"model_{trainer.iter:07d}", iteration=trainer.iter)
            _say(f"\nStopped after iteration {trainer.iter + 1}, and saved; --resume continues from there.")
        raise
    _say(f"Trained and evaluated in {datetime.timedelta(seconds=round(time.perf_counter() - start))}.")
    return trainer


def _summary(output: Path, results: dict[str, dict[str, float]], file_name: str) -> None:
    """Print where to look and what to try next."""
    box, mask = results["bbox"]["AP"], results["segm"]["AP"]
    weights = output / file_name
    unseen = output / "data" / "val"
    image, annotations = unseen / "images" / "00000.png", unseen / "annotations.json"
    # Run through make, the command lies in an environment that the user's shell does not know.
    command = "detectron2" if shutil.which("detectron2") else os.path.relpath(sys.argv[0])
    _say(
        f"""
Box AP {box:.1f}, mask AP {mask:.1f} on {_SPLITS["val"][0]} unseen images.

Look at   {output / "report.html"}
          {output / "pictures"}   (truth left, prediction right)

Try next
  {command} predict --weights {weights} {image} --output {output / "mine"}
  {command} analyze {output} --data {annotations}
  {command} demo --output {output} --resume
  {command} train --help        (your own images: --coco NAME annotations.json images/)
"""
    )


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


_SCALE = 3.0  # the demo's images are small; drawn larger, labels do not cover the objects
_LEAST_SCORE = 0.5


def draw_pairs(model: nn.Module, cfg: CfgNode, dataset_name: str, folder: Path, count: int) -> list[Path]:
    """Draw the truth (left) and the predictions (right) of the first images of a data set.

    Args:
        model: in evaluation mode.
        cfg: the config of the model.
        dataset_name: a registered data set.
        folder: gets one PNG per image.
        count: how many images.

    Returns:
        The paths of the pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mapper, metadata = DatasetMapper(cfg, is_train=False), MetadataCatalog.get(dataset_name)
    paths = []
    for record in DatasetCatalog.get(dataset_name)[:count]:
        with torch.inference_mode():
            instances = model([mapper(record)])[0]["instances"].to("cpu")
        image = read_image(record["file_name"], "RGB")
        truth = Visualizer(image, metadata, scale=_SCALE).draw_dataset_dict(record).get_image()
        found = Visualizer(image, metadata, scale=_SCALE).draw_instance_predictions(
            instances[instances.scores >= _LEAST_SCORE]
        )
        gap = np.full((truth.shape[0], 12, 3), 255, np.uint8)
        path = folder / f"{Path(record['file_name']).stem}.png"
        Image.fromarray(np.concatenate([truth, gap, found.get_image()], axis=1)).save(path)
        paths.append(path)
    return paths


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the records of `metrics.json`, by iteration; of repeated ones (after a resume) the newest."""
    records: dict[int, dict[str, float]] = {}
    if path.is_file():
        for line in path.read_text().splitlines():
            record = json.loads(line)
            records.setdefault(int(record["iteration"]), {}).update(record)
    return [records[i] for i in sorted(records)]


def draw_training_curve(metrics: list[dict[str, float]], path: Path) -> Path:
    """Draw the losses and the learning rate over the iterations.

    Args:
        metrics: what `read_metrics` returned.
        path: the PNG to write.

    Returns:
        `path`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    losses = figure.add_subplot()
    names = sorted({k for m in metrics for k in m if "loss" in k}, key=lambda k: (k != "total_loss", k))
    for name in names:
        points = [(m["iteration"], m[name]) for m in metrics if name in m]
        losses.plot(*zip(*points, strict=True), label=name, linewidth=2.2 if name == "total_loss" else 1.1)
    losses.set(xlabel="iteration", ylabel="loss (median of 20)", ylim=(0, None), title="Training")
    losses.grid(alpha=0.3)
    rate_points = [(m["iteration"], m["lr"]) for m in metrics if "lr" in m]
    if rate_points:
        rate = losses.twinx()
        rate.plot(*zip(*rate_points, strict=True), color="0.6", linestyle=":", label="learning rate")
        rate.set(ylabel="learning rate", ylim=(0, None))
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(path)
    return path


def write_report(
    path: Path,
    cfg: CfgNode,
    results: dict[str, dict[str, float]],
    metrics: list[dict[str, float]],
    curve: Path,
    pictures: list[Path],
) -> None:
    """Write one HTML page with everything in it, so that it can be sent as a file.

    Args:
        path: the page.
        cfg: shown at the end.
        results: `{task: {metric: value}}`.
        metrics: what `read_metrics` returned.
        curve: the picture of the training.
        pictures: truth beside prediction.
    """
    speed = [m["time"] for m in metrics if "time" in m]
    facts = [
        f"{cfg.SOLVER.MAX_ITER} iterations of {cfg.SOLVER.IMS_PER_BATCH} images",
        f"{cfg.SOLVER.IMS_PER_BATCH / float(np.median(speed)):.1f} images per second" if speed else "",
        f"config.yaml, metrics.json and the checkpoint lie in {path.parent}",
    ]
    body = [
        "<h1>Mask R-CNN on generated shapes</h1>",
        f"<p>{html.escape('; '.join(f for f in facts if f))}.</p>",
        "<h2>Accuracy on unseen images</h2>",
        _results_table(results),
        "<h2>Training</h2>",
        picture(curve),
        "<h2>Truth (left) and prediction (right)</h2>",
        *(picture(p) for p in pictures),
        f"<details><summary>Config</summary><pre>{html.escape(cfg.dump())}</pre></details>",
    ]
    write_page(path, "Mask R-CNN demo", body)


def _results_table(results: dict[str, dict[str, float]]) -> str:
    """Return an HTML table, a row for each metric, a column for each task."""
    tasks = list(results)
    rows = list(dict.fromkeys(metric for task in tasks for metric in results[task]))
    header = "".join(f"<th>{html.escape({'bbox': 'boxes', 'segm': 'masks'}.get(t, t))}</th>" for t in tasks)
    lines = [
        f"<tr><td>{html.escape(row)}</td>"
        + "".join(f"<td>{_number(results[t].get(row))}</td>" for t in tasks)
        + "</tr>"
        for row in rows
    ]
    return f"<table><tr><th></th>{header}</tr>{''.join(lines)}</table>"


def _number(value: Any) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.1f}"
