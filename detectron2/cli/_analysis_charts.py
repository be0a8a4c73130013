"""The charts of `detectron2 analyze`: each is drawn once, for a PNG file and for the page; `K` classes."""

import functools
import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detectron2.cli._html import CHART_FONT, INK, chart
from detectron2.evaluation.analysis import Comparison, DetectionAnalysis, SegmentAnalysis

_MOST_LETTERS = 28
_UNKNOWN = "□"


_MANY_CLASSES = 10  # more have no colours that can be told apart
_MOST_NUMBERS = 20  # classes of a confusion matrix in whose cells numbers can be read
_FEW_NUMBERS = 10  # in whose cells there is room for shares too
_MOST_BARS = 40
_MOST_CONFUSED = 40
_BLUE, _RED, _ORANGE, _GREEN, _GREY = "#3b8bc4", "#d1495b", "#e08e2b", "#3a9d5d", "#9a9a9b"

_Draw = Callable[[Any], None]
_Chart = tuple[str, tuple[float, float], _Draw, str]  # file name, size in inches, function, what it says in words


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

    return frozenset(font_manager.get_font(font_manager.findfont(CHART_FONT)).get_charmap())


def draw_charts(
    analysis: DetectionAnalysis, comparison: Comparison | None, folder: Path, kind: str = "png"
) -> dict[str, str]:
    """Draw all charts into files of a folder, PNG, SVG or PDF, and return the same by title as HTML."""
    classes = [*(s.name for s in analysis.per_class), "background"]
    names = Names([*classes, *(k.name for k in analysis.keypoints)])
    overall, best = analysis.overall, analysis.overall.best
    is_wrong_by = ", ".join(f"{name} {e.count}" for name, e in analysis.errors.items())
    charts: dict[str, _Chart] = {}
    if comparison is not None:
        ap = comparison.metrics["AP"]
        said = f"AP {ap.delta:+.3f}, interval {ap.low:+.3f} to {ap.high:+.3f}"
        charts["Comparison"] = ("comparison", (6.4, 3.8), lambda axes: _draw_comparison(axes, comparison), said)
    charts |= {
        "AP by class": _class_chart(analysis, names),
        "Precision and recall": (
            "precision_recall",
            (6.4, 4.4),
            lambda axes: _draw_precision(axes, analysis, names),
            "",
        ),
        "F1 and threshold": (
            "f1",
            (6.4, 3.8),
            lambda axes: _draw_f1(axes, analysis),
            f"best {best.f1:.3f} at a score of {best.threshold:.2f}",
        ),
        "Types of errors": ("errors", (6.4, 3.2), _error_bars(analysis), is_wrong_by),
        "Confusion": _confusion_chart(analysis.confusion, classes, names, is_percent=False),
        "Kinds of objects": ("parts", (6.8, 3.8), lambda axes: _draw_parts(axes, analysis), ""),
        "Calibration": (
            "calibration",
            (6.4, 4.4),
            lambda axes: _draw_calibration(axes, analysis),
            f"expected calibration error {overall.calibration_error:.3f}",
        ),
    }
    if analysis.keypoints:
        rows = [(names[k.name], k.similarity, f"{k.similarity:.3f}  n={k.count}", _NONE) for k in analysis.keypoints]
        charts["Keypoints"] = ("keypoints", (6.4, 1.0 + 0.26 * len(rows)), _bars(rows, "mean contribution to OKS"), "")
    return _draw_all(charts, folder, names, kind)


def draw_pixel_charts(analysis: SegmentAnalysis, folder: Path, kind: str = "png") -> dict[str, str]:
    """Draw the charts of labels of pixels as `draw_charts` does."""
    name, names = {"sem_seg": "IoU", "panoptic_seg": "PQ"}[analysis.task], Names([s.name for s in analysis.per_class])
    known = [(s.name, s.values[name], f"{s.values[name]:.3f}", _NONE) for s in analysis.per_class]
    charts = {f"{name} by class": _best_and_worst_chart(known, name, names)}
    if analysis.confusion is not None:
        charts["Confusion"] = _confusion_chart(analysis.confusion, analysis.class_names, names, is_percent=True)
    return _draw_all(charts, folder, names, kind)


def _draw_all(charts: dict[str, _Chart], folder: Path, names: Names, kind: str) -> dict[str, str]:
    return {
        title: chart(
            draw,
            size_wh,
            name,
            f"Chart: {title}. {said}" if said else f"Chart: {title}.",
            file=folder / f"{name}.{kind}",
            restore=names.restore,
        )
        for title, (name, size_wh, draw, said) in charts.items()
    }


_NONE = (np.nan, np.nan)
_Bar = tuple[str, float, str, tuple[float, float]]  # label, length, text at the end, ends of an interval or NaN


def _bars(rows: Sequence[_Bar], label: str, end: float = 1.0, title: str = "") -> _Draw:
    """Return a function that draws horizontal bars from the top down, from 0 to an end of the axis."""

    def draw(axes: Any) -> None:
        places = np.arange(len(rows))[::-1].tolist()
        lengths = np.nan_to_num([length for _, length, _, _ in rows]).tolist()
        axes.barh(places, lengths, color=_BLUE, height=0.7)
        for place, length, (_, _, text, (low, high)) in zip(places, lengths, rows, strict=True):
            if low <= high:
                axes.plot([low, high], [place, place], color=INK, linewidth=1.2, solid_capstyle="butt")
                length = max(length, high)
            axes.annotate(
                text, (max(length, 0.0), place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9.5
            )
        axes.set_yticks(places, [name for name, *_ in rows])
        axes.margins(y=0.02)
        axes.grid(alpha=0.5, axis="x")
        axes.set_axisbelow(True)
        axes.set(xlabel=label, xlim=(0, end))
        axes.set_title(title, fontsize=10)

    return draw


def _best_and_worst_chart(rows: Sequence[_Bar], label: str, names: Names) -> _Chart:
    """Draw a bar for each class that has a value, or if there are many for the best and the worst."""
    known = sorted((row for row in rows if not np.isnan(row[1])), key=lambda row: -row[1])
    said = f"best {known[0][0]} with {known[0][1]:.3f}, worst {known[-1][0]} with {known[-1][1]:.3f}" if known else ""
    half, title = _MOST_BARS // 2, ""
    if len(known) > _MOST_BARS:
        title = f"the {half} best and the {half} worst of {len(known)} classes"
        known = known[:half] + known[-half:]
    shown = [(names[name], value, text, ends) for name, value, text, ends in known]
    return "classes", (6.4, 1.4 + 0.26 * len(shown)), _bars(shown, label, title=title), said


def _class_chart(analysis: DetectionAnalysis, names: Names) -> _Chart:
    rows = [(s.name, s.ap, f"{s.ap:.3f}  n={s.num_objects}", s.ap_interval) for s in analysis.per_class]
    label = "AP with 95 % interval" if any(low <= high for *_, (low, high) in rows) else "AP"
    return _best_and_worst_chart(rows, label, names)


def _error_bars(analysis: DetectionAnalysis) -> _Draw:
    rows = [(name, e.delta_ap, f"{e.delta_ap:.3f}  n={e.count}", _NONE) for name, e in analysis.errors.items()]
    top = max([gain for _, gain, _, _ in rows if not np.isnan(gain)], default=0.0)
    return _bars(rows, f"AP at {_threshold_name(analysis)} won by correcting it", max(1.3 * top, 0.05))


def _threshold_name(analysis: DetectionAnalysis) -> str:
    return f"{'OKS' if analysis.iou_type == 'keypoints' else 'IoU'} {analysis.iou_threshold:g}"


def _draw_precision(axes: Any, analysis: DetectionAnalysis, names: Names) -> None:
    recalls = np.linspace(0.0, 1.0, analysis.precision.shape[1])
    is_known = ~np.isnan(analysis.precision).any(axis=1)
    few = is_known.sum() <= _MANY_CLASSES
    known = analysis.precision[is_known]
    if few:
        for row, k in zip(known, np.flatnonzero(is_known).tolist(), strict=True):
            axes.plot(recalls, row, linewidth=1.2, clip_on=False, label=names[analysis.per_class[k].name])
    else:
        from matplotlib.collections import LineCollection

        curves = np.stack([np.broadcast_to(recalls, known.shape), known], axis=2)
        # of many classes a page needs no more than a picture
        axes.add_collection(LineCollection(list(curves), colors=_GREY, linewidths=0.8, alpha=0.4, rasterized=True))
    if is_known.any():
        axes.plot(recalls, known.mean(0), color=INK, linewidth=2.4, clip_on=False, label="mean")
        axes.legend(loc="lower left" if few else "upper right")
    name = f"precision ({_threshold_name(analysis)})"
    axes.set(xlabel="recall", ylabel=name, xlim=(0, 1), ylim=(0, 1))
    axes.grid(alpha=0.5)


def _draw_f1(axes: Any, analysis: DetectionAnalysis) -> None:
    score, f1 = _thinned(*analysis.f1)
    axes.plot(score, f1, color=_BLUE, clip_on=False, marker="o" if len(score) < 2 else None)
    best = analysis.overall.best
    if not np.isnan(best.threshold):
        label = f"best: {best.f1:.3f} at {best.threshold:.2f}"
        axes.plot(best.threshold, best.f1, "o", color=_RED, clip_on=False, label=label)
    axes.axvline(analysis.score_threshold, color=_GREY, linestyle=":", label=f"chosen: {analysis.score_threshold:g}")
    axes.legend(loc="lower center")
    axes.set(xlabel="score threshold", ylabel="F1 over all classes", xlim=(0, 1), ylim=(0, 1))
    axes.grid(alpha=0.5)


def _thinned(x: np.ndarray, y: np.ndarray, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Return at most `count` points of a curve, including both ends."""
    if len(x) <= count:
        return x, y
    chosen = np.unique(np.linspace(0, len(x) - 1, count).round().astype(int))
    return x[chosen], y[chosen]


def _confusion_chart(counts: np.ndarray, classes: Sequence[str], names: Names, is_percent: bool) -> _Chart:
    """Draw a confusion matrix: of pixels, whose numbers are too long; or of detections, with the background last.

    Each row is shaded by its shares. That of detections where no object is has none: nothing is the whole of it.
    """
    size = len(classes) if is_percent else len(classes) - 1
    wrong = counts[:size, :size] - np.diag(counts.diagonal()[:size])
    chosen = np.flatnonzero(counts.sum(0) + counts.sum(1)) if is_percent else np.arange(size)
    note = "percent of the pixels of each true class" if is_percent else ""
    if len(chosen) > _MOST_CONFUSED:
        order = np.argsort(-(wrong.sum(0) + wrong.sum(1))[chosen], kind="stable")[:_MOST_CONFUSED]
        chosen = np.sort(chosen[order])
        note = note or f"the {_MOST_CONFUSED} classes that are mixed up most, of {size}"
    shown = len(chosen)
    chosen = np.append(chosen, np.arange(size, len(classes)))  # the background is always shown
    totals = counts.sum(1)
    shares = (counts / np.maximum(totals[:, None], 1))[np.ix_(chosen, chosen)]
    shares[shown:] = 0
    numbers = (100 * shares).round().astype(int) if is_percent else counts[np.ix_(chosen, chosen)]
    labels = [names[classes[int(i)]] for i in chosen]
    rows = labels if is_percent else [f"{t}  (n={totals[i]})" for t, i in zip(labels[:-1], chosen, strict=False)]
    rows, columns = (rows, labels) if is_percent else ([*rows, "no object"], [*labels[:-1], "missed"])

    def draw(axes: Any) -> None:
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true class")
        axes.set_xticks(range(len(columns)), columns, rotation=90)
        axes.set_yticks(range(len(rows)), rows)
        axes.set(xlabel="predicted", ylabel="true")
        axes.set_title(note, fontsize=10)
        if not is_percent:
            axes.axhline(shown - 0.5, color="black", linewidth=0.8)
            axes.axvline(shown - 0.5, color="black", linewidth=0.8)
        for row, column in zip(*np.nonzero(numbers), strict=True) if shown <= _MOST_NUMBERS else ():
            share = shares[row, column]
            has_share = shown <= _FEW_NUMBERS and not is_percent and row < shown
            text = f"{numbers[row, column]}\n{share:.0%}" if has_share else str(numbers[row, column])
            color = "white" if share > 0.6 else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=8.5, color=color)

    count = len(chosen)
    return "confusion", (min(4.4 + 0.36 * count, 14.0), min(3.0 + 0.36 * count, 13.0)), draw, ""


def _draw_parts(axes: Any, analysis: DetectionAnalysis) -> None:
    rows = [
        (f"{prop}: {part}", s) for prop, parts in analysis.parts.items() for part, s in parts.items() if s.num_objects
    ]
    places = np.arange(len(rows))[::-1]
    axes.barh(places + 0.18, np.nan_to_num([s.ap for _, s in rows]), height=0.34, color=_BLUE, label="AP")
    recall = np.nan_to_num([s.recall for _, s in rows])
    label = f"recall from a score of {analysis.score_threshold:g} on"
    axes.barh(places - 0.18, recall, height=0.34, color=_ORANGE, label=label)
    axes.set_yticks(places, [f"{name}  (n={s.num_objects})" for name, s in rows])
    axes.set(xlim=(0, 1), xlabel=f"at {_threshold_name(analysis)}")
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2, frameon=False)
    axes.grid(alpha=0.5, axis="x")
    axes.set_axisbelow(True)


def _draw_calibration(axes: Any, analysis: DetectionAnalysis) -> None:
    bins = [b for b in analysis.calibration if b.count]
    total = max(sum(b.count for b in bins), 1)
    centres = [(b.low + b.high) / 2 for b in bins]
    width = analysis.calibration[0].high - analysis.calibration[0].low
    axes.bar(centres, [b.count / total for b in bins], width, color=_GREY, alpha=0.6, label="share of detections")
    axes.plot([0, 1], [0, 1], color=INK, linestyle=":", label="perfect")
    axes.plot(
        [b.confidence for b in bins], [b.accuracy for b in bins], "o-", color=_BLUE, clip_on=False, label="right ones"
    )
    axes.set(xlabel="score", ylabel="share", xlim=(0, 1), ylim=(0, 1))
    axes.set_title(f"expected calibration error {analysis.overall.calibration_error:.3f}", fontsize=10)
    axes.legend(loc="upper left")
    axes.grid(alpha=0.5)


def _draw_comparison(axes: Any, comparison: Comparison) -> None:
    shown = {name: d for name, d in comparison.metrics.items() if not np.isnan(d.delta)}
    places = np.arange(len(shown))[::-1]
    for place, d in zip(places, shown.values(), strict=True):
        color = _GREEN if d.low > 0 else _RED if d.high < 0 else _GREY
        if not np.isnan(d.low):
            axes.plot([d.low, d.high], [place, place], color=color, linewidth=2)
        axes.plot(d.delta, place, "o", color=color)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(places, list(shown))
    axes.set_xlabel("second minus first; to the right of 0 the second is better")
    axes.margins(x=0.1)
    axes.grid(alpha=0.5, axis="x")
