"""The demo's report: a training curve, pictures of predictions beside the truth, and one HTML page with both."""

import html
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from detectron2.cli._html import picture, write_page
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.utils.visualizer import Visualizer

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
    """-> the records of ``metrics.json``, by iteration; of repeated ones (after a resume) the newest."""
    records: dict[int, dict[str, float]] = {}
    if path.is_file():
        for line in path.read_text().splitlines():
            record = json.loads(line)
            records.setdefault(int(record["iteration"]), {}).update(record)
    return [records[i] for i in sorted(records)]


def draw_training_curve(metrics: list[dict[str, float]], path: Path) -> Path:
    """Draw the losses and the learning rate over the iterations.

    Args:
        metrics: what :func:`read_metrics` returned.
        path: the PNG to write.

    Returns:
        ``path``.
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
        results: ``{task: {metric: value}}``.
        metrics: what :func:`read_metrics` returned.
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
    """-> an HTML table, a row for each metric, a column for each task."""
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
