"""The charts of ``detectron2 analyze``; ``K`` classes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detectron2.evaluation.analysis import Comparison, DetectionAnalysis
from detectron2.utils.file_io import atomic_write

__all__ = ["draw_charts"]

_RECALLS = np.linspace(0.0, 1.0, 101)
_MANY_CLASSES = 10  # more have no colours that can be told apart
_MOST_NUMBERS = 20  # classes of a confusion matrix in whose cells numbers can be read
_MOST_BARS = 40
_BLUE, _RED, _GREY = "#1f77b4", "#d62728", "0.75"


def draw_charts(analysis: DetectionAnalysis, comparison: Comparison | None, folder: Path) -> dict[str, Path]:
    """Draw all charts.

    Args:
        analysis: what to draw.
        comparison: with another run, if there is one.
        folder: gets the PNG files.

    Returns:
        For each title the file.
    """
    size = len(analysis.confusion)
    square = (min(4.0 + 0.32 * size, 16.0), min(3.4 + 0.3 * size, 15.0))
    bars = (6.4, 1.4 + 0.22 * min(len(analysis.per_class), _MOST_BARS))
    charts: dict[str, tuple[str, tuple[float, float], Callable[[Any], None]]] = {
        "AP by class": ("classes", bars, lambda axes: _draw_classes(axes, analysis)),
        "Precision and recall": ("precision_recall", (6.4, 4.4), lambda axes: _draw_precision(axes, analysis)),
        "F1 and threshold": ("f1", (6.4, 3.8), lambda axes: _draw_f1(axes, analysis)),
        "Types of errors": ("errors", (6.4, 3.2), lambda axes: _draw_errors(axes, analysis)),
        "Confusion": ("confusion", square, lambda axes: _draw_confusion(axes, analysis)),
        "Kinds of objects": ("parts", (7.4, 3.8), lambda axes: _draw_parts(axes, analysis)),
        "Calibration": ("calibration", (5.2, 4.4), lambda axes: _draw_calibration(axes, analysis)),
    }
    if comparison is not None:
        charts = {"Comparison": ("comparison", (6.4, 3.8), lambda axes: _draw_comparison(axes, comparison)), **charts}
    return {title: _save(draw, size_wh, folder / f"{name}.png") for title, (name, size_wh, draw) in charts.items()}


def _save(draw: Callable[[Any], None], size_wh: tuple[float, float], path: Path) -> Path:
    """Write a figure with one panel; its size is in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size_wh, dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure.add_subplot())
    with atomic_write(path, "wb") as f:
        figure.savefig(f, format="png")
    return path


def _draw_bars(axes: Any, names: Sequence[str], values: Sequence[float], texts: Sequence[str]) -> None:
    """Draw horizontal bars from the top down, each with a text at its end."""
    places = np.arange(len(names))[::-1]
    lengths = np.nan_to_num(np.asarray(values, float))
    axes.barh(places, lengths, color=_BLUE, height=0.7)
    for place, length, text in zip(places, lengths, texts, strict=True):
        axes.text(max(length, 0.0), place, f" {text}", va="center", fontsize=8)
    axes.set_yticks(places, names, fontsize=8)
    axes.margins(x=0.2, y=0.02)
    axes.grid(alpha=0.3, axis="x")
    axes.set_axisbelow(True)


def _draw_classes(axes: Any, analysis: DetectionAnalysis) -> None:
    known = sorted((s for s in analysis.per_class if s.num_objects), key=lambda s: -s.ap)
    shown = known
    if len(known) > _MOST_BARS:
        half = _MOST_BARS // 2
        shown = known[:half] + known[-half:]
        axes.set_title(f"the {half} best and the {half} worst of {len(known)} classes", fontsize=9)
    _draw_bars(axes, [s.name for s in shown], [s.ap for s in shown], [f"{s.ap:.3f}  n={s.num_objects}" for s in shown])
    axes.set(xlabel="AP", xlim=(0, 1.25), xticks=np.linspace(0, 1, 6))


def _draw_precision(axes: Any, analysis: DetectionAnalysis) -> None:
    is_known = ~np.isnan(analysis.precision).any(axis=1)
    few = is_known.sum() <= _MANY_CLASSES
    for row, scores in zip(analysis.precision[is_known], np.flatnonzero(is_known), strict=True):
        name = analysis.per_class[int(scores)].name
        style: dict[str, Any] = {"label": name} if few else {"color": _GREY, "alpha": 0.6}
        axes.plot(_RECALLS, row, linewidth=1.1, **style)
    if is_known.any():
        axes.plot(_RECALLS, analysis.precision[is_known].mean(0), color="k", linewidth=2.4, label="mean")
        axes.legend(fontsize="small", loc="lower left" if few else "upper right")
    axes.set(xlabel="recall", ylabel=f"precision (IoU {analysis.iou_threshold:g})", xlim=(0, 1.01), ylim=(0, 1.02))
    axes.grid(alpha=0.3)


def _draw_f1(axes: Any, analysis: DetectionAnalysis) -> None:
    score, f1 = analysis.f1
    axes.plot(score, f1, color=_BLUE, marker="o" if len(score) < 2 else None)
    best = analysis.overall.best
    if not np.isnan(best.threshold):
        axes.plot(best.threshold, best.f1, "o", color=_RED)
        axes.annotate(
            f"{best.f1:.3f} at {best.threshold:.2f}",
            (best.threshold, best.f1),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
    axes.axvline(analysis.score_threshold, color="0.5", linestyle=":", label=f"chosen: {analysis.score_threshold:g}")
    axes.legend(fontsize="small", loc="upper right")
    axes.set(xlabel="score threshold", ylabel="F1 over all classes", xlim=(0, 1.02), ylim=(0, 1.1))
    axes.grid(alpha=0.3)


def _draw_errors(axes: Any, analysis: DetectionAnalysis) -> None:
    errors = analysis.errors
    texts = [f"{e.delta_ap:.3f}  n={e.count}" for e in errors.values()]
    _draw_bars(axes, list(errors), [e.delta_ap for e in errors.values()], texts)
    top = max([e.delta_ap for e in errors.values() if not np.isnan(e.delta_ap)], default=0.0)
    axes.set(xlabel=f"AP at IoU {analysis.iou_threshold:g} won by correcting it", xlim=(0, max(1.3 * top, 0.05)))


def _draw_confusion(axes: Any, analysis: DetectionAnalysis) -> None:
    counts = analysis.confusion
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [*(s.name for s in analysis.per_class), "background"]
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.figure.colorbar(image, ax=axes, shrink=0.7, label="share of the row")
    places, size = np.arange(len(names)), 8 if len(names) <= 50 else 5
    axes.set_xticks(places, names, rotation=90, fontsize=size)
    axes.set_yticks(places, names, fontsize=size)
    axes.set(xlabel="predicted", ylabel="true")
    if len(names) <= _MOST_NUMBERS + 1:
        for row, column in zip(*np.nonzero(counts), strict=True):
            color = "white" if shares[row, column] > 0.6 else "black"
            axes.text(column, row, counts[row, column], ha="center", va="center", fontsize=7, color=color)


def _draw_parts(axes: Any, analysis: DetectionAnalysis) -> None:
    rows = [
        (f"{prop}: {part}", s) for prop, parts in analysis.parts.items() for part, s in parts.items() if s.num_objects
    ]
    places = np.arange(len(rows))[::-1]
    axes.barh(places + 0.18, np.nan_to_num([s.ap for _, s in rows]), height=0.34, color=_BLUE, label="AP")
    recall = np.nan_to_num([s.recall for _, s in rows])
    label = f"recall from a score of {analysis.score_threshold:g} on"
    axes.barh(places - 0.18, recall, height=0.34, color="#ff7f0e", label=label)
    axes.set_yticks(places, [f"{name}  (n={s.num_objects})" for name, s in rows], fontsize=8)
    axes.set(xlim=(0, 1), xlabel=f"at IoU {analysis.iou_threshold:g}")
    axes.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2, frameon=False)
    axes.grid(alpha=0.3, axis="x")
    axes.set_axisbelow(True)


def _draw_calibration(axes: Any, analysis: DetectionAnalysis) -> None:
    bins = [b for b in analysis.calibration if b.count]
    total = max(sum(b.count for b in bins), 1)
    centres = [(b.low + b.high) / 2 for b in bins]
    width = analysis.calibration[0].high - analysis.calibration[0].low
    axes.bar(centres, [b.count / total for b in bins], width, color=_GREY, alpha=0.6, label="share of detections")
    axes.plot([0, 1], [0, 1], color="0.4", linestyle=":", label="perfect")
    axes.plot([b.confidence for b in bins], [b.accuracy for b in bins], "o-", color=_BLUE, label="right ones")
    axes.set(xlabel="score", ylabel="share", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_title(f"expected calibration error {analysis.overall.calibration_error:.3f}", fontsize=10)
    axes.legend(fontsize="small", loc="upper left")
    axes.grid(alpha=0.3)


def _draw_comparison(axes: Any, comparison: Comparison) -> None:
    shown = {name: d for name, d in comparison.metrics.items() if not np.isnan(d.delta)}
    places = np.arange(len(shown))[::-1]
    for place, d in zip(places, shown.values(), strict=True):
        color = "#2ca02c" if d.low > 0 else _RED if d.high < 0 else "0.4"
        if not np.isnan(d.low):
            axes.plot([d.low, d.high], [place, place], color=color, linewidth=2)
        axes.plot(d.delta, place, "o", color=color)
    axes.axvline(0, color="k", linewidth=0.8)
    axes.set_yticks(places, list(shown), fontsize=8)
    axes.set_xlabel("second minus first; to the right of 0 the second is better")
    axes.margins(x=0.1)
    axes.grid(alpha=0.3, axis="x")
