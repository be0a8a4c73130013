"""Geometry laws of the transforms, and their pixels against Pillow, PyTorch, OpenCV and shapely."""

import inspect

import fvcore.transforms.transform as fvcore_transforms
import numpy as np
import pytest
import shapely.geometry
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

import detectron2.data.transforms as T
from detectron2.data.transforms import pixels
from detectron2.data.transforms import transform as transform_module

RNG = np.random.default_rng(0)
sizes = st.integers(2, 60)
finite = st.floats(-200, 200, allow_nan=False, width=32)
points = st.lists(st.tuples(finite, finite), max_size=6).map(lambda p: np.array(p, dtype=np.float64).reshape(-1, 2))


def image(h, w, c=3, dtype=np.uint8):
    shape = (h, w) if c is None else (h, w, c)
    if np.dtype(dtype).kind == "f":
        return RNG.random(shape).astype(dtype)
    if dtype == np.bool_:
        return RNG.random(shape) < 0.5
    return RNG.integers(0, min(np.iinfo(dtype).max, 60000), shape).astype(dtype)


def area(polygon):
    x, y = np.asarray(polygon).reshape(-1, 2).T
    return abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2


@pytest.fixture
def no_opencv(monkeypatch):
    monkeypatch.setattr(pixels, "opencv", lambda: None)


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", fvcore_transforms.__all__)
def test_basic_transforms_are_the_classes_of_fvcore(name):
    assert getattr(T, name) is getattr(fvcore_transforms, name)
    assert getattr(transform_module, name) is getattr(fvcore_transforms, name)


@pytest.mark.parametrize("name", ["HFlip_rotated_box", "Resize_rotated_box"])
def test_functions_for_rotated_boxes_are_public(name):
    assert callable(getattr(transform_module, name))


# --- no points, no boxes, no polygons --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "transform",
    [
        T.HFlipTransform(9),
        T.VFlipTransform(9),
        T.ResizeTransform(8, 9, 3, 4),
        T.CropTransform(1, 1, 3, 3, 9, 8),
        T.PadTransform(1, 1, 1, 1, 9, 8),
        T.ExtentTransform((0, 0, 4, 4), (8, 8)),
        T.RotationTransform(8, 9, 30),
        T.ColorTransform(lambda x: x),
        T.NoOpTransform(),
    ],
    ids=lambda t: type(t).__name__,
)
def test_nothing_in_nothing_out(transform):
    assert transform.apply_coords(np.zeros((0, 2))).shape == (0, 2)
    assert transform.apply_box(np.zeros((0, 4))).shape == (0, 4)
    assert transform.apply_polygons([]) == []
    assert transform.apply_rotated_box(np.zeros((0, 5))).shape == (0, 5)


# --- laws ------------------------------------------------------------------------------------------------------------


@given(h=sizes, w=sizes, xy=points, vertical=st.booleans())
def test_flip_twice_is_identity(h, w, xy, vertical):
    flip = T.VFlipTransform(h) if vertical else T.HFlipTransform(w)
    img = np.arange(h * w).reshape(h, w)
    np.testing.assert_array_equal(flip.apply_image(flip.apply_image(img)), img)
    np.testing.assert_allclose(flip.apply_coords(flip.apply_coords(xy.copy())), xy, atol=1e-9)


@st.composite
def invertible(draw):
    h, w = draw(sizes), draw(sizes)
    kind = draw(st.sampled_from(["hflip", "vflip", "resize", "crop", "pad"]))
    if kind == "hflip":
        return T.HFlipTransform(w)
    if kind == "vflip":
        return T.VFlipTransform(h)
    if kind == "resize":
        return T.ResizeTransform(h, w, draw(sizes), draw(sizes))
    if kind == "crop":
        crop_w, crop_h = draw(st.integers(1, w)), draw(st.integers(1, h))
        return T.CropTransform(draw(st.integers(0, w - crop_w)), draw(st.integers(0, h - crop_h)), crop_w, crop_h, w, h)
    return T.PadTransform(*(draw(st.integers(0, 9)) for _ in range(4)), w, h)


@given(chain=st.lists(invertible(), max_size=4), xy=points)
def test_inverse_after_transform_is_identity_on_coordinates(chain, xy):
    transform = T.TransformList(chain)
    back = transform.inverse().apply_coords(transform.apply_coords(xy.copy()))
    np.testing.assert_allclose(back, xy, atol=1e-4)


@given(h=sizes, w=sizes, angle=st.floats(-720, 720), xy=points)
def test_inverse_rotation_brings_points_back_to_within_a_pixel(h, w, angle, xy):
    transform = T.RotationTransform(h, w, angle)
    if angle % 360 == 0:
        return
    back = transform.inverse().apply_coords(transform.apply_coords(xy))
    assert np.abs(back - xy).max(initial=0) <= 1.0
    # Distances do not change at all.
    np.testing.assert_allclose(np.diff(back, axis=0), np.diff(xy, axis=0), atol=1e-9)


@given(h=sizes, w=sizes, new_h=sizes, new_w=sizes, xy=points.filter(lambda p: len(p) >= 3))
def test_resize_scales_polygon_areas(h, w, new_h, new_w, xy):
    (resized,) = T.ResizeTransform(h, w, new_h, new_w).apply_polygons([xy.copy()])
    assert area(resized) == pytest.approx(area(xy) * new_h * new_w / (h * w), rel=1e-6, abs=1e-6)


@given(h=sizes, w=sizes, angle=st.floats(-360, 360), xy=points.filter(lambda p: len(p) >= 3))
def test_rotation_keeps_polygon_areas(h, w, angle, xy):
    (rotated,) = T.RotationTransform(h, w, angle).apply_polygons([xy])
    assert area(rotated) == pytest.approx(area(xy), rel=1e-6, abs=1e-6)


@given(h=sizes, w=sizes, angle=st.floats(-360, 360))
def test_expanded_canvas_holds_the_rotated_image(h, w, angle):
    transform = T.RotationTransform(h, w, angle)
    (box,) = transform.apply_box(np.array([[0.0, 0, w, h]]))
    assert (box[:2] >= -0.5 - 1e-6).all()  # the canvas is rounded to whole pixels
    assert (box[2:] <= np.array([transform.bound_w, transform.bound_h]) + 0.5 + 1e-6).all()


# --- resize ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[True, False], ids=["vector instructions", "Pillow"])
def byte_kernel(request, monkeypatch):
    """With PyTorch's kernel for bytes, and as it is on processors for which there is none."""
    monkeypatch.setattr(pixels, "_has_byte_kernel", lambda: request.param)
    return request.param


def assert_within_one_grey_level(out, expected):
    assert out.dtype == expected.dtype == np.uint8
    assert np.abs(out.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("interp", list(Image.Resampling))
@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.usefixtures("byte_kernel")
def test_resize_of_bytes_is_that_of_pillow(interp, channels):
    img = image(17, 23, channels)
    out = T.ResizeTransform(17, 23, 31, 11, interp).apply_image(img)
    expected = np.asarray(Image.fromarray(img.squeeze()).resize((11, 31), interp))
    assert_within_one_grey_level(out, expected.reshape(out.shape))
    if interp != Image.Resampling.BILINEAR:
        np.testing.assert_array_equal(out, expected.reshape(out.shape))
    assert out.shape == (31, 11) if channels is None else (31, 11, channels)


@pytest.mark.parametrize("channels", [2, 4, 5, 7, 9])
@pytest.mark.usefixtures("byte_kernel")
def test_resize_treats_each_of_many_channels_alone(channels):
    img = image(17, 23, channels)
    out = T.ResizeTransform(17, 23, 31, 11).apply_image(img)
    assert out.shape == (31, 11, channels)
    for c in range(channels):
        expected = np.asarray(Image.fromarray(img[:, :, c]).resize((11, 31), Image.Resampling.BILINEAR))
        assert_within_one_grey_level(out[:, :, c], expected)


@settings(max_examples=60, deadline=None)
@given(h=sizes, w=sizes, new_h=sizes, new_w=sizes, channels=st.sampled_from([1, 3, 4]), seed=st.integers(0, 99))
def test_the_kernel_for_bytes_is_within_one_grey_level_of_pillow(h, w, new_h, new_w, channels, seed):
    img = np.random.default_rng(seed).integers(0, 256, (h, w, channels)).astype(np.uint8)
    mode = {1: "L", 3: "RGB", 4: "RGBX"}[channels]
    pil = Image.frombuffer(mode, (w, h), img, "raw", mode, 0, 1).resize((new_w, new_h), Image.Resampling.BILINEAR)
    assert_within_one_grey_level(pixels._resize_bytes(img, new_h, new_w), np.asarray(pil).reshape(new_h, new_w, -1))


@pytest.mark.filterwarnings("error")
@pytest.mark.usefixtures("byte_kernel")
def test_a_resized_image_may_be_written_to_and_its_source_may_not():
    img = image(9, 12)
    before = img.copy()
    img.setflags(write=False)
    for new_hw in ((9, 12), (20, 7)):
        out = T.ResizeTransform(9, 12, *new_hw).apply_image(img)
        torch.from_numpy(out).zero_()
    np.testing.assert_array_equal(img, before)


@pytest.mark.usefixtures("byte_kernel")
def test_resize_of_a_reversed_view_equals_that_of_its_copy():
    img = image(17, 23)
    for view in (img[:, :, ::-1], img[:, ::-1], img[::-1, :, ::-1]):
        transform = T.ResizeTransform(17, 23, 30, 40)
        np.testing.assert_array_equal(transform.apply_image(view), transform.apply_image(view.copy()))


@pytest.mark.usefixtures("byte_kernel")
@pytest.mark.parametrize("hw", [(1, 1), (1, 9), (9, 1)])
@pytest.mark.parametrize("channels", [None, 1, 3, 5])
def test_resize_of_a_flipped_line(hw, channels):
    img = image(*hw) if channels is None else image(*hw, channels)
    transform = T.ResizeTransform(*hw, 4, 6)
    flipped = T.HFlipTransform(hw[1]).apply_image(T.VFlipTransform(hw[0]).apply_image(img))
    np.testing.assert_array_equal(transform.apply_image(flipped), transform.apply_image(flipped.copy()))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("channels", [None, 3, 5])
def test_resize_of_floats_is_that_of_torch(dtype, channels):
    img = image(9, 12, channels, dtype)
    chw = torch.from_numpy(img.reshape(9, 12, -1)).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(chw, (20, 7), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
    out = T.ResizeTransform(9, 12, 20, 7).apply_image(img)
    assert out.dtype == dtype
    np.testing.assert_allclose(out, expected.numpy().reshape(out.shape), rtol=1e-5)


def test_resize_of_a_stack():
    stack = np.stack([image(9, 12) for _ in range(3)])
    transform = T.ResizeTransform(9, 12, 5, 20)
    out = transform.apply_image(stack)
    assert out.shape == (3, 5, 20, 3)
    np.testing.assert_array_equal(out[1], transform.apply_image(stack[1]))


def test_resize_of_16_bits_keeps_the_range():
    img = np.full((6, 6), 50000, dtype=np.uint16)
    out = T.ResizeTransform(6, 6, 9, 3).apply_image(img)
    assert out.dtype == np.uint16
    assert (out == 50000).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.bool_, np.int32, np.int64, np.uint16])
def test_resized_labels_are_those_of_the_nearest_pixel_centre(dtype):
    labels = image(16, 24, None, dtype)
    out = T.ResizeTransform(16, 24, 41, 7).apply_segmentation(labels)
    y = np.floor((np.arange(41) + 0.5) * 16 / 41).astype(int)
    x = np.floor((np.arange(7) + 0.5) * 24 / 7).astype(int)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out, labels[np.ix_(y, x)])


def test_labels_of_all_types_take_the_same_pixels():
    labels = image(16, 24, None)
    for new_h, new_w in [(40, 9), (8, 12), (33, 100), (1, 1)]:
        transform = T.ResizeTransform(16, 24, new_h, new_w)
        expected = transform.apply_segmentation(labels)
        for dtype in (np.int32, np.int64, np.uint16):
            np.testing.assert_array_equal(transform.apply_segmentation(labels.astype(dtype)), expected)


def test_resize_refuses_another_size_and_unknown_interpolation():
    with pytest.raises(ValueError, match=r"height 8 and width 9.*height 9 and width 8"):
        T.ResizeTransform(8, 9, 3, 3).apply_image(image(9, 8))
    with pytest.raises(ValueError, match="float32 can be resized with"):
        T.ResizeTransform(8, 9, 3, 3, Image.Resampling.LANCZOS).apply_image(image(8, 9, 3, np.float32))


def test_resize_of_integer_points_does_not_truncate():
    out = T.ResizeTransform(2, 2, 3, 3).apply_coords(np.array([[1, 1]]))
    np.testing.assert_array_equal(out, [[1.5, 1.5]])


# --- extent ----------------------------------------------------------------------------------------------------------


def test_extent_of_whole_pixels_is_a_slice():
    img = image(20, 30)
    transform = T.ExtentTransform((4, 5, 14, 17), (12, 10))
    np.testing.assert_array_equal(transform.apply_image(img), img[5:17, 4:14])
    np.testing.assert_array_equal(transform.apply_segmentation(img[:, :, 0]), img[5:17, 4:14, 0])
    np.testing.assert_allclose(transform.apply_coords(np.array([[4.0, 5.0], [14.0, 17.0]])), [[0, 0], [10, 12]])


@pytest.mark.parametrize(("channels", "dtype"), [(None, np.uint8), (3, np.uint8), (5, np.uint8), (2, np.float32)])
def test_extent_fills_what_lies_outside(channels, dtype):
    img = np.ones((4, 4) if channels is None else (4, 4, channels), dtype=dtype)
    out = T.ExtentTransform((-2, 0, 4, 4), (4, 6), fill=7).apply_image(img)
    assert out.dtype == dtype
    assert (out[:, :2] == 7).all()
    assert (out[:, 3:] == 1).all()
    labels = T.ExtentTransform((-2, 0, 4, 4), (4, 6), fill=7).apply_segmentation(np.ones((4, 4), np.uint8))
    assert (labels[:, :2] == 0).all()


def test_extent_of_labels_keeps_large_numbers():
    labels = np.full((4, 4), 2**30 + 1, dtype=np.int64)
    out = T.ExtentTransform((0, 0, 4, 4), (8, 8)).apply_segmentation(labels)
    assert out.dtype == np.int64
    assert (out == 2**30 + 1).all()


@pytest.mark.parametrize(
    ("method", "parameter"),
    [
        (T.GridSampleTransform.apply_coords, "coords"),
        (T.NoOpTransform.apply_rotated_box, "x"),
        (T.HFlipTransform.apply_rotated_box, "rotated_boxes"),
    ],
)
def test_registered_functions_have_the_documented_parameters(method, parameter):
    assert list(inspect.signature(method).parameters)[1] == parameter


def test_extent_cannot_be_inverted():
    with pytest.raises(NotImplementedError, match="size of the image"):
        T.ExtentTransform((0, 0, 1, 1), (2, 2)).inverse()


# --- rotation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("angle", "turns"), [(90, 1), (180, 2), (270, 3), (-90, 3), (360, 0)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int64, np.bool_])
@pytest.mark.parametrize("with_opencv", [True, False])
def test_quarter_turns_are_counter_clockwise_and_exact(angle, turns, dtype, with_opencv, monkeypatch):
    if not with_opencv:
        monkeypatch.setattr(pixels, "opencv", lambda: None)
    labels = image(7, 12, None, dtype)
    transform = T.RotationTransform(7, 12, angle)
    np.testing.assert_array_equal(transform.apply_segmentation(labels), np.rot90(labels, turns))
    if dtype == np.uint8:
        img = image(7, 12)
        np.testing.assert_allclose(transform.apply_image(img).astype(int), np.rot90(img, turns), atol=1)


@pytest.mark.parametrize("expand", [True, False])
@pytest.mark.parametrize("angle", [30, -75, 123.4])
def test_rotation_without_opencv_equals_that_with_it(angle, expand, monkeypatch):
    smooth = np.asarray(Image.fromarray(image(8, 11)).resize((66, 48), Image.Resampling.BICUBIC))
    transform = T.RotationTransform(48, 66, angle, expand=expand, center=(20, 31))
    with_opencv = transform.apply_image(smooth)
    labels_with_opencv = transform.apply_segmentation(smooth[:, :, 0])
    monkeypatch.setattr(pixels, "opencv", lambda: None)
    without = transform.apply_image(smooth)
    assert with_opencv.shape == without.shape == (transform.bound_h, transform.bound_w, 3)
    # OpenCV places samples on a grid of 1/32 pixel.
    assert np.abs(with_opencv.astype(int) - without).max() <= 6
    assert np.abs(with_opencv.astype(int) - without).mean() < 0.6
    assert (labels_with_opencv != transform.apply_segmentation(smooth[:, :, 0])).mean() < 0.02


@pytest.mark.parametrize("with_opencv", [True, False])
@pytest.mark.parametrize("channels", [None, 1, 3, 6])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_rotation_keeps_type_and_dimensions(channels, dtype, with_opencv, monkeypatch):
    if not with_opencv:
        monkeypatch.setattr(pixels, "opencv", lambda: None)
    img = image(9, 12, channels, dtype)
    out = T.RotationTransform(9, 12, 45).apply_image(img)
    assert out.dtype == dtype
    assert out.ndim == img.ndim
    assert out.shape[2:] == img.shape[2:]


@pytest.mark.usefixtures("no_opencv")
def test_pixels_move_where_coordinates_say():
    img = np.zeros((41, 61), dtype=np.uint8)
    img[10:13, 40:43] = 255  # centre of this dot: (41.5, 11.5)
    transform = T.RotationTransform(41, 61, 37)
    y, x = np.nonzero(transform.apply_image(img))
    weight = transform.apply_image(img)[y, x].astype(float)
    found = np.array([np.average(x + 0.5, weights=weight), np.average(y + 0.5, weights=weight)])
    np.testing.assert_allclose(found, transform.apply_coords([[41.5, 11.5]])[0], atol=0.1)


@pytest.mark.usefixtures("no_opencv")
def test_other_interpolations_need_opencv():
    with pytest.raises(ValueError, match="needs OpenCV"):
        T.RotationTransform(9, 12, 45, interp=4).apply_image(image(9, 12))


def test_only_an_expanded_rotation_can_be_inverted():
    with pytest.raises(NotImplementedError, match="expand=True"):
        T.RotationTransform(9, 12, 45, expand=False).inverse()


def test_rotation_around_a_centre_keeps_it():
    transform = T.RotationTransform(40, 60, 77, expand=False, center=(10, 30))
    np.testing.assert_allclose(transform.apply_coords(np.array([[10, 30]])), [[10, 30]])


def test_inverse_rotation_has_the_size_of_the_input():
    transform = T.RotationTransform(40, 60, 33)
    rotated = transform.apply_image(image(40, 60))
    assert transform.inverse().apply_image(rotated).shape == (40, 60, 3)


def test_rotation_refuses_another_size():
    with pytest.raises(ValueError, match="height 9 and width 12"):
        T.RotationTransform(9, 12, 45).apply_image(image(12, 9))


# --- colours ---------------------------------------------------------------------------------------------------------


def test_colour_transforms_change_nothing_but_colours():
    transform = T.ColorTransform(lambda x: x // 2)
    img, labels, xy = image(5, 6), image(5, 6, None), np.ones((2, 2))
    np.testing.assert_array_equal(transform.apply_image(img), img // 2)
    assert transform.apply_segmentation(labels) is labels
    assert transform.apply_coords(xy) is xy
    assert isinstance(transform.inverse(), T.NoOpTransform)
    with pytest.raises(TypeError, match="needs a function"):
        T.ColorTransform(0.5)


def test_pil_colour_transform():
    img = image(5, 6)
    out = T.PILColorTransform(lambda pil: ImageEnhance.Color(pil).enhance(0.3)).apply_image(img)
    np.testing.assert_array_equal(out, np.asarray(ImageEnhance.Color(Image.fromarray(img)).enhance(0.3)))


# --- crop of polygons ------------------------------------------------------------------------------------------------


def star(count, radius, center):
    """A polygon that does not cross itself but is far from convex."""
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], 1) * np.asarray(radius)[:, None] + center


@settings(max_examples=200, deadline=None)
@given(
    radius=st.lists(st.floats(1, 50), min_size=3, max_size=14),
    center=st.tuples(st.floats(-10, 60), st.floats(-10, 60)),
    window=st.tuples(*[st.integers(0, 30)] * 2, *[st.integers(1, 40)] * 2),
)
def test_cropped_polygons_are_the_intersections_that_shapely_finds(radius, center, window):
    polygon = star(len(radius), radius, center)
    x0, y0, w, h = window
    whole = shapely.geometry.Polygon(polygon)
    expected = whole.intersection(shapely.geometry.box(x0, y0, x0 + w, y0 + h))
    parts = T.CropTransform(x0, y0, w, h).apply_polygons([polygon.copy()])
    assert sum(area(p) for p in parts) == pytest.approx(expected.area, rel=1e-6, abs=1e-6)
    for part in parts:
        assert len(part) >= 3
        assert (part >= -1e-9).all()
        assert (part <= np.array([w, h]) + 1e-9).all()
        assert shapely.geometry.Polygon(part).buffer(1e-9).is_valid
    if expected.area > 1e-3 and all(p.area > 1e-3 for p in getattr(expected, "geoms", [expected])):
        assert len([p for p in parts if area(p) > 1e-3]) == len(getattr(expected, "geoms", [expected]))


def test_a_window_can_cut_a_polygon_in_two():
    u_shape = np.array([(0, 0), (3, 0), (3, 8), (7, 8), (7, 0), (10, 0), (10, 10), (0, 10)], dtype=float)
    parts = T.CropTransform(0, 0, 10, 5).apply_polygons([u_shape])
    assert sorted(area(p) for p in parts) == [15, 15]
    assert sorted(p[:, 0].min() for p in parts) == [0, 7]


def test_polygons_outside_vanish_and_inside_only_move():
    inside = np.array([(5, 5), (8, 5), (8, 9)], dtype=float)
    crop = T.CropTransform(4, 4, 10, 10)
    (part,) = crop.apply_polygons([inside.copy(), inside + 100, inside[:2]])
    np.testing.assert_array_equal(part, inside - 4)


def test_a_polygon_that_crosses_itself_survives():
    bow_tie = np.array([(0, 0), (10, 10), (10, 0), (0, 10)], dtype=float)
    assert len(T.CropTransform(1, 1, 8, 8).apply_polygons([bow_tie])) >= 1


# --- rotated boxes ---------------------------------------------------------------------------------------------------


def corners(box):
    cx, cy, w, h, angle = box
    theta = np.deg2rad(angle)
    right = np.array([np.cos(theta), -np.sin(theta)]) * w / 2
    down = np.array([np.sin(theta), np.cos(theta)]) * h / 2
    center = np.array([cx, cy])
    return np.array([center - right - down, center + right - down, center + right + down, center - right + down])


def same_corners(a, b):
    return np.allclose(a[np.lexsort(a.T.round(6))], b[np.lexsort(b.T.round(6))], atol=1e-6)


@given(
    box=st.tuples(*[st.floats(0, 50)] * 2, *[st.floats(1, 30)] * 2, st.floats(-179, 179)),
    transform=st.sampled_from(
        [
            T.HFlipTransform(60),
            T.VFlipTransform(50),
            T.RotationTransform(50, 60, 33),
            T.CropTransform(3, 5, 20, 20),
            T.PadTransform(3, 5, 1, 1),
            T.ResizeTransform(50, 60, 100, 120),
            T.ScaleTransform(50, 60, 100, 120),
            T.ExtentTransform((-5, 10, 25, 30), (40, 60)),
            T.NoOpTransform(),
            T.ColorTransform(lambda x: x),
        ]
    ),
)
def test_corners_of_rotated_boxes_move_like_points(box, transform):
    expected = transform.apply_coords(corners(box))
    moved = transform.apply_rotated_box(np.array([box], dtype=np.float64))[0]
    a, b = corners(moved), expected
    nearest = np.linalg.norm(a[:, None] - b[None], axis=2).min(axis=1)
    # ExtentTransform computes points in single precision.
    assert nearest.max() < (1e-4 if isinstance(transform, T.ExtentTransform) else 1e-6)


@given(angle=st.floats(-180, 180), scale_x=st.floats(0.2, 5), scale_y=st.floats(0.2, 5))
def test_unequal_scales_map_the_sides_of_a_rotated_box(angle, scale_x, scale_y):
    box = np.array([0, 0, 8, 3, angle])
    transform = T.ExtentTransform((0, 0, 10 / scale_x, 10 / scale_y), (10, 10))
    moved = transform.apply_rotated_box(box[None].copy())[0]
    before, after = corners(box), corners(moved)
    for i in (1, 2):  # the sides from the top left to the top right corner, and on to the bottom right one
        side, expected = after[i] - after[i - 1], (before[i] - before[i - 1]) * (scale_x, scale_y)
        assert np.linalg.norm(side) == pytest.approx(np.linalg.norm(expected), rel=1e-4)
    np.testing.assert_allclose(side, expected, atol=1e-3)  # the second one keeps its direction, too


@pytest.mark.filterwarnings("error")
def test_vertical_flip_takes_arrays_that_cannot_be_written_to():
    read_only = image(5, 6)
    read_only.flags.writeable = False
    flipped = T.VFlipTransform(5).apply_image(read_only)
    np.testing.assert_array_equal(flipped, read_only[::-1])
    assert flipped.flags.writeable
    assert flipped.flags.c_contiguous
    stack = np.stack([image(5, 6), image(5, 6)])
    np.testing.assert_array_equal(T.VFlipTransform(5).apply_image(stack), stack[:, ::-1])
    assert T.VFlipTransform(5).apply_image(stack[0, :, :, 0]).shape == (5, 6)


def test_unequal_scales_of_a_rotated_box_follow_its_sides():
    # A quarter turn: the width points up, so it scales with the height of the image.
    box = T.ResizeTransform(10, 10, 10, 30).apply_rotated_box(np.array([[5.0, 5, 4, 2, 90]]))
    np.testing.assert_allclose(box, [[15, 5, 4, 6, 90]], atol=1e-9)


def test_new_types_can_be_registered():
    class Shift(T.Transform):
        def apply_image(self, img):
            return img

        def apply_coords(self, coords):
            return coords + 1

    @Shift.register_type("voxel")
    def shift_voxel(transform, voxel):
        return voxel + 10

    assert T.TransformList([Shift(), Shift()]).apply_voxel(1) == 21


def test_a_cropped_polygon_keeps_the_order_of_its_points():
    polygon = np.array([[91.0, 46], [144, 46], [144, 111], [91, 111]])
    (same,) = T.CropTransform(91, 46, 53, 65).apply_polygons([polygon])  # it touches the window on all sides
    assert same.tolist() == [[0, 0], [53, 0], [53, 65], [0, 65]]
    (cut,) = T.CropTransform(50, 40, 60, 40).apply_polygons([polygon])
    assert cut.tolist() == [[41, 6], [60, 6], [60, 40], [41, 40]]
