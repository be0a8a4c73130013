"""Pieces of the HTML pages that commands write: each page is one file that can be sent, readable on small, wide and
dark screens, without anything from elsewhere.

A page is a grid of sections: as many beside each other as there is room for. What needs the whole width has the class
`full`.
"""

import base64
import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.utils.file_io import atomic_write

__all__ = [
    "CHART_FONT",
    "INK",
    "LINE",
    "MEANINGS",
    "PAGE",
    "chart",
    "pairs",
    "section",
    "table",
    "terms",
    "write_page",
    "write_pair",
]

INK, LINE, PAGE = "#222223", "#b0b0b1", "#fefefd"  # as no other colour, so that a page can put its own in their place
CHART_FONT = "DejaVu Sans"
_CHART_STYLE: dict[Any, Any] = {
    "font.family": CHART_FONT,
    "font.size": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
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
_NO_DATE = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}  # the same chart gives the same file
_GAP = 12  # pixels between two pictures
_BROAD = 600  # points; a broader chart has the width of the page

STYLE = """<style>
:root { color-scheme: light dark; --page: #fff; --ink: #222; --line: #ddd; --quiet: #666; --link: #0b57a4 }
@media (prefers-color-scheme: dark) {
  :root { --page: #17191d; --ink: #e6e6e6; --line: #3b3f46; --quiet: #a5a8ad; --link: #7db7f0 }
}
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  max-width: 1720px; margin: 0 auto; padding: 1.5em clamp(1em, 3vw, 3em); color: var(--ink); background: var(--page);
  overflow-wrap: anywhere }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 33rem), 1fr)); column-gap: 3rem }
main > * { grid-column: 1 / -1; min-width: 0 }
main > section { grid-column: auto } main > section.full, main > section:has(.broad) { grid-column: 1 / -1 }
h1 { margin: 0 0 .5em; line-height: 1.25 } h2 { margin: 1.6em 0 .4em } p, dl, nav { margin: .6em 0; max-width: 62rem }
a { color: var(--link) } nav a { margin-right: 1em; white-space: nowrap }
dt { font-weight: 600 } dd { margin: 0 0 .4em }
th small { display: block; min-width: 11em; font-weight: normal; color: var(--quiet) }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6em 0 }
td, th { padding: .25em .7em; border-bottom: 1px solid var(--line); text-align: right; overflow-wrap: normal }
th:first-child, td:first-child { text-align: left } th[scope=row] { font-weight: normal }
thead th { vertical-align: bottom }
td { vertical-align: top; white-space: nowrap }
caption { text-align: left; color: var(--quiet) }
th button { all: unset; cursor: pointer } th button:hover { text-decoration: underline }
th button:focus-visible { outline: 2px solid var(--link) } th[aria-sort] button::after { content: " \\2193" }
th[aria-sort=ascending] button::after { content: " \\2191" }
input { font: inherit; padding: .2em .5em } details { margin: .8em 0 } summary { cursor: pointer }
@media (max-width: 36rem) { td, th { padding: .25em .35em } th small { min-width: 9.5em } }
.wide { overflow-x: auto } .wide:focus-visible { outline: 2px solid var(--link) }
img { max-width: 100%; height: auto; background: #fff } svg { overflow: visible; width: 100%; height: auto }
figure { margin: .4em 0 }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 33rem), 1fr)); gap: 0 3rem }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 0 2rem }
.pair { display: flex; flex-wrap: wrap; gap: 12px } .pair figure { flex: 1 1 300px; margin: 0 }
.pair img { width: 100%; margin: 0 } figcaption { color: var(--quiet) } pre { overflow: auto }
</style>"""

# A click on a column's title sorts by it, greatest numbers first, and turns the order at the next click; what is no
# number comes last.
_SCRIPT = """<script>
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead th").forEach((head, column) => {
    head.firstChild.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") === "descending" || (!column && !head.hasAttribute("aria-sort"));
      table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const text = row => row.cells[column].textContent, number = row => parseFloat(text(row)), turn = up ? 1 : -1;
      const compare = column ? (a, b) => isNaN(number(a)) - isNaN(number(b)) || turn * (number(a) - number(b))
        : (a, b) => turn * text(a).localeCompare(text(b));
      body.append(...[...body.rows].sort(compare));
    });
  });
  const filter = document.getElementById(table.dataset.filter || "");
  if (filter) filter.addEventListener("input", () => {
    for (const row of body.rows)
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(filter.value.toLowerCase());
  });
}
</script>"""
_MANY_ROWS = 30
_OVERLAPS = "over the overlaps 0.50, 0.55 ... 0.95 that a detection must have to be right"
MEANINGS = {  # of metrics, for readers who have not met them
    "AP": f"average precision, from 0 (worst) to 1 (best): precision averaged over all recalls and {_OVERLAPS}",
    "AP50": "AP where an overlap of 0.50 is enough",
    "AP75": "AP where the overlap must be 0.75",
    "APs": "AP of small objects: area below 32 x 32 pixels",
    "APm": "AP of medium objects: 32 x 32 to 96 x 96 pixels",
    "APl": "AP of large objects: area of 96 x 96 pixels or more",
    "APr": "AP of the rare classes: in at most 10 training images",
    "APc": "AP of the common classes: in 11 to 100 training images",
    "APf": "AP of the frequent classes: in more than 100 training images",
    "AR": f"average recall: the share of the objects that is found, averaged {_OVERLAPS}",
    "AR1": "average recall: the share of the objects that is found by the best detection of an image",
    "AR10": "average recall by the 10 best detections of an image",
    "AR100": "average recall by the 100 best detections of an image",
    "AR300": "average recall by the 300 best detections of an image",
    "ARs": "average recall of small objects",
    "ARm": "average recall of medium objects",
    "ARl": "average recall of large objects",
    "mIoU": "the mean IoU of the classes; IoU (intersection over union) is the area that truth and prediction share, "
    "divided by the area that either covers",
    "fwIoU": "the mean IoU of the classes, weighted by how many pixels each has",
    "mACC": "the mean over classes of the share of their pixels that is right",
    "pACC": "the share of all pixels that is right",
    "PQ": "panoptic quality, from 0 (worst) to 1 (best): SQ times RQ",
    "SQ": "segmentation quality: the mean IoU of the segments that are found; IoU (intersection over union) is the "
    "area that truth and prediction share, divided by the area that either covers",
    "RQ": "recognition quality: F1 of finding segments",
    **{
        f"{name}_{part}": f"{name} of {kind}"
        for name in ("PQ", "SQ", "RQ")
        for part, kind in (("th", "things, which can be counted"), ("st", "stuff, such as grass or sky"))
    },
}


def write_pair(path: Path, truth: Any, predictions: Any) -> str:
    """Write two pictures side by side into a PNG file, and return both as HTML.

    They are photographs, uint8 arrays (height, width, 3), RGB; in the page they are JPEG, a tenth of the size.
    """
    import numpy as np
    from PIL import Image

    gap = np.full((truth.shape[0], _GAP, 3), 255, np.uint8)
    with atomic_write(path, "wb") as f:
        Image.fromarray(np.concatenate([truth, gap, predictions], axis=1)).save(f, format="PNG")
    return f"<div class=pair>{_figure(truth, 'truth')}{_figure(predictions, 'predictions')}</div>"


def pairs(pictures: Mapping[str, str]) -> str:
    """Return pictures, HTML by caption, under their captions."""
    shown = (f"<div><h3>{html.escape(caption)}</h3>{pair}</div>" for caption, pair in pictures.items())
    return f"<div class=pairs>{''.join(shown)}</div>"


def _figure(pixels: Any, caption: str) -> str:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG", quality=80, optimize=True)
    data = base64.b64encode(stream.getvalue()).decode()
    text = html.escape(caption)
    image = f'<img loading="lazy" alt="{text}" src="data:image/jpeg;base64,{data}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def chart(
    draw: Callable[[Any], None],
    size_wh: tuple[float, float],
    name: str,
    label: str,
    *,
    file: Path | None = None,
    restore: Callable[[str], str] = str,
) -> str:
    """Draw a chart once, for a page in whose colours and font it appears and, if wanted, for a file.

    Args:
        draw: draws into matplotlib's `Axes`.
        size_wh: in inches.
        name: distinguishes the ids of this drawing from those of others on the page.
        label: the alternative text.
        file: PNG, SVG or PDF, by its ending.
        restore: changes the text of the SVG drawing.

    Returns:
        The element.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kind, text = "" if file is None else file.suffix[1:], io.StringIO()
    with matplotlib.rc_context(_CHART_STYLE):
        drawing = Figure(figsize=size_wh, dpi=110, layout="constrained")
        FigureCanvasAgg(drawing)
        draw(drawing.add_subplot())
        if file is not None and kind != "svg":
            with atomic_write(file, "wb") as f:
                drawing.savefig(f, format=kind, facecolor="white", metadata=_NO_DATE.get(kind))
            drawing.set_layout_engine("none")  # is laid out, which takes as long as drawing
        drawing.savefig(text, format="svg", metadata=_NO_DATE["svg"])
    svg = restore(text.getvalue())
    if file is not None and kind == "svg":
        with atomic_write(file, "w") as f:
            f.write(svg.replace(f"'{CHART_FONT}'", f"'{CHART_FONT}', sans-serif"))
    return _inline(svg, name, label, round(72 * size_wh[0]))


def _inline(svg: str, name: str, label: str, width: int) -> str:
    """Make an SVG file that matplotlib wrote a part of a page, where its letters stay readable; width in points."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\1#{name}-", svg).replace(f"'{CHART_FONT}'", "inherit")
    for color, role in ((INK, "currentColor"), (LINE, "var(--line)"), (PAGE, "var(--page)")):
        svg = svg.replace(color, role)
    size = f"min-width: {round(0.75 * width)}px; max-width: {round(1.7 * width)}px"
    kind = " broad" if width > _BROAD else ""
    text = html.escape(label)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{text}" style="{size}" ', 1)
    return f'<figure class="wide{kind}" tabindex=0>{svg}</figure>'


def section(name: str, title: str, content: str, *, is_full: bool = False) -> str:
    """Return a part of a page under a title, with a name for links to it; it may have the whole width."""
    kind = " class=full" if is_full else ""
    heading = f'<h2 id="{name}">{html.escape(title)}</h2>'
    return f'<section{kind} aria-labelledby="{name}">{heading}{content}</section>'


def terms(meanings: Mapping[str, str]) -> str:
    """Return a list of terms with what they mean."""
    items = (f"<dt>{html.escape(term)}</dt><dd>{html.escape(text)}</dd>" for term, text in meanings.items())
    return f"<dl>{''.join(items)}</dl>"


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    caption: str = "",
    *,
    last: Sequence[Any] = (),
    is_sortable: bool = False,
    meanings: Mapping[str, str] | None = None,
) -> str:
    """Write a table.

    Args:
        columns: titles.
        rows: cells; the first names the row. NaN becomes a dash, other floats get three decimals.
        caption: text above.
        last: a row that stays below the others, such as their sum.
        is_sortable: by clicks on titles; where there are many rows, they can be searched too.
        meanings: what the names of rows mean, where they need an explanation.

    Returns:
        The element, which scrolls sideways where it is too wide.
    """
    titles = (f"<button type=button>{html.escape(c)}</button>" if is_sortable else html.escape(c) for c in columns)
    head = "".join(f"<th scope=col>{title}</th>" for title in titles)
    lines = "".join(_row(row, (meanings or {}).get(str(row[0]), "")) for row in rows)
    foot = f"<tfoot>{_row(last)}</tfoot>" if last else ""
    attributes, search = "", ""
    if is_sortable:
        attributes = " class=sortable"
        if len(rows) > _MANY_ROWS:
            name = "filter-" + re.sub(r"\W+", "-", caption.lower()).strip("-")
            attributes += f' data-filter="{name}"'
            search = f'<p><label>Show only names with <input id="{name}" type=search></label></p>'
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    label = html.escape(caption or columns[0] or "table")
    content = f"<table{attributes}>{title}<thead><tr>{head}</tr></thead><tbody>{lines}</tbody>{foot}</table>"
    return f'{search}<div class=wide tabindex=0 role=region aria-label="{label}">{content}</div>'


def _row(cells: Sequence[Any], meaning: str = "") -> str:
    texts = ("-" if v != v else f"{v:.3f}" if isinstance(v, float) else str(v) for v in cells)  # NaN equals nothing
    first, *rest = map(html.escape, texts)
    if meaning:
        first += f" <small>{html.escape(meaning)}</small>"
    return f"<tr><th scope=row>{first}</th>" + "".join(f"<td>{value}</td>" for value in rest) + "</tr>"


def write_page(path: Path, title: str, body: list[str]) -> None:
    """Write a whole page from the title of its window and HTML; the file is always the old or the new one."""
    content = "".join(body)
    script = _SCRIPT if "class=sortable" in content else ""
    head = f'<meta charset=utf-8><meta name=viewport content="width=device-width"><title>{html.escape(title)}</title>'
    page = f"<!doctype html><html lang=en><head>{head}{STYLE}</head><body><main>{content}</main>{script}</body></html>"
    with atomic_write(path, "wb") as f:
        f.write(page.encode("utf-8", "replace"))  # names of files may be no text at all
