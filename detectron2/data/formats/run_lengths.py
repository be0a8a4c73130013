"""Run lengths of masks: making them, and finding out whether they describe a whole mask.

COCO's run lengths go down the columns of a mask of `H x W` pixels, background first. They are a list of numbers, or
a string of characters of six bits each, in which every number from the fourth on is the difference to the one two
places before. Where run lengths are too short, pycocotools returns memory that was never written, and where a string
breaks off, it reads on behind it; so neither may reach it.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from detectron2.layers.run_lengths import MOST_DIGITS, written_numbers
from detectron2.structures.masks import polygon_area

__all__ = ["decode_mask", "encode_mask", "is_compressed", "mask_area", "run_length_totals", "run_lengths"]

_TEXT = re.compile("[0-o]*[0-O]")
_CHUNK = 1 << 20
_GRID = 512


def run_lengths(mask: dict[str, Any]) -> dict[str, Any]:
    """Compress the run lengths of a mask that are still a list of numbers."""
    import pycocotools.mask

    mask_util: Any = pycocotools.mask  # its type hints leave this form out
    return mask_util.frPyObjects(mask, *mask["size"])


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Turn a mask `(H, W)` of any type into compressed run lengths; what is not 0 belongs to the object."""
    import pycocotools.mask

    mask_util: Any = pycocotools.mask
    return mask_util.encode(np.asfortranarray(mask != 0).view(np.uint8))


def decode_mask(mask: dict[str, Any], size_hw: tuple[int, int] | None = None) -> np.ndarray:
    """Turn run lengths of either form into pixels, uint8 `(H, W)`; a `ValueError` if they are not of this size."""
    import pycocotools.mask

    mask_util: Any = pycocotools.mask
    counts, size = mask["counts"], tuple(mask["size"])
    if size_hw not in (None, size):
        raise ValueError(f"a mask of (height, width) {size} is in an image of {size_hw}")
    if isinstance(counts, (list, tuple)):
        total = sum(counts) if all(isinstance(v, (int, np.integer)) and v >= 0 for v in counts) else -1
        mask = {"size": list(size), "counts": list(counts)}
    else:
        text = counts.decode("latin1") if isinstance(counts, bytes) else counts
        total = int(run_length_totals([text])[0]) if is_compressed(text) else -1
    if total != size[0] * size[1]:
        raise ValueError(
            f"the run lengths of an RLE of (height, width) {size} "
            + (f"add up to {total}; they must cover its {size[0] * size[1]} pixels" if total >= 0 else "are malformed")
        )
    return mask_util.decode(run_lengths(mask) if isinstance(counts, (list, tuple)) else mask)


def mask_area(mask: Sequence[Any] | dict[str, Any]) -> float:
    """Return the area in square pixels of polygons, or of run lengths; what several polygons cover counts once."""
    from hotcoco import mask as mask_util

    if isinstance(mask, dict):
        return float(mask_util.area(mask))
    polygons = [np.asarray(p, dtype=np.float64).reshape(-1, 2) for p in mask]
    area = sum(polygon_area(*p.T) for p in polygons)
    polygons = [p for p in polygons if len(p) >= 3]
    if len(polygons) < 2 or not math.isfinite(area):
        return area
    low, high = np.array([(p.min(axis=0), p.max(axis=0)) for p in polygons]).transpose(1, 0, 2)
    meet = ((low[:, None] < high) & (low < high[:, None])).all(axis=2)
    if meet.sum() == len(polygons):  # each with itself
        return area
    # Counted on a grid of 256 to 512 cells: a power of two keeps whole pixels whole.
    origin, side = np.floor(low.min(axis=0)), (high.max(axis=0) - low.min(axis=0)).max() + 1
    scale = 2.0 ** math.floor(math.log2(_GRID / side))
    drawn = mask_util.fr_py_objects([((p - origin) * scale).reshape(-1).tolist() for p in polygons], _GRID, _GRID)
    return area - (int(sum(map(mask_util.area, drawn))) - int(mask_util.area(mask_util.merge(drawn)))) / scale**2


def is_compressed(counts: Any) -> bool:
    """Whether this is a string of run lengths that does not break off within a number."""
    return isinstance(counts, str) and _TEXT.fullmatch(counts) is not None


def run_length_totals(texts: Sequence[str]) -> np.ndarray:
    """Count the pixels that compressed run lengths describe.

    Args:
        texts: for each of `M` masks a string that `is_compressed`.

    Returns:
        `int64[M]`, the number of pixels, to be compared with height times width; -1 if a number in it is too large.
    """
    totals, chunk, size = [np.zeros(0, dtype=np.int64)], [], 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if size > _CHUNK:
            totals.append(_totals(chunk))
            chunk, size = [], 0
    if chunk:
        totals.append(_totals(chunk))
    return np.concatenate(totals)


def _totals(texts: list[str]) -> np.ndarray:
    numbers, ends = written_numbers("".join(texts))
    # A difference counts once for its own place and once for each second place after it.
    last = np.searchsorted(ends, np.cumsum([len(text) for text in texts]) - 1)
    first = np.concatenate([[0], last[:-1] + 1])
    count = last - first + 1
    place = np.arange(len(numbers)) - np.repeat(first, count)
    times = np.where(place == 0, 1, (np.repeat(count, count) - 1 - place) // 2 + 1)
    is_too_long = np.diff(ends, prepend=-1) > MOST_DIGITS
    return np.where(np.logical_or.reduceat(is_too_long, first), -1, np.add.reduceat(numbers * times, first))
