"""Run lengths of masks that are given by the part of the image in which they lie, in COCO's compressed form.

COCO counts pixels column by column: how many are outside, then inside, then outside … The counts are written as text,
from the fourth on as the difference to the last but one, in digits of five bits, the lowest first (Lin et al.,
"Microsoft COCO: Common Objects in Context", arXiv:1405.0312; the format is that of its evaluation tools).
"""

from typing import Any

import numpy as np

__all__ = ["MOST_DIGITS", "changes", "crop_to_content", "decode_part", "encode_changes", "written_numbers"]

MOST_DIGITS = 7
"""Of a number in a text: 35 bits are enough for masks of 2**32 pixels."""

_DIGIT_BITS = 5
_MORE, _SIGN, _FIRST_CHARACTER = 0x20, 0x10, 48


def changes(crop: np.ndarray, corner_xy: tuple[int, int], height: int) -> np.ndarray:
    """Where the runs of a mask begin, first one inside, then one outside …: numbers of pixels before them.

    Args:
        crop: bool `(h, w)`, the part of the mask that is not empty, or some of its columns.
        corner_xy: column and row of its first pixel in the image.
        height: of the image.

    Returns:
        int64, ascending. Runs end with their column: one that goes on at the top of the next is two.

    Example:
        >>> from detectron2.layers.run_lengths import changes
        >>> changes(np.ones((2, 1), bool), corner_xy=(3, 1), height=10)  # column 3 begins at pixel 30
        array([31, 33])
    """
    columns = np.zeros((crop.shape[1], crop.shape[0] + 2), np.bool_)  # with a pixel outside at both ends
    columns[:, 1:-1] = crop.T
    column, row = np.nonzero(columns[:, 1:] != columns[:, :-1])
    return (column + corner_xy[0]) * height + row + corner_xy[1]


def encode_changes(begins: list[np.ndarray], height: int, width: int) -> dict[str, Any]:
    """Write a mask as COCO's compressed run lengths.

    Args:
        begins: `changes` of the mask, or of its columns from left to right.
        height: of the image.
        width: of the image.

    Returns:
        `{"size": [height, width], "counts": text}`, as pycocotools encodes it.

    Example:
        >>> from detectron2.layers.run_lengths import changes, encode_changes
        >>> begins = changes(np.ones((2, 1), bool), corner_xy=(3, 1), height=10)
        >>> encode_changes([begins], height=10, width=5)
        {'size': [10, 5], 'counts': 'o02a0'}
    """
    from hotcoco.mask import rle_to_string

    if 0 in (height, width):
        return {"size": [height, width], "counts": ""}
    found = np.concatenate([np.zeros(0, np.int64), *begins])
    # A run that reaches the bottom goes on at the top of the next column: no change there.
    touching = np.flatnonzero(found[1:] == found[:-1])
    if touching.size:
        found = np.delete(found, np.concatenate([touching, touching + 1]))
    counts = np.diff(found, prepend=0, append=height * width)
    counts = counts[:-1] if counts[-1] == 0 and counts.size > 1 else counts
    return {"size": [height, width], "counts": rle_to_string({"size": [height, width], "counts": counts.tolist()})}


def crop_to_content(mask: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Cut out the smallest part of a mask that holds all its nonzero pixels.

    Args:
        mask: array `(H, W)`.

    Returns:
        A view of the part `(h, w)`, and the column and row of its first pixel.

    Example:
        >>> from detectron2.layers.run_lengths import crop_to_content
        >>> mask = np.zeros((10, 12), bool)
        >>> mask[4:6, 7:10] = True
        >>> part, corner_xy = crop_to_content(mask)
        >>> part.shape, corner_xy
        ((2, 3), (7, 4))
    """
    bits = mask.view(np.bool_) if mask.dtype == np.uint8 else mask  # bytes that are not 0 are found in half the time
    rows = np.flatnonzero(bits.any(axis=1))
    if rows.size == 0:
        return mask[:0, :0], (0, 0)
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(bits[top:bottom].any(axis=0))
    left, right = int(columns[0]), int(columns[-1]) + 1
    return mask[top:bottom, left:right], (left, top)


def decode_part(rle: dict[str, Any]) -> tuple[np.ndarray, tuple[int, int]]:
    """The smallest part of the image with all of a mask, without making the whole image.

    Args:
        rle: `{"size": [height, width], "counts": ...}`, the counts as text, bytes, or as numbers.

    Returns:
        bool `(h, w)`, and column and row of its first pixel; nothing at (0, 0) where the mask is empty.

    Raises:
        ValueError: the counts are not those of an image of this size.

    Example:
        >>> from detectron2.layers.run_lengths import decode_part
        >>> decode_part({"size": [10, 5], "counts": [31, 2, 17]})
        (array([[ True],
               [ True]]), (3, 1))
    """
    height, width = (int(v) for v in rle["size"])
    counts = rle["counts"]
    counts = np.asarray(counts, dtype=np.int64) if isinstance(counts, (list, tuple)) else _decompress(counts)
    if (counts < 0).any() or counts.sum() != height * width:
        raise ValueError(f"Run lengths of {counts.sum()} pixels for an image of {height} x {width} (height x width).")
    ends = counts.cumsum()
    starts, stops = ends[:-1:2], ends[1::2]
    starts, stops = starts[stops > starts], stops[stops > starts]
    if starts.size == 0:
        return np.zeros((0, 0), np.bool_), (0, 0)
    first, last = starts // height, (stops - 1) // height
    left, right = int(first[0]), int(last[-1]) + 1
    top, bottom = 0, height
    if (first == last).all():  # else a run goes on in the next column, from bottom to top
        top, bottom = int((starts % height).min()), int(((stops - 1) % height).max()) + 1
    inside = np.diff(np.clip(ends, left * height, right * height), prepend=left * height)
    columns = np.repeat(np.arange(inside.size) % 2 == 1, inside).reshape(right - left, height)
    return np.ascontiguousarray(columns[:, top:bottom].T), (left, top)


def written_numbers(text: str | bytes) -> tuple[np.ndarray, np.ndarray]:
    """Read the numbers in counts as they are written, of which those from the fourth on are differences.

    Args:
        text: the counts of one mask, or of several behind each other.

    Returns:
        int64 `(n,)`, and the places of their last characters, ascending. A number of more than seven characters, which
        no mask has, is wrong; one that breaks off at the end is left out.

    Example:
        >>> from detectron2.layers.run_lengths import written_numbers
        >>> written_numbers("o02a0")
        (array([31,  2, 17]), array([1, 2, 4]))
    """
    digits = np.frombuffer(text.encode("ascii") if isinstance(text, str) else text, np.uint8)
    digits = digits.astype(np.int64) - _FIRST_CHARACTER
    last = np.flatnonzero((digits & _MORE) == 0)
    if last.size == 0:
        return np.zeros(0, np.int64), last
    first = np.concatenate([[0], last[:-1] + 1])
    used = last - first + 1
    place = np.minimum(np.arange(int(last[-1]) + 1) - np.repeat(first, used), MOST_DIGITS)
    numbers = np.add.reduceat((digits[: place.size] & (_MORE - 1)) << (_DIGIT_BITS * place), first)
    return numbers - np.where(digits[last] & _SIGN, 1 << (_DIGIT_BITS * np.minimum(used, MOST_DIGITS)), 0), last


def _decompress(text: str | bytes) -> np.ndarray:
    """The counts that a text stands for, int64."""
    numbers, last = written_numbers(text)
    if (np.diff(last, prepend=-1) > MOST_DIGITS).any():
        raise ValueError("Run lengths with a number that is too large.")
    for start in (1, 2):
        numbers[start::2] = numbers[start::2].cumsum()
    return numbers
