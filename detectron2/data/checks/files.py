"""Whether the image files of a data set exist, are whole, and have the size that the data set says."""

import logging
import os
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from detectron2.data.checks.findings import MAX_CASES, Case, Finding, evenly_spaced, image_findings
from detectron2.data.formats.reading import EXIF_CURES, stored_size_hw
from detectron2.data.tar_members import is_remote
from detectron2.utils.file_io import PathManager

__all__ = ["file_findings", "file_problems", "nameless_findings"]

logger = logging.getLogger("detectron2.data.validation")

_THREADS = 16

# Pillow raises many kinds of errors for broken files.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def file_findings(
    dicts: list[dict[str, Any]], max_files: int | None, key: str = "file_name", exif: str = "apply"
) -> list[Finding]:
    """Check that image files (or label maps, with another `key`) exist, are whole, and have the size that is said.

    Of more than `max_files` files, that many are looked at, evenly spaced.
    """
    local = [
        n for n, d in enumerate(dicts) if isinstance(d.get(key), (str, os.PathLike)) and not is_remote(str(d[key]))
    ]
    prefix, noun = ("file", "image files") if key == "file_name" else ("label-map", f"label maps ('{key}')")
    if max_files is not None and len(local) > max_files:
        logger.info("Checking the headers of %d of %d %s.", max_files, len(local), noun)
        local = [local[i] for i in evenly_spaced(len(local), max_files)]
    problems = defaultdict(list)
    for n, (kind, detail) in file_problems(dicts, local, key, exif).items():
        problems[kind].append((n, detail))

    where = f"Check the {'image ' if key == 'file_name' else ''}folder that the data set was registered with"
    where += " (the third word of --coco), or --image-root of detectron2 data" if key == "file_name" else ""
    meanings = {
        "missing": ("cannot be found", f"{where} (working directory: '{os.getcwd()}')."),
        "unreadable": ("cannot be read as images", "Remove them from the data set, or replace them."),
        "size": (
            "have another size than the annotations say",
            "Correct 'width' and 'height' (boxes and masks must be in pixels of the image), or replace the images.",
        ),
        "exif": ("have height and width exchanged by their EXIF orientation", EXIF_CURES[exif]),
    }
    findings = []
    for kind, (what, cure) in meanings.items():
        found = problems.get(kind, [])
        if found:
            shown = found[:MAX_CASES]
            cases = [Case(detail, os.fspath(dicts[n][key]), dicts[n].get("image_id")) for n, detail in shown]
            images = np.array([n for n, _ in found], dtype=np.int64)
            what = f"{len(found)} of {len(local)} checked {noun} {what}"
            findings.append(Finding(f"{prefix}-{kind}", "error", what, cure, len(found), cases, images))
    return findings


def nameless_findings(dicts: list[dict[str, Any]]) -> list[Finding]:
    """Find images of which it is not said where they are."""
    names = {n: d.get("file_name") for n, d in enumerate(dicts)}
    wrong = {n: f"(file_name {v!r})" for n, v in names.items() if not isinstance(v, (str, os.PathLike))}
    cure = "Each needs the path of its file, unless a mapper of your own loads it."
    return image_findings(dicts, "no-file_name", "error", wrong, "no 'file_name'", cure)


def file_problems(
    dicts: list[dict[str, Any]], which: Iterable[int], key: str = "file_name", exif: str = "apply"
) -> dict[int, tuple[str, str]]:
    """Read the headers of the images with the indices `which`, several at a time.

    Returns, for those with a problem, its kind ("missing", "unreadable", "size" or "exif") and what it is.
    """
    which = list(which)
    with ThreadPoolExecutor(max_workers=min(_THREADS, len(which) or 1)) as threads:
        found = threads.map(lambda n: _file_problem(dicts[n], key, exif), which)
        return {n: problem for n, problem in zip(which, found, strict=True) if problem is not None}


def _file_problem(record: dict[str, Any], key: str, exif: str) -> tuple[str, str] | None:
    path = os.fspath(record[key])
    try:
        stored_hw, orientation = stored_size_hw(path)
        turns = orientation >= 5
        height, width = stored_hw[::-1] if turns and exif == "apply" else stored_hw
        if PathManager.isfile(path) and _seems_cut_off(path):
            with PathManager.open(path, "rb") as file, Image.open(file) as image:  # pyright: ignore[reportArgumentType]
                image.load()  # only now it is decoded, to be sure
    except (FileNotFoundError, NotADirectoryError):
        return "missing", ""
    except _UNREADABLE as e:
        if os.path.isfile(path) and os.path.splitext(path)[1].lower() not in _IMAGE_EXTENSIONS:
            return None  # some other kind of file, for a mapper that knows how to read it
        pillow_fails = isinstance(e, UnidentifiedImageError)  # its text shows an object of Python
        return "unreadable", "(not an image that Pillow can read)" if pillow_fails else f"({e})"
    said = record.get("height"), record.get("width")
    if None in said or said == (height, width):
        return None
    kind = "exif" if turns and said == (width, height) else "size"
    return kind, f"is {width} x {height} (width x height), said to be {said[1]!r} x {said[0]!r}"


_IMAGE_EXTENSIONS: Iterable[str] = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"),
    *(".npy", ".npz"),
)
_TAIL = 4096


def _seems_cut_off(path: str) -> bool:
    """Whether a file lacks the mark at its end, or is shorter than it says. Bytes behind the end may look like that."""
    with PathManager.open(path, "rb") as f:
        length = f.seek(0, os.SEEK_END)
        f.seek(0)
        head: Any = f.read(12)
        f.seek(max(length - _TAIL, 0))
        tail: Any = f.read()
    if head.startswith(b"\xff\xd8"):  # JPEG
        return b"\xff\xd9" not in tail
    if head.startswith(b"\x89PNG"):
        return b"IEND" not in tail
    if head.startswith(b"GIF8"):
        return not tail.rstrip(b"\0").endswith(b";")
    if head.startswith(b"RIFF") and head.endswith(b"WEBP"):
        return int.from_bytes(head[4:8], "little") + 8 > length
    if head.startswith(b"BM"):
        return int.from_bytes(head[2:6], "little") > length
    return head.startswith((b"II*\0", b"MM\0*")) and _end_of_tiff(path) > length


def _end_of_tiff(path: str) -> int:
    """Return where the last strip or tile ends; 0 if the file does not tell."""
    with PathManager.open(path, "rb") as file, Image.open(file) as image:  # pyright: ignore[reportArgumentType]
        tags = getattr(image, "tag_v2", {})
        for offsets, counts in ((273, 279), (324, 325)):  # TIFF 6.0, sections 8 and 15
            if offsets in tags and counts in tags:
                return max((o + n for o, n in zip(tags[offsets], tags[counts], strict=False)), default=0)
    return 0
