"""The adapter for Albumentations, with a small library in its place that has the documented interface.

Conventions of the stand-in are those of Albumentations: keypoints are pixel indices, masks are interpolated to the
nearest pixel, filled pixels of a mask get `fill_mask`.
"""

import sys

import numpy as np
import pytest

import detectron2.data.transforms as T
from detectron2.data import detection_utils as utils
from detectron2.data.transforms import albumentations_adapter
from detectron2.structures import BoxMode

H, W = 30, 50


class Basic:
    def __init__(self, p=1.0):
        self.p = p


class ImageOnlyTransform(Basic):
    pass


class BaseCompose:
    def __init__(self, transforms, p=1.0):
        self.transforms, self.p = list(transforms), p


class Compose(BaseCompose):
    def __init__(self, transforms, p=1.0, bbox_params=None, keypoint_params=None, seed=None):
        super().__init__(transforms, p)
        self.bbox_params, self.keypoint_params = bbox_params, keypoint_params
        self.set_random_seed(seed)

    def set_random_seed(self, seed):
        self.random = np.random.default_rng(seed)

    def __call__(self, **data):
        if "keypoints" in data:
            assert self.keypoint_params == {"format": "xy", "remove_invisible": False}
        if "bboxes" in data:
            assert self.bbox_params == {"format": "pascal_voc"}
        if self.random.random() < self.p:
            for transform in self.transforms:
                if self.random.random() < transform.p:
                    data = {**data, **transform.run(data, self.random)}
        return data


class OneOf(BaseCompose):
    def run(self, data, random):
        return self.transforms[random.integers(len(self.transforms))].run(data, random)


class Darker(ImageOnlyTransform):
    def run(self, data, random):
        return {"image": data["image"] // 2}


class HorizontalFlip(Basic):
    def run(self, data, random):
        x, y = data["keypoints"].T
        return {
            "image": data["image"][:, ::-1],
            "mask": data["mask"][:, ::-1],
            "keypoints": np.stack([data["image"].shape[1] - 1 - x, y], 1),
        }


class Shift(Basic):
    """Move everything right by `dx` pixels; what comes in is filled."""

    def __init__(self, dx, fill_mask=0, p=1.0):
        super().__init__(p)
        self.dx, self.fill_mask = dx, fill_mask

    def run(self, data, random):
        image, mask = np.full_like(data["image"], 9), np.full_like(data["mask"], self.fill_mask)
        image[:, self.dx :], mask[:, self.dx :] = data["image"][:, : -self.dx], data["mask"][:, : -self.dx]
        return {"image": image, "mask": mask, "keypoints": data["keypoints"] + [self.dx, 0]}


class RandomCrop(Basic):
    def run(self, data, random):
        x, y = random.integers(0, W - 20), random.integers(0, H - 10)
        return {
            "image": data["image"][y : y + 10, x : x + 20],
            "mask": data["mask"][y : y + 10, x : x + 20],
            "keypoints": data["keypoints"] - [x, y],
        }


class CropOfBoxes(Basic):
    """Cut out what the boxes span."""

    def run(self, data, random):
        boxes = np.asarray(data["bboxes"])
        assert boxes.shape[1] == 5
        x0, y0 = boxes[:, :2].min(axis=0).astype(int)
        x1, y1 = boxes[:, 2:4].max(axis=0).astype(int)
        keypoints = data["keypoints"] - [x0, y0]
        return {"image": data["image"][y0:y1, x0:x1], "mask": data["mask"][y0:y1, x0:x1], "keypoints": keypoints}


class Bend(Basic):
    """Move every row to the right by the square of its distance to the first, times `strength`."""

    strength = 0.01

    def run(self, data, random):
        image, mask = np.zeros_like(data["image"]), np.zeros_like(data["mask"])
        for row in range(image.shape[0]):
            dx = round(self.strength * row**2)
            image[row, dx:], mask[row, dx:] = data["image"][row, : W - dx], data["mask"][row, : W - dx]
        x, y = data["keypoints"].T
        return {"image": image, "mask": mask, "keypoints": np.stack([x + self.strength * y**2, y], 1)}


class Distortion(Bend):
    """As those of version 2: by default it loses keypoints."""

    def __init__(self, keypoint_remapping_method="mask", p=1.0):
        super().__init__(p)
        self.keypoint_remapping_method = keypoint_remapping_method

    def run(self, data, random):
        out = super().run(data, random)
        return out if self.keypoint_remapping_method == "direct" else {**out, "keypoints": out["keypoints"][:-2]}


class DropsKeypoints(Basic):
    def run(self, data, random):
        return {"keypoints": data["keypoints"][3:]}


class ToTensorV2(Basic):
    def run(self, data, random):
        return {"image": bytes(3)}


class Library:
    BaseCompose, Compose, ImageOnlyTransform = BaseCompose, Compose, ImageOnlyTransform

    @staticmethod
    def KeypointParams(**params):
        return params

    BboxParams = KeypointParams


@pytest.fixture(autouse=True)
def _library(monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", Library)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (H, W, 3)).astype(np.uint8)


def transform_of(transform, image, **inputs):
    return T.Albumentations(transform)(T.AugInput(image, **inputs))


def test_nothing_in_nothing_out(image):
    for part in (HorizontalFlip(), Darker()):
        transform = transform_of(part, image, boxes=np.zeros((0, 4), np.float32))
        assert transform.apply_coords(np.zeros((0, 2))).shape == (0, 2)
        assert transform.apply_box(np.zeros((0, 4))).shape == (0, 4)
        assert transform.apply_rotated_box(np.zeros((0, 5))).shape == (0, 5)
        assert transform.apply_polygons([]) == []


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: [t], lambda t: Compose([t]), lambda t: Compose([OneOf([t])])])
def test_a_flip_is_a_flip(image, wrap):
    labels = np.random.default_rng(1).integers(0, 300, (H, W))
    inputs = T.AugInput(image, boxes=np.array([[1.0, 2, 11, 22]], np.float32), sem_seg=labels)
    transform = T.Albumentations(wrap(HorizontalFlip()))(inputs)
    expected = T.HFlipTransform(W)
    np.testing.assert_array_equal(inputs.image, image[:, ::-1])
    np.testing.assert_array_equal(inputs.sem_seg, labels[:, ::-1])
    assert inputs.sem_seg.dtype == labels.dtype
    np.testing.assert_allclose(inputs.boxes, [[W - 11, 2, W - 1, 22]], atol=1e-4)
    xy = np.array([[0.0, 0], [W, H], [-20, 70]])
    np.testing.assert_allclose(transform.apply_coords(xy.copy()), expected.apply_coords(xy.copy()), atol=1e-4)
    rotated = np.array([[10.0, 12, 8, 4, 30]])
    moved = transform.apply_rotated_box(rotated.copy())
    np.testing.assert_allclose(moved, expected.apply_rotated_box(rotated.copy()), atol=1e-4)
    assert str(transform) == "Albumentations((30, 50) -> (30, 50))"


def test_polygons_are_cut_and_boxes_keep_their_places(image):
    """Three instances: what a crop leaves of them is what CropTransform leaves, and none is lost on the way."""
    transform = transform_of(RandomCrop(), image)
    x0, y0 = -transform.apply_coords(np.zeros((1, 2)))[0]
    crop = T.CropTransform(round(x0), round(y0), 20, 10, W, H)
    square = np.array([(0, 0), (8, 0), (8, 8), (0, 8)], dtype=float)
    polygons = [square, square + np.array([x0 + 15, y0 + 5]), square + 100]
    ours = [transform.apply_polygons([p.copy()]) for p in polygons]
    for mine, theirs in zip(ours, [crop.apply_polygons([p.copy()]) for p in polygons], strict=True):
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)
    boxes = np.array([[*p.min(0), *p.max(0)] for p in polygons])
    np.testing.assert_allclose(transform.apply_box(boxes), boxes - [x0, y0, x0, y0], atol=1e-4)
    annotations = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "segmentation": [p.ravel()], "category_id": i}
        for i, (box, p) in enumerate(zip(boxes, polygons, strict=True))
    ]
    annotations = [utils.transform_instance_annotations(a, transform, (10, 20)) for a in annotations]
    left = utils.filter_empty_instances(utils.annotations_to_instances(annotations, (10, 20)))
    assert 1 in left.gt_classes
    assert 2 not in left.gt_classes


@pytest.mark.parametrize("fill", [0, 1, 7, 255])
def test_filled_pixels_get_the_label_for_masks(image, fill):
    labels = np.full((H, W), 3, np.uint8)
    inputs = T.AugInput(image, sem_seg=labels)
    transform = T.Albumentations(Shift(4, fill_mask=fill))(inputs)
    assert (inputs.sem_seg[:, :4] == fill).all()
    assert (inputs.sem_seg[:, 4:] == 3).all()
    assert (inputs.image[:, :4] == 9).all()
    # A bitmap of an instance has nothing there, whatever the label.
    annotation = {"bbox": [0, 0, W, H], "bbox_mode": BoxMode.XYXY_ABS, "segmentation": np.ones((H, W), np.uint8)}
    bitmap = utils.transform_instance_annotations(annotation, transform, (H, W))["segmentation"]
    if fill != 1:
        np.testing.assert_array_equal(bitmap[:, :4], 0)
    np.testing.assert_array_equal(bitmap[:, 4:], 1)


def test_the_image_is_the_one_that_was_made_and_others_follow_its_geometry(image):
    inputs = T.AugInput(image)
    transform = T.Albumentations([Darker(), HorizontalFlip()])(inputs)
    np.testing.assert_array_equal(inputs.image, image[:, ::-1] // 2)
    np.testing.assert_array_equal(transform.apply_image(image.copy()), inputs.image)
    depth = np.arange(H * W, dtype=np.float32).reshape(H, W)
    np.testing.assert_array_equal(transform.apply_image(depth), depth[:, ::-1])
    with pytest.raises(ValueError, match=r"\(30, 50\), and cannot be applied to an array of \(9, 50\)"):
        transform.apply_segmentation(depth[:9])
    with pytest.raises(NotImplementedError, match="cannot be inverted"):
        transform.inverse()


def test_colours_leave_annotations_alone(image):
    transform = transform_of(Compose([OneOf([Darker(), Darker()])]), image)
    labels, xy, polygons = image[:, :, 0], np.ones((2, 2)), [np.ones((3, 2))]
    np.testing.assert_array_equal(transform.apply_image(image), image // 2)
    assert transform.apply_segmentation(labels) is labels
    assert transform.apply_coords(xy) is xy
    assert transform.apply_polygons(polygons) is polygons
    assert transform.apply_image(labels) is labels


def test_bent_images(image):
    transform = transform_of(Bend(), image)
    xy = np.array([[10.0, 0.5], [10, 20.5], [W - 1, H - 1]])
    expected = xy + np.stack([Bend.strength * (xy[:, 1] - 0.5) ** 2, np.zeros(3)], 1)
    np.testing.assert_allclose(transform.apply_coords(xy), expected, atol=0.6)  # linear over up to 16 pixels
    with pytest.raises(NotImplementedError, match=r"cannot transform rotated boxes .* A\.Affine"):
        transform.apply_rotated_box(np.zeros((1, 5)))


@pytest.mark.parametrize(
    "wrap", [lambda t: t, lambda t: [OneOf([t])], lambda t: Compose([t])], ids=["one", "list", "all"]
)
def test_distortions_keep_keypoints(image, wrap):
    given = Distortion()
    points = transform_of(wrap(given), image).apply_coords(np.array([[10.0, 20.5], [3.0, 0.5]]))
    np.testing.assert_allclose(points, [[14.0, 20.5], [3.0, 0.5]], atol=0.7)  # bilinear between nodes
    assert given.keypoint_remapping_method == "mask"  # it is the user's


def test_boxes_are_given_to_those_who_look_at_them(image):
    boxes = np.array([[10, 5, 20, 15], [30, 8, 90, 12], [60, 0, 70, 9]], np.float32)  # one reaches out, one is outside
    inputs = T.AugInput(image, boxes=boxes)
    T.Albumentations(CropOfBoxes())(inputs)
    assert inputs.image.shape == (10, 40, 3)
    np.testing.assert_allclose(inputs.boxes, boxes - [10, 5, 10, 5], atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (700, 3)])
def test_small_and_long_images(shape):
    image = np.zeros((*shape, 3), np.uint8)
    transform = transform_of(HorizontalFlip(), image)
    np.testing.assert_allclose(transform.apply_coords(np.array([[0.25, 0.5]])), [[shape[1] - 0.25, 0.5]], atol=1e-3)


def test_numpys_seed_decides(image):
    augmentation = T.Albumentations(Compose([RandomCrop()], seed=7))

    def crops(seed):
        np.random.seed(seed)
        return [augmentation.get_transform(image).apply_coords(np.zeros((1, 2))).tolist() for _ in range(5)]

    first = crops(1)
    assert first == crops(1)
    assert first != crops(2)
    assert len({str(crop) for crop in first}) > 1


def test_probability_of_the_composition(image):
    np.testing.assert_array_equal(transform_of(Compose([HorizontalFlip()], p=0.0), image).apply_image(image), image)


def test_errors(image, monkeypatch):
    with pytest.raises(ValueError, match=r"dropped 3 of 15 keypoints"):
        transform_of(DropsKeypoints(), image)
    with pytest.raises(TypeError, match=r"a bytes of the image.*leave out ToTensorV2"):
        transform_of(ToTensorV2(), image)
    monkeypatch.setitem(sys.modules, "albumentations", None)
    with pytest.raises(ImportError, match=r"pip install 'detectron2\[albumentations\]'"):
        T.Albumentations(HorizontalFlip())


def test_the_public_name():
    assert albumentations_adapter.__all__ == ["Albumentations"]
    assert T.Albumentations is albumentations_adapter.Albumentations
