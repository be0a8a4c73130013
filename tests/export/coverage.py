"""Export every small model in every format, with the checks of the exporter, and write down what can be varied.

python -m tests.export.coverage                              # what is not in coverage.json yet
python -m tests.export.coverage --again --models RetinaNet --formats onnx pt2

The results go into `coverage.json` beside this file, and as a table into the tutorial. All takes an hour or two.
"""

import argparse
import functools
import json
import logging
import tempfile
import time
from pathlib import Path

from detectron2.export import export_model
from detectron2.export.formats import FORMATS
from detectron2.export.verify import VerificationError
from detectron2.utils.file_io import atomic_write
from tests.export.graphs.models import MODELS, hf_detector, hf_segmenter, model_of
from tests.modeling.meta_arch.hf_configs import DETECTORS, SEGMENTERS

RECORD = Path(__file__).with_name("coverage.json")
TUTORIAL = Path(__file__).parents[2] / "docs/tutorials/deployment.md"
BEGIN, END = "<!-- coverage: python -m tests.export.coverage -->", "<!-- end of coverage -->"
WORDS = {("batch", "size"): "any", ("batch",): "one size", (): "one size, one image"}
SIZE = (64, 96)
EVERY = {name: functools.partial(model_of, name) for name in MODELS}
EVERY |= {f"HFDetector, {kind}": functools.partial(hf_detector, kind) for kind in DETECTORS}
EVERY |= {f"HFSegmenter, {kind}": functools.partial(hf_segmenter, kind) for kind in SEGMENTERS}


def export(name: str, format: str) -> dict:
    """Export one model with as much left open as works; return what that is, and the largest differences."""
    error = None
    for dynamic in WORDS:
        if set(dynamic) - set(FORMATS[format].dynamic):
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                report = export_model(EVERY[name](), Path(folder) / "a", format, size=SIZE, dynamic=dynamic)
            except (ValueError, VerificationError) as e:
                error = f"{type(e).__name__}: {e}"
                logging.warning("%s as %s with %s: %s", name, format, dynamic, error)
                continue
        kinds = {kind for c in report.comparisons for kind in c.differences}
        worst = {kind: max(c.differences.get(kind, 0.0) for c in report.comparisons) for kind in sorted(kinds)}
        return {"dynamic": list(dynamic), "cases": len(report.comparisons), "differences": worst}
    return {"dynamic": None, "error": error}


def table(record: dict) -> str:
    """The table of the tutorial."""
    lines = ["| model | " + " | ".join(f"`{f}`" for f in FORMATS) + " |", "| --- |" + " --- |" * len(FORMATS)]
    for name in EVERY:
        cells = []
        for format in FORMATS:
            cell = record.get(name, {}).get(format)
            tried = "no" if cell is None or cell["dynamic"] is None else WORDS[tuple(cell["dynamic"])]
            cells.append("not tried" if cell is None else tried)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def with_table(text: str, record: dict) -> str:
    """A page with the table between its marks."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table(record)}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(EVERY), default=list(EVERY))
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--again", action="store_true", help="also what is in coverage.json")
    args = parser.parse_args()
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    for format in args.formats:
        for name in args.models:
            if format in record.get(name, {}) and not args.again:
                continue
            start = time.perf_counter()
            found = export(name, format)
            record.setdefault(name, {})[format] = found
            with atomic_write(RECORD, "w") as file:
                json.dump(record, file, indent=1, sort_keys=True)
            print(f"{format}, {name}: {found} ({time.perf_counter() - start:.0f} s)", flush=True)
    with atomic_write(TUTORIAL, "w") as file:
        file.write(with_table(TUTORIAL.read_text(encoding="utf-8"), record))


if __name__ == "__main__":
    main()
