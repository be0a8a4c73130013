import random

import numpy as np
import pytest

from detectron2.utils.colormap import colormap, random_color, random_colors


@pytest.mark.parametrize(("maximum", "dtype"), [(255, np.float32), (1, np.float32)])
def test_range_and_order(maximum, dtype):
    rgb, bgr = colormap(rgb=True, maximum=maximum), colormap(maximum=maximum)
    assert rgb.dtype == dtype
    assert rgb.shape[1] == 3
    assert 0 <= rgb.min() < rgb.max() <= maximum
    np.testing.assert_array_equal(rgb[:, ::-1], bgr)


def test_colours_are_distinct_and_none_is_grey():
    palette = colormap(rgb=True)
    assert len({tuple(color) for color in palette}) == len(palette) >= 70
    assert (np.ptp(palette, axis=1) > 50).all()


def test_the_palette_cannot_be_changed_from_outside():
    colormap(rgb=True)[:] = 0
    colormap()[:] = 0
    assert colormap().max() > 200


def test_random_colours_are_from_the_palette():
    palette = {tuple(color) for color in colormap(rgb=True, maximum=1)}
    np.random.seed(3)  # the global generator is what it draws from
    first = [random_color(rgb=True, maximum=1) for _ in range(5)]
    np.random.seed(3)  # the global generator is what it draws from
    np.testing.assert_array_equal(first, [random_color(rgb=True, maximum=1) for _ in range(5)])
    assert {tuple(color) for color in first} <= palette
    random.seed(0)
    several = random_colors(20, rgb=True, maximum=1)
    assert len({tuple(color) for color in several} & palette) == 20
    assert random_colors(0) == []


def test_wrong_use_is_explained():
    with pytest.raises(ValueError, match="100"):
        colormap(maximum=100)
    with pytest.raises(ValueError, match="1000 different"):
        random_colors(1000)
