"""The augmentations that come with the library: flips, resizing, crops, rotation, colours.

Letters: `H`, `W` height and width in pixels. Random numbers come from `numpy.random`, seeded per data-loader worker.
"""
# ruff: noqa: NPY002 (the legacy global generator is the one that workers seed)

import logging
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from detectron2.utils.logger import log_first_n

from .augmentation import Augmentation, AugmentationList, _check_range, _is_range, _size_hw, _transform_to_aug
from .transform import (
    BlendTransform,
    CropTransform,
    ExtentTransform,
    HFlipTransform,
    NoOpTransform,
    PadTransform,
    ResizeTransform,
    RotationTransform,
    Transform,
    TransformList,
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


class RandomApply(Augmentation):
    """Apply an augmentation or a transform with a given probability.

    Args:
        tfm_or_aug: what to apply.
        prob: probability in [0, 1]; a ValueError if it is not.

    Example:
        >>> from detectron2.data import transforms as T
        >>> image, tfms = T.apply_augmentations([T.RandomApply(T.Resize(8), prob=1.0)], np.zeros((4, 6)))
        >>> image.shape
        (8, 8)
    """

    def __init__(self, tfm_or_aug: Augmentation | Transform, prob: float = 0.5):
        _check_range(0, 1, prob=prob)
        self.aug = _transform_to_aug(tfm_or_aug)
        self.prob = prob

    def get_transform(self, *args: Any) -> Transform:
        """Return the decision of the wrapped augmentation, which gets the arguments, or nothing."""
        return self.aug.get_transform(*args) if self._rand_range() < self.prob else NoOpTransform()

    def __call__(self, aug_input: Any) -> Transform:
        """Call the wrapped augmentation, or do nothing."""
        return self.aug(aug_input) if self._rand_range() < self.prob else NoOpTransform()

    def __repr__(self) -> str:
        return f"RandomApply({self.aug}, prob={self.prob})"

    __str__ = __repr__


class RandomFlip(Augmentation):
    """Flip the image, horizontally or vertically, with a given probability; for both directions use two of them.

    Args:
        prob: probability of a flip in [0, 1]; a ValueError if it is not.
        horizontal: flip left to right.
        vertical: flip top to bottom; a ValueError unless exactly one direction is chosen.

    Example:
        >>> from detectron2.data import transforms as T
        >>> image, tfms = T.apply_augmentations([T.RandomFlip(prob=1.0)], np.array([[1.0, 2.0, 3.0]]))
        >>> image
        array([[3., 2., 1.]])
    """

    def __init__(self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False):
        if horizontal == vertical:
            raise ValueError(f"RandomFlip flips in one direction, got {horizontal=} and {vertical=}; for both use two")
        _check_range(0, 1, prob=prob)
        self.prob = prob
        self.horizontal = horizontal
        self.vertical = vertical

    def get_transform(self, image: np.ndarray) -> Transform:
        """Decide on a flip or on nothing."""
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        return HFlipTransform(image.shape[1]) if self.horizontal else VFlipTransform(image.shape[0])


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
        self.shape = _size_hw(shape)
        _check_range(1, np.inf, shape=self.shape)
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> ResizeTransform:
        """Resize to the fixed size."""
        h, w = image.shape[:2]
        return ResizeTransform(h, w, *self.shape, self.interp)


class RandomResize(Augmentation):
    """Resize to one of several sizes.

    Args:
        shape_list: sizes `(height, width)` in pixels, all as likely.
        interp: a `PIL.Image.Resampling` number.

    Example:
        >>> from detectron2.data import transforms as T
        >>> image, tfms = T.apply_augmentations([T.RandomResize([(8, 8), (16, 16)])], np.zeros((4, 6)))
        >>> image.shape in [(8, 8), (16, 16)]
        True
    """

    def __init__(self, shape_list: Sequence[tuple[int, int]], interp: int = Image.Resampling.BILINEAR):
        _check_range(1, np.inf, shape_list=shape_list)
        self.shape_list = shape_list
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> ResizeTransform:
        """Resize to a size drawn from the list."""
        size_hw = self.shape_list[np.random.choice(len(self.shape_list))]
        h, w = image.shape[:2]
        return ResizeTransform(h, w, *size_hw, self.interp)


class ResizeShortestEdge(Augmentation):
    """Scale the image, keeping its proportions, so that its shorter edge gets a given length.

    If the longer edge would then exceed `max_size`, the image is scaled so that the longer edge is `max_size`.

    Args:
        short_edge_length: lengths in pixels: `[min, max]` for "range", any number of them for "choice"; or one length.
        max_size: the most that the longer edge may have.
        sample_style: "range" (draw from an interval, ends included; a ValueError unless it has two lengths) or "choice"
            (draw from a list).
        interp: a `PIL.Image.Resampling` number.

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
        if isinstance(short_edge_length, (int, np.integer)):
            short_edge_length = (short_edge_length, short_edge_length)
        self.is_range = _is_range(sample_style, short_edge_length=short_edge_length)
        _check_range(0, np.inf, short_edge_length=short_edge_length)
        _check_range(1, np.inf, max_size=max_size)
        if self.is_range:
            _check_range(short_edge_length[0], np.inf, **{"the second short_edge_length": short_edge_length[1]})
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
        """Return the `(height, width)` in pixels that an image of `oldh` x `oldw` pixels gets."""
        size = float(short_edge_length)
        scale = size / min(oldh, oldw)
        new_h, new_w = (size, scale * oldw) if oldh < oldw else (scale * oldh, size)
        longest = max(new_h, new_w)
        if longest > max_size:
            new_h, new_w = new_h * (max_size / longest), new_w * (max_size / longest)
        return max(int(new_h + 0.5), 1), max(int(new_w + 0.5), 1)


class ResizeScale(Augmentation):
    """Scale the image to fit in a target size that is itself scaled at random; the first half of `LargeScaleJitter`.

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
        _check_range(0, np.inf, min_scale=min_scale, max_scale=max_scale)
        _check_range(1, np.inf, target_height=target_height, target_width=target_width)
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


_CROP_TYPES = ("relative_range", "relative", "absolute", "absolute_range")


class RandomCrop(Augmentation):
    """Cut out a random window.

    For an image of `H` x `W` pixels, the window has (height, width)

    * "relative": `(H * crop_size[0], W * crop_size[1])`, with fractions in (0, 1];
    * "relative_range": the same, with fractions drawn from `[crop_size[0], 1]` and `[crop_size[1], 1]`;
    * "absolute": `(crop_size[0], crop_size[1])` pixels, or the edge of the image where it is shorter;
    * "absolute_range": each drawn from `[crop_size[0], crop_size[1]]` pixels, or up to the edge of the image.

    Args:
        crop_type: one of the four.
        crop_size: two numbers, whose meaning depends on the type; a ValueError if they do not fit it.

    Example:
        >>> from detectron2.data import transforms as T
        >>> image, tfms = T.apply_augmentations([T.RandomCrop("relative", (0.5, 0.5))], np.zeros((8, 12)))
        >>> image.shape
        (4, 6)
    """

    def __init__(self, crop_type: str, crop_size: tuple[float, float] | tuple[int, int]):
        if crop_type not in _CROP_TYPES:
            raise ValueError(f"crop_type must be one of {', '.join(_CROP_TYPES)}, got {crop_type!r}")
        if len(crop_size) != 2:
            raise ValueError(f"crop_size must be two numbers, got {crop_size}")
        if crop_type == "absolute_range" and crop_size[0] > crop_size[1]:
            raise ValueError(f'the crop type "absolute_range" needs (min, max) in pixels, got {crop_size}')
        if crop_type.startswith("absolute"):
            _check_range(1, np.inf, **{f'crop_size in pixels ("{crop_type}")': crop_size})
        self.crop_type = crop_type
        self.crop_size = crop_size

    def get_transform(self, image: np.ndarray) -> CropTransform:
        """Draw a window."""
        h, w = image.shape[:2]
        crop_h, crop_w = self.get_crop_size((h, w))  # which a subclass may override
        if crop_h > h or crop_w > w:
            raise ValueError(f"a crop of (height, width) {(crop_h, crop_w)} does not fit in an image of {(h, w)}")
        y0, x0 = np.random.randint(h - crop_h + 1), np.random.randint(w - crop_w + 1)
        return CropTransform(x0, y0, crop_w, crop_h, w, h)

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Draw the `(height, width)` of a window for an image of `(height, width)`, both in pixels."""
        h, w = image_size
        if self.crop_type == "absolute":
            return min(int(self.crop_size[0]), h), min(int(self.crop_size[1]), w)
        if self.crop_type == "absolute_range":
            low, high = int(self.crop_size[0]), int(self.crop_size[1])
            crop_h = np.random.randint(min(h, low), min(h, high) + 1)
            crop_w = np.random.randint(min(w, low), min(w, high) + 1)
            return crop_h, crop_w
        part_h, part_w = self.crop_size
        if not all(0 < s <= 1 for s in self.crop_size):
            raise ValueError(f"the crop type {self.crop_type!r} needs fractions in (0, 1], got {self.crop_size}")
        if self.crop_type == "relative_range":
            least = np.asarray(self.crop_size, dtype=np.float32)
            part_h, part_w = (least + np.random.rand(2) * (1 - least)).tolist()
        return max(int(h * part_h + 0.5), 1), max(int(w * part_w + 0.5), 1)


class RandomCrop_CategoryAreaConstraint(Augmentation):
    """A random crop in which no category of the label map fills more than a given part.

    Up to ten windows are drawn; the last one is taken if none satisfies the constraint.

    Args:
        crop_type: see `RandomCrop`.
        crop_size: see `RandomCrop`.
        single_category_max_area: greatest part that one category may fill; 1.0 disables the constraint.
        ignored_category: label that does not count, usually the one that training ignores.

    Example:
        >>> from detectron2.data import transforms as T
        >>> aug_input = T.AugInput(np.zeros((4, 6)), sem_seg=np.array([[0, 0, 0, 1, 1, 1]] * 4))
        >>> aug = T.RandomCrop_CategoryAreaConstraint("absolute", (4, 4), single_category_max_area=0.8)
        >>> tfm = aug(aug_input)
        >>> aug_input.image.shape, np.unique(aug_input.sem_seg)
        ((4, 4), array([0, 1]))
    """

    def __init__(
        self,
        crop_type: str,
        crop_size: tuple[float, float] | tuple[int, int],
        single_category_max_area: float = 1.0,
        ignored_category: int | None = None,
    ):
        self.crop_aug = RandomCrop(crop_type, crop_size)
        self.crop_type = crop_type
        self.crop_size = crop_size
        self.single_category_max_area = single_category_max_area
        self.ignored_category = ignored_category

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> CropTransform:
        """Draw a window that satisfies the constraint, if one is found; this needs a label map."""
        if self.single_category_max_area >= 1.0:
            return self.crop_aug.get_transform(image)
        if sem_seg is None:
            raise ValueError(
                "RandomCrop_CategoryAreaConstraint needs a label map: give AugInput a sem_seg, use a data set with "
                "sem_seg_file_name, or set single_category_max_area to 1.0"
            )
        for _ in range(10):
            crop = self.crop_aug.get_transform(sem_seg)
            if self._is_diverse(crop.apply_segmentation(sem_seg)):
                break
        return crop

    def _is_diverse(self, labels: np.ndarray) -> bool:
        if labels.dtype == np.uint8:
            counts = np.bincount(labels.ravel(), minlength=256)  # much faster than sorting every pixel
            present = np.flatnonzero(counts)
            counts = counts[present]
        else:
            present, counts = np.unique(labels, return_counts=True)
        if self.ignored_category is not None:
            counts = counts[present != self.ignored_category]
        return len(counts) > 1 and counts.max() < counts.sum() * self.single_category_max_area


class FixedSizeCrop(Augmentation):
    """A random crop to a fixed size; smaller images are padded at the right and at the bottom.

    Args:
        crop_size: `(height, width)` of the result in pixels; one number means a square.
        pad: whether to pad images that are smaller; a number that is not a bool is taken as `pad_value`, which is the
            second argument in earlier releases.
        pad_value: grey level of padded pixels.
        seg_pad_value: label of padded pixels.

    Example:
        >>> from detectron2.data import transforms as T
        >>> image, tfms = T.apply_augmentations([T.FixedSizeCrop((2, 4), pad_value=7)], np.zeros((3, 3)))
        >>> image
        array([[0., 0., 0., 7.],
               [0., 0., 0., 7.]])
    """

    def __init__(
        self, crop_size: int | Sequence[int], pad: bool = True, pad_value: float = 128.0, seg_pad_value: int = 255
    ):
        if not isinstance(pad, (bool, np.bool_)):
            pad, pad_value = True, pad
        self.crop_size = _size_hw(crop_size)
        _check_range(1, np.inf, crop_size=self.crop_size)
        self.pad = pad
        self.pad_value = pad_value
        self.seg_pad_value = seg_pad_value

    def _get_crop(self, image: np.ndarray) -> Transform:
        h, w = image.shape[:2]
        room_h, room_w = max(h - self.crop_size[0], 0), max(w - self.crop_size[1], 0)
        part = np.random.uniform(0.0, 1.0)
        y0, x0 = np.round([room_h * part, room_w * part]).astype(int).tolist()
        return CropTransform(x0, y0, min(self.crop_size[1], w), min(self.crop_size[0], h), w, h)

    def _get_pad(self, image: np.ndarray) -> Transform:
        h, w = image.shape[:2]
        pad_h, pad_w = max(self.crop_size[0] - h, 0), max(self.crop_size[1] - w, 0)
        cropped_h, cropped_w = min(h, self.crop_size[0]), min(w, self.crop_size[1])
        return PadTransform(0, 0, pad_w, pad_h, cropped_w, cropped_h, self.pad_value, self.seg_pad_value)

    def get_transform(self, image: np.ndarray) -> TransformList:
        """Draw a crop; add the padding if that is wanted."""
        return TransformList([self._get_crop(image), *([self._get_pad(image)] if self.pad else [])])


class MinIoURandomCrop(Augmentation):
    """A random crop that keeps all boxes in view to a random degree (Liu et al., "SSD", 2016, section 2.2).

    A bound on the overlap is drawn first: no box may overlap the window by less, and the centre of at least one box
    lies in the window. If no such window is found, another bound is drawn; one of the outcomes leaves the image alone.

    Args:
        min_ious: bounds on the intersection over union of window and box.
        min_crop_size: least height and width of the window as parts of the image's.
        mode_trials: how many bounds to draw at most.
        crop_trials: how many windows to draw for each bound.

    Example:
        >>> from detectron2.data import transforms as T
        >>> aug_input = T.AugInput(np.zeros((100, 100)), boxes=np.array([[10, 10, 50, 50]], dtype=np.float32))
        >>> tfm = T.MinIoURandomCrop(min_crop_size=0.5)(aug_input)
        >>> min(aug_input.image.shape[:2]) >= 49  # whole pixels
        True
    """

    def __init__(
        self,
        min_ious: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9),
        min_crop_size: float = 0.3,
        mode_trials: int = 1000,
        crop_trials: int = 50,
    ):
        self.min_ious = min_ious
        self.sample_mode = (1, *min_ious, 0)
        self.min_crop_size = min_crop_size
        self.mode_trials = mode_trials
        self.crop_trials = crop_trials
        _check_range(0, 1, min_crop_size=min_crop_size)

    def get_transform(self, image: np.ndarray, boxes: np.ndarray | None) -> Transform:
        """Draw a window that satisfies a drawn bound, or nothing."""
        if boxes is None:
            text = "MinIoURandomCrop gets no boxes, so does nothing: use AugInput(image, boxes=...) in your mapper."
            log_first_n(logging.WARNING, text)
            return NoOpTransform()
        h, w = image.shape[:2]
        for _ in range(self.mode_trials):
            min_iou = self.sample_mode[np.random.choice(len(self.sample_mode))]
            if min_iou == 1:
                break
            for _ in range(self.crop_trials):
                window_xyxy = self._draw_window(h, w)
                if window_xyxy is not None and self._is_good(window_xyxy, np.asarray(boxes), min_iou):
                    x0, y0, x1, y1 = window_xyxy.tolist()
                    return CropTransform(x0, y0, x1 - x0, y1 - y0, w, h)
        return NoOpTransform()

    def _draw_window(self, h: int, w: int) -> np.ndarray | None:
        new_w = np.random.uniform(self.min_crop_size * w, w)
        new_h = np.random.uniform(self.min_crop_size * h, h)
        if not 0.5 <= new_h / new_w <= 2:
            return None
        left, top = np.random.uniform(w - new_w), np.random.uniform(h - new_h)
        window_xyxy = np.array((left, top, left + new_w, top + new_h)).astype(int)
        return window_xyxy if (window_xyxy[2:] > window_xyxy[:2]).all() else None

    @staticmethod
    def _is_good(window_xyxy: np.ndarray, boxes_xyxy: np.ndarray, min_iou: float) -> bool:
        if len(boxes_xyxy) == 0:
            return True
        overlap_wh = np.minimum(boxes_xyxy[:, 2:], window_xyxy[2:]) - np.maximum(boxes_xyxy[:, :2], window_xyxy[:2])
        overlap = overlap_wh.clip(min=0).prod(axis=1)
        area = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=1) + (window_xyxy[2:] - window_xyxy[:2]).prod()
        if (overlap / (area - overlap)).min() < min_iou:
            return False
        centers = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
        return bool(((centers > window_xyxy[:2]) & (centers < window_xyxy[2:])).all(axis=1).any())


class LargeScaleJitter(AugmentationList):
    """Large-scale jittering: scale the image at random to fit in a fixed size, then crop or pad it to that size.

    The paper (Ghiasi et al., "Simple Copy-Paste", arXiv:2012.07177, section 3) flips images too: use it as
    `[RandomFlip(), LargeScaleJitter(1024)]`.

    Args:
        size: `(height, width)` of the result in pixels; one number means a square.
        min_scale: least factor between the scaled image and the size; a ValueError unless it is greater than 0.
        max_scale: greatest factor; a ValueError if it is less than `min_scale`.
        pad: whether to pad images that are smaller than the size; a model that pads batches needs no padding here.
        pad_value: grey level of padded pixels.
        seg_pad_value: label of padded pixels.
        interp: a `PIL.Image.Resampling` number.

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
        h, w = _size_hw(size)
        crop = FixedSizeCrop((h, w), pad=pad, pad_value=pad_value, seg_pad_value=seg_pad_value)
        super().__init__([ResizeScale(min_scale, max_scale, h, w, interp), crop])


class RandomRotation(Augmentation):
    """Rotate the image counter-clockwise by a random angle around a random point.

    Args:
        angle: degrees: `[min, max]` for "range", a list for "choice"; or one angle.
        expand: enlarge the canvas so that the whole rotated image fits.
        center: fixed point relative to the image, (0, 0) its top left and (1, 1) its bottom right corner:
            `[[min_x, min_y], [max_x, max_y]]` for "range", a list of points for "choice"; the middle when None. It has
            no effect with `expand`.
        sample_style: "range" (a ValueError unless there are two angles, and two centres) or "choice".
        interp: OpenCV's number of an interpolation; see `RotationTransform`.

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
        self.angle = (angle, angle) if isinstance(angle, (int, float)) else angle
        if center is not None and isinstance(center[0], (int, float)):
            center = (center, center)
        self.is_range = _is_range(sample_style, angle=self.angle, center=center)
        self.expand = expand
        self.center = center
        self.sample_style = sample_style
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw a rotation; a full turn does nothing."""
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
    """Cut out a random rectangle, which may reach beyond the image, where pixels become black.

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
        _check_range(1e-6, np.inf, scale_range=scale_range)
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
    """Blend the image with a `source` of less contrast, brightness or saturation; the drawn weight is the image's."""

    def __init__(self, intensity_min: float, intensity_max: float):
        self.intensity_min = intensity_min
        self.intensity_max = intensity_max

    def _blend(self, source: Any) -> BlendTransform:
        weight = np.random.uniform(self.intensity_min, self.intensity_max)
        return BlendTransform(src_image=source, src_weight=1 - weight, dst_weight=weight)


class RandomContrast(_RandomBlend):
    """Change contrast by a factor from `[intensity_min, intensity_max)`: below 1 weaker, above 1 stronger.

    Example:
        >>> from detectron2.data import transforms as T
        >>> image = np.array([[0, 200]], dtype=np.uint8)
        >>> T.RandomContrast(0.5, 0.5).get_transform(image).apply_image(image)
        array([[ 50, 150]], dtype=uint8)
    """

    def get_transform(self, image: np.ndarray) -> BlendTransform:
        """Blend with the mean grey level of the image."""
        return self._blend(np.array(image.mean(), dtype=np.float32))


class RandomBrightness(_RandomBlend):
    """Change brightness by a factor from `[intensity_min, intensity_max)`: below 1 darker, above 1 brighter.

    Example:
        >>> from detectron2.data import transforms as T
        >>> image = np.array([[0, 100]], dtype=np.uint8)
        >>> T.RandomBrightness(1.5, 1.5).get_transform(image).apply_image(image)
        array([[  0, 150]], dtype=uint8)
    """

    def get_transform(self, image: np.ndarray) -> BlendTransform:
        """Blend with black."""
        return self._blend(np.array(0, dtype=np.float32))


class RandomSaturation(_RandomBlend):
    """Change the saturation of an RGB image by a factor from `[intensity_min, intensity_max)`: 0 makes it grey.

    Example:
        >>> from detectron2.data import transforms as T
        >>> image = np.array([[[200, 100, 0]]], dtype=np.uint8)
        >>> T.RandomSaturation(0.0, 0.0).get_transform(image).apply_image(image)
        array([[[118, 118, 118]]], dtype=uint8)
    """

    def get_transform(self, image: np.ndarray) -> BlendTransform:
        """Blend with the grey image."""
        _check_rgb("RandomSaturation", image)
        values = image if image.dtype.kind == "f" else image.astype(np.float32)
        return self._blend(values.dot(_LUMA_RGB)[:, :, np.newaxis])


class RandomLighting(Augmentation):
    """Shift the colours of an RGB image along the principal components of ImageNet, as AlexNet did (2012).

    Args:
        scale: standard deviation of the random factors.

    Example:
        >>> from detectron2.data import transforms as T
        >>> image = np.full((4, 6, 3), 100, dtype=np.uint8)
        >>> T.RandomLighting(scale=0.1).get_transform(image).apply_image(image).shape
        (4, 6, 3)
    """

    def __init__(self, scale: float):
        self.scale = scale
        self.eigen_vecs = np.array(_IMAGENET_COMPONENTS)
        self.eigen_vals = np.array(_IMAGENET_DEVIATIONS)

    def get_transform(self, image: np.ndarray) -> BlendTransform:
        """Add a colour drawn from a normal distribution."""
        _check_rgb("RandomLighting", image)
        weights = np.random.normal(scale=self.scale, size=3)
        shift = self.eigen_vecs.dot(weights * self.eigen_vals).astype(np.float32)
        return BlendTransform(src_image=shift, src_weight=1.0, dst_weight=1.0)
