"""The tables and numbers that ``detectron2 analyze`` writes beside its page, for other programs."""

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.evaluation.analysis import DetectionAnalysis, DetectionScores, SegmentAnalysis
from detectron2.utils.file_io import atomic_write

__all__ = ["class_columns", "class_row", "error_columns", "error_row", "segment_rows", "write_csv", "write_metrics"]


def class_columns(analysis: DetectionAnalysis) -> list[str]:
    """-> titles of what :func:`class_row` gives."""
    areas = [f"AP {name}" for name in analysis.area_ap]
    ends = ["AP low", "AP high"] if analysis.intervals else []
    points = ["precision", "recall", "F1", "best F1", "best threshold", "best precision", "best recall"]
    averages = ["AP", *ends, "AP50", "AP75", *areas, "AR"]
    return ["class", "objects", "detections", *averages, *points, "calibration error"]


def class_row(scores: DetectionScores, analysis: DetectionAnalysis) -> list[Any]:
    """-> the line of a class."""
    at, best = scores.at_threshold, scores.best
    ends = scores.ap_interval if analysis.intervals else ()
    averages = [scores.ap, *ends, scores.ap50, scores.ap75, *scores.area_ap.values(), scores.ar]
    points = [at.precision, at.recall, at.f1, best.f1, best.threshold, best.precision, best.recall]
    return [scores.name, scores.num_objects, scores.num_detections, *averages, *points, scores.calibration_error]


def error_columns(analysis: DetectionAnalysis) -> list[str]:
    """-> titles of what :func:`error_row` gives: for each type how often, and the AP that correcting it would win."""
    return ["class", *(title for name in analysis.errors for title in (name, f"{name} AP"))]


def error_row(name: str, errors: dict[str, Any]) -> list[Any]:
    """-> the line of a class."""
    return [name, *(value for e in errors.values() for value in (e.count, e.delta_ap))]


def segment_rows(analysis: SegmentAnalysis) -> tuple[list[str], list[list[Any]]]:
    """-> titles and the lines of the classes."""
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
