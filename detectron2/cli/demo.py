"""`detectron2 demo`: the main job in one command, on data that it draws itself.

Generates a data set, trains a small Mask R-CNN on it, evaluates boxes and masks on images that it has not seen, draws
predictions beside the truth, and writes everything into one `report.html`.
"""

import argparse
import contextlib
import datetime
import functools
import html
import json
import logging
import math
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from detectron2 import model_zoo
from detectron2.cli._html import MEANINGS, chart, pairs, section, table, write_page, write_pair
from detectron2.cli.common import save_metadata, write_json
from detectron2.cli.plot import choose_metrics, curve_charts, draw_curves, read_run
from detectron2.config import CfgNode
from detectron2.config.values import check_values
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.synthetic import SHAPE_CLASSES, generate_shapes_dataset
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultTrainer
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from detectron2.utils.visualizer import Visualizer

_CONFIG = "Demo/mask_rcnn_R_18_FPN_shapes.yaml"
_SPLITS = {"train": (600, 1), "val": (120, 2)}  # images, seed
# What a run writes, and all that a clean start removes.
_MADE = (
    "config.yaml",
    "metadata.json",
    "datasets.json",
    "metrics.json",
    "results.json",
    "report.html",
    "training_curve.png",
    "log.txt",
)
_MADE_FOLDERS = ("pictures", "inference")


def run(args: argparse.Namespace) -> int:
    """Do all steps."""
    output = Path(args.output)
    cfg = _config(args, output)
    output.mkdir(parents=True, exist_ok=True)
    _start_clean_or_resume(output, cfg, args.resume)
    setup_logger(str(output), configure_stdout=False)
    for split, (count, seed) in _SPLITS.items():
        _prepare_data(output / "data" / split, f"demo_shapes_{split}", count, seed)
    (output / "config.yaml").write_text(cfg.dump(), encoding="utf-8")
    save_metadata(cfg)
    seed_all_rng(cfg.SEED)

    trainer, results = _train(cfg, args.resume)
    if results is None:
        _say("The model is already trained; evaluating it.")
        results = DefaultTrainer.test(cfg, trainer.model)
    write_json(output / "results.json", results)

    _say("Drawing predictions on images the model has not seen ...")
    pictures = draw_pairs(trainer.model.eval(), cfg, "demo_shapes_val", output / "pictures", args.pictures)
    training = read_run(output, "demo")
    shown = choose_metrics([training], ["*loss*", "lr"])
    draw_curves([training], shown, 1, output / "training_curve.png")
    seconds = training.curves["time"][1] if "time" in training.curves else None
    commands = _commands(output, trainer.checkpointer.file_name("model_final"))
    curves = curve_charts([training], shown, 1)
    write_report(output / "report.html", cfg, results, seconds, curves, pictures, commands)
    _summary(output, results, commands)
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
    if args.pictures < 0:
        raise ValueError(f"--pictures is a number of images, at least 0, but is {args.pictures}.")
    cfg.merge_from_list(args.opts)
    check_values(cfg)
    cfg.freeze()
    return cfg


def _start_clean_or_resume(output: Path, cfg: CfgNode, resume: bool) -> None:
    """Say what an earlier run left and, unless it is to be continued, remove that and nothing else."""
    last = output / "last_checkpoint"
    checkpoint = last.read_text(encoding="utf-8").strip() if last.is_file() else None
    if checkpoint is None:
        if resume:
            _say(f"Nothing to resume in {output}; starting clean.")
        return
    finished = (output / "results.json").is_file()
    found = f"Found {'a finished' if finished else 'an unfinished'} run in {output} (last checkpoint {checkpoint}"
    if finished:
        results = json.loads((output / "results.json").read_text(encoding="utf-8"))
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
        generate_shapes_dataset(folder, count, max_objects=5, seed=seed, progress=_progress)
    if name in DatasetCatalog:  # a second run in the same process, perhaps in another folder
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_coco_instances(name, {}, str(annotations), str(folder / "images"))


def _train(cfg: CfgNode, resume: bool) -> tuple[DefaultTrainer, Any]:
    """Train, or, where nothing is left to train, just load the weights; return the results of training, if any."""
    trainer = DefaultTrainer(cfg)
    last = trainer.checkpointer.get_checkpoint_file() if trainer.checkpointer.has_checkpoint() else ""
    if resume and os.path.basename(last) == trainer.checkpointer.file_name("model_final"):
        trainer.checkpointer.load(last, checkpointables=[])
        return trainer, None
    trainer.resume_or_load(resume=resume)
    size = sum(p.numel() for p in trainer.model.parameters()) / 1e6
    _say(
        f"Training Mask R-CNN ({size:.1f} million parameters, {torch.get_num_threads()} threads), "
        f"iterations {trainer.start_iter} to {trainer.max_iter}. Ctrl-C stops; --resume continues."
    )
    start = time.perf_counter()
    progress, printer = logging.getLogger("detectron2.utils.events"), logging.StreamHandler(sys.stdout)
    progress.addHandler(printer)  # gets a line at a time where the output is not a terminal
    try:
        results = trainer.train()
    except KeyboardInterrupt:
        trainer.iter -= 1  # the one that was interrupted is not done
        if trainer.iter >= trainer.start_iter:
            trainer.checkpointer.save(f"model_{trainer.iter:07d}", iteration=trainer.iter)
            _say(f"\nStopped after iteration {trainer.iter + 1}, and saved; --resume continues from there.")
        raise
    finally:
        progress.removeHandler(printer)
    _say(f"Trained and evaluated in {datetime.timedelta(seconds=round(time.perf_counter() - start))}.")
    return trainer, results


def _program() -> str:
    """How to call this program from here, as it was called: by its name, its path or as a module of Python."""
    is_module = os.path.basename(sys.argv[0]) == "__main__.py"
    name, path, rest = ("python", sys.executable, " -m detectron2") if is_module else ("detectron2", sys.argv[0], "")
    found = shutil.which(name)
    # Run through make, the command lies in an environment that the user's shell does not know.
    if found and (not is_module or os.path.abspath(found) == os.path.abspath(path)):
        return name + rest
    with contextlib.suppress(ValueError):  # on another drive of Windows
        path = os.path.relpath(path)
    return path + rest


def _commands(output: Path, file_name: str) -> str:
    """Return commands to try next, a line each."""
    unseen = output / "data" / "val"
    image, annotations = unseen / "images" / "00000.png", unseen / "annotations.json"
    command = _program()
    return f"""
  {command} predict --weights {output / file_name} {image} --output {output / "mine"}
  {command} analyze {output} --data {annotations}
  {command} demo --output {output} --resume
  {command} train --help        (your own images: --coco NAME annotations.json images/)
"""


def _summary(output: Path, results: dict[str, dict[str, float]], commands: str) -> None:
    """Print where to look and what to try next."""
    box, mask = results["bbox"]["AP"], results["segm"]["AP"]
    _say(
        f"""
Box AP {box:.1f}, mask AP {mask:.1f} on {_SPLITS["val"][0]} unseen images.

Look at   {output / "report.html"}
          {output / "pictures"}   (truth left, prediction right)

Try next{commands}"""
    )


_say = functools.partial(print, flush=True)
# One line on a terminal, which goes when all is done; nothing elsewhere.
_progress: Any = functools.partial(tqdm, unit="image", leave=False, disable=None)
_SCALE = 3.0  # the demo's images are small; drawn larger, labels do not cover the objects
_LEAST_SCORE = 0.5


def draw_pairs(model: nn.Module, cfg: CfgNode, dataset_name: str, folder: Path, count: int) -> dict[str, str]:
    """Draw truth and predictions of the first `count` images into PNG files, and as HTML, by the name of the image."""
    folder.mkdir(parents=True, exist_ok=True)
    mapper, metadata = DatasetMapper(cfg, is_train=False), MetadataCatalog.get(dataset_name)
    drawn = {}
    for record in _progress(DatasetCatalog.get(dataset_name)[:count]):
        with torch.inference_mode():
            instances = model([mapper(record)])[0]["instances"].to("cpu")
        found = instances[instances.scores >= _LEAST_SCORE]
        image = read_image(record["file_name"], "RGB")
        left, right = (Visualizer(image, metadata, _SCALE) for _ in range(2))
        name = Path(record["file_name"]).name
        drawn[name] = write_pair(
            folder / f"{Path(name).stem}.png",
            left.draw_dataset_dict(record).get_image(),
            right.draw_instance_predictions(found).get_image(),
        )
    return drawn


def write_report(
    path: Path,
    cfg: CfgNode,
    results: dict[str, dict[str, float]],
    seconds: np.ndarray | None,
    curves: str,
    pictures: dict[str, str],
    commands: str,
) -> None:
    """Write one HTML page with everything in it, so that it can be sent as a file.

    `results` are `{task: {metric: value}}`, `seconds` how long iterations took, or None if not measured, `curves` and
    `pictures` are HTML, `commands` what to try next.
    """
    (trained, _), (unseen, _) = _SPLITS.values()
    facts = [
        f"Trained from random weights on {trained} images of {len(SHAPE_CLASSES)} classes of shapes, which the demo "
        f"has drawn, and evaluated on {unseen} images that it has not seen",
        f"{cfg.SOLVER.MAX_ITER} iterations of {cfg.SOLVER.IMS_PER_BATCH} images",
        f"{cfg.SOLVER.IMS_PER_BATCH / float(np.median(seconds)):.1f} images per second" if seconds is not None else "",
        f"config.yaml, metrics.json and the checkpoint lie in {path.parent}",
    ]
    shown = f"<p>Shown are predictions with a score of at least {_LEAST_SCORE}.</p>{pairs(pictures)}"
    body = [
        "<h1>Mask R-CNN on generated shapes</h1>",
        f"<p>{html.escape('; '.join(f for f in facts if f))}.</p>",
        section("accuracy", "Accuracy on unseen images", f"<p>{_PERCENT}</p>{_results_table(results)}"),
        section("classes", "AP of each class", _class_chart(results)),
        section("pictures", "Truth and predictions", shown, is_full=True),
        section("training", "Training", f"<p>{_LOSSES}</p>{curves}", is_full=True),
        section("next", "Next", f"<pre>{html.escape(commands)}</pre>", is_full=True),
        f"<details><summary>Config</summary><pre>{html.escape(cfg.dump())}</pre></details>",
    ]
    write_page(path, "Mask R-CNN demo", body)


_PERCENT = (
    "In percent. Of boxes and of masks; a detection is right where it has the class of an object and enough overlap "
    "with it: IoU (intersection over union), the area that the two share, divided by the area that either covers."
)
_LOSSES = "Training makes the total loss small, which is the sum of the others; lr is the learning rate."


def _results_table(results: dict[str, dict[str, float]]) -> str:
    """Return an HTML table, a row for each metric over all classes, a column for each task."""
    metrics = dict.fromkeys(metric for values in results.values() for metric in values if "-" not in metric)
    rows = [[metric, *(_number(values.get(metric)) for values in results.values())] for metric in metrics]
    meanings = {
        name: text.replace("0 (worst) to 1 (best)", "0 (worst) to 100 (best)") for name, text in MEANINGS.items()
    }
    return table(["metric", *(_TASKS.get(task, task) for task in results)], rows, meanings=meanings)


_TASKS = {"bbox": "boxes", "segm": "masks"}


def _class_chart(results: dict[str, dict[str, float]]) -> str:
    """Return bars of the AP of each class, one for each task."""
    names = list(dict.fromkeys(m[3:] for values in results.values() for m in values if m.startswith("AP-")))

    def draw(axes: Any) -> None:
        height, places = 0.8 / max(len(results), 1), np.arange(len(names))[::-1]
        for i, (task, values) in enumerate(results.items()):
            lengths = np.nan_to_num([values.get(f"AP-{name}", np.nan) for name in names])
            axes.barh(places + 0.2 - i * height, lengths, height, label=_TASKS.get(task, task))
        axes.set_yticks(places, names)
        axes.set(xlim=(0, 100), xlabel="AP (%)")
        axes.grid(alpha=0.5, axis="x")
        axes.set_axisbelow(True)
        axes.legend(loc="lower right")

    return chart(draw, (6.4, 1.2 + 0.45 * len(names)), "classes-chart", "Chart: AP of each class.")


def _number(value: Any) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.1f}"
