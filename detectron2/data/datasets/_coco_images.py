"""The images of a file in the COCO format, checked, as dataset dicts that have no annotations yet."""

import logging
import os
from typing import Any

from PIL import Image

from detectron2.data.datasets._reading import (
    AnnotationFileError,
    checked_id,
    checked_objects,
    describe,
    find_duplicates,
    image_size_hw,
    shorten,
)

__all__ = ["checked_file_name", "checked_size", "image_records"]

logger = logging.getLogger("detectron2.data.datasets.coco")

# What Pillow raises for files that are not images, or damaged ones.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def image_records(content: dict[str, Any], root: str, json_file: Any) -> dict[int | str, dict[str, Any]]:
    """Check the images of a file.

    Args:
        content: what the file holds.
        root: folder that the file names are relative to.
        json_file: the file, for messages.

    Returns:
        a dataset dict for each id, in the order of the ids, with ``file_name, height, width, image_id``.

    Raises:
        ValueError: an image lacks something, ids occur twice, or an image without a size cannot be read.
    """
    images = checked_objects(content, "images", json_file)
    records: dict[int | str, dict[str, Any]] = {}
    from_windows = 0
    for index, image in enumerate(images):
        where = f"images[{index}]"
        if "id" not in image or "file_name" not in image:
            raise AnnotationFileError(json_file, where, f"needs 'id' and 'file_name'; it has: {shorten(image)}.")
        image_id = checked_id(image["id"], json_file, where)
        if image_id in records:
            duplicates = find_duplicates(i.get("id") for i in images)
            raise AnnotationFileError(
                json_file, "images", f"several images have the same id: {shorten(duplicates)}. Ids must be unique."
            )
        name = checked_file_name(image["file_name"], json_file, where)
        path = os.path.join(root, name)
        if "\\" in name and os.sep != "\\" and not os.path.exists(path):
            path = os.path.join(root, name.replace("\\", "/"))
            from_windows += 1
        height, width = _size_hw(image, path, json_file, f"image id {image_id}")
        records[image_id] = {"file_name": path, "height": height, "width": width, "image_id": image_id}
    if from_windows:
        logger.info("%s: %d file names have '\\' between folders, which is read as '/'.", json_file, from_windows)
    try:
        return dict(sorted(records.items()))
    except TypeError:  # ids of several types: any fixed order will do
        return dict(sorted(records.items(), key=lambda item: str(item[0])))


def checked_file_name(name: Any, file: Any, where: str, key: str = "file_name") -> str:
    """Return a name that a file may have.

    Args:
        name: the value in the annotation file.
        file: that file, for messages.
        where: the place in it, for messages.
        key: its name there, for messages.

    Returns:
        the name.

    Raises:
        ValueError: it is something else than a string, empty, or has characters that no file name has.
    """
    if not isinstance(name, str) or not name:
        what = "empty" if name == "" else describe(name)
        raise AnnotationFileError(file, where, f"'{key}' must be a path, not {what}.")
    if "\0" in name or not name.isascii():
        try:
            if "\0" in os.fsdecode(os.fsencode(name)):
                raise ValueError("embedded null character")
        except ValueError as e:
            raise AnnotationFileError(file, where, f"'{key}' is {name!r}, which no file can be called: {e}.") from e
    return name


def checked_size(value: Any, file: Any, where: str, key: str, hint: str = "") -> int:
    """Return a height or a width in pixels: an integer (also where the file writes 640.0).

    Args:
        value: the value in the annotation file.
        file: that file, for messages.
        where: the place in it, for messages.
        key: "height" or "width".
        hint: what else to say in the message.

    Returns:
        the size.

    Raises:
        ValueError: it is not a positive integer, or larger than images can be.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is int and 0 < value < 2**31:
        return value
    raise AnnotationFileError(
        file, where, f"'{key}' must be a positive whole number of pixels, not {describe(value)}.{hint}"
    )


def _size_hw(image: dict[str, Any], path: str, json_file: Any, where: str) -> tuple[int, int]:
    height, width = image.get("height"), image.get("width")
    if type(height) is int and type(width) is int and 0 < height < 2**31 and 0 < width < 2**31:
        return height, width
    if height is not None and width is not None:
        hint = " (Where both are missing, they are read from the image.)"
        return (
            checked_size(height, json_file, where, "height", hint),
            checked_size(width, json_file, where, "width", hint),
        )
    try:
        return image_size_hw(path)
    except _UNREADABLE as e:
        raise AnnotationFileError(
            json_file, where, f"it has no 'height' and 'width', and '{path}' cannot be read instead: {e}"
        ) from e
