"""Checks of segmentations: polygons and run lengths.

``M`` annotations, ``P`` polygons. Coordinates are pixels.
"""

from itertools import chain
from typing import Any

import numpy as np

from detectron2.data._findings import MAX_CASES, AnnotationTable, Finding, quantity
from detectron2.data.datasets._reading import is_polygon

__all__ = [
    "flat_polygon_findings",
    "flat_polygons",
    "malformed_masks",
    "mask_findings",
    "polygon_areas",
    "self_intersections",
]

_CHUNK = 50_000
_LEAST_AREA = 1e-6
_CROSSINGS_TO_EXAMINE = 2_000
_MOST_POINTS = 200


def mask_findings(table: AnnotationTable, mask_format: str) -> list[Finding]:
    """Check that every annotation has a mask, and whether all are of the wanted format."""
    missing, bitmaps = [], []
    for i, annotation in enumerate(table.annotations):
        mask = annotation.get("segmentation")
        if mask is None or (isinstance(mask, list) and not mask):
            missing.append(i)
        elif not isinstance(mask, list) and mask_format == "polygon":
            bitmaps.append(i)
    findings = []
    if missing:
        indices = np.array(missing)
        what = f"{quantity(len(indices))} no 'segmentation', while MODEL.MASK_ON is True"
        cure = "Add masks, or set MODEL.MASK_ON to False."
        findings.append(table.finding("mask-missing", "error", indices, what, lambda i: "none", cure))
    findings += malformed_masks(table)
    if bitmaps:
        indices = np.array(bitmaps)
        images = len(np.unique(table.image_of[indices]))
        what = f"{quantity(len(indices))} a mask that is no polygon, while INPUT.MASK_FORMAT is 'polygon'"
        cure = (
            f"All masks of {'this image' if images == 1 else f'these {images} images'} are given as bitmaps, those of "
            "the others as polygons. Set INPUT.MASK_FORMAT to 'bitmask' for bitmaps everywhere."
        )
        shown = {
            i: "run lengths" if isinstance(table.annotations[i]["segmentation"], dict) else "a bitmap" for i in bitmaps
        }
        findings.append(table.finding("mask-format", "warning", indices, what, lambda i: shown[i], cure))
    return findings


def malformed_masks(table: AnnotationTable) -> list[Finding]:
    """Find polygons that are none."""
    found = [
        i
        for i, a in enumerate(table.annotations)
        if isinstance(a.get("segmentation"), list)
        and not all(is_polygon(p) or _is_polygon_array(p) for p in a["segmentation"])
    ]
    if not found:
        return []
    indices = np.array(found)
    what = f"{quantity(len(indices))} a polygon of less than three points or with an odd count of numbers"
    cure = "A polygon is [x1, y1, x2, y2, x3, y3, ...], and 'segmentation' is a list of polygons."
    shown = {i: str(table.annotations[i]["segmentation"])[:80] for i in found[:MAX_CASES]}
    return [table.finding("polygon-points", "error", indices, what, lambda i: shown[i], cure)]


def _mask_kind(table: AnnotationTable, index: int) -> str:
    return "run lengths" if isinstance(table.annotations[index]["segmentation"], dict) else "a bitmap"


def _is_polygon_array(polygon: Any) -> bool:
    return isinstance(polygon, (np.ndarray, tuple)) and len(polygon) >= 6 and len(polygon) % 2 == 0


# ---------------------------------------------------------------------------------------------------------------------
# Shapes
# ---------------------------------------------------------------------------------------------------------------------


def flat_polygons(table: AnnotationTable) -> tuple[list[Any], np.ndarray]:
    """-> the ``P`` polygons of three points or more, and ``int64[P]``: the annotation of each."""
    polygons, owners = [], []
    for i, annotation in enumerate(table.annotations):
        mask = annotation.get("segmentation")
        if isinstance(mask, list):
            for polygon in mask:
                if is_polygon(polygon) or _is_polygon_array(polygon):
                    polygons.append(polygon)
                    owners.append(i)
    return polygons, np.array(owners, dtype=np.int64)


def polygon_areas(polygons: list[Any]) -> np.ndarray:
    """-> ``float64[P]``, areas in square pixels by the shoelace formula; NaN if a coordinate is no finite number."""
    areas = [np.zeros(0)]
    for start in range(0, len(polygons), _CHUNK):  # all coordinates of a large data set at once would take gigabytes
        areas.append(_areas(polygons[start : start + _CHUNK]))
    return np.concatenate(areas)


def _areas(polygons: list[Any]) -> np.ndarray:
    counts = np.fromiter((len(p) // 2 for p in polygons), dtype=np.int64, count=len(polygons))
    flat = np.fromiter(chain.from_iterable(polygons), dtype=np.float64, count=2 * int(counts.sum()))
    points = flat.reshape(-1, 2)
    first = np.cumsum(counts) - counts
    # Relative to the first point: products of large coordinates would cost digits.
    x, y = (points - np.repeat(points[first], counts, axis=0)).T
    following = np.arange(1, len(points) + 1)
    following[first + counts - 1] = first
    return np.abs(np.add.reduceat(x * y[following] - y * x[following], first)) / 2


def flat_polygon_findings(table: AnnotationTable) -> list[Finding]:
    """Find polygons without area."""
    polygons, owners = flat_polygons(table)
    areas = polygon_areas(polygons)
    flat = np.flatnonzero(~(areas > _LEAST_AREA))
    if not len(flat):
        return []
    # One case for each annotation
    indices, first = np.unique(owners[flat], return_index=True)
    shown = {int(i): str(list(polygons[flat[f]]))[:80] for i, f in zip(indices, first, strict=True)}
    what = f"{quantity(len(indices))} a polygon without area"
    cure = "It covers no pixel: take it out."
    return [table.finding("polygon-area", "warning", indices, what, lambda i: shown[i], cure)]


def self_intersections(table: AnnotationTable) -> list[Finding]:
    """Find polygons whose outline crosses itself, among a sample of them: an outline has many pairs of sides."""
    polygons, owners = flat_polygons(table)
    candidates = np.arange(len(polygons))
    if len(candidates) > _CROSSINGS_TO_EXAMINE:
        candidates = np.linspace(0, len(polygons) - 1, _CROSSINGS_TO_EXAMINE).round().astype(np.int64)
    crossing = [i for i in candidates.tolist() if len(polygons[i]) <= 2 * _MOST_POINTS and _crosses(polygons[i])]
    if not crossing:
        return []
    indices = np.unique(owners[crossing])
    what = f"{quantity(len(indices))} a polygon that crosses itself, among {len(candidates)} examined polygons"
    cure = "How much of it is filled depends on the program."
    points = {int(owners[i]): len(polygons[i]) // 2 for i in crossing}
    return [table.finding("polygon-crossing", "note", indices, what, lambda i: f"{points[i]} points", cure)]


def _crosses(polygon: Any) -> bool:
    """Whether two sides that are not neighbours cross properly."""
    start = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
    start = start[(start != np.roll(start, 1, axis=0)).any(axis=1)]  # the same point twice is no side
    n = len(start)
    if n < 4:
        return False
    end = np.roll(start, -1, axis=0)
    i, j = np.triu_indices(n, 2)

    def side(a: np.ndarray, b: np.ndarray, p: np.ndarray) -> np.ndarray:
        return (b[:, 0] - a[:, 0]) * (p[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (p[:, 0] - a[:, 0])

    apart = side(start[i], end[i], start[j]) * side(start[i], end[i], end[j]) < 0
    return bool((apart & (side(start[j], end[j], start[i]) * side(start[j], end[j], end[i]) < 0)).any())
