"""Resampling of arrays, against Pillow and against values computed by hand."""

import numpy as np
import pytest
from PIL import Image

from detectron2.data.transforms import pixels


@pytest.mark.parametrize("shape", [(1, 1), (4, 6), (4, 6, 1), (4, 6, 3), (4, 6, 5)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_through_pil_keeps_shape_and_type(shape, dtype):
    img = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    out = pixels.through_pil(img, lambda x: x.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert out.dtype == dtype
    np.testing.assert_array_equal(out, img[:, ::-1])


def test_resize_doubles_each_pixel():
    img = np.array([[0, 100], [200, 50]], dtype=np.uint8)
    out = pixels.resize(img, 4, 4, Image.Resampling.NEAREST)
    np.testing.assert_array_equal(out, img.repeat(2, axis=0).repeat(2, axis=1))


@pytest.mark.parametrize("with_opencv", [True, False])
def test_warp_affine_by_whole_pixels_moves_and_fills_with_zero(with_opencv, monkeypatch):
    if not with_opencv:
        monkeypatch.setattr(pixels, "opencv", lambda: None)
    img = np.arange(1, 13, dtype=np.uint8).reshape(3, 4)
    out = pixels.warp_affine(img, np.array([[1.0, 0, 1], [0, 1, 0]]), (3, 4), 0)
    np.testing.assert_array_equal(out, [[0, 1, 2, 3], [0, 5, 6, 7], [0, 9, 10, 11]])
