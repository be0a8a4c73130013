"""The text of labels, and where to put them so that they can be read."""

from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["LabelPlacer"]


def _create_text_labels(
    classes: Sequence[int] | None,
    scores: Any,
    class_names: Sequence[str] | None,
    is_crowd: Sequence[int] | None = None,
) -> list[str] | None:
    """The label of each instance, such as ``person 97%``.

    Args:
        classes: contiguous class ids, or None.
        scores: from 0 to 1, or None.
        class_names: names of the classes; without them the numbers are written.
        is_crowd: marks groups of objects, or None.

    Returns:
        a list of labels, or None when there is nothing to say.
    """
    if classes is None and scores is None:
        return None
    if classes is None:
        labels = [""] * len(scores)
    elif class_names:
        labels = [str(class_names[c]) if 0 <= c < len(class_names) else str(c) for c in classes]
    else:
        labels = [str(c) for c in classes]
    if scores is not None:
        labels = [f"{label} {float(score) * 100:.0f}%".strip() for label, score in zip(labels, scores, strict=True)]
    if is_crowd is not None:
        labels = [f"{label}|crowd" if crowd else label for label, crowd in zip(labels, is_crowd, strict=True)]
    return labels


class LabelPlacer:
    """Finds places for rectangles ``(x1, y1, x2, y2)`` inside an image, away from those placed before.

    Args:
        size_wh: width and height of the image.
    """

    def __init__(self, size_wh: tuple[float, float]):
        self._size_wh = size_wh
        self._taken: list[tuple[float, float, float, float]] = []

    def place(self, label_wh: tuple[float, float], corners_xy: Iterable[tuple[float, float]]) -> tuple[float, float]:
        """Choose the first of the candidates that covers no other label, else the one that covers least.

        Args:
            label_wh: size of the label.
            corners_xy: candidates for its top left corner, the best first; moved into the image if need be.

        Returns:
            the top left corner.
        """
        best, least = (0.0, 0.0), float("inf")
        for x, y in corners_xy:
            inside = self._move_inside(x, y, label_wh)
            # being moved off its object costs a little, so that an untouched candidate wins among equals
            moved = abs(inside[0] - x) + abs(inside[1] - y)
            covered = self._covered(inside, label_wh) + 1e-3 * moved
            if covered < least:
                best, least = inside, covered
            if covered == 0:
                break
        self._taken.append((best[0], best[1], best[0] + label_wh[0], best[1] + label_wh[1]))
        return best

    def _move_inside(self, x: float, y: float, label_wh: tuple[float, float]) -> tuple[float, float]:
        return (
            max(0.0, min(x, self._size_wh[0] - label_wh[0])),
            max(0.0, min(y, self._size_wh[1] - label_wh[1])),
        )

    def _covered(self, corner: tuple[float, float], label_wh: tuple[float, float]) -> float:
        """Area of the labels so far under a label at this corner."""
        x1, y1, x2, y2 = corner[0], corner[1], corner[0] + label_wh[0], corner[1] + label_wh[1]
        total = 0.0
        for a1, b1, a2, b2 in self._taken:
            total += max(0.0, min(x2, a2) - max(x1, a1)) * max(0.0, min(y2, b2) - max(y1, b1))
        return total
