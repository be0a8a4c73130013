"""Run lengths of masks: making them, and finding out whether they describe a whole mask.

COCO's run lengths go down the columns of a mask of `H x W` pixels, background first. They are a list of numbers, or
a string of characters of six bits each, in which every number from the fourth on is the difference to the one two
places before. Where run lengths are too short, pycocotools returns memory that was never written, and where a string
breaks off, it reads on behind it; so neither may reach it.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["decode_mask", "encode_mask", "is_compressed", "run_length_totals", "run_lengths"]

# Five bits of a number in each character, the least significant first; the sixth bit says that another one follows.
_FIRST, _MORE, _SIGN, _BITS, _WIDTH = ord("0"), 0x20, 0x10, 0x1F, 5
_TEXT = re.compile("[0-o]*[0-O]")
_LONGEST_NUMBER = 7  # characters; 35 bits are enough for masks of 2**32 pixels
_CHUNK = 1 << 20


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


def decode_mask(mask: dict[str, Any], size_hw: tuple[int, int]) -> np.ndarray | None:
    """Turn run lengths of either form into pixels `(H, W)`; None if they are not a mask of this size."""
    import pycocotools.mask

    mask_util: Any = pycocotools.mask
    counts: Any = mask.get("counts")
    if mask.get("size") != list(size_hw):
        return None
    if isinstance(counts, list):
        whole = all(type(v) is int and v >= 0 for v in counts) and sum(counts) == size_hw[0] * size_hw[1]
        return mask_util.decode(run_lengths(mask)) if whole else None
    whole = is_compressed(counts) and run_length_totals([counts])[0] == size_hw[0] * size_hw[1]
    return mask_util.decode(mask) if whole else None


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
    characters = np.frombuffer("".join(texts).encode("ascii"), dtype=np.uint8).astype(np.int64) - _FIRST
    text_ends = np.cumsum([len(text) for text in texts])

    ends = np.flatnonzero((characters & _MORE) == 0)  # of each number; every text ends with one
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    shifts = np.minimum(np.arange(len(characters)) - np.repeat(starts, lengths), _LONGEST_NUMBER) * _WIDTH
    numbers = np.add.reduceat((characters & _BITS) << shifts, starts)
    negative = (characters[ends] & _SIGN) != 0
    numbers -= negative.astype(np.int64) << (np.minimum(lengths, _LONGEST_NUMBER) * _WIDTH)

    # A difference counts once for its own place and once for each second place after it.
    last = np.searchsorted(ends, text_ends - 1)
    first = np.concatenate([[0], last[:-1] + 1])
    count = last - first + 1
    place = np.arange(len(numbers)) - np.repeat(first, count)
    times = np.where(place == 0, 1, (np.repeat(count, count) - 1 - place) // 2 + 1)
    totals = np.add.reduceat(numbers * times, first)
    too_long = np.add.reduceat((lengths > _LONGEST_NUMBER).astype(np.int64), first)
    return np.where(too_long > 0, -1, totals)
