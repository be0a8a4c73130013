"""Run lengths are counted without decoding them."""

import numpy as np
import pytest
from pycocotools import mask as mask_util

from detectron2.data.formats.run_lengths import (
    decode_mask,
    encode_mask,
    is_compressed,
    mask_area,
    run_length_totals,
    run_lengths,
)
from detectron2.structures import polygons_to_bitmask


def test_totals():
    rng = np.random.default_rng(0)
    masks = [rng.random(rng.integers(1, 40, 2)) < rng.random() for _ in range(200)] + [np.zeros((3000, 2000), bool)]
    texts = [mask_util.encode(np.asfortranarray(m, np.uint8))["counts"].decode() for m in masks]
    assert all(map(is_compressed, texts)) and not is_compressed(b"53")
    assert run_length_totals([]).tolist() == []
    assert run_length_totals(texts).tolist() == [m.size for m in masks]
    assert run_length_totals(texts * 200).tolist() == [m.size for m in masks] * 200  # in several chunks


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32])
def test_encode(dtype):
    mask = np.zeros((3, 4), dtype)
    mask[1, 1:3] = 1
    encoded = encode_mask(mask)
    assert encoded == run_lengths({"size": [3, 4], "counts": [4, 1, 2, 1, 4]})
    np.testing.assert_array_equal(mask_util.decode(encoded), mask)


def rectangle(x1, y1, x2, y2):
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def test_area_of_nothing():
    assert mask_area([]) == 0 and mask_area({"size": [2, 2], "counts": [4]}) == 0


@pytest.mark.parametrize(
    ("polygons", "area"),
    [
        ([rectangle(20, 20, 80, 80)], 3600),
        ([rectangle(20, 20, 80, 80), rectangle(35, 35, 65, 65)], 3600),  # one inside the other
        ([rectangle(20, 20, 80, 80), rectangle(20, 20, 80, 80)[::-1]], 3600),  # the same, the other way round
        ([rectangle(0, 0, 10, 10), rectangle(5, 5, 15, 15)], 175),
        ([rectangle(0, 0, 10, 10), rectangle(10, 0, 20, 10)], 200),  # side by side
        ([rectangle(0.5, 0, 10, 10), rectangle(30, 0, 40.25, 10)], 95 + 102.5),
        ([rectangle(-4, -4, 4, 4), rectangle(0, 0, 1000, 1000)], 64 + 1000**2 - 16),
        ([rectangle(0, 0, 4, 4), [1, 1, 2, 2], rectangle(2, 2, 4, 4)], 16),
    ],
)
def test_what_several_polygons_cover_counts_once(polygons, area):
    assert mask_area(polygons) == pytest.approx(area, rel=0.002)
    assert mask_area(polygons[::-1]) == pytest.approx(area, rel=0.002)


def test_area_of_shapes_is_that_of_their_pixels():
    rng = np.random.default_rng(0)
    for _ in range(30):
        angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
        blobs = [
            np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(20, 60, (12, 1)) + rng.uniform(60, 140, 2)
            for _ in range(rng.integers(1, 4))
        ]
        pixels = polygons_to_bitmask([b.reshape(-1) for b in blobs], 200, 200).sum()
        assert mask_area([b.reshape(-1).tolist() for b in blobs]) == pytest.approx(pixels, rel=0.02)


def test_area_of_run_lengths():
    for counts in ([3, 5, 4], run_lengths({"size": [3, 4], "counts": [3, 5, 4]})["counts"], "354"):
        assert mask_area({"size": [3, 4], "counts": counts}) == 5


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"size": [3, 4], "counts": [3, 5]}, "add up to 8"),
        ({"size": [3, 4], "counts": [3, -5, 14]}, "malformed"),
        ({"size": [3, 4], "counts": "o"}, "malformed"),
        ({"size": [3, 4], "counts": "ooooooooooooooo1"}, "malformed"),
        ({"size": [4, 3], "counts": [12]}, r"\(4, 3\) is in an image of \(3, 4\)"),
    ],
)
def test_what_is_no_mask_is_not_decoded(mask, message):
    with pytest.raises(ValueError, match=message):
        decode_mask(mask, (3, 4))
