"""What the categories of a file in COCO format say about keypoints, as metadata."""

import re
from typing import Any

__all__ = ["keypoint_metadata"]

_LINE_COLOR = (102, 204, 255)
_OTHER_SIDE = {"left": "right", "right": "left", "Left": "Right", "Right": "Left", "LEFT": "RIGHT", "RIGHT": "LEFT"}
_SIDE = re.compile("|".join(_OTHER_SIDE))


def keypoint_metadata(categories: list[dict[str, Any]]) -> dict[str, Any]:
    """Read "keypoints" and "skeleton" of the categories.

    Args:
        categories: those of the file.

    Returns:
        ``keypoint_names`` and ``keypoint_connection_rules``; ``keypoint_flip_map`` where names with "left" and "right"
        tell it. Nothing where no category has keypoints, or categories differ in them.
    """
    having = [c for c in categories if _are_names(c.get("keypoints"))]
    if not having or any(c["keypoints"] != having[0]["keypoints"] for c in having):
        return {}
    names = having[0]["keypoints"]
    found: dict[str, Any] = {
        "keypoint_names": list(names),
        "keypoint_connection_rules": _connections(names, having[0].get("skeleton")),
    }
    mirrored = {n: _SIDE.sub(lambda side: _OTHER_SIDE[side[0]], n) for n in names if _SIDE.search(n)}
    if mirrored and set(mirrored.values()) <= set(names):
        position = {n: i for i, n in enumerate(names)}
        found["keypoint_flip_map"] = [(n, m) for n, m in mirrored.items() if position[n] < position[m]]
    return found


def _are_names(names: Any) -> bool:
    return isinstance(names, list) and bool(names) and all(isinstance(n, str) for n in names)


def _connections(names: list[str], skeleton: Any) -> list[tuple[str, str, tuple[int, int, int]]]:
    """Lines between keypoints, which the file counts from one."""
    pairs = skeleton if isinstance(skeleton, list) else []
    numbers = range(1, len(names) + 1)
    return [
        (names[pair[0] - 1], names[pair[1] - 1], _LINE_COLOR)
        for pair in pairs
        if isinstance(pair, list) and len(pair) == 2 and pair[0] in numbers and pair[1] in numbers
    ]
