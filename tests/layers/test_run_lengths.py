"""Run lengths of masks, against pycocotools."""

import itertools

import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectron2.layers import run_lengths


def encoded(masks):
    """What pycocotools makes of masks (N, H, W)."""
    return [mask_util.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31 - 1), st.floats(0, 1))
@settings(max_examples=80, deadline=None)
def test_decoded_parts_are_those_of_pycocotools(height, width, seed, density):
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), dtype=bool)
    (y1, y2), (x1, x2) = np.sort(rng.integers(0, height + 1, 2)), np.sort(rng.integers(0, width + 1, 2))
    mask[y1:y2, x1:x2] = rng.random((y2 - y1, x2 - x1)) <= density
    (rle,) = encoded(mask[None])
    x, y, w, h = (int(v) for v in mask_util.toBbox(rle))
    counts = [len(list(run)) for _, run in itertools.groupby([False, *mask.ravel("F").tolist()])]
    counts[0] -= 1
    for form in (rle["counts"], rle["counts"].decode(), counts):
        part, corner_xy = run_lengths.decode_part({"size": [height, width], "counts": form})
        np.testing.assert_array_equal(part, mask[y : y + h, x : x + w].reshape(part.shape))
        assert corner_xy == (x, y) and part.dtype == np.bool_


def test_decoding_long_runs():
    """Numbers of many digits, and falling ones, which are written as negative differences."""
    mask = np.zeros((3000, 2000), dtype=bool)
    mask[7, 3], mask[100:2900, 5:9], mask[2, 1990] = True, True, True
    (rle,) = encoded(mask[None])
    part, corner_xy = run_lengths.decode_part(rle)
    assert corner_xy == (3, 2)
    np.testing.assert_array_equal(part, mask[2:2900, 3:1991])


@pytest.mark.parametrize("size", [[0, 0], [0, 5], [3, 0]])
def test_decoding_images_without_pixels(size):
    part, corner_xy = run_lengths.decode_part({"size": size, "counts": ""})
    assert part.shape == (0, 0) and corner_xy == (0, 0)


@pytest.mark.parametrize("counts", ["", "11", [3, 4], [30, -18]])
def test_run_lengths_of_another_image_are_refused(counts):
    with pytest.raises(ValueError, match="3 x 4"):
        run_lengths.decode_part({"size": [3, 4], "counts": counts})


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int8, np.int64, np.float32])
def test_crops_have_all_that_is_not_zero(dtype):
    mask = np.zeros((9, 11), dtype)
    part, corner_xy = run_lengths.crop_to_content(mask)
    assert part.size == 0 and corner_xy == (0, 0)
    mask[2, 3], mask[6, 7] = np.array([2, -1]).astype(dtype)
    part, corner_xy = run_lengths.crop_to_content(mask)
    assert corner_xy == (3, 2) and part.dtype == dtype
    np.testing.assert_array_equal(part, mask[2:7, 3:8])
