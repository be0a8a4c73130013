"""Image, label map, bitmap, polygon, box and keypoints of one shape go the same way, through every class there is."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageEnhance

import detectron2.data.transforms as T
from detectron2.data import detection_utils as utils
from detectron2.structures import BoxMode

H, W = 40, 56
EXACT = 1e-6  # whole pixels move: rasters are the same pixel by pixel
SMOOTH = 1.0  # pixels of the input; half a pixel of the result is added


class Halves:
    """Stands for Albumentations in these tests: it has one transform, a flip and a crop of the right half."""

    class BaseCompose:
        pass

    class ImageOnlyTransform:
        pass

    class Compose(BaseCompose):
        def __init__(self, transforms, p=1.0, **kwargs):
            self.transforms, self.p = transforms, p

        def __call__(self, image, mask, keypoints, bboxes):
            x = image.shape[1] - 1 - keypoints[:, 0] - 20  # pixel indices
            return {
                "image": image[:, ::-1][:, 20:],
                "mask": mask[:, ::-1][:, 20:],
                "keypoints": np.stack([x, keypoints[:, 1]], 1),
            }

    @staticmethod
    def KeypointParams(**kwargs):
        return kwargs

    BboxParams = KeypointParams


@pytest.fixture(autouse=True)
def _albumentations(monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", Halves)


def half(image):
    return image // 2


def grey(image):
    return ImageEnhance.Color(image).enhance(0)


# Each class, how to make one, and the tolerance.
TRANSFORMS = {
    "BlendTransform": (lambda: T.BlendTransform(np.float32(20), 0.5, 0.5), EXACT),
    "ColorTransform": (lambda: T.ColorTransform(half), EXACT),
    "CropTransform": (lambda: T.CropTransform(13, 7, 30, 25, W, H), EXACT),
    "ExtentTransform": (lambda: T.ExtentTransform((-3.5, 4.25, 40, 50), (40, 60)), SMOOTH),
    "HFlipTransform": (lambda: T.HFlipTransform(W), EXACT),
    "NoOpTransform": (T.NoOpTransform, EXACT),
    "PILColorTransform": (lambda: T.PILColorTransform(grey), EXACT),
    "PadTransform": (lambda: T.PadTransform(3, 4, 5, 6, W, H, 128, 255), EXACT),
    "ResizeTransform": (lambda: T.ResizeTransform(H, W, 71, 33), SMOOTH),
    "RotationTransform": (lambda: T.RotationTransform(H, W, 33), SMOOTH),
    "ScaleTransform": (lambda: T.ScaleTransform(H, W, 61, 43, "bilinear"), SMOOTH),
    "TransformList": (
        lambda: T.TransformList([T.ResizeTransform(H, W, 2 * H, 2 * W), T.VFlipTransform(2 * H)]),
        SMOOTH,
    ),
    "VFlipTransform": (lambda: T.VFlipTransform(H), EXACT),
}
AUGMENTATIONS = {
    "Albumentations": (lambda: T.Albumentations(object()), EXACT),
    "AugmentationList": (lambda: T.AugmentationList([T.RandomFlip(), T.RandomRotation((-30, 30), False)]), SMOOTH),
    "FixedSizeCrop": (lambda: T.FixedSizeCrop((30, 80)), EXACT),
    "LargeScaleJitter": (lambda: T.LargeScaleJitter(48, 0.5, 2.0), SMOOTH),
    "MinIoURandomCrop": (lambda: T.MinIoURandomCrop((0.1, 0.3), mode_trials=5), EXACT),
    "RandomApply": (lambda: T.RandomApply(T.HFlipTransform(W)), EXACT),
    "RandomBrightness": (lambda: T.RandomBrightness(0.5, 2), EXACT),
    "RandomContrast": (lambda: T.RandomContrast(0.5, 2), EXACT),
    "RandomCrop": (lambda: T.RandomCrop("relative_range", (0.3, 0.3)), EXACT),
    "RandomCrop_CategoryAreaConstraint": (
        lambda: T.RandomCrop_CategoryAreaConstraint("relative", (0.5, 0.5), 0.9),
        EXACT,
    ),
    "RandomExtent": (lambda: T.RandomExtent((0.6, 1.5), (0.3, 0.3)), SMOOTH),
    "RandomFlip": (T.RandomFlip, EXACT),
    "RandomLighting": (lambda: T.RandomLighting(30.0), EXACT),
    "RandomResize": (lambda: T.RandomResize([(25, 90), (80, 60)]), SMOOTH),
    "RandomRotation": (lambda: T.RandomRotation((-90, 90)), SMOOTH),
    "RandomSaturation": (lambda: T.RandomSaturation(0.5, 2), EXACT),
    "Resize": (lambda: T.Resize((33, 50)), SMOOTH),
    "ResizeScale": (lambda: T.ResizeScale(0.5, 2.0, 50, 50), SMOOTH),
    "ResizeShortestEdge": (lambda: T.ResizeShortestEdge((25, 60)), SMOOTH),
}
COLOURS = {name for name in (*TRANSFORMS, *AUGMENTATIONS) if any(w in name for w in ("Blend", "Color", "Bright"))}
COLOURS |= {"RandomContrast", "RandomLighting", "RandomSaturation"}


def subclasses(base):
    return {n for n in T.__all__ if isinstance(c := getattr(T, n), type) and issubclass(c, base) and c is not base}


def test_no_class_is_left_out():
    # GridSampleTransform has a test of its own below: it does not know where points go.
    assert set(TRANSFORMS) == subclasses(T.Transform) - {"GridSampleTransform"}
    assert set(AUGMENTATIONS) == subclasses(T.Augmentation)


# --- one shape, drawn and transformed in all ways --------------------------------------------------------------------


@st.composite
def shapes(draw):
    """A polygon `(P, 2)` that does not cross itself, within the image."""
    count = draw(st.integers(3, 7))
    radius = np.array(draw(st.lists(st.floats(5, 15), min_size=count, max_size=count)))
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False) + draw(st.floats(0, 6))
    center = (draw(st.floats(15.1, W - 15.1)), draw(st.floats(15.1, H - 15.1)))
    return np.stack([np.cos(angles), np.sin(angles)], 1) * radius[:, None] + center


def covers(polygons, xy):
    """Whether points `(P, 2)` lie in one of the polygons: a ray to the right crosses an odd number of edges."""
    inside = np.zeros(len(xy), dtype=bool)
    for polygon in polygons:
        a, b = polygon, np.roll(polygon, -1, axis=0)
        crosses = (a[:, 1] > xy[:, None, 1]) != (b[:, 1] > xy[:, None, 1])
        with np.errstate(divide="ignore", invalid="ignore"):
            at = a[:, 0] + (xy[:, None, 1] - a[:, 1]) / (b[:, 1] - a[:, 1]) * (b[:, 0] - a[:, 0])
        inside |= (crosses & (xy[:, None, 0] < at)).sum(axis=1) % 2 == 1
    return inside


def distance_to_outline(polygons, xy):
    out = np.full(len(xy), np.inf)
    for polygon in polygons:
        a, edge = polygon, np.roll(polygon, -1, axis=0) - polygon
        along = ((xy[:, None] - a) * edge).sum(-1) / np.maximum((edge**2).sum(-1), 1e-12)
        nearest = a + np.clip(along, 0, 1)[..., None] * edge
        out = np.minimum(out, np.linalg.norm(xy[:, None] - nearest, axis=-1).min(axis=1))
    return out


def centres(h, w):
    return np.stack(np.meshgrid(np.arange(w) + 0.5, np.arange(h) + 0.5), axis=-1).reshape(-1, 2)


def draw_shape(polygon, h, w):
    return covers([polygon], centres(h, w)).reshape(h, w)


def disagreement(raster, polygons):
    """How far from the outline, in pixels, raster and polygon still differ."""
    xy = centres(*raster.shape)
    differs = covers(polygons, xy) != raster.ravel()
    if not differs.any():
        return 0.0
    return distance_to_outline(polygons, xy[differs]).max()


def stretch_of(transform):
    corner, right, down = transform.apply_coords(np.array([[0.0, 0], [1, 0], [0, 1]]))
    return max(np.linalg.norm(right - corner), np.linalg.norm(down - corner))


def check_alignment(name, transform, polygon, tolerance):
    mask = draw_shape(polygon, H, W)
    image = np.repeat((mask * 255).astype(np.uint8)[:, :, None], 3, axis=2)
    out_image = transform.apply_image(image)
    h, w = out_image.shape[:2]
    annotation = {
        "bbox": [*polygon.min(axis=0), *polygon.max(axis=0)],
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": 0,
        "keypoints": np.c_[polygon, np.full(len(polygon), 2)],
    }
    flip = np.arange(len(polygon))
    as_bitmap = utils.transform_instance_annotations(
        {**annotation, "segmentation": mask.astype(np.uint8) * 7}, transform, (h, w), keypoint_hflip_indices=flip
    )
    as_polygon = utils.transform_instance_annotations(
        {**annotation, "segmentation": [polygon.ravel()]}, transform, (h, w), keypoint_hflip_indices=flip
    )
    moved = [p.reshape(-1, 2) for p in as_polygon["segmentation"]]
    labels = transform.apply_segmentation(mask.astype(np.uint8))

    # Rasters against the polygon. Half a pixel of the result is free where pixels are interpolated.
    pixels = tolerance if tolerance == EXACT else tolerance * stretch_of(transform) + 0.5
    threshold = (int(out_image.max()) + int(out_image.min())) / 2 if name in COLOURS else 190  # paddings are 128
    if moved:
        assert disagreement(out_image[:, :, 0] > threshold, moved) <= pixels
        assert disagreement(labels == 1, moved) <= pixels
    np.testing.assert_array_equal(as_bitmap["segmentation"], labels == 1)
    assert labels.shape == (h, w)

    # The box: all that is left of the shape lies in it.
    if (labels == 1).any():
        y, x = np.nonzero(labels == 1)
        seen = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
        outside = (as_polygon["bbox"] - seen) * (1, 1, -1, -1)
        assert (outside <= pixels + 0.5 + 1e-3).all()
    np.testing.assert_array_equal(as_polygon["bbox"], as_bitmap["bbox"])

    # Keypoints: the corners of the polygon, which a crop hides but does not move otherwise.
    corners = transform.apply_coords(polygon.copy())
    inside = ((corners >= 0) & (corners <= (w, h))).all(axis=1)
    np.testing.assert_allclose(as_polygon["keypoints"][inside, :2], corners[inside])
    np.testing.assert_array_equal(as_polygon["keypoints"][:, 2] == 2, inside)
    if inside.all():
        (whole,) = moved
        # A crop may begin the polygon at another corner.
        gaps = np.linalg.norm(whole[:, None] - corners[None], axis=2).min(axis=0)
        assert gaps.max() < 1e-4


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
@settings(max_examples=8, deadline=None)
@given(polygon=shapes())
def test_transforms_keep_everything_aligned(name, polygon):
    make, tolerance = TRANSFORMS[name]
    check_alignment(name, make(), polygon, tolerance)


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
@settings(max_examples=8, deadline=None)
@given(polygon=shapes(), seed=st.integers(0, 2**31))
def test_augmentations_keep_everything_aligned(name, polygon, seed):
    np.random.seed(seed)
    make, tolerance = AUGMENTATIONS[name]
    mask = draw_shape(polygon, H, W).astype(np.uint8)
    image = np.repeat(mask[:, :, None] * np.uint8(255), 3, axis=2)
    boxes = np.array([[*polygon.min(axis=0), *polygon.max(axis=0)]], dtype=np.float32)
    inputs = T.AugInput(image, boxes=boxes.copy(), sem_seg=mask)
    transform = make()(inputs)
    np.testing.assert_array_equal(transform.apply_image(image), inputs.image)
    np.testing.assert_array_equal(transform.apply_segmentation(mask), inputs.sem_seg)
    np.testing.assert_allclose(transform.apply_box(boxes.copy()), inputs.boxes, atol=1e-3)
    check_alignment(name, transform, polygon, tolerance)


@pytest.mark.parametrize("name", ["ExtentTransform", "ResizeTransform", "RotationTransform", "ScaleTransform"])
@settings(max_examples=8, deadline=None)
@given(x=st.integers(8, 30), y=st.integers(12, H - 12))
def test_interpolated_pixels_have_their_centre_of_mass_where_points_go(name, x, y):
    transform = TRANSFORMS[name][0]()
    image = np.zeros((H, W), dtype=np.float32)
    image[y - 4 : y + 4, x - 4 : x + 4] = 1
    out = transform.apply_image(image)
    rows, columns = np.arange(out.shape[0]) + 0.5, np.arange(out.shape[1]) + 0.5
    found = np.array([(out.sum(axis=0) * columns).sum(), (out.sum(axis=1) * rows).sum()]) / out.sum()
    np.testing.assert_allclose(found, transform.apply_coords(np.array([[x, y]], dtype=float))[0], atol=0.2)


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_rotated_boxes_are_transformed(name):
    transform = TRANSFORMS[name][0]()
    box = np.array([[20.0, 18, 12, 6, 0]])
    moved = transform.apply_rotated_box(box.copy())
    np.testing.assert_allclose(moved[:, :2], transform.apply_coords(box[:, :2].copy()), atol=1e-4)
    # Without an angle the sides stay perpendicular under all of them: the lengths are those between points.
    ends = transform.apply_coords(np.array([[14.0, 18], [26, 18], [20, 15], [20, 21]]))
    np.testing.assert_allclose(moved[0, 2], np.linalg.norm(ends[1] - ends[0]), rtol=1e-5)
    np.testing.assert_allclose(moved[0, 3], np.linalg.norm(ends[3] - ends[2]), rtol=1e-5)


def test_grid_sampling_moves_image_and_labels_but_refuses_points():
    x, y = (np.arange(W) + 0.5) / W * 2 - 1, (np.arange(H) + 0.5) / H * 2 - 1
    grid = np.stack(np.meshgrid(-x, y), axis=-1)[None].astype(np.float32)  # a horizontal flip
    transform = T.GridSampleTransform(grid, "bilinear")
    image = np.random.default_rng(0).integers(0, 2, (H, W), dtype=np.uint8) * np.uint8(255)
    np.testing.assert_allclose(transform.apply_image(image), image[:, ::-1], atol=1)
    np.testing.assert_array_equal(transform.apply_segmentation(image), image[:, ::-1])
    for apply, data in (
        (transform.apply_coords, np.zeros((1, 2))),
        (transform.apply_box, np.zeros((1, 4))),
        (transform.apply_rotated_box, np.zeros((1, 5))),
    ):
        with pytest.raises(NotImplementedError, match=r"GridSampleTransform cannot transform .*register_type"):
            apply(data)


# --- random numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_numpys_seed_alone_decides(name):
    """Data-loader workers seed numpy's generator: equal seeds must give equal results, and others must differ."""
    image = np.random.default_rng(1).integers(0, 256, (H, W, 3)).astype(np.uint8)
    boxes = np.array([[5.0, 5, 30, 30]], dtype=np.float32)
    labels = np.indices((H, W)).sum(axis=0).astype(np.uint8) // 10
    augmentation = AUGMENTATIONS[name][0]()

    def results(seed):
        np.random.seed(seed)
        out = []
        for _ in range(4):
            inputs = T.AugInput(image, boxes=boxes.copy(), sem_seg=labels)
            augmentation(inputs)
            out.append((inputs.image, inputs.boxes, inputs.sem_seg))
        return out

    first, again, other = results(5), results(5), [results(seed) for seed in range(6, 9)]
    for a, b in zip(first, again, strict=True):
        for one, two in zip(a, b, strict=True):
            np.testing.assert_array_equal(one, two)
    if name not in ("Albumentations", "Resize"):
        assert any(
            a[0].shape != b[0].shape or (a[0] != b[0]).any() for o in other for a, b in zip(first, o, strict=True)
        )
