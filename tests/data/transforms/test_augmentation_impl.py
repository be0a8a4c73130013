"""What each augmentation decides: sizes, probabilities, ranges; and its errors."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import ListConfig
from PIL import Image

import detectron2.data.transforms as T
from detectron2.data.transforms import augmentation_impl
from detectron2.utils import logger


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)


@pytest.mark.parametrize("name", augmentation_impl.__all__)
def test_classes_belong_to_the_public_module(name):
    cls = getattr(augmentation_impl, name)
    assert cls.__module__ == "detectron2.data.transforms.augmentation_impl"
    assert getattr(T, name) is cls


def test_augmentations_can_be_sent_to_workers(image):
    sent = T.AugmentationList([T.RandomCrop("absolute", (8, 9)), T.RandomContrast(1, 1), T.RandomFlip()])
    received = pickle.loads(pickle.dumps(sent))
    inputs = T.AugInput(image)
    received(inputs)
    assert inputs.image.shape == (8, 9, 3)


# --- flips and RandomApply -------------------------------------------------------------------------------------------


def test_flip_directions(image):
    assert isinstance(T.RandomFlip(0.0).get_transform(image), T.NoOpTransform)
    np.testing.assert_array_equal(T.RandomFlip(1.0).get_transform(image).apply_image(image), image[:, ::-1])
    vertical = T.RandomFlip(1.0, horizontal=False, vertical=True)
    np.testing.assert_array_equal(vertical.get_transform(image).apply_image(image), image[::-1])


@pytest.mark.parametrize(("horizontal", "vertical"), [(True, True), (False, False)])
def test_flip_needs_one_direction(horizontal, vertical):
    with pytest.raises(ValueError, match="RandomFlip"):
        T.RandomFlip(horizontal=horizontal, vertical=vertical)


def test_flip_happens_as_often_as_asked(image):
    flips = [isinstance(T.RandomFlip(0.3).get_transform(image), T.HFlipTransform) for _ in range(2000)]
    assert np.mean(flips) == pytest.approx(0.3, abs=0.04)


def test_random_apply(image):
    assert isinstance(T.RandomApply(T.HFlipTransform(64), prob=0.0)(T.AugInput(image)), T.NoOpTransform)
    assert isinstance(T.RandomApply(T.HFlipTransform(64), prob=1.0)(T.AugInput(image)), T.HFlipTransform)
    assert isinstance(T.RandomApply(T.Resize(3), prob=1.0).get_transform(image), T.ResizeTransform)
    nested = T.AugmentationList([T.RandomApply(T.AugmentationList([T.Resize(9), T.Resize(5)]), prob=1.0)])
    inputs = T.AugInput(image)
    assert len(nested(inputs)) == 2
    assert inputs.image.shape[:2] == (5, 5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        T.RandomApply(T.Resize(3), prob=1.5)


# --- resizing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(20, 30), [20, 30]])
def test_resize(image, shape):
    assert T.Resize(shape).get_transform(image).apply_image(image).shape == (20, 30, 3)
    assert T.Resize(7, Image.Resampling.NEAREST).get_transform(image).interp == Image.Resampling.NEAREST


def test_random_resize(image):
    shapes = {(10, 20), (30, 40)}
    aug = T.RandomResize(sorted(shapes))
    assert {aug.get_transform(image).apply_image(image).shape[:2] for _ in range(40)} == shapes


@given(h=st.integers(1, 3000), w=st.integers(1, 3000), short=st.integers(1, 1500), longest=st.integers(1, 2000))
def test_shortest_edge_is_as_asked_unless_the_longest_forbids(h, w, short, longest):
    new_h, new_w = T.ResizeShortestEdge.get_output_shape(h, w, short, longest)
    assert max(new_h, new_w) <= longest or max(new_h, new_w) == short <= longest
    if short * max(h, w) / min(h, w) <= longest:
        assert min(new_h, new_w) == short
    else:
        assert abs(max(new_h, new_w) - longest) <= 1
    assert min(new_h, new_w) >= 1
    # Proportions are kept up to rounding.
    assert min(new_h, new_w) == 1 or abs(new_h * w - new_w * h) <= 0.5 * (h + w) + 1e-6


def test_shortest_edge_styles(image):
    lengths = {min(T.ResizeShortestEdge((20, 22)).get_transform(image).apply_image(image).shape[:2]) for _ in range(60)}
    assert lengths == {20, 21, 22}
    lengths = {
        min(T.ResizeShortestEdge((20, 22, 30), 99, "choice").get_transform(image).apply_image(image).shape[:2])
        for _ in range(60)
    }
    assert lengths == {20, 22, 30}
    assert isinstance(T.ResizeShortestEdge(0).get_transform(image), T.NoOpTransform)
    assert T.ResizeShortestEdge(24).get_transform(image).new_w == 32
    with pytest.raises(ValueError, match="sample_style"):
        T.ResizeShortestEdge(20, sample_style="all")
    with pytest.raises(ValueError, match="choice"):
        T.ResizeShortestEdge((20, 22, 30), sample_style="range")


def test_resize_scale_fits_in_the_scaled_target(image):
    for _ in range(30):
        transform = T.ResizeScale(0.5, 2.0, 100, 80).get_transform(image)
        assert transform.new_w / 64 == pytest.approx(transform.new_h / 48, abs=0.02)
        assert 39 <= transform.new_w <= 160
    assert T.ResizeScale(1.0, 1.0, 100, 80).get_transform(image).apply_image(image).shape == (60, 80, 3)


# --- crops -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("crop_type", "crop_size", "low", "high"),
    [
        ("relative", (0.5, 0.25), (24, 16), (24, 16)),
        ("relative_range", (0.5, 0.25), (24, 16), (48, 64)),
        ("absolute", (10, 20), (10, 20), (10, 20)),
        ("absolute", (100, 20), (48, 20), (48, 20)),
        ("absolute_range", (10, 50), (10, 10), (48, 50)),
    ],
)
def test_sizes_of_random_crops(image, crop_type, crop_size, low, high):
    sizes = []
    for _ in range(50):
        transform = T.RandomCrop(crop_type, crop_size).get_transform(image)
        out = transform.apply_image(image)
        sizes.append(out.shape[:2])
        np.testing.assert_array_equal(transform.inverse().apply_image(out).shape, image.shape)
    assert (np.array(sizes) >= low).all()
    assert (np.array(sizes) <= high).all()
    if low != high:
        assert len(set(sizes)) > 5


@pytest.mark.parametrize(
    ("crop_type", "crop_size"),
    [
        ("square", (1, 1)),
        ("relative", (0.5, 1.5)),
        ("relative", (0, 1)),
        ("absolute", (3,)),
        ("absolute_range", (5, 3)),
    ],
)
def test_impossible_crops_are_refused_when_they_are_used(crop_type, crop_size):
    with pytest.raises(ValueError, match="crop"):
        T.RandomCrop(crop_type, crop_size).get_transform(np.zeros((8, 12)))


def test_category_area_constraint(image):
    labels = np.zeros((48, 64), np.uint8)
    labels[:, 56:] = 1
    for dtype in (np.uint8, np.int32):
        aug = T.RandomCrop_CategoryAreaConstraint("absolute", (20, 10), 0.75)
        shares = []
        for _ in range(30):
            inputs = T.AugInput(image, sem_seg=labels.astype(dtype))
            aug(inputs)
            assert inputs.sem_seg.shape == (20, 10)
            shares.append((inputs.sem_seg == 1).mean())
        # Without the constraint one window in eleven satisfies it; ten draws find one in 61 % of the cases.
        assert np.mean((np.array(shares) > 0.25) & (np.array(shares) < 0.75)) > 0.35
    off = T.RandomCrop_CategoryAreaConstraint("absolute", (20, 10))
    off(T.AugInput(image))
    with pytest.raises(ValueError, match="needs a label map"):
        T.RandomCrop_CategoryAreaConstraint("absolute", (20, 10), 0.5)(T.AugInput(image))


def test_ignored_category_does_not_count():
    labels = np.full((10, 10), 255, np.uint8)
    labels[0, :5], labels[0, 5:] = 1, 2
    image = np.zeros((10, 10, 3), np.uint8)
    aug = T.RandomCrop_CategoryAreaConstraint("absolute", (10, 10), 0.75, 255)
    assert aug._is_diverse(labels)
    assert not T.RandomCrop_CategoryAreaConstraint("absolute", (10, 10), 0.75)._is_diverse(labels)
    assert aug(T.AugInput(image, sem_seg=labels)).w == 10


@pytest.mark.parametrize("size", [(20, 30), (100, 30), (100, 100)])
def test_fixed_size_crop(image, size):
    labels = np.zeros((48, 64), np.uint8)
    inputs = T.AugInput(image, sem_seg=labels)
    transform = T.FixedSizeCrop(size)(inputs)
    assert inputs.image.shape[:2] == inputs.sem_seg.shape == size
    assert (inputs.image[48:] == 128).all()
    assert (inputs.sem_seg[48:] == 255).all()
    assert transform.inverse().apply_image(inputs.image).shape == image.shape


def test_fixed_size_crop_arguments(image):
    assert T.FixedSizeCrop((100, 30), pad=False).get_transform(image).apply_image(image).shape == (48, 30, 3)
    older = T.FixedSizeCrop((100, 30), 7.0)  # the second argument was pad_value once
    assert (older.pad, older.pad_value) == (True, 7.0)
    assert (older.get_transform(image).apply_image(image)[48:] == 7).all()


@pytest.mark.parametrize(("size", "size_hw"), [(40, (40, 40)), ((30, 80), (30, 80))])
def test_large_scale_jitter_is_resize_then_crop(image, size, size_hw):
    """The same random numbers give what ResizeScale and FixedSizeCrop give one after the other."""
    np.random.seed(3)
    expected, _ = T.apply_augmentations([T.ResizeScale(0.5, 3.0, *size_hw), T.FixedSizeCrop(size_hw)], image)
    np.random.seed(3)
    out, transforms = T.apply_augmentations([T.LargeScaleJitter(size, 0.5, 3.0)], image)
    np.testing.assert_array_equal(out, expected)
    assert out.shape[:2] == size_hw
    assert [type(t) for t in transforms.transforms] == [T.ResizeTransform, T.CropTransform, T.PadTransform]


def test_large_scale_jitter_without_padding(image):
    out, _ = T.apply_augmentations([T.LargeScaleJitter(40, 0.5, 0.5, pad=False)], image)
    assert out.shape[:2] == (15, 20)
    with pytest.raises(ValueError, match=r"0 < min_scale <= max_scale, got 2.0 and 1.0"):
        T.LargeScaleJitter(40, 2.0, 1.0)


def test_min_iou_crop_says_that_it_has_no_boxes(image, caplog):
    logger._TIMES_SEEN.clear()
    for _ in range(3):
        assert isinstance(T.MinIoURandomCrop().get_transform(image, None), T.NoOpTransform)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "gets no boxes" in caplog.text


def test_min_iou_crop_keeps_a_box_in_view(image):
    boxes = np.array([[5.0, 5, 25, 25], [30, 20, 60, 44]], dtype=np.float32)
    aug = T.MinIoURandomCrop(min_ious=(0.3,))
    crops = 0
    for _ in range(60):
        transform = aug.get_transform(image, boxes)
        if isinstance(transform, T.NoOpTransform):
            continue
        crops += 1
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        low = (transform.x0, transform.y0)
        high = (transform.x0 + transform.w, transform.y0 + transform.h)
        assert ((centers > low) & (centers < high)).all(axis=1).any()
        assert 0 < transform.w <= 64
        assert 0 < transform.h <= 48
    assert crops > 5
    assert isinstance(aug.get_transform(image, None), T.NoOpTransform)
    assert isinstance(aug.get_transform(image, np.zeros((0, 4))), T.Transform)


def test_extent(image):
    for _ in range(20):
        transform = T.RandomExtent((0.5, 1.5), (0.5, 0.5)).get_transform(image)
        assert transform.apply_image(image).shape[:2] == transform.output_size
    tiny = T.RandomExtent((0.1, 0.1), (0, 0)).get_transform(image[:3, :3])
    assert tiny.apply_image(image[:3, :3]).shape == (1, 1, 3)
    still = T.RandomExtent((1, 1), (0, 0)).get_transform(image)
    np.testing.assert_array_equal(still.apply_image(image), image)


# --- rotation --------------------------------------------------------------------------------------------------------


def test_rotation_styles(image):
    assert isinstance(T.RandomRotation(0).get_transform(image), T.NoOpTransform)
    assert isinstance(T.RandomRotation([0, 360], sample_style="choice").get_transform(image), T.NoOpTransform)
    transform = T.RandomRotation([20, 40]).get_transform(image)
    assert 20 <= transform.angle <= 40
    transform = T.RandomRotation([90], expand=False, center=[[0.25, 0.5]], sample_style="choice").get_transform(image)
    np.testing.assert_allclose(transform.center, (16, 24))
    transform = T.RandomRotation([90, 91], expand=False, center=[[0, 0], [0.5, 0.5]]).get_transform(image)
    assert (np.array(transform.center) <= (32, 24)).all()
    assert T.RandomRotation(10, expand=False, center=(0.5, 0.5)).get_transform(image).center == (32, 24)
    with pytest.raises(ValueError, match="sample_style"):
        T.RandomRotation(10, sample_style="?")
    with pytest.raises(ValueError, match=r'angle must be \(min, max\), got \[90\]; .* sample_style="choice"'):
        T.RandomRotation([90])
    with pytest.raises(ValueError, match=r"center must be \(min, max\)"):
        T.RandomRotation(90, center=[[0, 0], [1, 1], [0, 1]])


# --- colours ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augmentation", [T.RandomContrast, T.RandomBrightness, T.RandomSaturation])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_intensity_one_changes_nothing(image, augmentation, dtype):
    img = image.astype(dtype)
    out = augmentation(1, 1).get_transform(img).apply_image(img)
    np.testing.assert_allclose(out, img, atol=1)


def test_brightness_contrast_saturation(image):
    value = image.astype(float)
    dark = T.RandomBrightness(0.5, 0.5).get_transform(image).apply_image(image)
    np.testing.assert_allclose(dark, np.floor(value * 0.5))
    bright = T.RandomBrightness(3, 3).get_transform(image).apply_image(image)
    np.testing.assert_allclose(bright, np.clip(value * 3, 0, 255))
    flat = T.RandomContrast(0, 0).get_transform(image).apply_image(image)
    np.testing.assert_allclose(flat, np.floor(value.mean()), atol=1)
    grey = T.RandomSaturation(0, 0).get_transform(image).apply_image(image)
    np.testing.assert_allclose(grey[..., 1], value @ [0.299, 0.587, 0.114], atol=1.001)
    assert dark.dtype == bright.dtype == flat.dtype == grey.dtype == np.uint8
    assert isinstance(T.RandomBrightness(1, 1).get_transform(image), T.BlendTransform)


def test_lighting(image):
    unchanged = T.RandomLighting(0.0).get_transform(image).apply_image(image)
    np.testing.assert_array_equal(unchanged, image)
    shift = T.RandomLighting(100.0).get_transform(image).src_image
    assert shift.shape == (3,)
    for augmentation in (T.RandomLighting(1.0), T.RandomSaturation(1, 1)):
        with pytest.raises(ValueError, match=r"RGB image of shape \(H, W, 3\), got \(48, 64\)"):
            augmentation.get_transform(image[:, :, 0])


@pytest.mark.parametrize("name", sorted(augmentation_impl.__all__))
def test_boxes_stay_inside_the_image(name, image):
    """A box inside the image is inside the transformed image once it is clipped, and is still a box."""
    arguments = {
        "FixedSizeCrop": ((30, 90),),
        "LargeScaleJitter": (50,),
        "RandomApply": (T.HFlipTransform(64),),
        "RandomBrightness": (0.5, 2),
        "RandomContrast": (0.5, 2),
        "RandomSaturation": (0.5, 2),
        "RandomCrop": ("relative_range", (0.3, 0.3)),
        "RandomCrop_CategoryAreaConstraint": ("relative_range", (0.3, 0.3), 0.9),
        "RandomExtent": ((0.5, 1.5), (0.2, 0.2)),
        "RandomLighting": (1.0,),
        "RandomResize": ([(9, 17), (70, 31)],),
        "RandomRotation": ([-90, 90],),
        "Resize": (33,),
        "ResizeScale": (0.1, 2.0, 50, 50),
        "ResizeShortestEdge": ((20, 40),),
    }
    augmentation = getattr(T, name)(*arguments.get(name, ()))
    for _ in range(10):
        boxes = np.array([[0.0, 0, 64, 48], [10, 20, 30, 40]], dtype=np.float32)
        inputs = T.AugInput(image, boxes=boxes.copy(), sem_seg=image[:, :, 0])
        augmentation(inputs)
        assert inputs.sem_seg.shape == inputs.image.shape[:2]
        h, w = inputs.image.shape[:2]
        clipped = np.clip(inputs.boxes, 0, (w, h, w, h))
        assert (clipped[:, 2:] >= clipped[:, :2]).all()
        assert (inputs.boxes[0, 2:] - inputs.boxes[0, :2] > 0).all()


def test_a_crop_of_any_size_can_be_made_and_shown():
    assert str(T.RandomCrop("relative", (100, 100))) == "RandomCrop(crop_type='relative', crop_size=(100, 100))"


@pytest.mark.parametrize("prob", [-0.01, 1.01])
@pytest.mark.parametrize("error", [ValueError, AssertionError])
def test_the_probability_is_checked_before_what_is_applied(prob, error):
    with pytest.raises(error, match="prob must be"):
        T.RandomApply(None, prob=prob)
    with pytest.raises(TypeError, match="expected an Augmentation"):
        T.RandomApply(None, prob=0.5)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: T.Resize(0), r"shape must be at least 1, got \(0, 0\)"),
        (lambda: T.Resize((-5, 10)), "shape must be at least 1"),
        (lambda: T.RandomResize([(4, 4), (0, 4)]), "shape_list must be at least 1"),
        (lambda: T.RandomResize([]), r"shape_list .*got \[\]"),
        (lambda: T.ResizeShortestEdge(-5), "short_edge_length must be at least 0"),
        (lambda: T.ResizeShortestEdge([50, 20]), "second short_edge_length must be at least 50, got 20"),
        (lambda: T.ResizeShortestEdge([], sample_style="choice"), r"short_edge_length .*got \[\]"),
        (lambda: T.ResizeShortestEdge(20, 0), "max_size must be at least 1"),
        (lambda: T.ResizeScale(-1, 1, 8, 8), "min_scale must be at least 0"),
        (lambda: T.ResizeScale(1, float("nan"), 8, 8), "max_scale must be at least 0, got nan"),
        (lambda: T.ResizeScale(1, 2, 0, 8), "target_height must be at least 1"),
        (lambda: T.RandomCrop("absolute", (0.9, 0.9)), r'crop_size in pixels \("absolute"\) must be at least 1'),
        (lambda: T.RandomCrop("absolute_range", (0, 1)), "crop_size in pixels"),
        (lambda: T.RandomCrop_CategoryAreaConstraint("absolute", (-3, 4)), "crop_size in pixels"),
        (lambda: T.FixedSizeCrop((0, 4)), "crop_size must be at least 1"),
        (lambda: T.LargeScaleJitter(0), "at least 1"),
        (lambda: T.RandomExtent((0, 1), (0, 0)), "scale_range must be at least"),
        (lambda: T.MinIoURandomCrop(min_crop_size=2), "min_crop_size must be between 0 and 1"),
        (lambda: T.RandomFlip(float("nan")), "prob must be between 0 and 1, got nan"),
    ],
)
def test_sizes_that_cannot_be_are_refused_when_it_is_made(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_sizes_of_lazy_configs():
    sizes = ListConfig([[8, 12]])
    assert T.RandomResize(sizes).shape_list is sizes and T.FixedSizeCrop(ListConfig([8, 12])).crop_size == (8, 12)
    assert T.FixedSizeCrop(8).crop_size == (8, 8)
