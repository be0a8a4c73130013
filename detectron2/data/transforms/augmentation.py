"""Augmentations: policies, mostly random, that look at the data and decide on a transform.

`Augmentation` decides, `Transform` (see `transform.py`) acts, `AugInput` holds the data that an augmentation may look
at and that is transformed along the way.

Letters: `H`, `W` height and width in pixels, `C` channels, `N` boxes.
"""

import inspect
import pprint
from collections.abc import Sequence
from typing import Any

import numpy as np

from .transform import Transform, TransformList

__all__ = [
    "AugInput",
    "Augmentation",
    "AugmentationList",
    "StandardAugInput",
    "TransformGen",
    "apply_augmentations",
    "apply_transform_gens",
]

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _check_img_dtype(img: np.ndarray) -> None:
    """Refuse anything that is not an image array of 8 or 16 bits or floating point."""
    if not isinstance(img, np.ndarray):
        raise TypeError(f"an augmentation needs an image as a numpy array, got {type(img).__name__}")
    if img.dtype.kind != "f" and img.dtype not in (np.uint8, np.uint16, np.int16):
        raise TypeError(
            f"an image must be of type uint8, uint16, int16 or floating point, got {img.dtype}; "
            "for 8-bit values use image.astype('uint8')"
        )
    if img.ndim not in (2, 3):
        raise ValueError(f"an image must have shape (H, W) or (H, W, C), got {img.shape}")


def _get_aug_input_args(aug: "Augmentation", aug_input: Any) -> list[Any]:
    """Return the attributes that the parameters of `aug.get_transform` name; a single parameter means the image."""
    if aug.input_args is None:
        parameters = inspect.signature(aug.get_transform).parameters
        if len(parameters) == 1:
            aug.input_args = ("image",)
        else:
            variadic = [str(p) for p in parameters.values() if p.kind in _VARIADIC]
            if variadic:
                raise TypeError(
                    f"{type(aug).__name__}.get_transform takes {', '.join(variadic)}, so its inputs have no names: "
                    f"write them out, or set `input_args`, or override `__call__`"
                )
            aug.input_args = tuple(parameters)
    missing = [name for name in aug.input_args if not hasattr(aug_input, name)]
    if missing:
        raise AttributeError(
            f"{type(aug).__name__}.get_transform needs {', '.join(aug.input_args)}, but the "
            f"{type(aug_input).__name__} it was called with has no {', '.join(missing)}"
        )
    return [getattr(aug_input, name) for name in aug.input_args]


def _describe(obj: object) -> str:
    """`Class(field=value, ...)` from the constructor's parameters that are also attributes."""
    fields = []
    for name, parameter in inspect.signature(type(obj)).parameters.items():
        if parameter.kind in _VARIADIC or not hasattr(obj, name):
            return object.__repr__(obj)
        value = getattr(obj, name)
        if value is parameter.default:
            continue
        text = pprint.pformat(value)
        fields.append(f"{name}={'...' if chr(10) in text else text}")
    return f"{type(obj).__name__}({', '.join(fields)})"


class Augmentation:
    """A policy that looks at data and returns a `Transform`.

    Subclasses write `get_transform`; the names of its parameters say which attributes of the `AugInput` it gets::

        class CropAroundLabel(Augmentation):
            def get_transform(self, image, sem_seg): ...

    With a single parameter it gets the image. The usual names are those of `AugInput`.

    A transform is deterministic, so it can be applied again to whatever belongs to the image. Randomness lies in the
    augmentation only, and comes from `numpy.random`, which data-loader workers seed.

    Example:
        >>> from detectron2.data import transforms as T
        >>> class CropToSquare(T.Augmentation):
        ...     def get_transform(self, image):
        ...         side = min(image.shape[:2])
        ...         return T.CropTransform(0, 0, side, side)
        >>> aug_input = T.AugInput(np.zeros((4, 6, 3), dtype=np.uint8))
        >>> tfm = CropToSquare()(aug_input)
        >>> aug_input.image.shape
        (4, 4, 3)
    """

    input_args: tuple[str, ...] | None = None

    def _init(self, params: dict[str, Any] | None = None) -> None:
        """Set attributes from a constructor's arguments: `self._init(locals())`."""
        for name, value in (params or {}).items():
            if name != "self" and not name.startswith("_"):
                setattr(self, name, value)

    def get_transform(self, *args: Any) -> Transform:
        """Decide on a deterministic transform; a subclass names the inputs that it needs."""
        raise NotImplementedError(f"{type(self).__name__} must define get_transform")

    def __call__(self, aug_input: Any) -> Transform:
        """Transform the data in place and return the transform that did it.

        `aug_input` is an `AugInput`, or anything that has the attributes that this policy needs and a method
        `transform(tfm)` that transforms them in place.
        """
        tfm = self.get_transform(*_get_aug_input_args(self, aug_input))
        if not isinstance(tfm, Transform):
            raise TypeError(f"{type(self).__name__}.get_transform must return a Transform, got {type(tfm).__name__}")
        aug_input.transform(tfm)
        return tfm

    def _rand_range(self, low: float = 1.0, high: float | None = None, size: Any = None) -> Any:
        """Uniform random number in `[low, high)`, or in `[0, low)` without `high`."""
        if high is None:
            low, high = 0, low
        return np.random.uniform(low, high, size)  # noqa: NPY002 (workers seed the global generator)

    def __repr__(self) -> str:
        return _describe(self)

    __str__ = __repr__


class _TransformToAug(Augmentation):
    """The policy that always decides on one given transform."""

    def __init__(self, tfm: Transform):
        self.tfm = tfm

    def get_transform(self, *args: Any) -> Transform:
        return self.tfm

    def __repr__(self) -> str:
        return repr(self.tfm)

    __str__ = __repr__


class _OutOfRangeError(ValueError, AssertionError):
    """An argument is out of range; code written for the published system catches an `AssertionError`."""


def _check_range(low: float, high: float, **numbers: Any) -> None:
    """Refuse numbers, or lists of them, that are not between `low` and `high`, and lists that are empty."""
    for name, value in numbers.items():
        given = np.asarray(value)
        if not given.size or not ((given >= low) & (given <= high)).all():
            limits = f"at least {low}" if high == np.inf else f"between {low} and {high}"
            raise _OutOfRangeError(f"{name} must be {limits}, got {value}")


def _is_range(sample_style: str, **drawn: Any) -> bool:
    """Whether values are drawn from `(min, max)`, which each must be then, rather than from a list."""
    if sample_style not in ("range", "choice"):
        raise ValueError(f'sample_style must be "range" or "choice", got {sample_style!r}')
    for name, values in drawn.items():
        if sample_style == "range" and values is not None and len(values) != 2:
            raise ValueError(
                f'with sample_style="range", {name} must be (min, max), got {values}; for a list to choose from use '
                f'sample_style="choice"'
            )
    return sample_style == "range"


def _size_hw(size: int | Sequence[int]) -> tuple[int, int]:
    h, w = (size, size) if isinstance(size, (int, np.integer)) else size
    return h, w


def _transform_to_aug(tfm_or_aug: Augmentation | Transform) -> Augmentation:
    """Return an augmentation as it is, a transform as the policy that always chooses it."""
    if isinstance(tfm_or_aug, Augmentation):
        return tfm_or_aug
    if isinstance(tfm_or_aug, Transform):
        return _TransformToAug(tfm_or_aug)
    raise TypeError(f"expected an Augmentation or a Transform, got {tfm_or_aug!r} of type {type(tfm_or_aug).__name__}")


class AugmentationList(Augmentation):
    """Augmentations applied one after the other; each sees what the ones before it produced.

    For that reason there is no `get_transform`: call the list on an `AugInput`.

    Args:
        augs: augmentations or transforms.

    Example:
        >>> from detectron2.data import transforms as T
        >>> augs = T.AugmentationList([T.Resize((8, 12)), T.RandomFlip(prob=1.0)])
        >>> augs
        AugmentationList[Resize(shape=(8, 12)), RandomFlip(prob=1.0)]
        >>> aug_input = T.AugInput(np.zeros((4, 6, 3), dtype=np.uint8))
        >>> tfms = augs(aug_input)
        >>> aug_input.image.shape
        (8, 12, 3)
        >>> tfms.apply_box(np.array([[0.0, 0, 2, 2]]))
        array([[ 8.,  0., 12.,  4.]])
    """

    def __init__(self, augs: Sequence[Augmentation | Transform]):
        self.augs = [_transform_to_aug(aug) for aug in augs]

    def __call__(self, aug_input: Any) -> TransformList:
        """Transform the data in place and return all transforms that did it, in order."""
        return TransformList([aug(aug_input) for aug in self.augs])

    def __repr__(self) -> str:
        return f"AugmentationList[{', '.join(map(str, self.augs))}]"

    __str__ = __repr__


def _no_image(tfm: Transform, before: tuple[int, ...], image: Any) -> str:
    """Say that a transform gave no image."""
    found = f"an array of shape {image.shape}" if isinstance(image, np.ndarray) else f"{type(image).__name__}"
    how = "a window outside the image, or without height or width, leaves nothing of it"
    how = how if isinstance(image, np.ndarray) and not image.size else "apply_image must return it as (H, W[, C])"
    return f"{type(tfm).__name__} made {found} of an image of shape {before}, not an image: {how}"


class AugInput:
    """The data of one image that augmentations look at and transform.

    Args:
        image: `(H, W)` or `(H, W, C)`, uint8 (or 16-bit) in its full range, or floating point in [0, 1] or [0, 255].
        boxes: `(N, 4)` float32, `(x1, y1, x2, y2)` in absolute coordinates.
        sem_seg: `(H, W)` integer label of each pixel.

    Raises:
        TypeError: if the image is not an array of such a type.
        ValueError: if the image has another number of dimensions.

    Example:
        >>> from detectron2.data import transforms as T
        >>> boxes = np.array([[0, 0, 2, 2]], dtype=np.float32)
        >>> aug_input = T.AugInput(np.zeros((4, 6), dtype=np.uint8), boxes=boxes)
        >>> aug_input.transform(T.ResizeTransform(4, 6, 8, 12))
        >>> aug_input.image.shape, aug_input.boxes
        ((8, 12), array([[0., 0., 4., 4.]], dtype=float32))
    """

    def __init__(self, image: np.ndarray, *, boxes: np.ndarray | None = None, sem_seg: np.ndarray | None = None):
        _check_img_dtype(image)
        self.image: np.ndarray = image
        self.boxes = boxes
        self.sem_seg = sem_seg

    def transform(self, tfm: Transform) -> None:
        """Transform all attributes in place: afterwards `self.image` is the transformed image.

        Args:
            tfm: what to do.

        Raises:
            ValueError: if nothing is left of the image, or the transform returns something else.
        """
        before = self.image.shape
        self.image = tfm.apply_image(self.image)  # pyright: ignore[reportAttributeAccessIssue] (fvcore lacks the type)
        if not isinstance(self.image, np.ndarray) or self.image.ndim not in (2, 3) or not self.image.size:
            raise ValueError(_no_image(tfm, before, self.image))
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)

    def apply_augmentations(self, augmentations: Sequence[Augmentation | Transform]) -> TransformList:
        """Apply augmentations or transforms in order; the same as calling an `AugmentationList` on this object."""
        return AugmentationList(augmentations)(self)


def apply_augmentations(augmentations: Sequence[Augmentation | Transform], inputs: Any) -> tuple[Any, TransformList]:
    """Apply augmentations or transforms in order. Older form of `AugmentationList(augmentations)(inputs)`.

    Args:
        augmentations: what to apply.
        inputs: an image array, or an `AugInput`.

    Returns:
        The transformed image if an image was given, else the `AugInput`; and the transforms that were applied.

    Example:
        >>> from detectron2.data import transforms as T
        >>> image, tfms = T.apply_augmentations([T.Resize(8)], np.zeros((4, 6, 3), dtype=np.uint8))
        >>> image.shape
        (8, 8, 3)
        >>> tfms.apply_coords(np.array([[3.0, 2.0]]))  # the middle stays in the middle
        array([[4., 4.]])
    """
    if isinstance(inputs, np.ndarray):
        aug_input = AugInput(inputs)
        transforms = aug_input.apply_augmentations(augmentations)
        return aug_input.image, transforms
    return inputs, inputs.apply_augmentations(augmentations)


# Names of earlier versions that many projects still use.
TransformGen = Augmentation
StandardAugInput = AugInput
apply_transform_gens = apply_augmentations
