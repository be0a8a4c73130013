"""Masks of single objects in any representation, and the outlines of masks.

A ring is an array (points, 2) of `(x, y)` in pixels, continuous coordinates: the pixel in column `c` covers
`c` to `c + 1`. Rings of filled regions and rings of holes run in opposite directions.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from detectron2.layers.run_lengths import changes, crop_to_content, decode_part, encode_changes
from detectron2.structures import polygons_to_bitmask

__all__ = ["GenericMask", "mask_regions", "ring_area", "union_of_masks"]


def ring_area(ring: np.ndarray) -> float:
    """Area of a closed ring in square pixels by the shoelace formula, with a sign for its direction.

    Args:
        ring: corners `(points, 2)`.

    Returns:
        The area, positive for rings that run clockwise on the screen.

    Example:
        >>> from detectron2.visualization.masks import ring_area
        >>> square = np.array([[0, 0], [4, 0], [4, 4], [0, 4]])
        >>> ring_area(square), ring_area(square[::-1])
        (16.0, -16.0)
    """
    x, y = ring[:, 0] - ring[:1, 0], ring[:, 1] - ring[:1, 1]
    return 0.5 * float(x @ np.roll(y, -1) - y @ np.roll(x, -1))


def mask_regions(mask: np.ndarray) -> list[list[np.ndarray]]:
    """Outlines of the connected regions of a mask, between its pixels and with the corners cut.

    Args:
        mask: binary array (height, width).

    Returns:
        for each region the rings of its outline and of its holes, the outline first.

    Example:
        >>> from detectron2.visualization.masks import mask_regions
        >>> mask = np.zeros((10, 12), bool)
        >>> mask[1:9, 1:9] = True
        >>> mask[3:5, 3:5] = False
        >>> regions = mask_regions(mask)
        >>> len(regions), len(regions[0])  # one region with an outline and a hole
        (1, 2)
    """
    crop, corner_xy = crop_to_content(np.asarray(mask))
    return _outlines(crop, corner_xy)


def _outlines(crop: np.ndarray, corner_xy: tuple[int, int]) -> list[list[np.ndarray]]:
    """The regions of a mask that is given by a part of it, and where in the image that begins."""
    height, width = crop.shape[0] + 2, crop.shape[1] + 2
    framed = np.zeros((height, width), np.bool_)
    np.not_equal(crop, 0, out=framed[1:-1, 1:-1])
    bits = framed.view(np.uint8).reshape(-1)
    pixel, side = _sides(bits, width)
    if len(pixel) == 0:
        return []
    following, next_side = _followers(bits, width, pixel, side)
    # Between the middles of two sides the outline takes half a step along each.
    step = _STEP[side] + _STEP[next_side]
    turns = np.empty(len(pixel), bool)
    turns[following] = step[following] != step
    # Of the four pixels about the first step of a ring, only the last is inside if the ring surrounds a region.
    first_steps = (pixel + np.array([-width, 0, -1, -width - 1])[side]).argsort(kind="stable")
    places = _rings(following.tolist(), first_steps.tolist())
    order = np.concatenate(places)
    counts = np.add.reduceat(turns[order], np.cumsum([0, *map(len, places[:-1])]), dtype=np.int64)
    order = order[turns[order]]
    row, column = np.divmod(pixel[order], width)
    corners = np.stack([column, row], axis=1) + _MIDDLE[side[order]] + np.array(corner_xy) - 1
    rings = np.split(corners, np.cumsum(counts)[:-1])
    return _group(rings, places, pixel, side)


# Sides of pixels inside a mask, beyond which it ends: upper, right, lower, left. A walk along them has the mask on its
# right hand: it goes to the right, down, to the left, up.
_LEFT = 3
_MIDDLE = np.array([[0.5, 0], [1, 0.5], [0.5, 1], [0, 0.5]])  # from the corner of the pixel
_STEP = np.array([1, 4, -1, -4])  # a number for each direction, of which no two pairs of neighbours have the same sum


def _sides(bits: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel and side of all sides in a mask, whose rows of `width` bits follow one another between margins of zeros."""
    upper, left = (np.flatnonzero(bits[n:] != bits[:-n]) for n in (width, 1))
    enters_down, enters_right = bits[upper] == 0, bits[left] == 0
    parts = upper[enters_down] + width, left[~enters_right], upper[~enters_down], left[enters_right] + 1
    return np.concatenate(parts), np.repeat(np.arange(4), [len(part) for part in parts])


def _followers(bits: np.ndarray, width: int, pixel: np.ndarray, side: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each side the index of the one behind it, and what side of its pixel that is."""
    ahead, aside = np.array([1, width, -1, -width])[side], np.array([-width, 1, width, -1])[side]
    is_blocked = bits[pixel + ahead] != 0
    is_corner = is_blocked & (bits[pixel + ahead + aside] != 0)
    next_pixel = pixel + ahead * is_blocked + aside * is_corner
    next_side = (side + 1 - is_blocked - is_corner) % 4
    key = 4 * pixel + side
    order = key.argsort(kind="stable")  # fast for the four parts, each of which is sorted
    return order[key[order].searchsorted(4 * next_pixel + next_side)], next_side


def _rings(following: list[int], order: list[int]) -> list[np.ndarray]:
    """Closed walks, the indices of each, that begin in an order."""
    is_new, places, missing = np.ones(len(following), bool), [], len(following)
    for start in order:
        if missing == 0:
            break
        if not is_new[start]:
            continue
        place, at = [start], following[start]
        while at != start:
            place.append(at)
            at = following[at]
        places.append(np.array(place))
        is_new[places[-1]] = False
        missing -= len(place)
    return places


def _group(
    rings: list[np.ndarray], places: list[np.ndarray], pixel: np.ndarray, side: np.ndarray
) -> list[list[np.ndarray]]:
    """Put holes behind the outline of their region."""
    starts = [place[0] for place in places]
    if (side[starts] == _LEFT).all():
        return [[ring] for ring in rings]
    regions: list[list[np.ndarray]] = []
    region_of: list[int] = []
    number = np.empty(len(pixel), np.int64)  # of the ring of each side
    for i, place in enumerate(places):
        number[place] = i
    lefts = np.flatnonzero(side == _LEFT)
    lefts = lefts[pixel[lefts].argsort()]
    for ring, start in zip(rings, starts, strict=True):
        if side[start] == _LEFT:
            region_of.append(len(regions))
            regions.append([ring])
        else:  # to the left of the pixel above the hole lies, in one piece, more of its region, up to an earlier ring
            begins = lefts[pixel[lefts].searchsorted(pixel[start], side="right") - 1]
            region_of.append(region_of[number[begins]])
            regions[region_of[-1]].append(ring)
    return regions


class GenericMask:
    """The mask of one object, given as RLE, polygons or pixels; the other forms are made when they are asked for.

    Of RLE only the part of the image with the object is kept, so that many masks of a large image fit into memory; ask
    for `mask` only where the whole image is needed.

    Args:
        mask_or_polygons: COCO RLE (a dictionary), a list of polygons `[x0, y0, x1, y1, …]`, or a binary array
            (height, width).
        height: of the image in pixels.
        width: of the image in pixels.

    Example:
        >>> from detectron2.visualization import GenericMask
        >>> mask = GenericMask([[10, 20, 50, 20, 50, 60, 10, 60]], height=100, width=120)
        >>> mask.area(), mask.bbox().tolist()
        (1600, [10.0, 20.0, 50.0, 60.0])
        >>> mask.mask.shape, mask.has_holes
        ((100, 120), False)
        >>> mask.rle["size"]
        [100, 120]
    """

    def __init__(self, mask_or_polygons: Any, height: int, width: int):
        self._mask: np.ndarray | None = None
        self._part: tuple[np.ndarray, tuple[int, int]] | None = None  # uint8, and column and row of its first pixel
        self._polygons: list[np.ndarray] | None = None
        self._has_holes: bool | None = None
        self._regions: list[list[np.ndarray]] | None = None
        self.height = height
        self.width = width
        given = mask_or_polygons
        if isinstance(given, dict):
            if tuple(given["size"]) != (height, width):
                raise ValueError(f"The RLE has size {given['size']}, the image (height, width) {(height, width)}.")
            part, corner_xy = decode_part(given)
            self._part = part.view(np.uint8), corner_xy
        elif isinstance(given, list):
            self._polygons = [np.asarray(polygon, dtype=np.float64).reshape(-1) for polygon in given]
        elif isinstance(given, np.ndarray):
            if given.shape != (height, width):
                raise ValueError(f"The mask has shape {given.shape}, the image (height, width) {(height, width)}.")
            self._mask = (given if given.dtype == np.bool_ else given != 0).view(np.uint8)
        else:
            raise TypeError(
                f"A mask must be RLE (dict), polygons (list) or a numpy array, got {type(given).__name__}; "
                "convert tensors with .cpu().numpy()."
            )

    @classmethod
    def from_part(cls, part: np.ndarray, corner_xy: tuple[int, int], height: int, width: int) -> "GenericMask":
        """A mask that is empty but for a part of the image, a binary array (rows, columns) that begins at a corner."""
        mask = cls([], height, width)
        mask._polygons = None
        content, (x, y) = crop_to_content(part)
        bits = content if part.dtype == np.bool_ else content != 0
        mask._part = bits.view(np.uint8), (corner_xy[0] + x, corner_xy[1] + y)
        return mask

    @classmethod
    def without_margins(cls, mask: np.ndarray) -> "GenericMask":
        """The mask of a binary array (height, width), of which only the part with the object is kept."""
        kept = cls.from_part(mask, (0, 0), *mask.shape)
        part, corner_xy = kept._content()
        kept._part = part.copy(), corner_xy
        return kept

    @property
    def mask(self) -> np.ndarray:
        """Binary uint8 array (height, width)."""
        if self._mask is None and self._part is not None:
            self._mask = np.zeros((self.height, self.width), np.uint8)
            self.paint(self._mask, 1)
        elif self._mask is None:
            self._mask = self.polygons_to_mask(self._polygons or [])
        return self._mask

    def _content(self) -> tuple[np.ndarray, tuple[int, int]]:
        """The smallest part of the image with all pixels of the object, and column and row where it begins."""
        if self._part is None:
            self._part = crop_to_content(self.mask)  # a view
        return self._part

    def paint(self, canvas: np.ndarray, value: Any) -> None:
        """Set the pixels of the object in an array (height, width, …)."""
        part, (x, y) = self._content()
        canvas[y : y + part.shape[0], x : x + part.shape[1]][part != 0] = value

    @property
    def rle(self) -> dict[str, Any]:
        """COCO's compressed run lengths."""
        part, corner_xy = self._content()
        return encode_changes([changes(part != 0, corner_xy, self.height)], self.height, self.width)

    @property
    def polygons(self) -> list[np.ndarray]:
        """Flat arrays `[x0, y0, x1, y1, …]`, one for the outline of each region; holes are not among them."""
        if self._polygons is None:
            self._polygons = [rings[0].reshape(-1) for rings in self.regions]
        return self._polygons

    @property
    def has_holes(self) -> bool:
        """Whether the regions have holes, which polygons cannot express."""
        if self._has_holes is None:
            # a mask that came as polygons has none
            came_as_pixels = self._mask is not None or self._part is not None
            self._has_holes = came_as_pixels and any(len(rings) > 1 for rings in self.regions)
        return self._has_holes

    @property
    def regions(self) -> list[list[np.ndarray]]:
        """Rings of each region, ready to fill: outlines in one direction, holes in the other."""
        if self._regions is None:
            if self._polygons is not None and self._mask is None and self._part is None:
                rings = [polygon.reshape(-1, 2) for polygon in self._polygons]
                self._regions = [[ring if ring_area(ring) >= 0 else ring[::-1]] for ring in rings]
            else:
                part, corner_xy = self._content()
                self._regions = _outlines(part, corner_xy)
        return self._regions

    def mask_to_polygons(self, mask: np.ndarray) -> tuple[list[np.ndarray], bool]:
        """Polygons around the regions of a binary array (height, width), and whether there are holes."""
        regions = mask_regions(np.asarray(mask))
        return [rings[0].reshape(-1) for rings in regions], any(len(rings) > 1 for rings in regions)

    def polygons_to_mask(self, polygons: list[np.ndarray]) -> np.ndarray:
        """Rasterise the union of polygons into a uint8 array (height, width)."""
        flat = [np.asarray(polygon, dtype=np.float64).reshape(-1) for polygon in polygons]
        flat = [polygon for polygon in flat if len(polygon) >= 6]
        return polygons_to_bitmask(flat, self.height, self.width).view(np.uint8)

    def area(self) -> int:
        """Number of pixels."""
        return int(np.count_nonzero(self._content()[0]))

    def bbox(self) -> np.ndarray:
        """`(x1, y1, x2, y2)` around the mask in pixels; zeros when it is empty."""
        if self._mask is None and self._polygons and self._part is None:
            points = np.concatenate(self._polygons).reshape(-1, 2)
            return np.concatenate([points.min(0), points.max(0)])
        part, (left, top) = self._content()
        if part.size == 0:
            return np.zeros(4)
        return np.array([left, top, left + part.shape[1], top + part.shape[0]], dtype=float)


def union_of_masks(masks: Iterable[GenericMask], height: int, width: int) -> np.ndarray:
    """Pixels that belong to any object; no more than one whole mask is in memory at a time.

    Args:
        masks: the masks.
        height: height of the image in pixels.
        width: width of the image in pixels.

    Returns:
        bool `(height, width)`.

    Example:
        >>> from detectron2.visualization.masks import GenericMask, union_of_masks
        >>> masks = [GenericMask([[x, 0, x + 10, 0, x + 10, 10, x, 10]], 20, 40) for x in (0, 5)]
        >>> int(union_of_masks(masks, 20, 40).sum())
        150
    """
    covered = np.zeros((height, width), np.bool_)
    for mask in masks:
        mask.paint(covered, True)
    return covered
