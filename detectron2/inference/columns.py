"""Images and results in columns, the form in which data engines such as Ray Data pass batches around.

A batch is a dictionary of columns of equal length. Images come in the first of these columns that it has: `image`,
decoded, with channels in the order RGB; `bytes`, the content of image files; `path`, image files on disk.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
from PIL import Image

from detectron2.data.images import convert_array, decode_image, read_image

from .sources import Frame

__all__ = ["ROW_COLUMNS", "columns_of", "frames_of", "require_pyarrow", "table_of"]

ROW_COLUMNS = ("file", "height", "width", "seconds", "error", "objects", "segments", "pixel_classes")
"""Keys of `Result.to_dict` that are columns. The others tell where in a run an image was, which a batch cannot know."""

_IMAGE_COLUMNS = ("image", "bytes", "path")


def frames_of(
    batch: Mapping[str, Sequence[Any] | np.ndarray], *, image_format: str | None, exif: str, workers: int = 0
) -> Iterator[Frame]:
    """Read the images of a batch in columns.

    Args:
        batch: columns of equal length, with `image`, `bytes` or `path`. Images of one size may be one array
            `(N, H, W)` or `(N, H, W, C)`; else each is an array `(H, W)` or `(H, W, C)`, or a Pillow image. Arrays with
            3 channels are RGB. The column `path`, if there is one, names the images.
        image_format: the format of `Frame.image`, as for `read_image`.
        exif: what is done about the EXIF orientation of files, "apply" or "ignore".
        workers: threads that read; with 0 the thread of the caller does.

    Returns:
        An iterator over a frame for each image, in order. An image that is None, or cannot be read, is a frame with an
        `error`. Closing it ends the threads.

    Raises:
        ValueError: the batch has no column with images, or columns of different length.

    Example:
        >>> batch = {"path": ["a.jpg", "b.jpg"], "image": [np.zeros((4, 6, 3), np.uint8), None]}
        >>> for frame in frames_of(batch, image_format="BGR", exif="apply"):
        ...     print(frame.name, frame.error or frame.image.shape)
        a.jpg (4, 6, 3)
        b.jpg there is no image: the batch has None in its place
    """
    key = next((name for name in _IMAGE_COLUMNS if name in batch), None)
    if key is None:
        raise ValueError(
            f"Expected a batch with a column {', '.join(_IMAGE_COLUMNS[:-1])} or {_IMAGE_COLUMNS[-1]}, got "
            f"{', '.join(batch) or 'no columns'}. Rename the column with the images."
        )
    if len({len(column) for column in batch.values()}) > 1:
        listed = ", ".join(f"{name}: {len(column)}" for name, column in batch.items())
        raise ValueError(f"Expected columns of equal length, got {listed}.")
    values, paths = batch[key], batch.get("path", [None] * len(batch[key]))

    def read(index: int) -> Frame:
        path = None if paths[index] is None else str(paths[index])
        name = path or f"image {index}"
        try:
            return Frame(_read(values[index], key == "path", name, image_format, exif), name, path, index)
        except (OSError, TypeError, ValueError) as error:
            return Frame(None, name, path, index, error=error)

    return _in_threads(read, len(values), workers)


def _in_threads(read: Callable[[int], Frame], count: int, workers: int) -> Iterator[Frame]:
    with ExitStack() as stack:
        if workers and count:
            pool = ThreadPoolExecutor(workers)
            stack.callback(pool.shutdown, cancel_futures=True)
            yield from pool.map(read, range(count))
        else:
            yield from map(read, range(count))


def _read(value: Any, is_path: bool, name: str, image_format: str | None, exif: str) -> np.ndarray:
    if value is None:
        raise ValueError("there is no image: the batch has None in its place")
    if is_path:
        return read_image(str(value), image_format, exif)
    if isinstance(value, bytes | bytearray | memoryview | Image.Image):
        return decode_image(value, image_format, exif, name)
    if not isinstance(value, np.ndarray):
        kind = type(value).__name__
        raise TypeError(f"expected an image as array, Pillow image or the bytes of a file, got {kind}")
    return convert_array(value, image_format, "rgb")


def columns_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Put rows of results into columns.

    Args:
        rows: what `Result.to_dict` returns.

    Returns:
        For each of `ROW_COLUMNS` an array of objects, as long as there are rows.

    Example:
        >>> row = {"file": "a.jpg", "height": 4, "width": 6, "objects": [{"class": "cat", "score": 0.5}]}
        >>> columns = columns_of([row])
        >>> columns["file"], len(columns["objects"][0]), columns["error"]
        (array(['a.jpg'], dtype=object), 1, array([None], dtype=object))
    """
    listed = list(rows)
    columns = {name: np.empty(len(listed), dtype=object) for name in ROW_COLUMNS}
    for name, column in columns.items():
        for i, row in enumerate(listed):  # NumPy would take lists apart if they were assigned together
            column[i] = row.get(name)
    return columns


def require_pyarrow() -> Any:
    """Import pyarrow.

    Returns:
        The module, with `parquet`.

    Raises:
        ImportError: it is not installed.

    Example:
        >>> require_pyarrow().__name__
        'pyarrow'
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise ImportError("Tables and Parquet need pyarrow: pip install 'detectron2[bulk]'") from None
    return pyarrow


def table_of(columns: Mapping[str, Any]) -> Any:
    """Make a `pyarrow.Table`, whose columns of results have types of their own, also where nothing was found.

    Args:
        columns: those of `columns_of`, `index`, and others, whose types pyarrow finds.

    Returns:
        The table, with the columns in the same order.

    Raises:
        ImportError: pyarrow is not installed.

    Example:
        >>> table_of({"file": ["a.jpg"], "objects": [[]]}).schema.field("objects").type.value_type.field("score").type
        DataType(double)
    """
    pa = require_pyarrow()
    known = _types(pa)
    arrays = {name: pa.array(list(column), type=known.get(name)) for name, column in columns.items()}
    return pa.table(arrays)


def _types(pa: Any) -> dict[str, Any]:
    """The type of each column of results."""
    mask = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
    numbers = pa.list_(pa.float64())
    common = [("class_id", pa.int32()), ("class", pa.string()), ("score", pa.float64()), ("box_xyxy", numbers)]
    objects = [
        *common,
        ("box_rotated", numbers),
        ("area", pa.int64()),
        ("mask", mask),
        ("keypoints", pa.list_(numbers)),
    ]
    segments = [("id", pa.int32()), *common, ("is_thing", pa.bool_()), ("area", pa.int64()), ("mask", mask)]
    pixels = [("class_id", pa.int32()), ("class", pa.string()), ("area", pa.int64()), ("mask", mask)]
    return {
        "index": pa.int64(),
        "file": pa.string(),
        "height": pa.int32(),
        "width": pa.int32(),
        "seconds": pa.float64(),
        "error": pa.string(),
        "objects": pa.list_(pa.struct(objects)),
        "segments": pa.list_(pa.struct(segments)),
        "pixel_classes": pa.list_(pa.struct(pixels)),
    }
