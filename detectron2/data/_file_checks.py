"""Whether the image files of a data set exist and have the size that the data set says."""

import logging
import os
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from detectron2.data._findings import MAX_CASES, Case, Finding
from detectron2.data.datasets._reading import image_size_hw

__all__ = ["file_findings", "file_problems"]

logger = logging.getLogger("detectron2.data.validation")

_THREADS = 16

# Pillow raises many kinds of errors for broken files.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def file_findings(dicts: list[dict[str, Any]], max_files: int | None) -> list[Finding]:
    """Check that image files exist and have the size that the data set says.

    Args:
        dicts: the data set.
        max_files: look at no more than this many, evenly spaced; None: at all.

    Returns:
        at most one finding for each kind of problem: "file-missing", "file-unreadable", "file-size".
    """
    local = [n for n, d in enumerate(dicts) if isinstance(d.get("file_name"), str) and "://" not in d["file_name"]]
    if max_files is not None and len(local) > max_files:
        spaced = np.linspace(0, len(local) - 1, max_files).round().astype(np.int64).tolist()
        logger.info("Checking the headers of %d of %d image files.", max_files, len(local))
        local = [local[i] for i in spaced]
    problems = defaultdict(list)
    for n, (kind, detail) in file_problems(dicts, local).items():
        problems[kind].append((n, detail))

    meanings = {
        "missing": (
            "cannot be found",
            "Check the image folder that the data set was registered with, or --image-root of the command line "
            f"(working directory: '{os.getcwd()}').",
        ),
        "unreadable": ("cannot be read as images", "Remove them from the data set, or replace them."),
        "size": (
            "have another size than the annotations say",
            "Correct 'width' and 'height' (boxes and masks must be in pixels of the image as it is shown, after EXIF "
            "rotation), or replace the images.",
        ),
    }
    findings = []
    for kind, (what, cure) in meanings.items():
        found = problems.get(kind, [])
        if found:
            shown = found[:MAX_CASES]
            cases = [Case(detail, dicts[n]["file_name"], dicts[n].get("image_id")) for n, detail in shown]
            images = np.array([n for n, _ in found], dtype=np.int64)
            what = f"{len(found)} of {len(local)} checked image files {what}"
            findings.append(Finding(f"file-{kind}", "error", what, cure, len(found), cases, images))
    return findings


def file_problems(dicts: list[dict[str, Any]], which: Iterable[int]) -> dict[int, tuple[str, str]]:
    """Read the headers of some image files, several at a time.

    Args:
        dicts: the data set.
        which: indices of the images to look at.

    Returns:
        for the images with a problem: its kind, "missing", "unreadable" or "size", and what it is.
    """
    which = list(which)
    with ThreadPoolExecutor(max_workers=min(_THREADS, len(which) or 1)) as threads:
        found = threads.map(lambda n: _file_problem(dicts[n]), which)
        return {n: problem for n, problem in zip(which, found, strict=True) if problem is not None}


def _file_problem(record: dict[str, Any]) -> tuple[str, str] | None:
    path = record["file_name"]
    try:
        height, width = image_size_hw(path)
    except (FileNotFoundError, NotADirectoryError):
        return "missing", ""
    except _UNREADABLE as e:
        if os.path.isfile(path) and os.path.splitext(path)[1].lower() not in _IMAGE_EXTENSIONS:
            return None  # some other kind of file, for a mapper that knows how to read it
        return "unreadable", f"({e})"
    said = record.get("height"), record.get("width")
    if None in said or said == (height, width):
        return None
    return "size", f"is {width} x {height} (width x height), said to be {said[1]} x {said[0]}"


_IMAGE_EXTENSIONS: Iterable[str] = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
