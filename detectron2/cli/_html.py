"""Pieces of the HTML pages that commands write: each page is one file that can be sent."""

import base64
import html
from pathlib import Path

STYLE = """<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1040px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse } td, th { padding: .25em .9em; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left } img { max-width: 100%; margin: .4em 0 } pre { overflow: auto }
</style>"""


def picture(path: Path) -> str:
    """-> an image element that holds the PNG file."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}">'


def write_page(path: Path, title: str, body: list[str]) -> None:
    """Write a whole page.

    Args:
        path: the file; its name leads to a complete page or to the old one.
        title: text, of the window.
        body: HTML.
    """
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>{STYLE}"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(f"{head}{''.join(body)}</html>", encoding="utf-8")
    temporary.replace(path)
