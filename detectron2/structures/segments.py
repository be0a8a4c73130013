"""The segments of a panoptic result as a table: the form that a traced graph can return."""

import math
from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["SEGMENT_COLUMNS", "segments_of_table", "table_of_segments"]

SEGMENT_COLUMNS: dict[str, type] = {
    "id": int,
    "isthing": bool,
    "category_id": int,
    "score": float,
    "instance_id": int,
    "area": int,
}
"""The columns of the table, the keys of segments, and the types of their values."""


def table_of_segments(segments: Sequence[dict[str, Any]]) -> torch.Tensor | None:
    """Make a table of segments.

    Args:
        segments: for each segment a dictionary with some of the keys in `SEGMENT_COLUMNS`.

    Returns:
        float64 `Tensor[S, 6]` with a column for each key of `SEGMENT_COLUMNS`, NaN where a segment has none; None when
        a segment has another key, or a value that is not a number.

    Example:
        >>> from detectron2.structures.segments import table_of_segments
        >>> table_of_segments([{"id": 1, "isthing": False, "category_id": 4, "area": 5000}])[0, :3]
        tensor([1., 0., 4.], dtype=torch.float64)
    """
    known = SEGMENT_COLUMNS.keys()
    if any(not s.keys() <= known or not all(isinstance(v, (int, float)) for v in s.values()) for s in segments):
        return None
    rows = [[float(segment.get(name, math.nan)) for name in known] for segment in segments]
    return torch.tensor(rows, dtype=torch.float64).view(len(rows), len(known))


def segments_of_table(table: torch.Tensor) -> list[dict[str, Any]]:
    """Make segments of the table of `table_of_segments`.

    Args:
        table: float64 `Tensor[S, 6]`.

    Returns:
        For each row a dictionary of what is not NaN.

    Example:
        >>> from detectron2.structures.segments import segments_of_table
        >>> segments_of_table(torch.tensor([[1, 1, 4, 0.5, 7, torch.nan]], dtype=torch.float64))
        [{'id': 1, 'isthing': True, 'category_id': 4, 'score': 0.5, 'instance_id': 7}]
    """
    columns = SEGMENT_COLUMNS.items()
    return [
        {name: kind(value) for (name, kind), value in zip(columns, row, strict=True) if not math.isnan(value)}
        for row in table.tolist()
    ]
