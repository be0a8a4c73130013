import colorsys
import random

import numpy as np
import pytest
from fvcore.transforms.transform import NoOpTransform, Transform

import detectron2.data.transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from detectron2.projects.point_rend.color_augmentation import _hsv_to_rgb, _rgb_to_hsv


def draws(monkeypatch, coins, numbers=()):
    """Make the coins of `random.randrange(2)` and the numbers of `random.uniform` and `randint` known."""
    coins, numbers = iter(coins), iter(numbers)
    monkeypatch.setattr(random, "randrange", lambda stop: next(coins))

    def number(low, high):
        value = next(numbers)
        assert low <= value <= high
        return value

    monkeypatch.setattr(random, "uniform", number)
    monkeypatch.setattr(random, "randint", number)


@pytest.mark.parametrize("height", [0, 1, 7])
def test_shape_and_type_stay(height):
    image = np.random.randint(0, 256, (height, 5, 3), dtype=np.uint8)
    before = image.copy()
    for _ in range(20):
        out = ColorAugSSDTransform("BGR").apply_image(image)
        assert out.shape == image.shape and out.dtype == np.uint8
    np.testing.assert_array_equal(image, before)


def test_it_is_a_transform_that_moves_nothing():
    transform = ColorAugSSDTransform(img_format="RGB")
    assert isinstance(transform, Transform) and isinstance(transform.inverse(), NoOpTransform)
    coords = np.array([[1.0, 2.0]])
    assert transform.apply_coords(coords) is coords
    assert transform.apply_segmentation(coords) is coords
    aug_input = T.AugInput(np.full((4, 4, 3), 100, dtype=np.uint8), boxes=np.array([[0.0, 0, 2, 2]]))
    T.AugmentationList([transform])(aug_input)
    np.testing.assert_array_equal(aug_input.boxes, [[0, 0, 2, 2]])


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_other_images_are_refused(image):
    with pytest.raises(ValueError, match="uint8"):
        ColorAugSSDTransform("BGR").apply_image(image)


def test_other_formats_are_refused():
    with pytest.raises(ValueError, match="img_format"):
        ColorAugSSDTransform("YUV-BT.601")


def test_hsv_against_colorsys():
    rgb = np.concatenate([np.random.randint(0, 256, (500, 3)), np.eye(3) * 255, np.full((1, 3), 77), np.zeros((1, 3))])
    rgb = rgb.astype(np.uint8)
    hue, saturation, value = _rgb_to_hsv(*rgb.T)
    for i, color in enumerate(rgb.tolist()):
        h, s, v = colorsys.rgb_to_hsv(*(x / 255 for x in color))
        assert abs((hue[i] - 180 * h + 90) % 180 - 90) < 0.6  # in fixed point numbers
        assert abs(saturation[i] - 255 * s) < 0.6 and value[i] == pytest.approx(255 * v)
    assert hue.min() >= 0 and hue.max() < 180
    back = np.stack(_hsv_to_rgb(hue, saturation, value), axis=1)
    for i in range(len(rgb)):
        expected = colorsys.hsv_to_rgb(hue[i] / 180, saturation[i] / 255, value[i] / 255)
        np.testing.assert_allclose(back[i], np.array(expected) * 255, atol=0.51)


@pytest.mark.parametrize(
    ("rgb", "hsv"),
    [
        ((0, 0, 0), (0, 0, 0)),
        ((255, 0, 0), (0, 255, 255)),
        ((0, 255, 0), (60, 255, 255)),
        ((0, 0, 255), (120, 255, 255)),
        ((10, 200, 100), (74, 242, 200)),
        ((200, 100, 150), (165, 127, 200)),
        ((13, 14, 15), (105, 34, 15)),
    ],
)
def test_hsv_as_recorded_with_opencv(rgb, hsv):
    got = _rgb_to_hsv(*(np.array([x], dtype=np.uint8) for x in rgb))
    assert tuple(int(x[0]) for x in got) == hsv


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_each_distortion(monkeypatch, order):
    transform = ColorAugSSDTransform(order)
    color = np.array([100, 20, 60])  # red, green, blue

    def apply(coins, numbers=()):
        draws(monkeypatch, coins, numbers)
        image = (color if order == "RGB" else color[::-1]).astype(np.uint8).reshape(1, 1, 3)
        out = transform.apply_image(image)[0, 0]
        return (out if order == "RGB" else out[::-1]).tolist()

    # The coins: brightness; whether contrast goes first; then, in this order, contrast, saturation, hue.
    assert apply([0, 1, 0, 0, 0]) == [100, 20, 60]
    assert apply([1, 1, 0, 0, 0], [-30.0]) == [70, 0, 30]
    assert apply([1, 1, 0, 0, 0], [30.9]) == [130, 50, 90]  # cut off, not rounded
    assert apply([0, 1, 1, 0, 0], [1.5]) == [150, 30, 90]
    # Half the saturation: 102 of 204; green becomes 100 * (1 - 102 / 255), blue lies halfway.
    assert apply([0, 1, 0, 1, 0], [0.5]) == [100, 60, 80]
    # Hue 165 of 180 (330 degrees) turned by 15 is red.
    assert apply([0, 1, 0, 0, 1], [15]) == [100, 20, 20]
    # Saturation and hue first, then contrast.
    assert apply([0, 0, 0, 1, 1], [15, 1.5]) == [150, 30, 30]


def test_colors_do_not_depend_on_neighbours_far_away(monkeypatch):
    image = np.random.randint(0, 256, (200, 200, 3), dtype=np.uint8)  # more pixels than one block
    parts = []
    for part in (image, image[:3], image[-3:]):
        draws(monkeypatch, [0, 1, 0, 1, 1], [1.3, -7])
        parts.append(ColorAugSSDTransform("BGR").apply_image(part))
    np.testing.assert_array_equal(parts[0][:3], parts[1])
    np.testing.assert_array_equal(parts[0][-3:], parts[2])
