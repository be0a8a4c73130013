"""``detectron2 analyze`` for labels of pixels: semantic and panoptic segmentation."""

import html
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detectron2.cli._analysis_charts import draw_confusion, draw_named_bars
from detectron2.cli._analysis_files import segment_rows, write_csv, write_metrics
from detectron2.cli._analysis_page import confusion_table, contents, page_title
from detectron2.cli._analysis_pictures import picture_scale, read_picture, remove_old_pictures, write_pair
from detectron2.cli._analysis_run import Source
from detectron2.cli._figures import Chart, Names, draw_chart
from detectron2.cli._html import table, write_page
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation.analysis import SegmentAnalysis, analyze_panoptic, analyze_sem_seg
from detectron2.evaluation.analysis.pixels import read_label_maps, read_panoptic
from detectron2.evaluation.panoptic_evaluation import rgb_to_id_map
from detectron2.evaluation.sem_seg_evaluation import load_image_into_numpy_array
from detectron2.visualization.visualizer import Visualizer

__all__ = ["analyze_pixels"]

_MAIN = {"sem_seg": "IoU", "panoptic_seg": "PQ"}
_MOST = 40  # classes in a chart


def analyze_pixels(source: Source, images: str | None, worst: int, folder: Path) -> str:
    """Analyze, and write the files.

    Args:
        source: predictions of labels, on a registered data set.
        images: folder of the images; None for where the data set has them.
        worst: number of pictures.
        folder: gets the files.

    Returns:
        The main numbers, for the terminal.

    Raises:
        ValueError: the data set is not registered.
    """
    if source.data not in DatasetCatalog:
        raise ValueError(
            f"{source.file} has labels of pixels; the ground truth of those is a registered data set, and "
            f"{source.data!r} is none. Register it in a module of yours, and name that with --import."
        )
    analysis = (analyze_sem_seg if source.kind == "sem_seg" else analyze_panoptic)(source.data, source.file)
    folder.mkdir(parents=True, exist_ok=True)
    remove_old_pictures(folder)
    pictures = _draw_worst(analysis, source, images, worst, folder)
    write_metrics(folder / "metrics.json", {"predictions": source.file, "data": source.data, **analysis.to_dict()})
    columns, rows = segment_rows(analysis)
    write_csv(folder / "per_class.csv", columns, rows)
    if analysis.confusion is not None:
        write_csv(folder / "confusion.csv", ["true", "predicted", "pixels"], analysis.confused())
    _write_page(folder / "report.html", source, analysis, _draw_charts(analysis, folder), pictures)
    numbers = "  ".join(f"{name} {value:.3f}" for name, value in list(analysis.metrics.items())[:3])
    notes = "".join(f"{note}\n" for note in analysis.notes)
    return f"{numbers}\n{notes}The whole report is {folder / 'report.html'}\n"


def _draw_charts(analysis: SegmentAnalysis, folder: Path) -> dict[str, Chart]:
    name, names = _MAIN[analysis.task], Names([s.name for s in analysis.per_class])
    known = sorted((s for s in analysis.per_class if not np.isnan(s.values[name])), key=lambda s: -s.values[name])
    shown, note = known, ""
    if len(known) > _MOST:
        shown, note = known[: _MOST // 2] + known[-_MOST // 2 :], f"best and worst of {len(known)} classes"

    def draw_classes(axes: Any) -> None:
        values = [s.values[name] for s in shown]
        draw_named_bars(axes, [names[s.name] for s in shown], values, [f"{v:.3f}" for v in values])
        axes.set(xlabel=name, xlim=(0, 1.2), xticks=np.linspace(0, 1, 6), title=note)

    title, size_wh = f"{name} by class", (6.4, 1.4 + 0.22 * len(shown))
    charts = {title: draw_chart(draw_classes, size_wh, folder / "classes.png", f"Chart: {title}.", names)}
    if analysis.confusion is not None:
        charts["Confusion"] = _confusion_chart(analysis.confusion, analysis.class_names, names, folder)
    return charts


def _confusion_chart(counts: np.ndarray, classes: Sequence[str], names: Names, folder: Path) -> Chart:
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    wrong = counts - np.diag(counts.diagonal())
    occurring = np.flatnonzero(counts.sum(0) + counts.sum(1))
    order = np.argsort(-(wrong.sum(0) + wrong.sum(1))[occurring], kind="stable")
    chosen = np.sort(occurring[order[:_MOST]])
    cells = np.ix_(chosen, chosen)
    percent = (100 * shares[cells]).round().astype(int)  # numbers of pixels are too long
    labels = [names[classes[int(i)]] for i in chosen]
    note = "percent of the pixels of each true class"
    size_wh = (min(4.0 + 0.32 * len(chosen), 14.0), min(3.4 + 0.3 * len(chosen), 13.0))
    draw: Callable[[Any], None] = lambda axes: draw_confusion(axes, percent, shares[cells], labels, note)  # noqa: E731
    return draw_chart(draw, size_wh, folder / "confusion.png", "Chart: Confusion.", names)


def _write_page(
    path: Path, source: Source, analysis: SegmentAnalysis, charts: dict[str, Chart], pictures: dict[str, str]
) -> None:
    title, said = page_title(source.file, source.data)
    parts = {name: chart.element for name, chart in charts.items()}
    if analysis.confusion is not None:
        parts["Confusion"] += confusion_table(analysis.confused(), "pixels")
    if pictures:
        shown = (f"<h3>{html.escape(caption)}</h3>{pair}" for caption, pair in pictures.items())
        parts["Images with the most errors"] = "".join(shown)
    columns, rows = segment_rows(analysis)
    shown = [row for row in rows if any(isinstance(v, (int, float)) and v > 0 for v in row[1:])]
    absent = f"<p>{len(rows) - len(shown)} classes do not occur.</p>" if len(shown) < len(rows) else ""
    parts["All classes"] = absent + table(columns, shown, "Scores of each class", is_sortable=True)
    numbers = table(["metric", "value"], list(analysis.metrics.items()), "All classes")
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in analysis.notes)
    write_page(path, title, [said, notes, numbers, *contents(parts)])


def _draw_worst(
    analysis: SegmentAnalysis, source: Source, images: str | None, count: int, folder: Path
) -> dict[str, str]:
    """-> for each caption truth and prediction, as HTML; images that cannot be read are left out."""
    bad = [s for s in analysis.per_image if sum(v for k, v in s.values.items() if k != "share")][:count]
    metadata = MetadataCatalog.get(source.data)
    records = {
        str(record["file_name"] if analysis.task == "sem_seg" else record["image_id"]): record
        for record in DatasetCatalog.get(source.data)
    }
    draw = _sem_seg_pair if analysis.task == "sem_seg" else _panoptic_pair
    predicted = _predictions(analysis.task, source, {s.name for s in bad})
    drawn: dict[str, str] = {}
    for scores in bad:
        record = records[scores.name]
        roots = [os.path.join(images, os.path.dirname(record["file_name"])), images] if images else []
        name = os.path.basename(record["file_name"])
        pixels = read_picture(record["file_name"], [""])
        pixels = read_picture(name, roots) if pixels is None else pixels
        if pixels is not None and scores.name in predicted:
            sides = draw(pixels, record, predicted[scores.name], metadata)
            said = {
                k: f"{v:.0%} of the labelled ones" if k == "share" else f"{v} {k}" for k, v in scores.values.items()
            }
            values = ", ".join(said.values())
            drawn[f"{name}: {values}"] = write_pair(folder, len(drawn) + 1, *sides)
    return drawn


def _predictions(task: str, source: Source, wanted: set[str]) -> dict[str, Any]:
    if task == "sem_seg":
        return dict(read_label_maps(source.data, source.file, wanted))
    return {str(i): (ids, segments) for i, ids, segments in read_panoptic(source.file) if str(i) in wanted}


def _sem_seg_pair(pixels: np.ndarray, record: dict[str, Any], labels: np.ndarray, metadata: Any) -> list[np.ndarray]:
    true = np.array(load_image_into_numpy_array(record["sem_seg_file_name"], dtype=int))
    sides = []
    for side in (true, labels):
        drawn = np.where(side < len(metadata.stuff_classes), side, -1)
        visualizer = Visualizer(pixels, metadata, scale=picture_scale(pixels))
        sides.append(visualizer.draw_sem_seg(torch.from_numpy(drawn), area_threshold=100).get_image())
    return sides


def _panoptic_pair(
    pixels: np.ndarray, record: dict[str, Any], predicted: tuple[np.ndarray, list[dict[str, Any]]], metadata: Any
) -> list[np.ndarray]:
    true_ids = rgb_to_id_map(load_image_into_numpy_array(record["pan_seg_file_name"])).astype(np.int64)
    things = metadata.thing_dataset_id_to_contiguous_id
    true = [{"isthing": True, **s} for s in record["segments_info"]]
    found = []
    for segment in predicted[1]:
        is_thing = segment["category_id"] in things
        ids = things if is_thing else metadata.stuff_dataset_id_to_contiguous_id
        found.append({**segment, "category_id": ids[segment["category_id"]], "isthing": is_thing})
    sides = []
    for ids, segments in ((true_ids, true), (predicted[0], found)):
        visualizer = Visualizer(pixels, metadata, scale=picture_scale(pixels))
        drawn = visualizer.draw_panoptic_seg(torch.from_numpy(ids), segments, area_threshold=100)
        sides.append(drawn.get_image())
    return sides
