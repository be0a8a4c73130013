"""The protocol between augmentations, inputs and transforms, with the snippets of the tutorial."""

import numpy as np
import pytest

import detectron2.data.transforms as T
from detectron2.data.transforms import augmentation
from detectron2.data.transforms.augmentation import _get_aug_input_args, _transform_to_aug


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)


def test_no_augmentation_leaves_everything(image):
    aug_input = T.AugInput(image)
    transforms = T.AugmentationList([])(aug_input)
    assert isinstance(transforms, T.TransformList)
    assert len(transforms) == 0
    assert aug_input.image is image
    assert aug_input.boxes is None
    assert aug_input.sem_seg is None


def test_star_import_gives_the_old_names():
    namespace = {}
    exec("from detectron2.data.transforms.augmentation import *", namespace)
    assert namespace["TransformGen"] is T.Augmentation
    assert namespace["StandardAugInput"] is T.AugInput
    assert namespace["apply_transform_gens"] is T.apply_augmentations
    assert not [name for name in augmentation.__all__ if name not in namespace]


def test_tutorial_basic_usage(image):
    boxes, sem_seg = np.array([[1.0, 2, 30, 40]], dtype=np.float32), image[:, :, 0]
    augs = T.AugmentationList(
        [T.RandomBrightness(0.9, 1.1), T.RandomFlip(prob=0.5), T.RandomCrop("absolute", (40, 40))]
    )
    inputs = T.AugInput(image, boxes=boxes, sem_seg=sem_seg)
    transform = augs(inputs)
    assert inputs.image.shape == (40, 40, 3)
    assert inputs.sem_seg.shape == (40, 40)
    np.testing.assert_array_equal(transform.apply_segmentation(sem_seg), inputs.sem_seg)
    np.testing.assert_array_equal(transform.apply_image(image), inputs.image)
    np.testing.assert_allclose(transform.apply_box(boxes), inputs.boxes)
    assert len(transform.apply_polygons([np.array([[10.0, 10], [60, 10], [60, 40]])])) == 1


def test_tutorial_new_augmentations(image):
    class MyColorAugmentation(T.Augmentation):
        def get_transform(self, image):
            r = np.random.rand(2)
            return T.ColorTransform(lambda x: x * r[0] + r[1] * 10)

    class MyCustomResize(T.Augmentation):
        def get_transform(self, img):  # one parameter is the image, whatever its name
            old_h, old_w = img.shape[:2]
            return T.ResizeTransform(old_h, old_w, old_h // 2, int(old_w * 1.5))

    class MyCustomCrop(T.Augmentation):
        def get_transform(self, image, sem_seg):
            y, x = np.argwhere(sem_seg == 7)[0]
            return T.CropTransform(x, y, 5, 4)

    inputs = T.AugInput(image)
    MyColorAugmentation()(inputs)
    assert inputs.image.dtype == np.float64
    assert MyCustomResize()(T.AugInput(image)).apply_image(image).shape == (24, 96, 3)
    labels = np.zeros((48, 64), np.uint8)
    labels[11, 22] = 7
    inputs = T.AugInput(image, sem_seg=labels)
    MyCustomCrop()(inputs)
    np.testing.assert_array_equal(inputs.image, image[11:15, 22:27])


def test_tutorial_inverse(image):
    inputs = T.AugInput(image)
    transform = T.AugmentationList([T.Resize((96, 128)), T.RandomFlip(1.0), T.RandomCrop("absolute", (96, 128))])(
        inputs
    )
    mask = inputs.image[:, :, 0] > 100
    original = transform.inverse().apply_segmentation(mask)
    assert original.shape == (48, 64)


def test_transforms_and_augmentations_mix(image):
    out, transforms = T.apply_augmentations([T.HFlipTransform(64), T.Resize(20)], image)
    assert out.shape == (20, 20, 3)
    assert [type(t) for t in transforms.transforms] == [T.HFlipTransform, T.ResizeTransform]
    inputs = T.AugInput(image)
    same, _ = T.apply_transform_gens([T.Resize(20)], inputs)
    assert same is inputs
    assert inputs.image.shape == (20, 20, 3)


def test_inputs_are_taken_by_name(image):
    class NeedsDepth(T.Augmentation):
        def get_transform(self, image, depth):
            return T.NoOpTransform()

    class TakesAnything(T.Augmentation):
        def get_transform(self, image, *others):
            return T.NoOpTransform()

    class Named(T.Augmentation):
        input_args = ("sem_seg", "image")

        def get_transform(self, *args):
            return T.NoOpTransform()

    inputs = T.AugInput(image)
    with pytest.raises(AttributeError, match=r"needs image, depth.*has no depth"):
        NeedsDepth()(inputs)
    with pytest.raises(TypeError, match=r"\*others"):
        TakesAnything()(inputs)
    assert _get_aug_input_args(Named(), inputs) == [None, image]
    inputs.depth = 1
    assert isinstance(NeedsDepth()(inputs), T.NoOpTransform)


def test_a_policy_must_return_a_transform(image):
    class Wrong(T.Augmentation):
        def get_transform(self, image):
            return image

    with pytest.raises(TypeError, match="must return a Transform, got ndarray"):
        Wrong()(T.AugInput(image))
    with pytest.raises(NotImplementedError, match="must define get_transform"):
        T.Augmentation()(T.AugInput(image))
    with pytest.raises(NotImplementedError):
        T.AugmentationList([]).get_transform(image)


def test_only_augmentations_and_transforms_are_accepted():
    aug = T.Resize(4)
    assert _transform_to_aug(aug) is aug
    assert str(_transform_to_aug(T.HFlipTransform(3))) == "HFlipTransform(width=3)"
    with pytest.raises(TypeError, match="expected an Augmentation or a Transform"):
        T.AugmentationList([lambda x: x])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float16, np.float32, np.float64])
def test_images_of_these_types_are_accepted(dtype):
    for shape in ((3, 4), (3, 4, 7)):
        image = np.zeros(shape, dtype)
        assert T.AugInput(image).image is image


def test_other_images_are_refused():
    with pytest.raises(TypeError, match="numpy array, got list"):
        T.AugInput([[1]])
    with pytest.raises(TypeError, match="got int64"):
        T.AugInput(np.zeros((3, 4), np.int64))
    with pytest.raises(ValueError, match=r"\(1, 3, 4, 3\)"):
        T.AugInput(np.zeros((1, 3, 4, 3), np.uint8))


def test_init_and_rand_range():
    class Mine(T.Augmentation):
        def __init__(self, low, high=3):
            self._init(locals())

    aug = Mine(1)
    assert (aug.low, aug.high) == (1, 3)
    assert repr(aug) == str(aug) == "Mine(low=1)"
    assert not hasattr(aug, "self")
    assert 0 <= aug._rand_range() < 1
    assert 5 <= aug._rand_range(5, 6) < 6
    assert aug._rand_range(2, size=(3, 4)).shape == (3, 4)


def test_reprs_show_what_differs_from_the_default():
    assert repr(T.RandomFlip(0.25)) == "RandomFlip(prob=0.25)"
    assert "ResizeShortestEdge(short_edge_length=(640, 672), max_size=1333, sample_style='choice')" in repr(
        T.AugmentationList([T.ResizeShortestEdge((640, 672), 1333, "choice")])
    )
    assert repr(T.RandomApply(T.Resize(3), 0.1)).startswith("RandomApply(Resize(shape=(3, 3)")


def test_custom_input_with_its_own_transform(image):
    class WithDepth(T.AugInput):
        def __init__(self, image, depth):
            super().__init__(image)
            self.depth = depth

        def transform(self, tfm):
            super().transform(tfm)
            self.depth = tfm.apply_segmentation(self.depth)

    inputs = WithDepth(image, image[:, :, 0])
    T.RandomFlip(1.0)(inputs)
    np.testing.assert_array_equal(inputs.depth, image[:, ::-1, 0])


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (lambda image: None, "_Makes made NoneType of an image of shape .*apply_image must return"),
        (lambda image: image[None], r"made an array of shape \(1, "),
        (lambda image: image[:0], r"made an array of shape \(0, .*leaves nothing of it"),
    ],
)
def test_a_transform_must_give_an_image(image, given, match):
    class _Makes(T.NoOpTransform):
        def apply_image(self, img):
            return given(img)

    with pytest.raises(ValueError, match=match):
        T.AugmentationList([_Makes()])(T.AugInput(image))


def test_a_window_outside_the_image_is_refused(image):
    with pytest.raises(ValueError, match=r"CropTransform made .* a window outside the image"):
        T.AugmentationList([T.CropTransform(5000, 5000, 10, 10)])(T.AugInput(image))
