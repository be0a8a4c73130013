"""What is said about arrays that are no images; `tests/engine/test_defaults.py` has more of them."""

from pathlib import Path

import numpy as np
import pytest

from detectron2.inference.image_check import check_image, plain_image

MEAN = [103.5, 116.3, 123.7]


def test_no_pixels():
    with pytest.raises(ValueError, match=r"Expected an image of shape \(H, W, 3\).*got \(0, 6, 3\): it is empty"):
        check_image(np.zeros((0, 6, 3), np.uint8), MEAN)


def test_images():
    for image in (np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6, 3)), np.full((4, 6, 3), 255, np.uint16)):
        assert check_image(image, MEAN) == ""
    assert check_image(np.full((4, 6, 1), 1e4, np.float32), [0.5]) == ""  # a model for another range


@pytest.mark.parametrize(
    ("image", "cure", "with_scale"),
    [
        (np.full((4, 6, 3), 0.5), "give image * 255.", "give scale=255, or image.astype('uint8') if it is as dark as"),
        (np.full((4, 6, 3), -2.0), "scale them as in training.", "scale them as in training."),
        (np.full((4, 6, 3), 65535, np.uint16), "give (image // 257).astype('uint8')", "give scale=1/257 if it has 16"),
        (np.full((4, 6, 3), np.inf), "replace NaN and inf", "replace NaN and inf"),
        (np.full((4, 6, 3), -3), "shift and scale them as in training.", "shift and scale them as in training."),
        (np.ones((4, 6, 3), bool), "give image.astype('uint8') * 255", "give scale=255"),
    ],
)
def test_cures(image, cure, with_scale):
    for can_scale, text in ((False, cure), (True, with_scale)):
        try:
            found = check_image(image, MEAN, can_scale=can_scale)
        except (TypeError, ValueError) as e:
            found = str(e)
        assert text in found


@pytest.mark.parametrize("dtype", ["u1", "i2", ">u2", "i8", ">u4", "u8"])
def test_whole_numbers_are_bytes_for_a_model_of_8_bit_images(dtype):
    values = np.arange(72).reshape(4, 6, 3)
    plain = plain_image(values.astype(dtype), MEAN)
    assert plain.dtype == np.uint8 and (plain == values).all()
    assert plain_image(values.astype(dtype), [1000.0] * 3).dtype == np.dtype(dtype).newbyteorder("=")


@pytest.mark.parametrize(("dtype", "expected"), [("f2", "f2"), (">f4", "f4"), ("f8", "f8"), ("longdouble", "f8")])
def test_floats_get_the_byte_order_of_the_machine(dtype, expected):
    plain = plain_image(np.full((4, 6, 3), 0.5, dtype), MEAN)
    assert plain.dtype == np.dtype(expected) and plain.dtype.isnative and (plain == 0.5).all()


def test_a_usable_image_is_not_copied():
    image = np.zeros((4, 6, 3), np.uint8)
    assert np.shares_memory(plain_image(image, MEAN), image)


@pytest.mark.parametrize("given", [Path("a.jpg"), (1, 2), (x for x in ()), {"image": 1}])
def test_what_is_no_array_gets_a_cure(given):
    with pytest.raises(TypeError, match=r"got \w+: (read it with|predict on one at a time|give the array)"):
        check_image(given, MEAN)
