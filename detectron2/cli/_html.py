"""Pieces of the HTML pages that commands write: each page is one file that can be sent, readable on small and on dark
screens, without anything from elsewhere."""

import base64
import html
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.utils.file_io import atomic_write

__all__ = ["figure", "inline_svg", "picture", "table", "write_page"]

STYLE = """<style>
:root { color-scheme: light dark; --page: #fff; --ink: #222; --line: #ddd; --quiet: #666; --link: #0b57a4 }
@media (prefers-color-scheme: dark) {
  :root { --page: #17191d; --ink: #e6e6e6; --line: #3b3f46; --quiet: #a5a8ad; --link: #7db7f0 }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1040px; margin: 2em auto; padding: 0 1em;
  color: var(--ink); background: var(--page); overflow-wrap: anywhere }
a { color: var(--link) } nav a { margin-right: 1em; white-space: nowrap } h2 { margin-top: 2em }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6em 0 }
td, th { padding: .25em .7em; border-bottom: 1px solid var(--line); text-align: right; overflow-wrap: normal }
th:first-child, td:first-child { text-align: left } th[scope=row] { font-weight: normal }
thead th { vertical-align: bottom }
caption { text-align: left; color: var(--quiet) }
th button { all: unset; cursor: pointer } th button:hover { text-decoration: underline }
th button:focus-visible { outline: 2px solid var(--link) } th[aria-sort] button::after { content: " \\2193" }
th[aria-sort=ascending] button::after { content: " \\2191" }
input { font: inherit; padding: .2em .5em } details { margin: .8em 0 } summary { cursor: pointer }
.wide { overflow-x: auto } .wide:focus-visible { outline: 2px solid var(--link) }
img, svg { max-width: 100%; height: auto; margin: .4em 0 }
svg { overflow: visible; width: 100% } img { background: #fff }
.pair { display: flex; flex-wrap: wrap; gap: 12px } .pair figure { flex: 1 1 320px; margin: 0 }
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


def picture(path: Path) -> str:
    """Return an image element that holds the PNG file; the alternative text is the file's name."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}">'


def figure(pixels: Any, caption: str) -> str:
    """Return a figure of a photograph, uint8 array (height, width, 3), RGB, as a JPEG: a tenth of the size of a PNG."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG", quality=80, optimize=True)
    data = base64.b64encode(stream.getvalue()).decode()
    text = html.escape(caption)
    image = f'<img loading="lazy" alt="{text}" src="data:image/jpeg;base64,{data}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def inline_svg(svg: str, name: str, label: str) -> str:
    """Make an SVG file that matplotlib wrote a part of a page.

    The name distinguishes its ids from those of other drawings; the label is the alternative text.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\1#{name}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    caption: str = "",
    *,
    last: Sequence[Any] = (),
    is_sortable: bool = False,
) -> str:
    """Write a table.

    Args:
        columns: titles.
        rows: cells; the first names the row. NaN becomes a dash, other floats get three decimals.
        caption: text above.
        last: a row that stays below the others, such as their sum.
        is_sortable: by clicks on titles; where there are many rows, they can be searched too.

    Returns:
        The element, which scrolls sideways where it is too wide.
    """
    titles = (f"<button type=button>{html.escape(c)}</button>" if is_sortable else html.escape(c) for c in columns)
    head = "".join(f"<th scope=col>{title}</th>" for title in titles)
    lines = "".join(_row(row) for row in rows)
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


def _row(cells: Sequence[Any]) -> str:
    texts = ("-" if v != v else f"{v:.3f}" if isinstance(v, float) else str(v) for v in cells)  # NaN equals nothing
    first, *rest = map(html.escape, texts)
    return f"<tr><th scope=row>{first}</th>" + "".join(f"<td>{value}</td>" for value in rest) + "</tr>"


def write_page(path: Path, title: str, body: list[str]) -> None:
    """Write a whole page from the title of its window and HTML; the file is always the old or the new one."""
    content = "".join(body)
    script = _SCRIPT if "class=sortable" in content else ""
    head = f'<meta charset=utf-8><meta name=viewport content="width=device-width"><title>{html.escape(title)}</title>'
    page = f"<!doctype html><html lang=en><head>{head}{STYLE}</head><body><main>{content}</main>{script}</body></html>"
    with atomic_write(path, "wb") as f:
        f.write(page.encode("utf-8", "replace"))  # names of files may be no text at all
