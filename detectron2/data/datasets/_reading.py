"""Reading annotation files: JSON in one go, and the parts of the COCO and LVIS formats that are alike."""

import contextlib
import gc
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from detectron2.utils.file_io import PathManager

__all__ = [
    "find_duplicates",
    "image_size_hw",
    "is_polygon",
    "paused_gc",
    "read_json",
    "run_lengths",
    "shorten",
    "timed",
]

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def paused_gc() -> Iterator[None]:
    """Let the garbage collector rest while millions of small objects are made; none of them is garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    """Log how long a block took if that was more than a second."""
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    if seconds > 1:
        logger.info("Loading %s took %.1f seconds.", what, seconds)


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read an annotation file whose outermost value is an object.

    Args:
        path: the file.

    Returns:
        its content.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON, or holds something other than an object.
    """
    local_path = PathManager.get_local_path(os.fspath(path))
    if not os.path.isfile(local_path):
        raise FileNotFoundError(
            f"There is no annotation file '{path}' (working directory: '{os.getcwd()}'). Check the path that the data "
            "set was registered with; the built-in data sets are looked for under $DETECTRON2_DATASETS."
        )
    with open(local_path, "rb") as f, paused_gc():
        try:
            content = json.load(f)
        except (json.JSONDecodeError, UnicodeDecodeError) as e:
            raise ValueError(f"'{path}' is not a JSON file: {e}") from e
    if not isinstance(content, dict):
        raise ValueError(
            f"'{path}' holds a JSON {type(content).__name__}, where an object with 'images' and 'annotations' is "
            "expected. (A list is the format of detection results, not of annotations.)"
        )
    return content


def shorten(values: Iterable[Any], limit: int = 5) -> str:
    """Write the first few of many values."""
    values = list(values)
    text = ", ".join(repr(v) for v in values[:limit])
    return text + (f" ... ({len(values)} in all)" if len(values) > limit else "")


def find_duplicates(values: Iterable[Any]) -> list[Any]:
    """Return the values that occur more than once."""
    return [value for value, count in Counter(values).items() if count > 1]


def is_polygon(coordinates: Any) -> bool:
    """Whether this is ``[x1, y1, ..., xn, yn]`` with at least three points."""
    return isinstance(coordinates, list) and len(coordinates) >= 6 and len(coordinates) % 2 == 0


def run_lengths(mask: dict[str, Any]) -> dict[str, Any]:
    """Compress the run lengths of a mask that are still a list of numbers."""
    import pycocotools.mask

    mask_util: Any = pycocotools.mask  # its type hints leave this form out
    return mask_util.frPyObjects(mask, *mask["size"])


def image_size_hw(path: str) -> tuple[int, int]:
    """Read the size ``(height, width)`` of an image from its header, as seen after EXIF orientation."""
    from PIL import Image

    with Image.open(PathManager.get_local_path(path)) as image:
        width, height = image.size
        orientation = 1
        # Without the condition, getexif() would decode whole PNG files in search of it.
        if "exif" in image.info or image.format in ("TIFF", "MPO"):
            orientation = image.getexif().get(0x0112, 1)
        if orientation in (5, 6, 7, 8):  # those that exchange the axes
            if image.format == "TIFF":  # Pillow turns these itself; when it tells the new size depends on its version
                image.load()
                width, height = image.size
            else:
                width, height = height, width
        return height, width


def group_by_image(
    annotations: list[dict[str, Any]], image_ids: Iterable[Any], json_file: Any, convert: Callable[[dict], dict | None]
) -> dict[Any, list[dict[str, Any]]]:
    """Convert annotations one by one and gather them under the id of their image.

    Args:
        annotations: in the order of the file.
        image_ids: ids of all images of the data set.
        json_file: where they come from, for messages.
        convert: turns one annotation of the file into one of a dataset dict; None leaves it out.

    Returns:
        a list for each image id, in the order of ``image_ids``; annotations in the order of the file.
    """
    grouped: dict[Any, list[dict[str, Any]]] = {image_id: [] for image_id in image_ids}
    orphans = []
    for annotation in annotations:
        try:
            of_image = grouped.get(annotation["image_id"])
        except KeyError:
            raise ValueError(f"{json_file}: annotation id {annotation.get('id')} has no 'image_id'.") from None
        if of_image is None:
            orphans.append(annotation.get("id"))
            continue
        converted = convert(annotation)
        if converted is not None:
            of_image.append(converted)
    if orphans:
        logger.warning(
            "%s: %d annotations belong to images that are not in the file and are left out (annotation ids %s).",
            json_file,
            len(orphans),
            shorten(orphans),
        )
    return grouped
