"""The page of `detectron2 analyze`, and the tables and numbers beside it for other programs."""

import csv
import html
import io
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.cli._html import MEANINGS, pairs, section, table, terms, write_page
from detectron2.evaluation.analysis import Comparison, DetectionAnalysis, Difference, SegmentAnalysis
from detectron2.utils.file_io import atomic_write

_Table = tuple[list[str], list[list[Any]]]  # titles and rows


def class_table(analysis: DetectionAnalysis) -> _Table:
    """Return the scores of each class and, in the last row, of all."""
    ends = ["AP low", "AP high"] if analysis.intervals else []
    averages = ["AP", *ends, "AP50", "AP75", *(f"AP {name}" for name in analysis.area_ap), "AR"]
    points = ["precision", "recall", "F1", "best F1", "best threshold", "best precision", "best recall"]
    rows = []
    for s in [*analysis.per_class, analysis.overall]:
        at, best = s.at_threshold, s.best
        ends = s.ap_interval if analysis.intervals else ()
        row = [s.name, s.num_objects, s.num_detections, s.ap, *ends, s.ap50, s.ap75, *s.area_ap.values(), s.ar]
        row += [at.precision, at.recall, at.f1, best.f1, best.threshold, best.precision, best.recall]
        rows.append([*row, s.calibration_error])
    return ["class", "objects", "detections", *averages, *points, "calibration error"], rows


def error_table(analysis: DetectionAnalysis) -> _Table:
    """Return for each class and, in the last row, for all how often each type occurs, and the AP it costs."""
    names, kinds = [*(s.name for s in analysis.per_class), "all"], [*analysis.class_errors, analysis.errors]
    rows = [
        [name, *(value for e in errors.values() for value in (e.count, e.delta_ap))]
        for name, errors in zip(names, kinds, strict=True)
    ]
    return ["class", *(title for name in analysis.errors for title in (name, f"{name} AP"))], rows


def segment_table(analysis: SegmentAnalysis) -> _Table:
    """Return the scores of each class."""
    words: dict[Any, str] = {True: "yes", False: "no"}
    titles = list(analysis.per_class[0].values) if analysis.per_class else []
    rows = [[s.name, *(words[v] if isinstance(v, bool) else v for v in s.values.values())] for s in analysis.per_class]
    return ["class", *titles], rows


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a table; NaN becomes an empty cell, and a text that begins like a formula gets a ' in front."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_cell(title) for title in columns])
    for row in rows:
        writer.writerow([_cell(v) for v in row])
    with atomic_write(path, "w") as f:
        f.write(text.getvalue())


def _cell(value: Any) -> Any:
    """A cell that no program of tables takes for a formula."""
    if isinstance(value, str):
        return f"'{value}" if value.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else value
    return "" if isinstance(value, float) and math.isnan(value) else value


def write_metrics(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file that people can read too: each class, image and pair of classes on a line of its own."""
    parts = []
    for key, value in content.items():
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if any(isinstance(v, (list, dict)) for v in inner):
            items = value.items() if isinstance(value, dict) else ((None, v) for v in value)
            lines = ",\n".join(f"  {f'{json.dumps(k)}: ' if k is not None else ''}{json.dumps(v)}" for k, v in items)
            opened, closed = "{}" if isinstance(value, dict) else "[]"
            parts.append(f" {json.dumps(key)}: {opened}\n{lines}\n {closed}")
        else:
            parts.append(f" {json.dumps(key)}: {json.dumps(value)}")
    with atomic_write(path, "w") as f:
        f.write("{\n" + ",\n".join(parts) + "\n}\n")


KINDS = {"bbox": "boxes", "segm": "masks", "keypoints": "keypoints"}
_MOST_CONFUSIONS = 20
_POINTS = {
    "Precision": "the share of the detections that is right.",
    "Recall": "the share of the objects that is found.",
    "F1": "2 x precision x recall / (precision + recall): high only where both are.",
}
_EXPLANATIONS = {
    "AP by class": "n: objects of the class. Line: interval over the choice of images, where there is one.",
    "Precision and recall": "How much of what is found is right (precision) where so much of what there is is found "
    "(recall): a lower score threshold leads to the right. Interpolated as COCO does.",
    "F1 and threshold": "All classes together. Below the best threshold wrong detections outweigh, above it missed "
    "objects do.",
    "Types of errors": "How much AP would rise if only this were corrected (TIDE, arXiv:2008.08115). Classification: "
    "right place, wrong class; localization: right class, overlap too small; duplicate: the object was already found; "
    "background: nothing is there; missed: not found, and not touched by the first two. n: how "
    "often; scores of all heights count.",
    "Confusion": "Rows: what there is, with the number of objects; columns: what was predicted, from the score "
    "threshold on. Each cell has a count and, as its shade, the share of the row's objects. On the diagonal is what is "
    "right, as precision and recall count it. The other detections are paired with the other objects by falling "
    "overlap. Column missed: objects that are left. Row no object: detections that are left. It has no shade, as there "
    "is nothing that its counts would be a share of.",
    "Kinds of objects": "Area in square pixels: small below 32 x 32, large from 96 x 96 on. Objects in the image: how "
    "crowded it is.",
    "Keypoints": "Of detections that are right: how close each keypoint is to where it belongs, from 0 to 1, as OKS "
    "counts it (1: exactly there; 0.6: away by two standard deviations of what annotators differ by).",
    "Calibration": "Of detections with a score of 0.8, 80 % should be right.",
    "Comparison": "Lines: confidence intervals over the choice of images. Where they do not touch 0 the difference is "
    "not chance (of the images; another seed in training is another matter).",
}


def write_detection_page(
    path: Path,
    files: tuple[str, str],
    analysis: DetectionAnalysis,
    comparison: Comparison | None,
    charts: Mapping[str, str],
    pictures: Mapping[str, str],
    notes: Sequence[str],
) -> None:
    """Write `report.html`, which holds all charts, by title, and pictures, by caption, and says notes at the top.

    Files are the predictions, and name or file of the ground truth.
    """
    tables = {
        "Comparison": "" if comparison is None else _comparison_tables(comparison),
        "Confusion": _confusion_table(analysis.confused(), "detections and objects", "background"),
        "Types of errors": _error_tables(analysis),
        "Kinds of objects": _folded(
            ["kind", "objects", "AP", "recall"],
            [
                [f"{prop}: {part}", s.num_objects, s.ap, s.recall]
                for prop, parts in analysis.parts.items()
                for part, s in parts.items()
            ],
        ),
        "Calibration": _folded(
            ["score", "detections", "mean score", "share of right ones"],
            [[f"{b.low:.1f} to {b.high:.1f}", b.count, b.confidence, b.accuracy] for b in analysis.calibration],
        ),
    }
    parts = {
        name: f"<p>{_EXPLANATIONS.get(name, '')}</p>{chart}{tables.get(name, '')}" for name, chart in charts.items()
    }
    if pictures:
        parts[_PICTURES] = (
            "<p>Left: truth, green where found, red where missed or found as another class. Right: predictions, green "
            "if right, red, with the type of the error, if wrong. Grey does not count.</p>"
        )
    columns, rows = class_table(analysis)
    shown, last = _with_any(analysis, rows)
    absent = len(analysis.per_class) - len(shown)
    note = f"<p>{absent} classes have neither objects nor detections; per_class.csv has them too.</p>" if absent else ""
    parts[_ALL] = note + table(columns, shown, "Scores of each class", last=last, is_sortable=True)
    _write(path, files, [_facts(analysis)], [*notes, *analysis.notes], _summary(analysis), parts, pictures)


def write_segment_page(
    path: Path, files: tuple[str, str], analysis: SegmentAnalysis, charts: dict[str, str], pictures: Mapping[str, str]
) -> None:
    """Write `report.html` for labels of pixels, as `write_detection_page` does."""
    parts = dict(charts)
    if analysis.confusion is not None:
        parts["Confusion"] += _confusion_table(analysis.confused(), "pixels")
    if pictures:
        parts[_PICTURES] = ""
    columns, rows = segment_table(analysis)
    shown = [row for row in rows if any(isinstance(v, (int, float)) and v > 0 for v in row[1:])]
    absent = f"<p>{len(rows) - len(shown)} classes do not occur.</p>" if len(shown) < len(rows) else ""
    parts[_ALL] = absent + table(columns, shown, "Scores of each class", is_sortable=True)
    rows = list(analysis.metrics.items())
    numbers = section("metrics", "All classes", table(["metric", "value"], rows, meanings=MEANINGS), is_full=True)
    _write(path, files, [], analysis.notes, numbers, parts, pictures)


_PICTURES = "Images with the most errors"
_ALL = "All classes"
_FILES = (
    "<p>Beside this page lie its numbers (metrics.json, *.csv) and each chart as a file. For a paper, "
    "<code>--charts svg</code> or <code>--charts pdf</code> writes charts that are sharp at any size.</p>"
)


def _write(
    path: Path,
    files: tuple[str, str],
    facts: list[str],
    notes: Sequence[str],
    numbers: str,
    parts: Mapping[str, str],
    pictures: Mapping[str, str],
) -> None:
    """Write a page: what was analyzed, notes, the main numbers, links to the parts, by title, and the parts."""
    title = f"Analysis of {os.path.basename(files[0])}"
    names = f"<p>Predictions: {html.escape(files[0])}<br>Ground truth: {html.escape(files[1])}</p>"
    said = "".join(f"<p>{html.escape(text)}</p>" for text in (*facts, *notes))
    links, sections = [], []
    for n, (name, content) in enumerate(parts.items()):
        if name == _PICTURES:
            content += pairs(pictures)
        links.append(f'<a href="#part-{n}">{html.escape(name)}</a> ')
        sections.append(section(f"part-{n}", name, content, is_full=name in (_PICTURES, _ALL)))
    contents = f"<nav aria-label=Contents>{''.join(links)}</nav>"
    write_page(path, title, [f"<h1>{html.escape(title)}</h1>", names, said, contents, numbers, *sections, _FILES])


def _with_any(analysis: DetectionAnalysis, rows: list[list[Any]]) -> tuple[list[list[Any]], list[Any]]:
    """Return the rows of classes with objects or detections, and the last row."""
    *of_classes, last = rows
    with_any = [bool(s.num_objects or s.num_detections) for s in analysis.per_class]
    return [row for row, is_shown in zip(of_classes, with_any, strict=True) if is_shown], last


def _facts(analysis: DetectionAnalysis) -> str:
    overall = analysis.overall
    overlap = _OVERLAP_TERMS["OKS" if analysis.iou_type == "keypoints" else "IoU"]
    return (
        f"{overall.num_detections} detections ({KINDS[analysis.iou_type]}), {overall.num_objects} objects, "
        f"{len(analysis.per_image)} images, {len(analysis.per_class)} classes. A detection is right where its overlap "
        f"with an object of its class is at least {analysis.iou_threshold:g}; the overlap is {overlap}. Precision, "
        f"recall, F1, confusion and pictures are for scores of at least {analysis.score_threshold:g}."
    )


_OVERLAP_TERMS = {
    "IoU": "the IoU (intersection over union): the area that the two share, divided by the area that either covers, "
    "from 0 to 1",
    "OKS": "the OKS (object keypoint similarity): how close the keypoints are for an object of this size, from 0 to 1",
}


def _summary(analysis: DetectionAnalysis) -> str:
    columns: list[str] = ["metric", "value"]
    rows: list[list[Any]] = [[name, value] for name, value in analysis.metrics.items()]
    if analysis.intervals:
        columns.append("95 % interval")
        rows = [[name, value, _interval(*analysis.intervals[name])] for name, value in rows]
    points = [("chosen", analysis.overall.at_threshold), ("best F1", analysis.overall.best)]
    at = [[name, p.threshold, p.precision, p.recall, p.f1] for name, p in points]
    averages = table(columns, rows, "All classes", meanings=MEANINGS)
    points = table(["threshold", "score", "precision", "recall", "F1"], at, "Detections above a threshold")
    return section("metrics", "Averages", averages) + section("points", "At a threshold", points + terms(_POINTS))


def _interval(low: float, high: float, sign: str = "") -> str:
    return "-" if math.isnan(low) else f"{low:{sign}.3f} to {high:{sign}.3f}"


def _folded(columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> str:
    return f"<details><summary>Numbers</summary>{table(columns, rows, caption)}</details>"


def _error_tables(analysis: DetectionAnalysis) -> str:
    columns, rows = error_table(analysis)
    shown, last = _with_any(analysis, rows)
    by_class = table(columns, shown, "Errors of each class", last=last, is_sortable=True)
    gains = table(["without any", "AP won"], list(analysis.gains.items()))
    return f"{gains}<details><summary>By class</summary>{by_class}</details>"


def _confusion_table(confused: Sequence[tuple[str, str, int]], unit: str, background: str | None = None) -> str:
    """Return the most frequent pairs of different classes, from pairs with their counts in a unit, most first.

    Objects that are paired with the background, by its name, are missed; detections are where nothing is.
    """
    totals: Counter[str] = Counter()
    for true, _, count in confused:
        totals[true] += count
    names = {(t, p): f"{p}, no object" if t == background else f"{t}, missed" if p == background else f"{t} as {p}"
             for t, p, _ in confused}  # fmt: skip
    rows = [[names[t, p], n, math.nan if t == background else n / totals[t]] for t, p, n in confused if t != p]
    caption = f"Most frequent, of {len(rows)}" if len(rows) > _MOST_CONFUSIONS else "All"
    return _folded(["true as predicted", unit, "share of the true class"], rows[:_MOST_CONFUSIONS], caption)


def _comparison_tables(comparison: Comparison) -> str:
    titles = ["first", "second", "difference", f"{comparison.confidence:.0%} interval"]
    changed = sorted((item for item in comparison.per_class.items() if item[1].delta), key=lambda i: i[1].delta)
    by_area = {f"{n}: {area}": d for n, areas in comparison.per_class_areas.items() for area, d in areas.items()}
    clear = sum(d.is_clear for _, d in changed)
    content = table(["AP of", *titles], _rows(dict(changed)), "AP of each class that differs", is_sortable=True)
    areas = _rows({name: d for name, d in by_area.items() if d.delta})
    content += table(["AP of", *titles], areas, "By size, where it differs", is_sortable=True)
    said = f"Classes: {clear} of {len(comparison.per_class)} differ clearly"
    whole = table(["metric", *titles], _rows(comparison.metrics), "All classes")
    return f"{whole}<details><summary>{said}</summary>{content}</details>"


def _rows(differences: Mapping[str, Difference]) -> list[list[Any]]:
    """Return a row for each difference that is defined."""
    return [
        [name, d.first, d.second, f"{d.delta:+.3f}", _interval(d.low, d.high, "+")]
        for name, d in differences.items()
        if not math.isnan(d.delta)
    ]
