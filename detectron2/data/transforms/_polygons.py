"""Clipping of polygons by an axis-aligned window, without a geometry library.

A polygon is a `(P, 2)` array of `P` corners `(x, y)`, continuous coordinates, not closed (the first corner is not
repeated).
"""

import numpy as np


def clip_polygon(polygon: np.ndarray, x0: float, y0: float, x1: float, y1: float) -> list[np.ndarray]:
    """Cut out the part of a polygon that lies in a window.

    Args:
        polygon: `(P, 2)` corners `(x, y)`.
        x0: left edge of the window.
        y0: top edge of the window.
        x1: right edge of the window.
        y1: bottom edge of the window.

    Returns:
        The parts, each a simple polygon if the input is one; an empty list when nothing is left.
    """
    polygon = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
    if len(polygon) < 3:
        return []
    parts = [polygon]
    for axis, bound, sign in ((0, x0, 1), (1, y0, 1), (0, x1, -1), (1, y1, -1)):
        parts = [piece for part in parts for piece in _clip_half_plane(part, axis, bound, sign)]
    return [part for part in parts if _has_area(part)]


def _has_area(polygon: np.ndarray) -> bool:
    """Whether the corners do not all lie on one line.

    The signed area would not do: it is zero for a figure of eight.
    """
    x, y = (polygon[1:] - polygon[0]).T
    return bool(np.abs(x[:-1] * y[1:] - y[:-1] * x[1:]).sum() > 1e-12)


def _clip_half_plane(polygon: np.ndarray, axis: int, bound: float, sign: int) -> list[np.ndarray]:
    """The parts of a polygon where `sign * (coordinate - bound) >= 0`."""
    depth = sign * (polygon[:, axis] - bound)
    inside = depth > 0
    if inside.all():
        return [polygon]
    if not inside.any():
        return []
    # Begin outside, so that every run of inside corners is in one piece.
    start = int(np.argmin(inside))
    polygon, depth, inside = (np.roll(a, -start, axis=0) for a in (polygon, depth, inside))
    following = np.roll(np.arange(len(polygon)), -1)
    crossing = np.flatnonzero(inside != inside[following])  # edge i -> i + 1 crosses the line
    after = following[crossing]
    part = (depth[crossing] / (depth[crossing] - depth[after]))[:, None]
    points = polygon[crossing] + part * (polygon[after] - polygon[crossing])
    points[:, axis] = bound
    # Crossings come in turn: into the half plane, out of it, into it ...
    chains = [
        np.concatenate([points[k : k + 1], polygon[crossing[k] + 1 : crossing[k + 1] + 1], points[k + 1 : k + 2]])
        for k in range(0, len(crossing), 2)
    ]
    return _join_chains(chains, points[:, 1 - axis])


def _join_chains(chains: list[np.ndarray], position: np.ndarray) -> list[np.ndarray]:
    """Close chains `k` (which run from crossing `2k` to crossing `2k + 1`) along the line that cut them.

    Ordered along the line, the crossings of a simple polygon pair up: between the first and the second the line runs
    inside the polygon, between the second and the third outside, and so on.
    """
    order = np.argsort(position, kind="stable")
    partner = np.empty_like(order)
    partner[order[0::2]], partner[order[1::2]] = order[1::2], order[0::2]
    leads_to_entry = partner[1::2] % 2 == 0
    if not leads_to_entry.all():  # the polygon crosses itself: join in the order of its outline
        return [np.concatenate(chains)]
    following = (partner[1::2] // 2).tolist()
    rings, seen = [], set()
    for first in range(len(chains)):
        ring, k = [], first
        while k not in seen:
            seen.add(k)
            ring.append(chains[k])
            k = following[k]
        if ring:
            rings.append(np.concatenate(ring))
    return rings
