"""Bilinear resizing of maps as PyTorch does it (`align_corners=False`), with NumPy.

Letters: `C` maps of one kind, `h`, `w` height and width of a map in cells, `H`, `W` those that it gets.
"""

from collections.abc import Iterator

import numpy as np

__all__ = ["bands", "labels_of", "linear_weights", "resized", "unpadded"]

_ROWS_AT_ONCE = 64  # of maps that are enlarged together: C x 64 x W numbers


def unpadded(maps: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """The part of maps `[C, h, w]` that an image of `(height, width)` fills."""
    return maps[:, : image_size[0], : image_size[1]]


def bands(maps: np.ndarray, size: tuple[int, int]) -> Iterator[tuple[slice, np.ndarray]]:
    """Maps `[C, h, w]` resized bilinearly to `[C, H, W]`, a band of rows after the other."""
    maps = maps.astype(np.float32, copy=False)
    left, right, weight_x = _linear_taps(maps.shape[2], size[1])
    top, bottom, weight_y = _linear_taps(maps.shape[1], size[0])
    for start in range(0, size[0], _ROWS_AT_ONCE):
        band = slice(start, min(start + _ROWS_AT_ONCE, size[0]))
        if maps.shape[1:] == size:
            yield band, maps[:, band]
            continue
        low, high = top[start], bottom[band.stop - 1] + 1
        part = maps[:, low:high]
        wide = part[:, :, left] * (1 - weight_x) + part[:, :, right] * weight_x
        cells, weight = np.arange(low, high), weight_y[band, None]
        rows = (cells == top[band, None]) * (1 - weight) + (cells == bottom[band, None]) * weight
        yield band, rows.astype(np.float32) @ wide  # several times as fast as to pick rows and add them


def _linear_taps(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two cells that each new one lies between, and the weight of the second."""
    scale = np.float32(size) / np.float32(new_size)
    position = np.maximum(scale * (np.arange(new_size, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), 0)
    first = np.minimum(position.astype(np.int64), size - 1)
    return first, np.minimum(first + 1, size - 1), position - first.astype(np.float32)


def linear_weights(size: int, new_size: int) -> np.ndarray:
    """Weights `(new_size, size)` of the cells along an axis."""
    first, second, share = _linear_taps(size, new_size)
    cells = np.arange(size)
    return ((cells == first[:, None]) * (1 - share)[:, None] + (cells == second[:, None]) * share[:, None]).astype("f4")


def resized(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Maps `[C, h, w]` as `[C, H, W]`."""
    return np.concatenate([part for _, part in bands(maps, size)], axis=1)


def labels_of(scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The class of the highest score for each pixel, after enlarging the scores `[C, h, w]`."""
    return np.concatenate([part.argmax(axis=0) for _, part in bands(scores, size)]).astype(np.int32)
