"""Drawing charts once for a PNG file and once for a page, whose colours and fonts they then take over."""

import functools
import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.cli._html import inline_svg
from detectron2.utils.file_io import atomic_write

__all__ = ["Chart", "Names", "draw_chart"]

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
        label: what it shows, for those who do not see it.
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
        """-> a name as a label in a picture."""
        return self._plain[name]

    def __getitem__(self, name: str) -> str:
        """-> a name as a label of a chart, where it must not be taken for a formula."""
        text = self._plain[name]
        text = f" {text}" if text.startswith("_") else text  # others are left out of legends
        return text.replace("$", r"\$")

    def restore(self, svg: str) -> str:
        """-> a drawing with the letters that could not be measured."""
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
    """-> the code points of matplotlib's own font."""
    from matplotlib import font_manager

    return frozenset(font_manager.get_font(font_manager.findfont(_FONT)).get_charmap())
