"""`detectron2 plot`: draw the curves of one or several training runs, as a picture and a page.

detectron2 plot output
detectron2 plot output/a output/b --metrics total_loss "bbox/AP*" --smooth 10 --output comparison
"""

import argparse
import fnmatch
import html
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detectron2.cli._html import MEANINGS, chart, write_page


def run(args: argparse.Namespace) -> int:
    """Draw, and say where the files are."""
    if args.smooth < 1:
        raise ValueError(f"--smooth is a number of points, at least 1, but is {args.smooth}.")
    paths = [Path(path) for path in args.runs]
    runs = [read_run(path, name) for path, name in zip(paths, _names(paths), strict=True)]
    metrics = choose_metrics(runs, args.metrics)
    folder = Path(args.output) if args.output else runs[0].file.parent if len(runs) == 1 else Path()
    folder.mkdir(parents=True, exist_ok=True)
    image, page = folder / f"curves.{args.charts}", folder / "curves.html"
    draw_curves(runs, metrics, args.smooth, image)
    title = f"Training of {', '.join(r.name for r in runs)}"
    files = "".join(f"<li>{html.escape(r.name)}: {html.escape(str(r.file))}</li>" for r in runs)
    note = f"<p>Means over {args.smooth} points; pale: as recorded.</p>" if args.smooth > 1 else ""
    body = [f"<h1>{html.escape(title)}</h1>", note, curve_charts(runs, metrics, args.smooth), "<h2>Last values</h2>"]
    write_page(page, title, [*body, value_table(runs, metrics), f"<h2>Files</h2><ul>{files}</ul>"])
    sys.stdout.write(f"Drawn {len(metrics)} metrics of {len(runs)} runs: {image}, {page}\n")
    return 0


def _names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each run: the part of its path that differs from the others."""
    folders = [path.parent if path.name.endswith(".json") else path for path in map(Path.absolute, paths)]
    if len(set(folders)) < len(folders):  # several files in one folder
        return [str(path) for path in paths]
    if len(folders) == 1:
        return [folders[0].name]
    try:
        shared = os.path.commonpath([folder.parent for folder in folders])
    except ValueError:  # on several drives of Windows
        return [str(folder) for folder in folders]
    return [os.path.relpath(folder, shared) for folder in folders]


Curve = tuple[np.ndarray, np.ndarray]

# Metrics shown by default: the main number of every task.
_HEADLINES = ("AP", "AP50", "AR@1000", "mIoU", "PQ", "mAP")
_NOT_BY_DEFAULT = ("eta_seconds", "data_time", "time", "grad_scaler", "iteration")
_VALIDATION = "validation/"
_COLUMNS = 3
_PERCENT = ("AP", "AR", "mAP", "mIoU", "fwIoU", "IoU", "mACC", "pACC", "ACC", "PQ", "SQ", "RQ")


@dataclass(frozen=True)
class Run:
    """One training run: its name in legends, the file of its numbers, and curves by the name of the scalar."""

    name: str
    file: Path
    curves: dict[str, Curve]


def read_run(path: Path, name: str) -> Run:
    """Read `metrics.json`, given by itself or by its folder.

    What a run that was killed has left behind is tolerated: a last line that is cut off. Where the iteration falls
    back, after a resume from an earlier checkpoint or as a new run begins, older points from there on are dropped.
    """
    file = path / "metrics.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; give the output folder of a run, or its metrics.json.")
    points: dict[str, dict[int, float]] = {}
    last = -1
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        record = _parse(line)
        if record is None:
            if number == len(lines):
                sys.stderr.write(f"{file}: line {number} is incomplete and left out.\n")
                continue
            raise ValueError(f"{file}, line {number} is not a record of training: {line[:60]!r}")
        iteration = int(record.pop("iteration"))
        if iteration < last:
            points = {key: {i: v for i, v in old.items() if i < iteration} for key, old in points.items()}
        last = iteration
        for key, value in record.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                points.setdefault(key, {})[iteration] = float(value)
    points = {key: values for key, values in points.items() if values}
    if not points:
        raise ValueError(f"{file} has no records; give the output folder of a run, or its metrics.json.")
    return Run(name, file, {key: _as_curve(values) for key, values in points.items()})


def _parse(line: str) -> dict[str, Any] | None:
    """Return the record in a line, or None if the line is not a record."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    is_record = isinstance(record, dict) and isinstance(record.get("iteration"), (int, float))
    return record if is_record else None


def _as_curve(values: dict[int, float]) -> Curve:
    iterations = sorted(values)
    return np.array(iterations, float), np.array([values[i] for i in iterations], float)


def choose_metrics(runs: Sequence[Run], patterns: Sequence[str] | None) -> list[str]:
    """Return the names of the scalars to show, in order, by patterns; None: losses, learning rate and main metrics."""
    known = sorted({name for run in runs for name in run.curves}, key=_rank)
    if patterns is None:
        return [name for name in known if _is_shown_by_default(name)] or known
    chosen = {pattern: fnmatch.filter(known, pattern) for pattern in patterns}
    missing = [pattern for pattern, names in chosen.items() if not names]
    if missing:
        raise ValueError(f"No metric fits {', '.join(missing)}. There are: {', '.join(known)}.")
    return list(dict.fromkeys(name for names in chosen.values() for name in names))


def _is_shown_by_default(name: str) -> bool:
    if name in _NOT_BY_DEFAULT:
        return False
    return "loss" in name or name == "lr" or name.rpartition("/")[2] in _HEADLINES


def _rank(name: str) -> tuple[int, str]:
    """Sorts the total loss first, then losses, validation, metrics, learning rate, and the rest."""
    is_validation = "val" in name.lower()
    kinds = [name == "total_loss", "loss" in name and not is_validation, is_validation, "/" in name, name == "lr"]
    return (next((i for i, fits in enumerate(kinds) if fits), len(kinds)), name)


def smooth(curve: Curve, window: int) -> np.ndarray:
    """Return the mean over a window of the neighbours of each point, fewer at both ends.

    Points that are not finite stay so, and are left out of their neighbours' means.
    """
    values = curve[1]
    if not len(values):
        return values
    is_finite = np.isfinite(values)
    kernel = np.ones(max(min(window, 2 * len(values) - 1), 1))
    total = _centred_sum(np.where(is_finite, values, 0.0), kernel)
    count = _centred_sum(is_finite.astype(float), kernel)
    return np.where(is_finite, total / np.maximum(count, 1.0), values)


def _centred_sum(values: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    before = (len(kernel) - 1) // 2
    return np.convolve(values, kernel)[before : before + len(values)]


def panels(metrics: Sequence[str]) -> list[tuple[str, str | None]]:
    """Return what is drawn together: the metric that a panel is called by, and its validation loss, if any."""
    partners = {name: f"{_VALIDATION}{name}" for name in metrics if f"{_VALIDATION}{name}" in metrics}
    return [(name, partners.get(name)) for name in metrics if name not in partners.values()]


def draw_curves(runs: Sequence[Run], metrics: Sequence[str], window: int, path: Path) -> None:
    """Draw a panel for each metric, a line for each run; validation losses are dashed lines beside those of training.

    What is recorded often is smoothed by a window; the unsmoothed line stays visible, in pale.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    shown = panels(metrics)
    columns = min(len(shown), _COLUMNS)
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(4.4 * columns, 3.1 * rows + 0.3 * len(runs)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    last = _last_iteration(runs, metrics)
    for place, panel in enumerate(shown, 1):
        _draw_panel(figure.add_subplot(rows, columns, place), runs, panel, window, last)
    handles = [Line2D([], [], color=f"C{i % 10}", label=run.name) for i, run in enumerate(runs)]
    if any(partner for _, partner in shown):
        handles.append(Line2D([], [], color="0.4", linestyle="--", label="dashed: validation"))
    figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), columns), fontsize="small")
    figure.savefig(path)


def curve_charts(runs: Sequence[Run], metrics: Sequence[str], window: int) -> str:
    """Return the panels of `draw_curves` as HTML, each a drawing of its own."""
    shown, last = panels(metrics), _last_iteration(runs, metrics)
    names = [f'<span style="color: {_color(i)}">&#9632;</span> {html.escape(run.name)} ' for i, run in enumerate(runs)]
    if len(runs) == 1:
        names = []
    if any(partner for _, partner in shown):
        names.append("Dashed: validation.")
    drawn = [
        chart(
            lambda axes, panel=panel: _draw_panel(axes, runs, panel, window, last),
            (4.4, 3.1),
            f"panel-{place}",
            f"Chart: {panel[0]}.",
        )
        for place, panel in enumerate(shown)
    ]
    return f"<p>{''.join(names)}</p><div class=charts>{''.join(drawn)}</div>"


def _last_iteration(runs: Sequence[Run], metrics: Sequence[str]) -> float:
    return max(float(run.curves[m][0][-1]) for run in runs for m in metrics if m in run.curves)


def _color(index: int) -> str:
    from matplotlib.colors import to_hex

    return to_hex(f"C{index % 10}")


def _draw_panel(axes: Any, runs: Sequence[Run], panel: tuple[str, str | None], window: int, last: float) -> None:
    from matplotlib.ticker import MaxNLocator

    metric, _ = panel
    for index, run in enumerate(runs):
        often = max(len(curve[0]) for curve in run.curves.values()) / 2
        for name, style in zip(panel, ("-", "--"), strict=True):
            if name is not None and name in run.curves:
                curve = run.curves[name]
                is_smoothed = name != "lr" and len(curve[0]) > max(window, often)
                _draw_line(axes, curve, window if is_smoothed else 1, _color(index), style)
    is_percent = all(_is_percent(metric, run.curves[metric][1]) for run in runs if metric in run.curves)
    axes.set_title(f"{metric} (%)" if is_percent else metric, fontsize=10)
    axes.set_xlabel("iteration", fontsize=9)
    axes.tick_params(labelsize=9)
    axes.set_xlim(-0.02 * max(last, 1.0), 1.02 * max(last, 1.0))  # panels below each other compare
    if is_percent:
        axes.set_ylim(0, 100)  # so that a change looks as great as it is
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(alpha=0.3)


def _is_percent(metric: str, values: np.ndarray) -> bool:
    """Tell whether these are average precisions and the like, which evaluators give from 0 to 100."""
    is_score = "/" in metric and metric.rpartition("/")[2].startswith(_PERCENT)
    return is_score and bool(((values >= 0) & (values <= 100) | np.isnan(values)).all())


def _draw_line(axes: Any, curve: Curve, window: int, color: str, style: str) -> None:
    iterations, values = curve
    if window > 1:
        axes.plot(iterations, values, color=color, alpha=0.25, linewidth=0.9, linestyle=style)
        axes.plot(iterations, smooth(curve, window), color=color, linewidth=1.6, linestyle=style)
        return
    few = len(iterations) <= 30  # evaluations: each is a point of its own
    marker = "o" if few else None
    axes.plot(iterations, values, color=color, linewidth=1.6, marker=marker, markersize=3, linestyle=style)


def value_table(runs: Sequence[Run], metrics: Sequence[str]) -> str:
    """Return an HTML table of the last value of each metric and run, with the least and the greatest."""
    head = "".join(f"<th scope=col>{html.escape(run.name)}</th>" for run in runs)
    lines = []
    for metric in metrics:
        cells = "".join(f"<td>{_cell(run.curves.get(metric))}</td>" for run in runs)
        meaning = _meaning(metric)
        name = html.escape(metric) + (f" <small>{html.escape(meaning)}</small>" if meaning else "")
        lines.append(f"<tr><th scope=row>{name}</th>{cells}</tr>")
    content = f"<table><tr><th scope=col>metric</th>{head}</tr>{''.join(lines)}</table>"
    return f'<div class=wide tabindex=0 role=region aria-label="Last values">{content}</div>'


def _meaning(metric: str) -> str:
    """Return what a metric means, for readers who have not met it; evaluators write it in percent."""
    name = metric.rpartition("/")[2]
    return _MEANINGS.get(metric) or MEANINGS.get(name, "").replace("0 (worst) to 1 (best)", "0 (worst) to 100 (best)")


_MEANINGS = {
    "total_loss": "the sum of all losses: what training makes small",
    "validation/total_loss": "the same on images that are not trained with",
    "lr": "learning rate: how far a step of training changes the model",
}


def _cell(curve: Curve | None) -> str:
    if curve is None:
        return "-"
    iterations, values = curve
    text = f"{values[-1]:.4g}"
    finite = np.flatnonzero(np.isfinite(values))
    if len(finite) > 1:
        low, high = finite[values[finite].argmin()], finite[values[finite].argmax()]
        text += (
            f" <small>(least {values[low]:.4g} at {iterations[low]:.0f}, "
            f"greatest {values[high]:.4g} at {iterations[high]:.0f})</small>"
        )
    return text
