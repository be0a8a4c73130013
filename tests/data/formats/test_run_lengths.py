"""Run lengths are counted without decoding them."""

import numpy as np
import pytest
from pycocotools import mask as mask_util

from detectron2.data.formats.run_lengths import encode_mask, is_compressed, run_length_totals, run_lengths


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
