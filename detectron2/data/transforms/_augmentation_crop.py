"""Augmentations that crop: at random, to a fixed size, with a look at labels or boxes.

Letters: `H`, `W` height and width in pixels, `N` boxes.
"""
# ruff: noqa: NPY002 (the legacy global generator is the one that workers seed)

import logging

import numpy as np

from detectron2.utils.logger import log_first_n

from .augmentation import Augmentation
from .transform import CropTransform, NoOpTransform, PadTransform, Transform, TransformList

_CROP_TYPES = ("relative_range", "relative", "absolute", "absolute_range")


def _random_offset(image_hw: tuple[int, int], crop_hw: tuple[int, int]) -> tuple[int, int]:
    """Top left corner `(y, x)` of a window that lies in the image."""
    if crop_hw[0] > image_hw[0] or crop_hw[1] > image_hw[1]:
        raise ValueError(f"a crop of (height, width) {crop_hw} does not fit in an image of {image_hw}")
    y0 = np.random.randint(image_hw[0] - crop_hw[0] + 1)
    x0 = np.random.randint(image_hw[1] - crop_hw[1] + 1)
    return y0, x0


class RandomCrop(Augmentation):
    """Cut out a random window.

    For an image of `H` x `W` pixels, the window has (height, width)

    * "relative": `(H * crop_size[0], W * crop_size[1])`, with fractions in (0, 1];
    * "relative_range": the same, with fractions drawn from `[crop_size[0], 1]` and `[crop_size[1], 1]`;
    * "absolute": `(crop_size[0], crop_size[1])` pixels, or the edge of the image where it is shorter;
    * "absolute_range": height and width each drawn from `[crop_size[0], crop_size[1]]` pixels, or up to the edge of
      the image.

    Args:
        crop_type: one of the four.
        crop_size: two numbers, whose meaning depends on the type.

    Raises:
        ValueError: for an unknown type, or sizes that it cannot have.

    Example:
        >>> from detectron2.data import transforms as T
        >>> image, tfms = T.apply_augmentations([T.RandomCrop("relative", (0.5, 0.5))], np.zeros((8, 12)))
        >>> image.shape
        (4, 6)
    """

    def __init__(self, crop_type: str, crop_size: tuple[float, float] | tuple[int, int]):
        super().__init__()
        if crop_type not in _CROP_TYPES:
            raise ValueError(f"crop_type must be one of {', '.join(_CROP_TYPES)}, got {crop_type!r}")
        if len(crop_size) != 2:
            raise ValueError(f"crop_size must be two numbers, got {crop_size}")
        if crop_type.startswith("relative") and not all(0 < s <= 1 for s in crop_size):
            raise ValueError(f"the crop type {crop_type!r} needs fractions in (0, 1], got {crop_size}")
        if crop_type == "absolute_range" and crop_size[0] > crop_size[1]:
            raise ValueError(f'the crop type "absolute_range" needs (min, max) in pixels, got {crop_size}')
        self.crop_type = crop_type
        self.crop_size = crop_size

    def get_transform(self, image: np.ndarray) -> CropTransform:
        """A random window of a random or fixed size."""
        h, w = image.shape[:2]
        crop_h, crop_w = self.get_crop_size((h, w))
        y0, x0 = _random_offset((h, w), (crop_h, crop_w))
        return CropTransform(x0, y0, crop_w, crop_h, w, h)

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Draw the size of the window.

        Args:
            image_size: `(height, width)` of the image in pixels.

        Returns:
            `(height, width)` of the window in pixels.
        """
        h, w = image_size
        if self.crop_type == "absolute":
            return min(int(self.crop_size[0]), h), min(int(self.crop_size[1]), w)
        if self.crop_type == "absolute_range":
            low, high = int(self.crop_size[0]), int(self.crop_size[1])
            crop_h = np.random.randint(min(h, low), min(h, high) + 1)
            crop_w = np.random.randint(min(w, low), min(w, high) + 1)
            return crop_h, crop_w
        part_h, part_w = self.crop_size
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
        super().__init__()
        self.crop_aug = RandomCrop(crop_type, crop_size)
        self.crop_type = crop_type
        self.crop_size = crop_size
        self.single_category_max_area = single_category_max_area
        self.ignored_category = ignored_category

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> CropTransform:
        """A random window that satisfies the constraint, if one is found; the label map must not be None then."""
        if self.single_category_max_area >= 1.0:
            return self.crop_aug.get_transform(image)
        if sem_seg is None:
            raise ValueError(
                "RandomCrop_CategoryAreaConstraint needs a label map: give AugInput a sem_seg, use a data set with "
                "sem_seg_file_name, or set single_category_max_area to 1.0"
            )
        h, w = sem_seg.shape
        for _ in range(10):
            crop_h, crop_w = self.crop_aug.get_crop_size((h, w))
            y0, x0 = _random_offset((h, w), (crop_h, crop_w))
            if self._is_diverse(sem_seg[y0 : y0 + crop_h, x0 : x0 + crop_w]):
                break
        return CropTransform(x0, y0, crop_w, crop_h, w, h)

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
        crop_size: `(height, width)` of the result in pixels.
        pad: whether to pad images that are smaller. (In documented releases without this option, the second positional
            argument is `pad_value`; a number that is not a bool is taken as `pad_value`.)
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
        self, crop_size: tuple[int, int], pad: bool = True, pad_value: float = 128.0, seg_pad_value: int = 255
    ):
        super().__init__()
        if not isinstance(pad, (bool, np.bool_)):
            pad, pad_value = True, pad
        self.crop_size = crop_size
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
        """A crop, and a padding after it if that is wanted."""
        transforms = [self._get_crop(image)]
        if self.pad:
            transforms.append(self._get_pad(image))
        return TransformList(transforms)


class MinIoURandomCrop(Augmentation):
    """A random crop that keeps all boxes in view to a random degree (Liu et al., "SSD", 2016, section 2.2).

    A bound on the overlap is drawn first: none of the boxes may overlap the window by less, and the centre of at least
    one box lies in the window. If no such window is found, another bound is drawn; "leave the image alone" is one of
    the outcomes.

    Args:
        min_ious: bounds on the intersection over union of window and box.
        min_crop_size: least height and width of the window as parts of the image's.
        mode_trials: how many bounds to draw at most.
        crop_trials: how many windows to draw for each bound.

    Example:
        >>> from detectron2.data import transforms as T
        >>> boxes = np.array([[10, 10, 50, 50]], dtype=np.float32)
        >>> aug_input = T.AugInput(np.zeros((100, 100, 3), dtype=np.uint8), boxes=boxes)
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
        super().__init__()
        self.min_ious = min_ious
        self.sample_mode = (1, *min_ious, 0)
        self.min_crop_size = min_crop_size
        self.mode_trials = mode_trials
        self.crop_trials = crop_trials

    def get_transform(self, image: np.ndarray, boxes: np.ndarray | None) -> Transform:
        """A window that satisfies a drawn bound, or nothing."""
        if boxes is None:
            log_first_n(
                logging.WARNING,
                "MinIoURandomCrop does nothing, because it gets no boxes: give them to the AugInput, in a mapper of "
                "your own: AugInput(image, boxes=np.array of shape (N, 4), XYXY_ABS).",
            )
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
        has_area = window_xyxy[2] > window_xyxy[0] and window_xyxy[3] > window_xyxy[1]
        return window_xyxy if has_area else None

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
