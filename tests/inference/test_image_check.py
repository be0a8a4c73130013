"""What is said about arrays that are no images; `tests/engine/test_defaults.py` has more of them."""

import numpy as np
import pytest

from detectron2.inference.image_check import check_image

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
