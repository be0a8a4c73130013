"""Which keypoints of an instance are joined by lines."""

from collections.abc import Iterable
from typing import Any

from .colors import _RED

__all__ = ["skeleton_lines"]

Point = tuple[float, float]


def skeleton_lines(visible: dict[str, Point], rules: Iterable[Any]) -> list[tuple[Point, Point, Any]]:
    """Lines between keypoints.

    Args:
        visible: the position of each visible keypoint by its name.
        rules: ``(name, name, (r, g, b))`` with colours from 0 to 255.

    Returns:
        the ends of each line and its colour from 0 to 1: those of the rules, and from the middle of the shoulders to
        the nose and to the middle of the hips, the trunk that pairs of keypoints cannot express.
    """
    lines: list[tuple[Point, Point, Any]] = []
    for first, second, color in rules:
        if first in visible and second in visible:
            lines.append((visible[first], visible[second], tuple(channel / 255.0 for channel in color)))
    shoulders = _middle(visible, "shoulder")
    for end in (visible.get("nose"), _middle(visible, "hip")):
        if shoulders is not None and end is not None:
            lines.append((shoulders, end, _RED))
    return lines


def _middle(visible: dict[str, Point], part: str) -> Point | None:
    """The point between a left and a right keypoint, where both are visible."""
    left, right = visible.get(f"left_{part}"), visible.get(f"right_{part}")
    if left is None or right is None:
        return None
    return (left[0] + right[0]) / 2, (left[1] + right[1]) / 2
