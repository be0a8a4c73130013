import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectron2.utils.colormap import colormap
from detectron2.visualization.colors import (
    ColorMode,
    change_brightness,
    class_color,
    instance_colors,
    readable_on_dark,
    to_rgb,
    to_rgba,
)

channel = st.floats(0, 1)
color = st.tuples(channel, channel, channel)


def test_modes_have_the_documented_values():
    assert [mode.value for mode in (ColorMode.IMAGE, ColorMode.SEGMENTATION, ColorMode.IMAGE_BW)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("given_color", "rgb"),
    [("r", (1, 0, 0)), ("#00ff00", (0, 1, 0)), ((0, 0, 1), (0, 0, 1)), (np.array([0, 1.0, 1]), (0, 1, 1))],
)
def test_matplotlib_colours(given_color, rgb):
    assert to_rgb(given_color) == pytest.approx(rgb)
    assert to_rgba(given_color, 0.25) == pytest.approx((*rgb, 0.25))


def test_class_colours():
    assert class_color(1, [[0, 0, 0], [255, 0, 51]]) == pytest.approx((1, 0, 0.2))
    palette = colormap(rgb=True, maximum=1)
    assert class_color(3) == pytest.approx(palette[3])
    assert class_color(len(palette) + 3) == class_color(3)
    # more classes than colours given
    assert class_color(2, [[0, 0, 0]]) == class_color(2)


def test_instance_colours():
    assert instance_colors([]) == []
    colors = instance_colors([4, 4, 0, 4])
    assert colors[0] == pytest.approx(class_color(4))
    assert colors[2] == pytest.approx(class_color(0))
    assert len({tuple(np.round(c, 3)) for c in colors}) == 4
    assert colors == instance_colors([4, 4, 0, 4])


def test_many_instances_of_a_class_differ():
    colors = np.array(instance_colors([0] * 12))
    distance = np.abs(colors[:, None] - colors[None]).max(-1) + np.eye(12)
    assert distance.min() > 0.05


@settings(max_examples=40, deadline=None)
@given(color, st.floats(-1, 1))
def test_brightness_stays_in_range(rgb, factor):
    changed = change_brightness(rgb, factor)
    assert all(0 <= value <= 1 for value in changed)
    lightness = (max(rgb) + min(rgb)) / 2
    assert (max(changed) + min(changed)) / 2 == pytest.approx(min(1, lightness * (1 + factor)), abs=1e-6)


def test_brightness_factor_is_checked():
    assert change_brightness("r", -1) == (0, 0, 0)
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        change_brightness("r", 2)


@settings(max_examples=40, deadline=None)
@given(color)
def test_text_is_readable(rgb):
    assert np.dot(readable_on_dark(rgb), [0.2126, 0.7152, 0.0722]) >= 0.7199
