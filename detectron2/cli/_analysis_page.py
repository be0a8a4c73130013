"""The page of `detectron2 analyze`, and the tables and numbers beside it for other programs."""

import csv
import html
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.cli._analysis_charts import Chart
from detectron2.cli._html import table, write_page
from detectron2.evaluation.analysis import Comparison, DetectionAnalysis, DetectionScores, Difference, SegmentAnalysis
from detectron2.utils.file_io import atomic_write


def class_columns(analysis: DetectionAnalysis) -> list[str]:
    """Return titles of what `class_row` gives."""
    areas = [f"AP {name}" for name in analysis.area_ap]
    ends = ["AP low", "AP high"] if analysis.intervals else []
    points = ["precision", "recall", "F1", "best F1", "best threshold", "best precision", "best recall"]
    averages = ["AP", *ends, "AP50", "AP75", *areas, "AR"]
    return ["class", "objects", "detections", *averages, *points, "calibration error"]


def class_row(scores: DetectionScores, analysis: DetectionAnalysis) -> list[Any]:
    """Return the line of a class."""
    at, best = scores.at_threshold, scores.best
    ends = scores.ap_interval if analysis.intervals else ()
    averages = [scores.ap, *ends, scores.ap50, scores.ap75, *scores.area_ap.values(), scores.ar]
    points = [at.precision, at.recall, at.f1, best.f1, best.threshold, best.precision, best.recall]
    return [scores.name, scores.num_objects, scores.num_detections, *averages, *points, scores.calibration_error]


def error_columns(analysis: DetectionAnalysis) -> list[str]:
    """Return titles of what `error_row` gives: for each type how often, and the AP that correcting it would win."""
    return ["class", *(title for name in analysis.errors for title in (name, f"{name} AP"))]


def error_row(name: str, errors: dict[str, Any]) -> list[Any]:
    """Return the line of a class."""
    return [name, *(value for e in errors.values() for value in (e.count, e.delta_ap))]


def segment_rows(analysis: SegmentAnalysis) -> tuple[list[str], list[list[Any]]]:
    """Return titles and the lines of the classes."""
    titles = list(analysis.per_class[0].values) if analysis.per_class else []
    rows = [[scores.name, *scores.values.values()] for scores in analysis.per_class]
    return ["class", *titles], [[_words(value) for value in row] for row in rows]


def _words(value: Any) -> Any:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a table.

    Args:
        path: the file.
        columns: titles.
        rows: cells; NaN becomes an empty one.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(["" if isinstance(v, float) and math.isnan(v) else v for v in row])
    with atomic_write(path, "w") as f:
        f.write(text.getvalue())


def write_metrics(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file that people can read too: each class, image and pair of classes on a line of its own.

    Args:
        path: the file.
        content: what it holds.
    """
    parts = []
    for key, value in content.items():
        if isinstance(value, (list, dict)) and value and _is_long(value):
            items = value.items() if isinstance(value, dict) else ((None, v) for v in value)
            lines = ",\n".join(f"  {f'{json.dumps(k)}: ' if k is not None else ''}{json.dumps(v)}" for k, v in items)
            opened, closed = "{}" if isinstance(value, dict) else "[]"
            parts.append(f" {json.dumps(key)}: {opened}\n{lines}\n {closed}")
        else:
            parts.append(f" {json.dumps(key)}: {json.dumps(value)}")
    with atomic_write(path, "w") as f:
        f.write("{\n" + ",\n".join(parts) + "\n}\n")


def _is_long(value: Any) -> bool:
    return any(isinstance(v, (list, dict)) for v in (value.values() if isinstance(value, dict) else value))


_KINDS = {"bbox": "boxes", "segm": "masks", "keypoints": "keypoints"}
_MOST_CONFUSIONS = 20
_EXPLANATIONS = {
    "Precision and recall": "Precision at each recall, interpolated as COCO does.",
    "F1 and threshold": "All classes together. Below the best threshold wrong detections outweigh, above it missed "
    "objects do.",
    "Types of errors": "How much AP would rise if only this were corrected (TIDE, arXiv:2008.08115). Classification: "
    "right place, wrong class; localization: right class, overlap too small; duplicate: the object was already found; "
    "background: nothing is there; missed: not found, and not touched by the first two. Scores of all heights count.",
    "Confusion": "Rows: what there is; columns: what was predicted, from the score threshold on. On the diagonal is "
    "what is right, as precision and recall count it: a right detection is never shown as missed. The other detections "
    "are paired with the other objects by falling overlap. Last column: objects that are left; last row: detections "
    "that are left.",
    "Kinds of objects": "Area in square pixels: small below 32 x 32, large from 96 x 96 on. Objects in the image: how "
    "crowded it is.",
    "Keypoints": "Of detections that are right: how close each keypoint is to where it belongs, from 0 to 1, as OKS "
    "counts it (1: exactly there; 0.6: away by two standard deviations of what annotators differ by).",
    "Calibration": "Of detections with a score of 0.8, 80 % should be right.",
    "Comparison": "Lines: confidence intervals over the choice of images. Where they do not touch 0 the difference is "
    "not chance (of the images; another seed in training is another matter).",
}


def write_analysis_page(
    path: Path,
    files: tuple[str, str],
    analysis: DetectionAnalysis,
    comparison: Comparison | None,
    charts: Mapping[str, Chart],
    worst: Mapping[str, str],
    notes: Sequence[str],
) -> None:
    """Write `report.html`, which holds all pictures.

    Args:
        path: the page.
        files: predictions, and name or file of the ground truth.
        analysis: where the numbers come from.
        comparison: with another run, if there is one.
        charts: by title.
        worst: pictures, as HTML, by caption.
        notes: said at the top.
    """
    parts: dict[str, str] = {}
    for name, chart in charts.items():
        tables = _tables_of(name, analysis, comparison)
        parts[name] = f"<p>{_EXPLANATIONS.get(name, '')}</p>{chart.element}{tables}"
    if worst:
        shown = "".join(f"<h3>{html.escape(caption)}</h3>{pair}" for caption, pair in worst.items())
        parts["Images with the most errors"] = (
            "<p>Left: truth, green where found, red where missed. Right: predictions, green if right, red, with the "
            f"type of the error, if wrong. Grey does not count.</p>{shown}"
        )
    shown = [s for s in analysis.per_class if s.num_objects or s.num_detections]
    absent = len(analysis.per_class) - len(shown)
    note = f"<p>{absent} classes have neither objects nor detections; per_class.csv has them too.</p>" if absent else ""
    rows, last = [class_row(s, analysis) for s in shown], class_row(analysis.overall, analysis)
    parts["All classes"] = note + table(
        class_columns(analysis), rows, "Scores of each class", last=last, is_sortable=True
    )
    title, said = page_title(*files)
    body = [said, f"<p>{_facts(analysis)}</p>"]
    body += [f"<p>{html.escape(note)}</p>" for note in [*notes, *analysis.notes]]
    body += [_summary(analysis), *contents(parts)]
    write_page(path, title, body)


def page_title(predictions: str, data: str) -> tuple[str, str]:
    """Return the title of a page, short, and as its first element with the whole names."""
    title = f"Analysis of {os.path.basename(predictions)}"
    names = f"<p>Predictions: {html.escape(predictions)}<br>Ground truth: {html.escape(data)}</p>"
    return title, f"<h1>{html.escape(title)}</h1>{names}"


def contents(parts: Mapping[str, str]) -> list[str]:
    """Return links to the parts of a page, given by title, and the parts."""
    links = "".join(f'<a href="#part-{n}">{html.escape(name)}</a> ' for n, name in enumerate(parts))
    sections = [
        f'<section aria-labelledby="part-{n}"><h2 id="part-{n}">{html.escape(name)}</h2>{content}</section>'
        for n, (name, content) in enumerate(parts.items())
    ]
    return [f"<nav aria-label=Contents>{links}</nav>", *sections]


def _facts(analysis: DetectionAnalysis) -> str:
    overall = analysis.overall
    overlap = "OKS" if analysis.iou_type == "keypoints" else "IoU"
    return (
        f"{overall.num_detections} detections ({_KINDS[analysis.iou_type]}), {overall.num_objects} objects, "
        f"{len(analysis.per_image)} images, {len(analysis.per_class)} classes. A detection is right from an {overlap} "
        f"of {analysis.iou_threshold:g} on; precision, recall, F1, confusion and pictures are for scores of at least "
        f"{analysis.score_threshold:g}."
    )


def _summary(analysis: DetectionAnalysis) -> str:
    columns: list[str] = ["metric", "value"]
    rows: list[list[Any]] = [[name, value] for name, value in analysis.metrics.items()]
    if analysis.intervals:
        columns.append("95 % interval")
        rows = [[name, value, _interval(*analysis.intervals[name])] for name, value in rows]
    points = [("chosen", analysis.overall.at_threshold), ("best F1", analysis.overall.best)]
    at = [[name, p.threshold, p.precision, p.recall, p.f1] for name, p in points]
    return table(columns, rows, "All classes") + table(
        ["threshold", "score", "precision", "recall", "F1"], at, "Above a threshold"
    )


def _interval(low: float, high: float) -> str:
    return "-" if math.isnan(low) else f"{low:.3f} to {high:.3f}"


def _tables_of(name: str, analysis: DetectionAnalysis, comparison: Comparison | None) -> str:
    """Return the numbers behind a chart."""
    if name == "Comparison" and comparison is not None:
        return _comparison_tables(comparison)
    if name == "Confusion":
        return confusion_table(analysis.confused(), "detections and objects")
    if name == "Types of errors":
        both = [[title, gain] for title, gain in analysis.gains.items()]
        rows = [
            error_row(s.name, e)
            for s, e in zip(analysis.per_class, analysis.class_errors, strict=True)
            if s.num_objects or s.num_detections
        ]
        last = error_row("all", analysis.errors)
        by_class = table(error_columns(analysis), rows, "Errors of each class", last=last, is_sortable=True)
        return table(["without any", "AP won"], both) + f"<details><summary>By class</summary>{by_class}</details>"
    if name == "Kinds of objects":
        rows = [
            [f"{prop}: {part}", s.num_objects, s.ap, s.recall]
            for prop, parts in analysis.parts.items()
            for part, s in parts.items()
        ]
        return _folded("Numbers", table(["kind", "objects", "AP", "recall"], rows))
    if name == "Calibration":
        rows = [[f"{b.low:.1f} to {b.high:.1f}", b.count, b.confidence, b.accuracy] for b in analysis.calibration]
        return _folded("Numbers", table(["score", "detections", "mean score", "share of right ones"], rows))
    return ""


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>{content}</details>"


def confusion_table(confused: Sequence[tuple[str, str, int]], unit: str) -> str:
    """Return the most frequent pairs of different classes, from pairs with their counts in a unit, most first."""
    totals: dict[str, int] = {}
    for true, _, count in confused:
        totals[true] = totals.get(true, 0) + count
    wrong = [(t, p, n) for t, p, n in confused if t != p]
    rows = [[f"{t} as {p}", n, n / totals[t]] for t, p, n in wrong[:_MOST_CONFUSIONS]]
    caption = f"Most frequent, of {len(wrong)}" if len(wrong) > _MOST_CONFUSIONS else "All"
    return _folded("Numbers", table(["true as predicted", unit, "share of the true class"], rows, caption))


def _comparison_tables(comparison: Comparison) -> str:
    titles = ["first", "second", "difference", f"{comparison.confidence:.0%} interval"]
    rows = [[name, *_cells(d)] for name, d in comparison.metrics.items() if not math.isnan(d.delta)]
    changed = sorted((item for item in comparison.per_class.items() if item[1].delta), key=lambda i: i[1].delta)
    by_class = [[name, *_cells(d)] for name, d in changed if not math.isnan(d.delta)]
    by_area = [
        [f"{name}: {area}", *_cells(d)]
        for name, areas in comparison.per_class_areas.items()
        for area, d in areas.items()
        if d.delta and not math.isnan(d.delta)
    ]
    clear = sum(d.is_clear for _, d in changed)
    said = f"Classes: {clear} of {len(comparison.per_class)} differ clearly"
    content = table(["AP of", *titles], by_class, "AP of each class that differs", is_sortable=True)
    content += table(["AP of", *titles], by_area, "By size, where it differs", is_sortable=True)
    return table(["metric", *titles], rows, "All classes") + _folded(said, content)


def _cells(difference: Difference) -> list[Any]:
    interval = "-" if math.isnan(difference.low) else f"{difference.low:+.3f} to {difference.high:+.3f}"
    return [difference.first, difference.second, f"{difference.delta:+.3f}", interval]
