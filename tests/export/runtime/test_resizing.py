"""Resizing with NumPy against PyTorch's."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from detectron2.export.runtime.resizing import bands, labels_of, linear_weights, resized, unpadded


def wanted(maps, size):
    return F.interpolate(torch.from_numpy(maps)[None], size=size, mode="bilinear", align_corners=False)[0].numpy()


def test_no_maps():
    assert resized(np.zeros((0, 3, 4), np.float32), (6, 5)).shape == (0, 6, 5)


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (14, 5), (200, 31), (3, 18)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_maps(size, dtype):
    maps = np.random.default_rng(0).random((3, 7, 9)).astype(dtype)
    found = resized(maps, size)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted(maps.astype(np.float32), size), atol=1e-6)
    assert (labels_of(maps, size) == found.argmax(axis=0)).all()
    rows = [row for band, _ in bands(maps, size) for row in range(size[0])[band]]
    assert rows == list(range(size[0]))


@pytest.mark.parametrize(("size", "new_size"), [(1, 1), (1, 4), (6, 6), (5, 13), (13, 5)])
def test_weights_of_an_axis(size, new_size):
    weights = linear_weights(size, new_size)
    np.testing.assert_allclose(
        weights, wanted(np.eye(size, dtype=np.float32)[:, None], (1, new_size))[:, 0].T, atol=1e-6
    )
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)


def test_padding_is_at_the_right_and_below():
    maps = np.arange(24).reshape(2, 3, 4)
    assert (unpadded(maps, (2, 3)) == maps[:, :2, :3]).all()
