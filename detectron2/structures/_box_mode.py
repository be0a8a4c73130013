"""The ways to write down a box, and conversion between them.

Everything goes through ``(x1, y1, x2, y2)``.  Conversions are plain arithmetic on four or five columns, so the same
code serves Python numbers, numpy arrays and tensors; a list of four numbers, the common case when a data set is read,
never becomes a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum, unique
from typing import Any, TypeVar

import numpy as np
import torch

BoxLike = TypeVar("BoxLike", list, tuple, np.ndarray, torch.Tensor)
Columns = tuple[Any, ...]


@unique
class BoxMode(IntEnum):
    """How the numbers of a box are to be read.

    Absolute modes are in pixels; relative modes are fractions of the image's width and height.
    """

    XYXY_ABS = 0
    """``(x1, y1, x2, y2)``: upper left and lower right corner."""
    XYWH_ABS = 1
    """``(x1, y1, width, height)``: upper left corner and size."""
    XYXY_REL = 2
    """``XYXY_ABS`` divided by the image's size."""
    XYWH_REL = 3
    """``XYWH_ABS`` divided by the image's size."""
    XYWHA_ABS = 4
    """``(x_center, y_center, width, height, angle)``: rotated counter-clockwise by ``angle`` degrees."""

    @staticmethod
    def convert(box: BoxLike, from_mode: BoxMode, to_mode: BoxMode) -> BoxLike:
        """Write boxes in another mode.

        A rotated box becomes the smallest axis-aligned box around it; an axis-aligned box becomes a rotated one of
        angle 0.  Absolute and relative modes cannot be converted into each other, for want of an image size.

        Args:
            box: one box, a list or tuple of 4 or 5 numbers; or boxes, an array or tensor ``(..., 4)`` or ``(..., 5)``.
            from_mode: the mode of ``box``.
            to_mode: the mode of the result.

        Returns:
            The same kind of object (``box`` itself when the modes are equal).  Lists keep the full precision of
            Python's numbers; integers stay integers where no division is needed.

        Raises:
            TypeError: ``box`` is something else.
            ValueError: it has not the number of columns of ``from_mode``, or the modes cannot be converted.
        """
        if from_mode == to_mode:
            return box
        from_mode, to_mode = BoxMode(from_mode), BoxMode(to_mode)
        if (from_mode in _RELATIVE) != (to_mode in _RELATIVE):
            raise ValueError(
                f"Cannot convert {from_mode.name} to {to_mode.name}: that needs the size of the image. "
                "Multiply or divide x by its width and y by its height first."
            )
        columns = _unpack(box, 5 if from_mode == BoxMode.XYWHA_ABS else 4, from_mode)
        return _pack(_FROM_XYXY[to_mode](_TO_XYXY[from_mode](columns)), box)


def _unpack(box: Any, expected: int, mode: BoxMode) -> Columns:
    if isinstance(box, (list, tuple)):
        found, columns = len(box), tuple(box)
        if any(isinstance(v, (list, tuple)) for v in columns):
            raise ValueError("BoxMode.convert takes one box as a list; pass several boxes as an array or a tensor.")
    elif isinstance(box, (np.ndarray, torch.Tensor)):
        found = box.shape[-1] if box.ndim else 0
        columns = tuple(box[..., i] for i in range(found))
    else:
        raise TypeError(f"BoxMode.convert expects a list, tuple, array or tensor, got {type(box).__name__}.")
    if found != expected:
        raise ValueError(f"A box in mode {mode.name} has {expected} numbers, got {found}: {box!r}.")
    return columns


def _pack(columns: Columns, like: Any) -> Any:
    if isinstance(like, torch.Tensor):
        return torch.stack([torch.as_tensor(c, device=like.device) for c in columns], dim=-1).to(like.dtype)
    if isinstance(like, np.ndarray):
        return np.stack(columns, axis=-1).astype(like.dtype, copy=False)
    return list(columns) if isinstance(like, list) else tuple(columns)


def _same(columns: Columns) -> Columns:
    return columns


def _xywh_to_xyxy(columns: Columns) -> Columns:
    x, y, w, h = columns
    return x, y, x + w, y + h


def _xyxy_to_xywh(columns: Columns) -> Columns:
    x1, y1, x2, y2 = columns
    return x1, y1, x2 - x1, y2 - y1


def _xywha_to_xyxy(columns: Columns) -> Columns:
    x, y, w, h, degrees = (_in_double(c) for c in columns)
    cos, sin = _abs_cos_sin(degrees * (math.pi / 180))
    half_w, half_h = (cos * w + sin * h) / 2, (sin * w + cos * h) / 2
    return x - half_w, y - half_h, x + half_w, y + half_h


def _xyxy_to_xywha(columns: Columns) -> Columns:
    x1, y1, x2, y2 = columns
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, (x1 - x1) * 0.0


def _in_double(column: Any) -> Any:
    if isinstance(column, torch.Tensor):
        return column.double()
    return column.astype(np.float64) if isinstance(column, np.ndarray) else column


def _abs_cos_sin(radians: Any) -> tuple[Any, Any]:
    if isinstance(radians, torch.Tensor):
        return radians.cos().abs(), radians.sin().abs()
    if isinstance(radians, np.ndarray):
        return np.abs(np.cos(radians)), np.abs(np.sin(radians))
    return abs(math.cos(radians)), abs(math.sin(radians))


_RELATIVE = (BoxMode.XYXY_REL, BoxMode.XYWH_REL)
_TO_XYXY: dict[BoxMode, Callable[[Columns], Columns]] = {
    BoxMode.XYXY_ABS: _same,
    BoxMode.XYWH_ABS: _xywh_to_xyxy,
    BoxMode.XYXY_REL: _same,
    BoxMode.XYWH_REL: _xywh_to_xyxy,
    BoxMode.XYWHA_ABS: _xywha_to_xyxy,
}
_FROM_XYXY: dict[BoxMode, Callable[[Columns], Columns]] = {
    BoxMode.XYXY_ABS: _same,
    BoxMode.XYWH_ABS: _xyxy_to_xywh,
    BoxMode.XYXY_REL: _same,
    BoxMode.XYWH_REL: _xyxy_to_xywh,
    BoxMode.XYWHA_ABS: _xyxy_to_xywha,
}
