"""Whether the image files of a data set exist and have the size that the data set says."""

import logging
import os
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from detectron2.data.datasets._reading import image_size_hw

__all__ = ["MAX_EXAMPLES", "describe_image", "file_findings"]

logger = logging.getLogger("detectron2.data.validation")

MAX_EXAMPLES = 3
"""How many of many cases of the same mistake a message shows."""


def describe_image(record: dict[str, Any]) -> str:
    """Say which image this is."""
    file_name = record.get("file_name")
    image_id = record.get("image_id")
    if file_name is None:
        return f"image id {image_id!r}"
    return f"'{file_name}'" + (f" (image_id {image_id!r})" if image_id is not None else "")


def file_findings(dicts: list[dict[str, Any]], max_files: int) -> list[str]:
    """Check that image files exist and have the size that the data set says."""
    local = [d for d in dicts if isinstance(d.get("file_name"), str) and "://" not in d["file_name"]]
    if len(local) > max_files:
        spaced = np.linspace(0, len(local) - 1, max_files).round().astype(np.int64).tolist()
        logger.info("Checking the headers of %d of %d image files.", max_files, len(local))
        local = [local[i] for i in spaced]
    with ThreadPoolExecutor(max_workers=min(16, len(local) or 1)) as threads:
        problems = defaultdict(list)
        for record, problem in zip(local, threads.map(_file_problem, local, chunksize=64), strict=True):
            if problem is not None:
                kind, detail = problem
                problems[kind].append((record, detail))

    cures = {
        "missing": f"cannot be found. Check the image folder that the data set was registered with "
        f"(working directory: '{os.getcwd()}')",
        "unreadable": "cannot be read as images. Remove them from the data set, or replace them",
        "size": "have another size than the annotations say. Correct 'width' and 'height' (boxes and masks must be in "
        "pixels of the image as it is shown, after EXIF rotation), or replace the images",
    }
    findings = []
    for kind, cure in cures.items():
        found = problems.get(kind, [])
        if found:
            examples = "; ".join(describe_image(record) + detail for record, detail in found[:MAX_EXAMPLES])
            more = f"; and {len(found) - MAX_EXAMPLES} more" if len(found) > MAX_EXAMPLES else ""
            findings.append(f"{len(found)} of {len(local)} checked image files {cure}: {examples}{more}.")
    return findings


def _file_problem(record: dict[str, Any]) -> tuple[str, str] | None:
    path = record["file_name"]
    try:
        height, width = image_size_hw(path)
    except (FileNotFoundError, NotADirectoryError):
        return "missing", ""
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        if os.path.isfile(path) and os.path.splitext(path)[1].lower() not in _IMAGE_EXTENSIONS:
            return None  # some other kind of file, for a mapper that knows how to read it
        return "unreadable", f" ({e})"
    said = record.get("height"), record.get("width")
    if None in said or said == (height, width):
        return None
    return "size", f" is {width} x {height} (width x height), said to be {said[1]} x {said[0]}"


_IMAGE_EXTENSIONS: Iterable[str] = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
