"""Run lengths of masks that are given by the part of the image in which they lie, in COCO's compressed form.

COCO counts pixels column by column: how many are outside, then inside, then outside … The counts are written as text,
from the fourth on as the difference to the last but one, in digits of five bits, the lowest first (Lin et al.,
"Microsoft COCO: Common Objects in Context", arXiv:1405.0312; the format is that of its evaluation tools).
"""

import numpy as np

_DIGIT_BITS = 5
_MORE, _SIGN, _FIRST_CHARACTER = 0x20, 0x10, 48


def run_lengths(crop: np.ndarray, corner_xy: tuple[int, int], size_hw: tuple[int, int]) -> np.ndarray:
    """Lengths of the alternating runs of one mask, beginning with the pixels outside.

    Args:
        crop: bool ``(h, w)``, the part of the mask that is not empty.
        corner_xy: column and row of its first pixel in the image.
        size_hw: height and width of the image.

    Returns:
        int64, at least one number; their sum is the number of pixels.
    """
    height, width = size_hw
    columns = np.zeros((crop.shape[1], crop.shape[0] + 2), np.bool_)  # with a pixel outside at both ends
    columns[:, 1:-1] = crop.T
    column, row = np.nonzero(columns[:, 1:] != columns[:, :-1])
    changes = (column + corner_xy[0]) * height + row + corner_xy[1]
    if crop.shape[0] == height and changes.size:
        # A run that reaches the bottom goes on at the top of the next column: no change there.
        touching = np.flatnonzero(changes[1:] == changes[:-1])
        changes = np.delete(changes, np.concatenate([touching, touching + 1]))
    counts = np.diff(changes, prepend=0, append=height * width)
    return counts[:-1] if counts[-1] == 0 and counts.size > 1 else counts


def compress(counts: list[np.ndarray]) -> list[str]:
    """The text of the run lengths of each mask."""
    if not counts:
        return []
    numbers = np.concatenate(counts)
    last_of_mask = np.cumsum([c.size for c in counts])
    index_in_mask = np.arange(numbers.size) - np.repeat(last_of_mask - [c.size for c in counts], [*map(len, counts)])
    rest = numbers.copy()
    later = np.flatnonzero(index_in_mask > 2)
    rest[later] -= numbers[later - 2]
    digits, used = [], []
    active = np.ones(numbers.size, np.bool_)
    while active.any():
        digit = rest & (_MORE - 1)
        rest >>= _DIGIT_BITS
        more = rest != np.where(digit & _SIGN, -1, 0)
        digits.append((digit + more * _MORE + _FIRST_CHARACTER).astype(np.uint8))
        used.append(active)
        active = active & more
    used = np.stack(used, axis=1)
    text = np.stack(digits, axis=1)[used].tobytes().decode("ascii")
    ends = np.cumsum(used.sum(axis=1))[last_of_mask - 1].tolist()
    return [text[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
