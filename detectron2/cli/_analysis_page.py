"""The files of ``detectron2 analyze``: a table of classes, and one page with everything."""

import csv
import html
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.cli._html import picture, write_page
from detectron2.evaluation.analysis import Comparison, DetectionAnalysis, DetectionScores
from detectron2.utils.file_io import atomic_write

__all__ = ["write_analysis_page", "write_class_table"]

_COLUMNS = (
    "class",
    "objects",
    "detections",
    "AP",
    "AP50",
    "AP75",
    "AR",
    "precision",
    "recall",
    "F1",
    "best F1",
    "best threshold",
    "calibration error",
)
_EXPLANATIONS = {
    "Precision and recall": "Precision at each recall, interpolated as COCO does.",
    "F1 and threshold": "All classes together. Below the best threshold wrong detections outweigh, above it missed "
    "objects do.",
    "Types of errors": "How much AP would rise if only this were corrected (TIDE, arXiv:2008.08115). Classification: "
    "right place, wrong class; localization: right class, overlap too small; duplicate: the object was already found; "
    "background: nothing is there; missed: not found, and not touched by the first two.",
    "Confusion": "Rows: what there is; columns: what was predicted, from the score threshold on. Last column: missed; "
    "last row: found where nothing is.",
    "Kinds of objects": "Area in square pixels: small below 32 x 32, large from 96 x 96 on.",
    "Calibration": "Of detections with a score of 0.8, 80 % should be right.",
    "Comparison": "Lines: confidence intervals over the choice of images. Where they do not touch 0 the difference is "
    "not chance (of the images; another seed in training is another matter).",
}


def _row(scores: DetectionScores) -> list[Any]:
    at, best = scores.at_threshold, scores.best
    counts = [scores.name, scores.num_objects, scores.num_detections]
    averages = [scores.ap, scores.ap50, scores.ap75, scores.ar]
    return [*counts, *averages, at.precision, at.recall, at.f1, best.f1, best.threshold, scores.calibration_error]


def write_class_table(path: Path, analysis: DetectionAnalysis) -> None:
    """Write a CSV file with a line for each class, and one for all.

    Args:
        path: the file. What is not defined is empty.
        analysis: where the numbers come from.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for scores in [*analysis.per_class, analysis.overall]:
        writer.writerow(["" if isinstance(v, float) and math.isnan(v) else v for v in _row(scores)])
    with atomic_write(path, "w") as f:
        f.write(text.getvalue())


def write_analysis_page(
    path: Path,
    title: str,
    analysis: DetectionAnalysis,
    comparison: Comparison | None,
    charts: dict[str, Path],
    worst: dict[str, Path],
    notes: Sequence[str],
) -> None:
    """Write the page.

    Args:
        path: the file.
        title: its heading.
        analysis: the numbers.
        comparison: with another run, if there is one.
        charts: PNG files by title.
        worst: PNG files by caption.
        notes: said at the top.
    """
    kind = {"bbox": "boxes", "segm": "masks"}[analysis.iou_type]
    overall = analysis.overall
    facts = (
        f"{overall.num_detections} detections ({kind}), {overall.num_objects} objects, {len(analysis.per_image)} "
        f"images, {len(analysis.per_class)} classes. A detection is right from an IoU of {analysis.iou_threshold:g} "
        f"on; precision, recall, F1, confusion and pictures are for scores of at least {analysis.score_threshold:g}."
    )
    body = [f"<h1>{html.escape(title)}</h1><p>{facts}</p>"]
    body += [f"<p>{html.escape(note)}</p>" for note in notes]
    body.append(_summary(analysis))
    for name, chart in charts.items():
        body.append(f"<h2>{html.escape(name)}</h2><p>{_EXPLANATIONS.get(name, '')}</p>{picture(chart)}")
        if comparison is not None and name == "Comparison":
            body.append(_comparison_table(comparison))
    if worst:
        body.append("<h2>Images with the most errors</h2><p>Left: truth, green where found, red where missed. Right: ")
        body.append("predictions, green if right, red if wrong. Grey does not count.</p>")
        body += [f"<h3>{html.escape(caption)}</h3>{picture(file)}" for caption, file in worst.items()]
    body.append("<h2>All classes</h2><div style='overflow-x:auto'>")
    body.append(_table(_COLUMNS, [_row(s) for s in [*analysis.per_class, overall]]) + "</div>")
    write_page(path, title, body)


def _summary(analysis: DetectionAnalysis) -> str:
    overall = analysis.overall
    averages = {"AP": overall.ap, "AP50": overall.ap50, "AP75": overall.ap75, "AR": overall.ar}
    averages |= {f"AP {name}": value for name, value in analysis.area_ap.items()}
    columns = ("", "threshold", "precision", "recall", "F1")
    points = [("chosen", overall.at_threshold), ("best F1", overall.best)]
    rows = [(name, p.threshold, p.precision, p.recall, p.f1) for name, p in points]
    return _table(tuple(averages), [tuple(averages.values())]) + "<br>" + _table(columns, rows)


def _comparison_table(comparison: Comparison) -> str:
    columns = ("metric", "first", "second", "difference", f"{comparison.confidence:.0%} interval")
    rows: list[Sequence[Any]] = [
        (name, d.first, d.second, f"{d.delta:+.3f}", f"{d.low:+.3f} to {d.high:+.3f}" if d.low <= d.high else "-")
        for name, d in comparison.metrics.items()
        if not math.isnan(d.delta)
    ]
    changed = sorted((item for item in comparison.per_class.items() if item[1].delta), key=lambda i: i[1].delta)
    known = [(name, d.first, d.second, f"{d.delta:+.3f}") for name, d in changed if not math.isnan(d.delta)]
    by_class = _table(("AP by class", "first", "second", "difference"), known)
    return f"{_table(columns, rows)}<details><summary>Classes</summary>{by_class}</details>"


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{html.escape(c)}</th>" for c in columns)
    lines = ("".join(f"<td>{html.escape(_text(value))}</td>" for value in row) for row in rows)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.3f}"
    return str(value)
