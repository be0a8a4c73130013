"""The text of labels, and where to put them so that they can be read."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

__all__ = ["LabelPlacer"]


def _create_text_labels(
    classes: Sequence[int] | None, scores: Any, class_names: Sequence[str] | None, is_crowd: Sequence[int] | None = None
) -> list[str] | None:
    """The label of each instance, such as `person 97%`; None without classes and scores."""
    if classes is None and scores is None:
        return None
    names = class_names or ()
    if classes is None:
        labels = [""] * len(scores)
    else:
        labels = [str(names[c]) if 0 <= c < len(names) else str(c) for c in classes]
    if scores is not None:
        labels = [f"{label} {float(score) * 100:.0f}%".strip() for label, score in zip(labels, scores, strict=True)]
    if is_crowd is not None:
        labels = [f"{label}|crowd" if crowd else label for label, crowd in zip(labels, is_crowd, strict=True)]
    return labels


class LabelPlacer:
    """Finds places for rectangles `(x1, y1, x2, y2)` inside an image, away from those placed before.

    Args:
        size_wh: width and height of the image.

    Example:
        >>> from detectron2.visualization.labels import LabelPlacer
        >>> placer = LabelPlacer((100, 100))
        >>> placer.place((30, 10), [(5, 5), (50, 50)])
        (5.0, 5.0)
        >>> placer.place((30, 10), [(5, 5), (50, 50)])  # the first place is taken
        (50.0, 50.0)
    """

    def __init__(self, size_wh: tuple[float, float]):
        self._size_wh = np.array(size_wh, dtype=float)
        self._taken = np.zeros((0, 4))

    def place(self, label_wh: tuple[float, float], corners_xy: Iterable[tuple[float, float]]) -> tuple[float, float]:
        """The top left corner of a label of this size: the first candidate that covers no other label, or covers least.

        Candidates are moved into the image if need be.
        """
        wanted = np.array(list(corners_xy), dtype=float)
        size = np.array(label_wh, dtype=float)
        inside = np.clip(wanted, 0.0, np.maximum(self._size_wh - size, 0.0))
        # being moved off its object costs a little, so that an untouched candidate wins among equals
        cost = self._covered(inside, size) + 1e-3 * np.abs(inside - wanted).sum(axis=1)
        best = inside[cost.argmin()]
        self._taken = np.concatenate([self._taken, [[*best, *(best + size)]]])
        return float(best[0]), float(best[1])

    def _covered(self, corners: np.ndarray, size: np.ndarray) -> np.ndarray:
        """Area of the labels so far under a label at each of these corners."""
        low = np.maximum(corners[:, None], self._taken[None, :, :2])
        high = np.minimum((corners + size)[:, None], self._taken[None, :, 2:])
        return (high - low).clip(min=0).prod(axis=2).sum(axis=1)
