"""The augmentations that come with the library: flips, resizing, crops, rotation, colours.

Crops are written in `_augmentation_crop.py` and belong to this module's names.

Letters: `H`, `W` height and width in pixels. Random numbers come from `numpy.random`, seeded per data-loader worker.
"""

# ruff: noqa: NPY002 (the legacy global generator is the one that workers seed)

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ._augmentation_crop import FixedSizeCrop, MinIoURandomCrop, RandomCrop, RandomCrop_CategoryAreaConstraint
from .augmentation import Augmentation, AugmentationList, _transform_to_aug
from .transform import (
    BlendTransform,
    ExtentTransform,
    HFlipTransform,
    NoOpTransform,
    ResizeTransform,
    RotationTransform,
    Transform,
    VFlipTransform,
)

__all__ = [
    "FixedSizeCrop",
    "LargeScaleJitter",
    "MinIoURandomCrop",
    "RandomApply",
    "RandomBrightness",
    "RandomContrast",
    "RandomCrop",
    "RandomCrop_CategoryAreaConstraint",
    "RandomExtent",
    "RandomFlip",
    "RandomLighting",
    "RandomResize",
    "RandomRotation",
    "RandomSaturation",
    "Resize",
    "ResizeScale",
    "ResizeShortestEdge",
]

# Saved configs name classes by module; the public one is the name that lasts.
for _moved in (
    FixedSizeCrop,
    MinIoURandomCrop,
    RandomCrop,
    RandomCrop_CategoryAreaConstraint,
):
    _moved.__module__ = __name__


def _check_sample_style(sample_style: str) -> bool:
    """Whether the style is "range"; the other one is "choice"."""
    if sample_style not in ("range", "choice"):
        raise ValueError(f'sample_style must be "range" or "choice", got {sample_style!r}')
    return sample_style == "range"


class RandomApply(Augmentation):
    """Apply an augmentation or a transform with a given probability.

    Args:
        tfm_or_aug: what to apply.
        prob: probability in [0, 1].

    Raises:
        ValueError: if `prob` is not a probability.

    Example:
        >>> from detectron2.data import transforms as T
        >>> image, tfms = T.apply_augmentations([T.RandomApply(T.Resize(8), prob=1.0)], np.zeros((4, 6)))
        >>> image.shape
        (8, 8)
    """

    def __init__(self, tfm_or_aug: Augmentation | Transform, prob: float = 0.5):
        super().__init__()
        self.aug = _transform_to_aug(tfm_or_aug)
        if not 0.0 <= prob <= 1.0:
            raise ValueError(f"prob must be between 0 and 1, got {prob}")
        self.prob = prob

    def get_transform(self, *args: Any) -> Transform:
        """The decision of the wrapped augmentation, which gets the arguments, or nothing."""
        return self.aug.get_transform(*args) if self._rand_range() < self.prob else NoOpTransform()

    def __call__(self, aug_input: Any) -> Transform:
        """Call the wrapped augmentation, or do nothing."""
        return self.aug(aug_input) if self._rand_range() < self.prob else NoOpTransform()

    def __repr__(self) -> str:
        return f"RandomApply({self.aug}, prob={self.prob})"

    __str__ = __repr__


class RandomFlip(Augmentation):
    """Flip the image, horizontally or vertically, with a given probability.

    For both directions use two of them.

    Args:
        prob: probability of a flip.
        horizontal: flip left to right.
        vertical: flip top to bottom.

    Raises:
        ValueError: unless exactly one direction is chosen.

    Example:
        >>> from detectron2.data import transforms as T
        >>> image, tfms = T.apply_augmentations([T.RandomFlip(prob=1.0)], np.array([[1.0, 2.0, 3.0]]))
        >>> image
        array([[3., 2., 1.]])
    """

    def __init__(self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False):
        super().__init__()
        if horizontal and vertical:
            raise ValueError("RandomFlip does one direction: use two of them to flip horizontally and vertically")
        if not horizontal and not vertical:
            raise ValueError("RandomFlip needs horizontal=True or vertical=True")
        self.prob = prob
        self.horizontal = horizontal
        self.vertical = vertical

    def get_transform(self, image: np.ndarray) -> Transform:
        """A flip or nothing."""
        h, w = image.shape[:2]
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        return HFlipTransform(w) if self.horizontal else VFlipTransform(h)


class Resize(Augmentation):
    """Resize to a fixed size.

    Args:
        shape: `(height, width)` in pixels; one number means a square.
        interp: a `PIL.Image.Resampling` number.

    Example:
        >>> from detectron2.data import transforms as T
        >>> image, tfms = T.apply_augmentations([T.Resize((8, 12))], np.zeros((4, 6, 3), dtype=np.uint8))
        >>> image.shape
        (8, 12, 3)
    """

    def __init__(self, shape: int | Sequence[int], interp: int = Image.Resampling.BILINEAR):
        super().__init__()
        self.shape = (shape, shape) if isinstance(shape, (int, np.integer)) else tuple(shape)
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> ResizeTransform:
        """Resize to the fixed size."""
        h, w = image.shape[:2]
        new_h, new_w = self.shape
        return ResizeTransform(h, w, new_h, new_w, self.interp)


class RandomResize(Augmentation):
    """Resize to one of several sizes.

    Args:
        shape_list: sizes `(height, width)` in pixels, all as likely.
        interp: a `PIL.Image.Resampling` number.

    Example:
        >>> from detectron2.data import transforms as T
        >>> sizes = [(8, 8), (16, 16)]
        >>> image, tfms = T.apply_augmentations([T.RandomResize(sizes)], np.zeros((4, 6, 3), dtype=np.uint8))
        >>> image.shape[:2] in sizes
        True
    """

    def __init__(self, shape_list: Sequence[tuple[int, int]], interp: int = Image.Resampling.BILINEAR):
        super().__init__()
        self.shape_list = shape_list
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> ResizeTransform:
        """Resize to a size drawn from the list."""
        h, w = image.shape[:2]
        new_h, new_w = self.shape_list[np.random.choice(len(self.shape_list))]
        return ResizeTransform(h, w, new_h, new_w, self.interp)


class ResizeShortestEdge(Augmentation):
    """Scale the image, keeping its proportions, so that its shorter edge gets a given length.

    If the longer edge would then exceed `max_size`, the image is scaled so that the longer edge is `max_size`.

    Args:
        short_edge_length: lengths in pixels: `[min, max]` for "range", any number of them for "choice"; or one length.
        max_size: the most that the longer edge may have.
        sample_style: "range" (draw from an interval, ends included) or "choice" (draw from a list).
        interp: a `PIL.Image.Resampling` number.

    Raises:
        ValueError: for an unknown style, or if "range" has not two lengths.

    Example:
        >>> from detectron2.data import transforms as T
        >>> aug = T.ResizeShortestEdge(800, max_size=1333)
        >>> image, tfms = T.apply_augmentations([aug], np.zeros((480, 640, 3), dtype=np.uint8))
        >>> image.shape
        (800, 1067, 3)
        >>> aug.get_output_shape(480, 960, 800, 1333)  # 1600 pixels would be too many
        (667, 1333)
    """

    def __init__(
        self,
        short_edge_length: int | Sequence[int],
        max_size: int = sys.maxsize,
        sample_style: str = "range",
        interp: int = Image.Resampling.BILINEAR,
    ):
        super().__init__()
        self.is_range = _check_sample_style(sample_style)
        if isinstance(short_edge_length, (int, np.integer)):
            short_edge_length = (short_edge_length, short_edge_length)
        if self.is_range and len(short_edge_length) != 2:
            raise ValueError(
                f'with sample_style="range", short_edge_length must be (min, max), got {short_edge_length}; '
                f'for a list of lengths use sample_style="choice"'
            )
        self.short_edge_length = short_edge_length
        self.max_size = max_size
        self.sample_style = sample_style
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        """Resize to a drawn length; a drawn length of 0 leaves the image alone."""
        h, w = image.shape[:2]
        if self.is_range:
            size = np.random.randint(self.short_edge_length[0], self.short_edge_length[1] + 1)
        else:
            # The same draw as `np.random.choice` makes, without making an array of the lengths.
            size = self.short_edge_length[np.random.randint(len(self.short_edge_length))]
        if size == 0:
            return NoOpTransform()
        new_h, new_w = self.get_output_shape(h, w, int(size), self.max_size)
        return ResizeTransform(h, w, new_h, new_w, self.interp)

    @staticmethod
    def get_output_shape(oldh: int, oldw: int, short_edge_length: int, max_size: int) -> tuple[int, int]:
        """Size of the result in pixels.

        Args:
            oldh: height of the input.
            oldw: width of the input.
            short_edge_length: length that the shorter edge should get.
            max_size: the most that the longer edge may have.

        Returns:
            `(height, width)`.
        """
        size = float(short_edge_length)
        scale = size / min(oldh, oldw)
        new_h, new_w = (size, scale * oldw) if oldh < oldw else (scale * oldh, size)
        longest = max(new_h, new_w)
        if longest > max_size:
            new_h, new_w = new_h * (max_size / longest), new_w * (max_size / longest)
        return max(int(new_h + 0.5), 1), max(int(new_w + 0.5), 1)


class ResizeScale(Augmentation):
    """Scale the image, keeping its proportions, to fit in a target size that is itself scaled at random.

    This is the first half of `LargeScaleJitter`; `FixedSizeCrop` is the second.

    Args:
        min_scale: least factor of the target size.
        max_scale: greatest factor of the target size.
        target_height: height of the target in pixels.
        target_width: width of the target in pixels.
        interp: a `PIL.Image.Resampling` number.

    Example:
        >>> from detectron2.data import transforms as T
        >>> aug = T.ResizeScale(min_scale=0.5, max_scale=0.5, target_height=64, target_width=64)
        >>> image, tfms = T.apply_augmentations([aug], np.zeros((16, 20, 3), dtype=np.uint8))
        >>> image.shape
        (26, 32, 3)
    """

    def __init__(
        self,
        min_scale: float,
        max_scale: float,
        target_height: int,
        target_width: int,
        interp: int = Image.Resampling.BILINEAR,
    ):
        super().__init__()
        self.min_scale = min_scale
        self.max_scale = max_scale
        self.target_height = target_height
        self.target_width = target_width
        self.interp = interp

    def _get_resize(self, image: np.ndarray, scale: float) -> Transform:
        h, w = image.shape[:2]
        factor = min(self.target_height * scale / h, self.target_width * scale / w)
        new_h, new_w = np.round([h * factor, w * factor]).astype(int).tolist()
        return ResizeTransform(h, w, max(new_h, 1), max(new_w, 1), self.interp)

    def get_transform(self, image: np.ndarray) -> Transform:
        """Resize into the target size times a random factor."""
        return self._get_resize(image, np.random.uniform(self.min_scale, self.max_scale))


class LargeScaleJitter(AugmentationList):
    """Large-scale jittering: scale the image at random to fit in a fixed size, then crop or pad it to that size.

    From Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation"
    (arXiv:2012.07177), section 3. The paper flips images too: use it as `[RandomFlip(), LargeScaleJitter(1024)]`.

    Args:
        size: `(height, width)` of the result in pixels; one number means a square.
        min_scale: least factor between the scaled image and the size.
        max_scale: greatest factor.
        pad: whether to pad images that are smaller than the size; a model that pads batches needs no padding here.
        pad_value: grey level of padded pixels.
        seg_pad_value: label of padded pixels.
        interp: a `PIL.Image.Resampling` number.

    Raises:
        ValueError: if the scales are not `0 < min_scale <= max_scale`.

    Example:
        >>> from detectron2.data import transforms as T
        >>> image, tfms = T.apply_augmentations([T.LargeScaleJitter(64)], np.zeros((48, 64, 3), dtype=np.uint8))
        >>> image.shape
        (64, 64, 3)
    """

    def __init__(
        self,
        size: int | Sequence[int] = 1024,
        min_scale: float = 0.1,
        max_scale: float = 2.0,
        *,
        pad: bool = True,
        pad_value: float = 128.0,
        seg_pad_value: int = 255,
        interp: int = Image.Resampling.BILINEAR,
    ):
        if not 0 < min_scale <= max_scale:
            raise ValueError(f"LargeScaleJitter needs 0 < min_scale <= max_scale, got {min_scale} and {max_scale}")
        h, w = (size, size) if isinstance(size, (int, np.integer)) else size
        super().__init__(
            [
                ResizeScale(min_scale, max_scale, h, w, interp),
                FixedSizeCrop((h, w), pad=pad, pad_value=pad_value, seg_pad_value=seg_pad_value),
            ]
        )


class RandomRotation(Augmentation):
    """Rotate the image counter-clockwise by a random angle around a random point.

    Args:
        angle: degrees: `[min, max]` for "range", a list for "choice"; or one angle.
        expand: enlarge the canvas so that the whole rotated image fits.
        center: fixed point relative to the image, (0, 0) its top left and (1, 1) its bottom right corner:
            `[[min_x, min_y], [max_x, max_y]]` for "range", a list of points for "choice"; the middle when None. It has
            no effect with `expand`.
        sample_style: "range" or "choice".
        interp: OpenCV's number of an interpolation; see `RotationTransform`.

    Raises:
        ValueError: for an unknown style, or if "range" has not two angles or two centres.

    Example:
        >>> from detectron2.data import transforms as T
        >>> image, tfms = T.apply_augmentations([T.RandomRotation(90)], np.zeros((4, 6, 3), dtype=np.uint8))
        >>> image.shape
        (6, 4, 3)
    """

    def __init__(
        self,
        angle: float | Sequence[float],
        expand: bool = True,
        center: Sequence[Any] | None = None,
        sample_style: str = "range",
        interp: int | None = None,
    ):
        super().__init__()
        self.is_range = _check_sample_style(sample_style)
        self.angle = (angle, angle) if isinstance(angle, (int, float)) else angle
        if center is not None and isinstance(center[0], (int, float)):
            center = (center, center)
        for name, drawn in (("angle", self.angle), ("center", center)):
            if self.is_range and drawn is not None and len(drawn) != 2:
                raise ValueError(
                    f'with sample_style="range", {name} must be (min, max), got {drawn}; for a list to choose from use '
                    f'sample_style="choice"'
                )
        self.expand = expand
        self.center = center
        self.sample_style = sample_style
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        """A rotation, or nothing when the angle is a full turn."""
        h, w = image.shape[:2]
        center = None
        if self.is_range:
            angle = np.random.uniform(self.angle[0], self.angle[1])
            if self.center is not None:
                (min_x, min_y), (max_x, max_y) = self.center
                center = (np.random.uniform(min_x, max_x), np.random.uniform(min_y, max_y))
        else:
            angle = np.random.choice(self.angle)
            if self.center is not None:
                center = self.center[np.random.choice(len(self.center))]
        if angle % 360 == 0:
            return NoOpTransform()
        if center is not None:
            center = (w * center[0], h * center[1])
        return RotationTransform(h, w, angle, expand=self.expand, center=center, interp=self.interp)


class RandomExtent(Augmentation):
    """Cut out a random rectangle, which may reach beyond the image; pixels outside become black.

    The result has the size of the rectangle in pixels.

    Args:
        scale_range: `(min, max)` factor between the sizes of rectangle and image.
        shift_range: `(x, y)`: the rectangle moves from the middle by up to half of these fractions of width and height.

    Example:
        >>> from detectron2.data import transforms as T
        >>> aug = T.RandomExtent(scale_range=(0.5, 0.5), shift_range=(0.0, 0.0))
        >>> image, tfms = T.apply_augmentations([aug], np.zeros((40, 60, 3), dtype=np.uint8))
        >>> image.shape
        (20, 30, 3)
    """

    def __init__(self, scale_range: tuple[float, float], shift_range: tuple[float, float]):
        super().__init__()
        self.scale_range = scale_range
        self.shift_range = shift_range

    def get_transform(self, image: np.ndarray) -> ExtentTransform:
        """Cut out a drawn rectangle."""
        h, w = image.shape[:2]
        scale = np.random.uniform(*self.scale_range)
        center_x = w * (0.5 + self.shift_range[0] * (np.random.rand() - 0.5))
        center_y = h * (0.5 + self.shift_range[1] * (np.random.rand() - 0.5))
        half_w, half_h = 0.5 * scale * w, 0.5 * scale * h
        rect = (center_x - half_w, center_y - half_h, center_x + half_w, center_y + half_h)
        output_hw = (max(int(rect[3] - rect[1]), 1), max(int(rect[2] - rect[0]), 1))
        return ExtentTransform(src_rect=rect, output_size=output_hw)


# Luma weights of ITU-R BT.601.
_LUMA_RGB = np.array((0.299, 0.587, 0.114), dtype=np.float32)
# Principal components of the RGB values in ImageNet, and their standard deviations (Krizhevsky et al., 2012).
_IMAGENET_COMPONENTS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
_IMAGENET_DEVIATIONS = (0.2175, 0.0188, 0.0045)


def _check_rgb(name: str, image: np.ndarray) -> None:
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"{name} needs an RGB image of shape (H, W, 3), got {image.shape}")


class _RandomBlend(Augmentation):
    """Base of the augmentations that blend with a random weight in `[intensity_min, intensity_max)`."""

    def __init__(self, intensity_min: float, intensity_max: float):
        super().__init__()
        self.intensity_min = intensity_min
        self.intensity_max = intensity_max

    def _draw(self) -> float:
        return np.random.uniform(self.intensity_min, self.intensity_max)


class RandomContrast(_RandomBlend):
    """Change contrast: below 1 greyer, 1 unchanged, above 1 stronger.

    Args:
        intensity_min: least intensity.
        intensity_max: greatest intensity.

    Example:
        >>> from detectron2.data import transforms as T
        >>> image = np.array([[0, 200]], dtype=np.uint8)
        >>> T.RandomContrast(0.5, 0.5).get_transform(image).apply_image(image)
        array([[ 50, 150]], dtype=uint8)
    """

    def get_transform(self, image: np.ndarray) -> BlendTransform:
        """Blend with the mean grey level of the image."""
        weight = self._draw()
        return BlendTransform(
            src_image=np.array(image.mean(), dtype=np.float32), src_weight=1 - weight, dst_weight=weight
        )


class RandomBrightness(_RandomBlend):
    """Change brightness: below 1 darker, 1 unchanged, above 1 brighter.

    Args:
        intensity_min: least intensity.
        intensity_max: greatest intensity.

    Example:
        >>> from detectron2.data import transforms as T
        >>> image = np.array([[0, 100]], dtype=np.uint8)
        >>> T.RandomBrightness(1.5, 1.5).get_transform(image).apply_image(image)
        array([[  0, 150]], dtype=uint8)
    """

    def get_transform(self, image: np.ndarray) -> BlendTransform:
        """Blend with black."""
        weight = self._draw()
        return BlendTransform(src_image=np.array(0, dtype=np.float32), src_weight=1 - weight, dst_weight=weight)


class RandomSaturation(_RandomBlend):
    """Change the saturation of an image, whose channels must be in RGB order: 0 is grey, 1 unchanged.

    Args:
        intensity_min: least intensity.
        intensity_max: greatest intensity.

    Example:
        >>> from detectron2.data import transforms as T
        >>> image = np.array([[[200, 100, 0]]], dtype=np.uint8)
        >>> T.RandomSaturation(0.0, 0.0).get_transform(image).apply_image(image)
        array([[[118, 118, 118]]], dtype=uint8)
    """

    def get_transform(self, image: np.ndarray) -> BlendTransform:
        """Blend with the grey image, whose three channels must be RGB."""
        _check_rgb("RandomSaturation", image)
        weight = self._draw()
        values = image if image.dtype.kind == "f" else image.astype(np.float32)
        grey = values.dot(_LUMA_RGB)[:, :, np.newaxis]
        return BlendTransform(src_image=grey, src_weight=1 - weight, dst_weight=weight)


class RandomLighting(Augmentation):
    """Shift colours along the principal components of ImageNet, as AlexNet did (Krizhevsky et al., 2012).

    The channels must be in RGB order.

    Args:
        scale: standard deviation of the random factors.

    Example:
        >>> from detectron2.data import transforms as T
        >>> image = np.full((4, 6, 3), 100, dtype=np.uint8)
        >>> T.RandomLighting(scale=0.1).get_transform(image).apply_image(image).shape
        (4, 6, 3)
    """

    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale
        self.eigen_vecs = np.array(_IMAGENET_COMPONENTS)
        self.eigen_vals = np.array(_IMAGENET_DEVIATIONS)

    def get_transform(self, image: np.ndarray) -> BlendTransform:
        """Add a colour drawn from a normal distribution to an image, whose three channels must be RGB."""
        _check_rgb("RandomLighting", image)
        weights = np.random.normal(scale=self.scale, size=3)
        return BlendTransform(
            src_image=self.eigen_vecs.dot(weights * self.eigen_vals).astype(np.float32), src_weight=1.0, dst_weight=1.0
        )
