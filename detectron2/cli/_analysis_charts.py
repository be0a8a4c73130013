"""The charts of `detectron2 analyze`: each is drawn once, for a PNG file and for the page; `K` classes."""

import functools
import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detectron2.cli._html import inline_svg
from detectron2.evaluation.analysis import Comparison, DetectionAnalysis
from detectron2.utils.file_io import atomic_write

INK, LINE, PAGE = "#222223", "#b0b0b1", "#fefefd"  # as no other colour, so that a page can put its own in their place
_FONT = "DejaVu Sans"
_STYLE: dict[Any, Any] = {
    "font.family": _FONT,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": LINE,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.facecolor": PAGE,
    "legend.edgecolor": LINE,
    "svg.fonttype": "none",
    "svg.hashsalt": "detectron2",
}
_MOST_LETTERS = 28
_UNKNOWN = "□"


@dataclass(frozen=True)
class Chart:
    """A chart.

    Args:
        file: the PNG.
        element: the same as HTML.
    """

    file: Path
    element: str


def draw_chart(
    draw: Callable[[Any], None], size_wh: tuple[float, float], path: Path, label: str, names: "Names"
) -> Chart:
    """Draw a figure with one panel.

    Args:
        draw: is given the axes.
        size_wh: in inches.
        path: the PNG to write.
        label: alternative text for screen readers.
        names: those that are drawn.

    Returns:
        The chart.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    svg = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size_wh, dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure.add_subplot())
        with atomic_write(path, "wb") as f:
            figure.savefig(f, format="png", facecolor="white")
        figure.set_layout_engine("none")  # is laid out, which takes as long as drawing
        figure.savefig(svg, format="svg", metadata={"Date": None})
    text = names.restore(svg.getvalue())
    for color, role in ((INK, "currentColor"), (LINE, "var(--line)"), (PAGE, "var(--page)")):
        text = text.replace(color, role)
    return Chart(path, inline_svg(text, path.stem, label))


class Names:
    """Names of classes as labels: of one line, not too long, and of letters that the font has.

    Others are drawn as boxes, behind which is the number of the class; in a page the names are as they are.

    Args:
        names: of all classes, in their order.
    """

    def __init__(self, names: Sequence[str]):
        known = _letters()
        self._short = {name: _shortened(name) for name in names}
        self._plain: dict[str, str] = {}
        for number, (name, text) in enumerate(self._short.items(), 1):
            shown = "".join(c if ord(c) in known else _UNKNOWN for c in text)
            self._plain[name] = shown if shown == text else f"{shown} #{number}"

    def plain(self, name: str) -> str:
        """Return a name as a label in a picture."""
        return self._plain[name]

    def __getitem__(self, name: str) -> str:
        """Return a name as a label of a chart, where it must not be taken for a formula."""
        text = self._plain[name]
        text = f" {text}" if text.startswith("_") else text  # others are left out of legends
        return text.replace("$", r"\$")

    def restore(self, svg: str) -> str:
        """Return an SVG drawing with the original names in place of their substitutes."""
        for name, shown in self._plain.items():
            if shown != self._short[name]:
                for space in ("", " "):
                    old, new = (html.escape(text) for text in (shown, self._short[name]))
                    svg = svg.replace(f">{space}{old}<", f">{space}{new}<")
        return svg


def _shortened(name: str) -> str:
    text = " ".join(name.encode("utf-8", "replace").decode("utf-8").split()) or "(no name)"
    return text if len(text) <= _MOST_LETTERS else text[: _MOST_LETTERS - 1] + "…"


@functools.cache
def _letters() -> frozenset[int]:
    """Return the code points of matplotlib's own font."""
    from matplotlib import font_manager

    return frozenset(font_manager.get_font(font_manager.findfont(_FONT)).get_charmap())


_RECALLS = np.linspace(0.0, 1.0, 101)
_MANY_CLASSES = 10  # more have no colours that can be told apart
_MOST_NUMBERS = 20  # classes of a confusion matrix in whose cells numbers can be read
_MOST_BARS = 40
_MOST_CONFUSED = 40
_BLUE, _RED, _ORANGE, _GREEN, _GREY = "#3b8bc4", "#d1495b", "#e08e2b", "#3a9d5d", "#9a9a9b"

_Draw = Callable[[Any], None]


def draw_charts(analysis: DetectionAnalysis, comparison: Comparison | None, folder: Path) -> dict[str, Chart]:
    """Draw all charts.

    Args:
        analysis: what to draw.
        comparison: with another run, if there is one.
        folder: gets the PNG files.

    Returns:
        For each title the chart.
    """
    classes = [*(s.name for s in analysis.per_class), "background"]
    names = Names([*classes, *(k.name for k in analysis.keypoints)])
    bars = (6.4, 1.4 + 0.22 * min(len(analysis.per_class), _MOST_BARS))
    charts: dict[str, tuple[str, tuple[float, float], _Draw]] = {
        "AP by class": ("classes", bars, lambda axes: _draw_classes(axes, analysis, names)),
        "Precision and recall": ("precision_recall", (6.4, 4.4), lambda axes: _draw_precision(axes, analysis, names)),
        "F1 and threshold": ("f1", (6.4, 3.8), lambda axes: _draw_f1(axes, analysis)),
        "Types of errors": ("errors", (6.4, 3.2), lambda axes: _draw_errors(axes, analysis)),
        "Confusion": _confusion_chart(analysis.confusion, classes, names),
        "Kinds of objects": ("parts", (7.4, 3.8), lambda axes: _draw_parts(axes, analysis)),
        "Calibration": ("calibration", (5.2, 4.4), lambda axes: _draw_calibration(axes, analysis)),
    }
    if analysis.keypoints:
        size = (6.4, 1.0 + 0.22 * len(analysis.keypoints))
        charts["Keypoints"] = ("keypoints", size, lambda axes: _draw_keypoints(axes, analysis, names))
    if comparison is not None:
        charts = {"Comparison": ("comparison", (6.4, 3.8), lambda axes: _draw_comparison(axes, comparison)), **charts}
    return {
        title: draw_chart(draw, size_wh, folder / f"{name}.png", _describe(title, analysis, comparison), names)
        for title, (name, size_wh, draw) in charts.items()
    }


def _describe(title: str, analysis: DetectionAnalysis, comparison: Comparison | None) -> str:
    """Return the alternative text of a chart."""
    overall = analysis.overall
    known = sorted((s for s in analysis.per_class if s.num_objects), key=lambda s: -s.ap)
    says = ""
    if title == "AP by class" and known:
        says = f"best {known[0].name} with {known[0].ap:.3f}, worst {known[-1].name} with {known[-1].ap:.3f}"
    elif title == "F1 and threshold":
        says = f"best {overall.best.f1:.3f} at a score of {overall.best.threshold:.2f}"
    elif title == "Types of errors":
        says = ", ".join(f"{name} {e.count}" for name, e in analysis.errors.items())
    elif title == "Calibration":
        says = f"expected calibration error {overall.calibration_error:.3f}"
    elif title == "Comparison" and comparison is not None:
        ap = comparison.metrics["AP"]
        says = f"AP {ap.delta:+.3f}, interval {ap.low:+.3f} to {ap.high:+.3f}"
    return f"Chart: {title}. {says}" if says else f"Chart: {title}."


def draw_named_bars(axes: Any, labels: Sequence[str], values: Sequence[float], texts: Sequence[str]) -> None:
    """Draw horizontal bars from the top down, each with a text at its end.

    Args:
        axes: of matplotlib.
        labels: of the bars.
        values: their lengths; NaN for none.
        texts: at their ends.
    """
    places = np.arange(len(labels))[::-1]
    lengths = np.nan_to_num(np.asarray(values, float))
    axes.barh(places, lengths, color=_BLUE, height=0.7)
    for place, length, text in zip(places, lengths, texts, strict=True):
        _annotate_bar(axes, max(length, 0.0), float(place), text)
    axes.set_yticks(places, labels, fontsize=8)
    axes.margins(x=0.2, y=0.02)
    axes.grid(alpha=0.5, axis="x")
    axes.set_axisbelow(True)


def _annotate_bar(axes: Any, x: float, y: float, text: str) -> None:
    axes.annotate(text, (x, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8)


def _draw_classes(axes: Any, analysis: DetectionAnalysis, names: Names) -> None:
    known = sorted((s for s in analysis.per_class if s.num_objects), key=lambda s: -s.ap)
    shown = known
    if len(known) > _MOST_BARS:
        half = _MOST_BARS // 2
        shown = known[:half] + known[-half:]
        axes.set_title(f"the {half} best and the {half} worst of {len(known)} classes", fontsize=9)
    has_interval = any(not np.isnan(s.ap_interval[0]) for s in shown)
    ends = [f"{s.ap:.3f}  n={s.num_objects}" for s in shown]
    labels, texts = [names[s.name] for s in shown], [""] * len(shown) if has_interval else ends
    draw_named_bars(axes, labels, [s.ap for s in shown], texts)
    if has_interval:
        for place, (scores, text) in enumerate(zip(reversed(shown), reversed(ends), strict=True)):
            low, high = np.nan_to_num(scores.ap_interval, nan=scores.ap)
            axes.plot([low, high], [place, place], color=INK, linewidth=1.2, solid_capstyle="butt")
            _annotate_bar(axes, max(high, scores.ap), place, text)
    axes.set(xlabel="AP" + (" with 95 % interval" if has_interval else ""), xlim=(0, 1.3), xticks=np.linspace(0, 1, 6))


def _draw_precision(axes: Any, analysis: DetectionAnalysis, names: Names) -> None:
    is_known = ~np.isnan(analysis.precision).any(axis=1)
    few = is_known.sum() <= _MANY_CLASSES
    known = analysis.precision[is_known]
    if few:
        for row, k in zip(known, np.flatnonzero(is_known).tolist(), strict=True):
            axes.plot(_RECALLS, row, linewidth=1.1, label=names[analysis.per_class[k].name])
    else:
        from matplotlib.collections import LineCollection

        curves = np.stack([np.broadcast_to(_RECALLS, known.shape), known], axis=2)
        # of many classes a page needs no more than a picture
        axes.add_collection(LineCollection(list(curves), colors=_GREY, linewidths=0.8, alpha=0.4, rasterized=True))
    if is_known.any():
        axes.plot(_RECALLS, known.mean(0), color=INK, linewidth=2.4, label="mean")
        axes.legend(fontsize="small", loc="lower left" if few else "upper right")
    name = f"precision ({_iou_name(analysis)} {analysis.iou_threshold:g})"
    axes.set(xlabel="recall", ylabel=name, xlim=(0, 1.01), ylim=(0, 1.02))
    axes.grid(alpha=0.5)


def _iou_name(analysis: DetectionAnalysis) -> str:
    return "OKS" if analysis.iou_type == "keypoints" else "IoU"


def _draw_f1(axes: Any, analysis: DetectionAnalysis) -> None:
    score, f1 = _thinned(*analysis.f1)
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
    axes.axvline(analysis.score_threshold, color=_GREY, linestyle=":", label=f"chosen: {analysis.score_threshold:g}")
    axes.legend(fontsize="small", loc="upper right")
    axes.set(xlabel="score threshold", ylabel="F1 over all classes", xlim=(0, 1.02), ylim=(0, 1.1))
    axes.grid(alpha=0.5)


def _thinned(x: np.ndarray, y: np.ndarray, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Return at most `count` points of a curve, including both ends."""
    if len(x) <= count:
        return x, y
    chosen = np.unique(np.linspace(0, len(x) - 1, count).round().astype(int))
    return x[chosen], y[chosen]


def _draw_errors(axes: Any, analysis: DetectionAnalysis) -> None:
    errors = analysis.errors
    texts = [f"{e.delta_ap:.3f}  n={e.count}" for e in errors.values()]
    draw_named_bars(axes, list(errors), [e.delta_ap for e in errors.values()], texts)
    top = max([e.delta_ap for e in errors.values() if not np.isnan(e.delta_ap)], default=0.0)
    name = f"AP at {_iou_name(analysis)} {analysis.iou_threshold:g} won by correcting it"
    axes.set(xlabel=name, xlim=(0, max(1.3 * top, 0.05)))


def _confusion_chart(
    counts: np.ndarray, classes: Sequence[str], names: Names
) -> tuple[str, tuple[float, float], _Draw]:
    """Return file name, size in inches, and function."""
    chosen, note = np.arange(len(classes)), ""
    if len(classes) > _MOST_CONFUSED + 1:  # the background is always shown
        wrong = counts[:-1, :-1] - np.diag(counts.diagonal()[:-1])
        order = np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[:_MOST_CONFUSED]
        chosen = np.append(np.sort(order), len(classes) - 1)
        note = f"the {_MOST_CONFUSED} classes that are mixed up most, of {len(classes) - 1}"
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    cells = np.ix_(chosen, chosen)
    size_wh = (min(4.0 + 0.32 * len(chosen), 14.0), min(3.4 + 0.3 * len(chosen), 13.0))
    labels = [names[classes[int(i)]] for i in chosen]
    return "confusion", size_wh, lambda axes: draw_confusion(axes, counts[cells], shares[cells], labels, note)


def draw_confusion(axes: Any, counts: np.ndarray, shares: np.ndarray, labels: Sequence[str], note: str) -> None:
    """Draw a confusion matrix.

    Args:
        axes: of matplotlib.
        counts: int array (n, n), rows are true classes, columns predicted ones.
        shares: float array (n, n), of the whole row.
        labels: of the rows and columns.
        note: text above.
    """
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.figure.colorbar(image, ax=axes, shrink=0.7, label="share of the row")
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(note, fontsize=9)
    if len(labels) <= _MOST_NUMBERS + 1:
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
    axes.barh(places - 0.18, recall, height=0.34, color=_ORANGE, label=label)
    axes.set_yticks(places, [f"{name}  (n={s.num_objects})" for name, s in rows], fontsize=8)
    axes.set(xlim=(0, 1), xlabel=f"at {_iou_name(analysis)} {analysis.iou_threshold:g}")
    axes.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2, frameon=False)
    axes.grid(alpha=0.5, axis="x")
    axes.set_axisbelow(True)


def _draw_calibration(axes: Any, analysis: DetectionAnalysis) -> None:
    bins = [b for b in analysis.calibration if b.count]
    total = max(sum(b.count for b in bins), 1)
    centres = [(b.low + b.high) / 2 for b in bins]
    width = analysis.calibration[0].high - analysis.calibration[0].low
    axes.bar(centres, [b.count / total for b in bins], width, color=_GREY, alpha=0.6, label="share of detections")
    axes.plot([0, 1], [0, 1], color=INK, linestyle=":", label="perfect")
    axes.plot([b.confidence for b in bins], [b.accuracy for b in bins], "o-", color=_BLUE, label="right ones")
    axes.set(xlabel="score", ylabel="share", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_title(f"expected calibration error {analysis.overall.calibration_error:.3f}", fontsize=10)
    axes.legend(fontsize="small", loc="upper left")
    axes.grid(alpha=0.5)


def _draw_keypoints(axes: Any, analysis: DetectionAnalysis, names: Names) -> None:
    shown = analysis.keypoints
    values = [k.similarity for k in shown]
    draw_named_bars(axes, [names[k.name] for k in shown], values, [f"{k.similarity:.3f}  n={k.count}" for k in shown])
    axes.set(xlabel="mean contribution to OKS", xlim=(0, 1.3), xticks=np.linspace(0, 1, 6))


def _draw_comparison(axes: Any, comparison: Comparison) -> None:
    shown = {name: d for name, d in comparison.metrics.items() if not np.isnan(d.delta)}
    places = np.arange(len(shown))[::-1]
    for place, d in zip(places, shown.values(), strict=True):
        color = _GREEN if d.low > 0 else _RED if d.high < 0 else _GREY
        if not np.isnan(d.low):
            axes.plot([d.low, d.high], [place, place], color=color, linewidth=2)
        axes.plot(d.delta, place, "o", color=color)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(places, list(shown), fontsize=8)
    axes.set_xlabel("second minus first; to the right of 0 the second is better")
    axes.margins(x=0.1)
    axes.grid(alpha=0.5, axis="x")
