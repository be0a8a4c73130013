import contourpy
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectron2.visualization.masks import GenericMask, mask_regions, ring_area, union_of_masks


def disc(height, width, x, y, r):
    rows, columns = np.mgrid[:height, :width] + 0.5
    return (columns - x) ** 2 + (rows - y) ** 2 < r * r


def test_area_of_rings():
    square = np.array([[0, 0], [4, 0], [4, 3], [0, 3]], dtype=float)
    assert ring_area(square) == 12
    assert ring_area(square[::-1]) == -12
    assert ring_area(square + 1e6) == 12


@pytest.mark.parametrize("shape", [(0, 0), (3, 4)])
def test_nothing_has_no_regions(shape):
    assert mask_regions(np.zeros(shape, dtype=bool)) == []


def test_a_rectangle_is_outlined_between_its_pixels():
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[5:12, 8:28] = 1
    ((ring,),) = mask_regions(mask)
    assert ring.min(0).tolist() == [8, 5]
    assert ring.max(0).tolist() == [28, 12]
    # four sides, and the four cut corners of an eighth of a pixel each
    assert len(ring) == 8
    assert abs(ring_area(ring)) == 7 * 20 - 4 / 8


def test_a_mask_that_fills_the_image():
    ((ring,),) = mask_regions(np.ones((6, 9), dtype=bool))
    assert ring.min(0).tolist() == [0, 0]
    assert ring.max(0).tolist() == [9, 6]


def by_contourpy(mask):
    """The same regions, by a library that computes contours of functions."""
    generator = contourpy.contour_generator(
        z=np.pad(mask, 1).astype(float), name="serial", fill_type=contourpy.FillType.OuterOffset
    )
    points, offsets = generator.filled(0.5, 1.5)
    return [np.split(region - 0.5, bounds[1:-1]) for region, bounds in zip(points, offsets, strict=True)]


def without_points_in_sides(ring):
    """A ring that closes itself, as a set of its corners and where each leads."""
    ring = ring[:-1]
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    corners = ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
    return sides_of(corners)


def sides_of(corners):
    return frozenset(map(tuple, np.concatenate([corners, np.roll(corners, -1, axis=0)], axis=1).tolist()))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_regions_are_those_of_contours(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 14, 2)) < rng.uniform(0.2, 0.95)
    found, expected = mask_regions(mask), by_contourpy(mask)
    assert [len(rings) for rings in found] == [len(rings) for rings in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert sides_of(ours[0]) == without_points_in_sides(theirs[0])  # the outline
        assert {sides_of(ring) for ring in ours} == {without_points_in_sides(ring) for ring in theirs}


def test_a_hole_within_an_island_within_a_hole():
    mask = np.ones((11, 13), bool)
    mask[1:10, 1:12] = False
    mask[3:8, 3:10] = True
    mask[4:7, 5:7] = False
    mask[5, 8] = False
    assert [len(rings) for rings in mask_regions(mask)] == [2, 3]


def test_regions_and_holes():
    mask = disc(60, 90, 25, 30, 20) & ~disc(60, 90, 25, 30, 8)
    mask |= disc(60, 90, 70, 30, 10)
    regions = sorted(mask_regions(mask), key=lambda rings: rings[0][:, 0].min())
    assert [len(rings) for rings in regions] == [2, 1]
    outline, hole = regions[0]
    assert ring_area(outline) * ring_area(hole) < 0
    assert abs(ring_area(outline) + ring_area(hole)) == pytest.approx(np.pi * (400 - 64), rel=0.03)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_area_inside_the_rings_is_near_that_of_the_pixels(seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros((40, 50), dtype=bool)
    for x, y, r in rng.uniform([0, 0, 3], [50, 40, 12], (4, 3)):
        mask |= disc(40, 50, x, y, r)
    area = abs(sum(ring_area(ring) for rings in mask_regions(mask) for ring in rings))
    # corners are cut, so each step of the outline costs at most half a pixel
    edges = np.abs(np.diff(np.pad(mask, 1).astype(int), axis=0)).sum()
    assert mask.sum() - edges <= area <= mask.sum() + edges


def test_forms_agree():
    mask = disc(50, 60, 30, 25, 17)
    given_pixels = GenericMask(mask, 50, 60)
    polygons = given_pixels.polygons
    assert not given_pixels.has_holes
    given_polygons = GenericMask(polygons, 50, 60)
    assert (given_polygons.mask != mask).mean() < 0.01
    encoded = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    given_rle = GenericMask(encoded, 50, 60)
    np.testing.assert_array_equal(given_rle.mask, mask)
    assert given_pixels.area() == given_rle.area() == mask.sum()
    uncompressed = {"size": [2, 3], "counts": [1, 2, 3]}
    np.testing.assert_array_equal(GenericMask(uncompressed, 2, 3).mask, [[0, 1, 0], [1, 0, 0]])


@pytest.mark.parametrize("values", [[0, 1, 0], [0, 256, 0], [0.0, 0.5, -0.0], [0, -1, 0]])
def test_pixels_of_any_value_are_inside(values):
    mask = GenericMask(np.array([values]), 1, 3)
    assert mask.mask.tolist() == [[0, 1, 0]] and mask.area() == 1 and mask.bbox().tolist() == [1, 0, 2, 1]


def test_box_of_a_mask():
    mask = np.zeros((20, 30), dtype=bool)
    assert GenericMask(mask, 20, 30).bbox().tolist() == [0, 0, 0, 0]
    mask[5:12, 8:28] = True
    assert GenericMask(mask, 20, 30).bbox().tolist() == [8, 5, 28, 12]
    assert GenericMask([[1.5, 2, 9, 2, 9, 7.25]], 20, 30).bbox().tolist() == [1.5, 2, 9, 7.25]
    assert GenericMask([], 20, 30).bbox().tolist() == [0, 0, 0, 0]


def test_holes():
    ring = disc(60, 60, 30, 30, 25) & ~disc(60, 60, 30, 30, 10)
    assert GenericMask(ring, 60, 60).has_holes
    assert not GenericMask([[1, 2, 9, 2, 9, 7]], 20, 30).has_holes
    assert not GenericMask(np.zeros((4, 4)), 4, 4).has_holes


def test_polygons_of_either_direction_are_filled():
    square = [2.0, 2, 12, 2, 12, 12, 2, 12]
    backwards = np.array(square).reshape(-1, 2)[::-1].ravel().tolist()
    regions = GenericMask([square, backwards], 20, 20).regions
    assert all(ring_area(rings[0]) > 0 for rings in regions)


def test_wrong_masks_are_explained():
    with pytest.raises(ValueError, match=r"shape \(3, 4\)"):
        GenericMask(np.zeros((3, 4)), 4, 3)
    with pytest.raises(ValueError, match="size"):
        GenericMask({"size": [3, 4], "counts": b""}, 4, 3)
    with pytest.raises(TypeError, match="Tensor"):
        GenericMask(torch.zeros(3, 4), 3, 4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_all_forms_of_a_mask_say_the_same(seed, discs):
    rng = np.random.default_rng(seed)
    mask = np.zeros((30, 40), dtype=bool)
    for x, y, r in rng.uniform([0, 0, 1], [40, 30, 12], (discs, 3)):
        mask |= disc(30, 40, x, y, r)
    encoded = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    # a part that is larger than it needs to be
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = (max(rows[0] - 2, 0), max(columns[0] - 1, 0)) if len(rows) else (3, 4)
    part = mask[top : rows[-1] + 3, left : columns[-1] + 2] if len(rows) else np.zeros((2, 0), bool)
    pixels = GenericMask(mask, 30, 40)
    for other in (
        GenericMask(encoded, 30, 40),
        GenericMask.from_part(part, (left, top), 30, 40),
        GenericMask.without_margins(mask),
    ):
        assert other.area() == pixels.area() == mask.sum()
        assert other.bbox().tolist() == pixels.bbox().tolist() == [*mask_bounds(mask)]
        assert other.rle == pixels.rle == {"size": [30, 40], "counts": encoded["counts"].decode()}
        assert other.has_holes == pixels.has_holes
        assert len(other.polygons) == len(pixels.polygons)
        for mine, ring in zip(other.polygons, pixels.polygons, strict=True):
            np.testing.assert_allclose(mine, ring)
        np.testing.assert_array_equal(other.mask, mask)
        assert other.mask is other.mask and other.mask.dtype == np.uint8


def mask_bounds(mask):
    ys, xs = mask.nonzero()
    return (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(xs) else (0, 0, 0, 0)


def test_the_rest_of_the_image_is_not_kept():
    mask = np.zeros((200, 300), dtype=bool)
    mask[50:60, 70:75] = True
    encoded = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    for one in (GenericMask(encoded, 200, 300), GenericMask.without_margins(mask)):
        part, corner_xy = one._part
        assert part.shape == (10, 5) and corner_xy == (70, 50)
        assert part.base is None or part.base.size == 50
        assert one.area() == 50 and one.regions and one.bbox().tolist() == [70, 50, 75, 60]
        assert one._mask is None


def test_pixels_of_any_object():
    one, other = np.zeros((6, 8), dtype=bool), np.zeros((6, 8), dtype=bool)
    one[1:3, 2:5], other[2:6, 4:8] = True, True
    assert not union_of_masks([], 6, 8).any()
    found = union_of_masks([GenericMask(one, 6, 8), GenericMask.without_margins(other)], 6, 8)
    np.testing.assert_array_equal(found, one | other)
    square = GenericMask([[1, 1, 4, 1, 4, 4, 1, 4]], 6, 8)
    np.testing.assert_array_equal(union_of_masks([square], 6, 8), square.mask != 0)
