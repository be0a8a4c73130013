"""Checks of segmentations: polygons and run lengths.

`M` annotations, `P` polygons. Coordinates are pixels.
"""

import reprlib
from itertools import chain
from typing import Any

import numpy as np

from detectron2.data.checks.findings import AnnotationTable, Finding, Level, evenly_spaced
from detectron2.data.formats.reading import is_polygon
from detectron2.data.formats.run_lengths import is_compressed, run_length_totals

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
    flaw = "no 'segmentation', while the model learns masks (MODEL.MASK_ON, or Mask2Former)"
    cure = "Add masks, or train a model of boxes alone: of R-CNN, with MODEL.MASK_ON False."
    findings = table.findings("mask-missing", "error", missing, flaw, lambda i: "none", cure)
    findings += malformed_masks(table)
    if bitmaps:
        images = len(np.unique(table.image_of[bitmaps]))
        flaw = "a mask that is not a polygon, while INPUT.MASK_FORMAT is 'polygon'"
        cure = (
            f"All masks of {'this image' if images == 1 else f'these {images} images'} are given as bitmaps, those of "
            "the others as polygons. Set INPUT.MASK_FORMAT to 'bitmask' for bitmaps everywhere."
        )
        shown = {
            i: "run lengths" if isinstance(table.annotations[i]["segmentation"], dict) else "a bitmap" for i in bitmaps
        }
        findings += table.findings("mask-format", "warning", bitmaps, flaw, shown.__getitem__, cure)
    return findings


def malformed_masks(table: AnnotationTable) -> list[Finding]:
    """Find polygons that are none, and masks of another size than the image or of an unknown kind."""
    flaws: dict[str, dict[int, str]] = {"polygon-points": {}, "mask-kind": {}, "mask-size": {}}
    compressed: list[int] = []
    for i, annotation in enumerate(table.annotations):
        mask = annotation.get("segmentation")
        if isinstance(mask, list):
            if any(_as_polygon(p) is None for p in mask):
                flaws["polygon-points"][i] = str(mask)[:80]
        elif mask is not None:
            size_hw = _bitmap_size(mask)
            record = table.dicts[int(table.image_of[i])]
            if size_hw is None:
                flaws["mask-kind"][i] = reprlib.repr(mask)
            elif None not in (said := (record.get("height"), record.get("width"))) and size_hw != said:
                flaws["mask-size"][i] = f"(height, width) {size_hw}, where the image has {said}"
            elif isinstance(mask, dict):
                compressed.append(i)
    flaws["mask-size"].update(_wrong_totals(table, compressed))
    findings = []
    for (kind, found), (flaw, cure) in zip(flaws.items(), _FLAWS, strict=True):
        findings += table.findings(kind, "error", list(found), flaw, found.__getitem__, cure)
    return findings


_FLAWS = (
    (
        "a polygon of less than three points or with an odd count of numbers",
        "A polygon is [x1, y1, x2, y2, x3, y3, ...], and 'segmentation' is a list of polygons.",
    ),
    (
        "a 'segmentation' of unknown kind",
        "It can be a list of polygons, run lengths (a dict with 'size' and 'counts') or an array (height, width).",
    ),
    ("a mask that does not fit its image", "Masks have the size of the image."),
)


def _bitmap_size(mask: Any) -> tuple[int, int] | None:
    """Return height and width of run lengths or an array; None for anything else."""
    if isinstance(mask, np.ndarray) and mask.ndim == 2:
        return mask.shape
    if not isinstance(mask, dict) or not isinstance(mask.get("counts"), (list, tuple, str, bytes)):
        return None
    size = mask.get("size")
    if not isinstance(size, (list, tuple)) or len(size) != 2 or not all(isinstance(s, (int, np.integer)) for s in size):
        return None
    return int(size[0]), int(size[1])


def _wrong_totals(table: AnnotationTable, having_runs: list[int]) -> dict[int, str]:
    """Return which of these run lengths do not cover their mask, and what they cover."""
    masks = [table.annotations[i]["segmentation"] for i in having_runs]
    texts = [m["counts"].decode("latin1") if isinstance(m["counts"], bytes) else m["counts"] for m in masks]
    packed = {n: text for n, text in enumerate(texts) if isinstance(text, str) and is_compressed(text)}
    totals = dict(zip(packed, run_length_totals(list(packed.values())).tolist(), strict=True))
    wrong = {}
    for n, (i, mask) in enumerate(zip(having_runs, masks, strict=True)):
        total = totals.get(n, -1) if isinstance(texts[n], str) else _sum(texts[n])
        if total != mask["size"][0] * mask["size"][1]:
            height, width = mask["size"]
            wrong[i] = f"run lengths of {total if total >= 0 else 'no'} pixels, for {width} x {height} (width x height)"
    return wrong


def _sum(counts: Any) -> int:
    return sum(counts) if all(isinstance(c, (int, np.integer)) for c in counts) else -1


def _as_polygon(polygon: Any) -> Any:
    """Return a polygon as one sequence of numbers, also where it is given as pairs or an array; None if it is none."""
    if isinstance(polygon, (list, tuple)) and polygon and not isinstance(polygon[0], (int, float)):
        try:
            polygon = np.array(polygon, dtype=np.float64)
        except (TypeError, ValueError):  # reported for what it holds
            return polygon if is_polygon(polygon) else None
    if isinstance(polygon, np.ndarray):
        if polygon.ndim == 2 and polygon.shape[1] != 2:
            return None
        polygon = polygon.ravel()
    is_one = isinstance(polygon, (list, tuple, np.ndarray)) and len(polygon) >= 6 and len(polygon) % 2 == 0
    return polygon if is_one else None


# Shapes


def flat_polygons(table: AnnotationTable) -> tuple[list[Any], np.ndarray]:
    """Return the `P` polygons of three points or more, and `int64[P]`: the annotation of each."""
    polygons, owners = [], []
    for i, annotation in enumerate(table.annotations):
        mask = annotation.get("segmentation")
        if isinstance(mask, list):
            for polygon in map(_as_polygon, mask):
                if polygon is not None:
                    polygons.append(polygon)
                    owners.append(i)
    return polygons, np.array(owners, dtype=np.int64)


def polygon_areas(polygons: list[Any], *, signed: bool = False) -> np.ndarray:
    """Return `float64[P]`, areas of `[x1, y1, ..., xn, yn]` in square pixels by the shoelace formula.

    Not finite if a coordinate is not. With `signed`, the sign tells which way round the outline runs.
    """
    areas = [np.zeros(0)]
    for start in range(0, len(polygons), _CHUNK):  # all coordinates of a large data set at once would take gigabytes
        areas.append(_signed_areas(polygons[start : start + _CHUNK]))
    return np.concatenate(areas) if signed else np.abs(np.concatenate(areas))


def _signed_areas(polygons: list[Any]) -> np.ndarray:
    counts = np.fromiter((len(p) // 2 for p in polygons), dtype=np.int64, count=len(polygons))
    try:
        flat = np.fromiter(chain.from_iterable(polygons), dtype=np.float64, count=2 * int(counts.sum()))
    except (TypeError, ValueError):  # other things than numbers in one of them
        return np.array([np.nan]) if len(polygons) == 1 else np.concatenate([_signed_areas([p]) for p in polygons])
    points = flat.reshape(-1, 2)
    first = np.cumsum(counts) - counts
    # Relative to the first point: products of large coordinates would cost digits.
    following = np.arange(1, len(points) + 1)
    following[first + counts - 1] = first
    with np.errstate(invalid="ignore"):  # infinite coordinates
        x, y = (points - np.repeat(points[first], counts, axis=0)).T
        return np.add.reduceat(x * y[following] - y * x[following], first) / 2


def flat_polygon_findings(table: AnnotationTable) -> list[Finding]:
    """Find polygons without area, and polygons of something else than finite numbers."""
    polygons, owners = flat_polygons(table)
    areas = polygon_areas(polygons)
    findings = []
    flaws: tuple[tuple[str, Level, np.ndarray, str, str], ...] = (
        ("polygon-numbers", "error", ~np.isfinite(areas), "of other than finite numbers", "Correct it or take it out."),
        ("polygon-area", "warning", areas <= _LEAST_AREA, "without area", "It covers no pixel: take it out."),
    )
    for kind, level, which, text, cure in flaws:
        found = np.flatnonzero(which)
        indices, first = np.unique(owners[found], return_index=True)  # one case for each annotation
        shown = {int(i): str(list(polygons[found[f]]))[:80] for i, f in zip(indices, first, strict=True)}
        findings += table.findings(kind, level, indices, f"a polygon {text}", shown.__getitem__, cure)
    return findings


def self_intersections(table: AnnotationTable) -> list[Finding]:
    """Find polygons whose outline crosses itself, among a sample of them: an outline has many pairs of sides."""
    polygons, owners = flat_polygons(table)
    candidates = np.array(evenly_spaced(len(polygons), _CROSSINGS_TO_EXAMINE), dtype=np.int64)
    candidates = candidates[np.isfinite(polygon_areas([polygons[i] for i in candidates.tolist()]))]
    crossing = [i for i in candidates.tolist() if len(polygons[i]) <= 2 * _MOST_POINTS and _crosses(polygons[i])]
    flaw = f"a polygon that crosses itself, among {len(candidates)} examined polygons"
    cure = "How much of it is filled depends on the program."
    points = {int(owners[i]): len(polygons[i]) // 2 for i in crossing}
    return table.findings(
        "polygon-crossing", "note", np.unique(owners[crossing]), flaw, lambda i: f"{points[i]} points", cure
    )


def _crosses(polygon: Any) -> bool:
    """Whether two sides that are not neighbours cross properly."""
    start = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
    start = start[(start != np.roll(start, 1, axis=0)).any(axis=1)]  # the same point twice is not a side
    n = len(start)
    if n < 4:
        return False
    end = np.roll(start, -1, axis=0)
    i, j = np.triu_indices(n, 2)

    def side(a: np.ndarray, b: np.ndarray, p: np.ndarray) -> np.ndarray:
        return (b[:, 0] - a[:, 0]) * (p[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (p[:, 0] - a[:, 0])

    apart = side(start[i], end[i], start[j]) * side(start[i], end[i], end[j]) < 0
    return bool((apart & (side(start[j], end[j], start[i]) * side(start[j], end[j], end[i]) < 0)).any())
