"""``detectron2 plot``: draw the curves of one or several training runs, as a picture and a page.

detectron2 plot output
detectron2 plot output/a output/b --metrics total_loss "bbox/AP*" --smooth 10 --output comparison
"""

import argparse
import html
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from detectron2.cli._curves import choose_metrics, draw_curves, read_run, value_table
from detectron2.cli._html import picture, write_page


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``detectron2 plot``."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output folder of a run, or its metrics.json")
    parser.add_argument(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help='what to draw: names or patterns such as "bbox/*"; default: losses, main metrics, learning rate',
    )
    parser.add_argument("--smooth", type=int, default=1, metavar="N", help="average N neighbouring points; default: 1")
    parser.add_argument(
        "--output", metavar="DIR", help="where curves.png and curves.html go; default: the run, or . for several runs"
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")


def run(args: argparse.Namespace) -> int:
    """Draw, and say where the files are."""
    if args.smooth < 1:
        raise ValueError(f"--smooth is a number of points, at least 1, but is {args.smooth}.")
    paths = [Path(path) for path in args.runs]
    runs = [read_run(path, name) for path, name in zip(paths, _names(paths), strict=True)]
    metrics = choose_metrics(runs, args.metrics)
    folder = Path(args.output) if args.output else runs[0].file.parent if len(runs) == 1 else Path()
    folder.mkdir(parents=True, exist_ok=True)
    image, page = folder / "curves.png", folder / "curves.html"
    draw_curves(runs, metrics, args.smooth, image)
    title = f"Training of {', '.join(r.name for r in runs)}"
    files = "".join(f"<li>{html.escape(r.name)}: {html.escape(str(r.file))}</li>" for r in runs)
    note = f"<p>Means over {args.smooth} points; pale: as recorded.</p>" if args.smooth > 1 else ""
    body = [f"<h1>{html.escape(title)}</h1>", picture(image), note, "<h2>Last values</h2>"]
    write_page(page, title, [*body, value_table(runs, metrics), f"<h2>Files</h2><ul>{files}</ul>"])
    sys.stdout.write(f"Drawn {len(metrics)} metrics of {len(runs)} runs: {image}, {page}\n")
    return 0


def _names(paths: Sequence[Path]) -> list[str]:
    """-> for each run the part of its path in which it differs from the others."""
    folders = [path.parent if path.name.endswith(".json") else path for path in map(Path.absolute, paths)]
    if len(set(folders)) < len(folders):  # several files in one folder
        return [str(path) for path in paths]
    if len(folders) == 1:
        return [folders[0].name]
    shared = os.path.commonpath([folder.parent for folder in folders])
    return [os.path.relpath(folder, shared) for folder in folders]
