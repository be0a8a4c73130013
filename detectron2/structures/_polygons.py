"""Geometry of polygons: area, and pixels inside, by pycocotools' rules.

A polygon is a vector ``(x0, y0, x1, y1, …)`` in pixels, continuous coordinates, with three corners or more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

__all__ = [
    "as_polygons",
    "polygon_area",
    "polygons_to_bitmask",
    "rasterize_all_within_boxes",
    "rasterize_polygons_within_box",
]


_LONGEST_OUTLINE = 5e6  # pixels


def polygon_area(x: np.ndarray, y: np.ndarray) -> float:
    """Area within a polygon by the shoelace formula, in square pixels.

    Args:
        x: x of the corners, ``(n,)``.
        y: y of the corners, ``(n,)``.

    Returns:
        The area.
    """
    return 0.5 * float(np.abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))


def polygons_to_bitmask(polygons: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """Find the pixels inside any of several polygons.

    Args:
        polygons: the polygons.
        height: height of the image.
        width: width of the image.

    Returns:
        bool ``(height, width)``.
    """
    if len(polygons) == 0:
        return np.zeros((height, width), dtype=bool)
    import pycocotools.mask as mask_util

    return mask_util.decode(_encode(polygons, height, width)).astype(bool)


def _encode(polygons: Sequence[np.ndarray], height: int, width: int) -> Any:
    import pycocotools.mask as mask_util

    shapes: Any = [_drawable(polygon) for polygon in polygons]  # the stubs know one kind of argument of several
    return mask_util.merge(mask_util.frPyObjects(shapes, height, width))


def _drawable(polygon: Any) -> Any:
    # pycocotools walks along the outline, five steps a pixel, in memory that it counts with 32 bits: it takes minutes
    # for outlines far longer than any image's, and crashes the process with still longer ones and with NaN.
    corners = np.asarray(polygon, dtype=np.float64)
    reach = np.abs(corners).max(initial=0.0)
    if reach * corners.size < _LONGEST_OUTLINE:
        return polygon
    if not np.isfinite(reach):
        raise ValueError("A polygon has corners that are not finite numbers; correct it, or leave it out.")
    xy = corners.reshape(-1, 2)
    if np.abs(xy - np.roll(xy, 1, axis=0)).max(axis=1).sum() < _LONGEST_OUTLINE:
        return polygon
    limit = _LONGEST_OUTLINE / corners.size
    return corners.clip(-limit, limit)


def rasterize_polygons_within_box(polygons: Sequence[np.ndarray], box: np.ndarray, mask_size: int) -> torch.Tensor:
    """Find the cells of a grid over a box that lie inside any of several polygons.

    Args:
        polygons: the polygons.
        box: ``(x1, y1, x2, y2)``.
        mask_size: cells along each side of the grid.

    Returns:
        bool ``(mask_size, mask_size)``.
    """
    return torch.from_numpy(polygons_to_bitmask(_relative_to_box(polygons, box, mask_size), mask_size, mask_size))


def rasterize_all_within_boxes(
    instances: Sequence[Sequence[np.ndarray]], boxes: np.ndarray, mask_size: int
) -> torch.Tensor:
    """:func:`rasterize_polygons_within_box` for many instances, each with its box, decoded in one call.

    Args:
        instances: the polygons of each instance.
        boxes: ``(N, 4)``.
        mask_size: cells along each side of the grid.

    Returns:
        bool ``(N, mask_size, mask_size)``.
    """
    import pycocotools.mask as mask_util

    out = torch.zeros(len(instances), mask_size, mask_size, dtype=torch.bool)
    drawn = [i for i, polygons in enumerate(instances) if len(polygons)]
    if drawn:
        codes: Any = [_encode(_relative_to_box(instances[i], boxes[i], mask_size), mask_size, mask_size) for i in drawn]
        cells = torch.from_numpy(mask_util.decode(codes)).permute(2, 0, 1)
        out[drawn] = cells.bool()
    return out


def _relative_to_box(polygons: Sequence[np.ndarray], box: np.ndarray, mask_size: int) -> list[np.ndarray]:
    x1, y1, x2, y2 = (float(v) for v in box)
    # A box thinner than a tenth of a pixel would blow the polygon up beyond all numbers.
    scale_xy = np.array([mask_size / max(x2 - x1, 0.1), mask_size / max(y2 - y1, 0.1)])
    shifted = (np.asarray(p, dtype=np.float64).reshape(-1, 2) - (x1, y1) for p in polygons)
    return [(corners * scale_xy).reshape(-1) for corners in shifted]


def as_polygons(instances: Any) -> list[list[np.ndarray]]:
    """Check polygons of instances, and turn each into a float64 vector.

    Args:
        instances: for each instance a list of polygons.

    Returns:
        The same in float64.

    Raises:
        TypeError: it is not a list of lists of number sequences.
        ValueError: a polygon has fewer than three corners, or a number without a partner.
    """
    if not isinstance(instances, (list, tuple)):
        raise TypeError(
            f"PolygonMasks expects a list with the polygons of each instance, got {_describe(instances)}. "
            "Masks that are bitmaps or RLE belong into BitMasks (INPUT.MASK_FORMAT 'bitmask')."
        )
    return [_polygons_of_instance(i, polygons) for i, polygons in enumerate(instances)]


def _polygons_of_instance(index: int, polygons: Any) -> list[np.ndarray]:
    if not isinstance(polygons, (list, tuple)):
        raise TypeError(
            f"Instance {index}: expected a list of polygons [[x0, y0, x1, y1, …], …], got {_describe(polygons)}. "
            "Masks that are bitmaps or RLE belong into BitMasks (INPUT.MASK_FORMAT 'bitmask')."
        )
    return [_polygon(index, polygon) for polygon in polygons]


def _polygon(index: int, polygon: Any) -> np.ndarray:
    if isinstance(polygon, torch.Tensor):
        polygon = polygon.detach().cpu().numpy()
    if isinstance(polygon, (str, bytes, dict)) or np.isscalar(polygon):
        raise TypeError(
            f"Instance {index}: expected a polygon [x0, y0, x1, y1, …], got {_describe(polygon)}. "
            "The polygons of one instance are a list of lists, also where there is only one."
        )
    values = np.asarray(polygon, dtype=np.float64)
    if values.ndim != 1 or values.size % 2 or values.size < 6:
        raise ValueError(
            f"Instance {index}: a polygon is a vector [x0, y0, x1, y1, …] with three corners or more, "
            f"got shape {values.shape}: {values.tolist()}."
        )
    return values


def _describe(value: Any) -> str:
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    if isinstance(value, dict):
        return f"dict with keys {sorted(map(str, value))}"
    return f"{type(value).__name__} {value!r}"[:120]
