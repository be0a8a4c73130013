"""Whether an array is an image that a model can take, and what to do about one that is not."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["check_image", "plain_image"]

_ONE_BY_ONE = "predict on one at a time, or call predictor.model with a list of inputs"
_CURES = {  # by the type of what was given in place of an array
    "NoneType": "the file could not be read",
    "str": "read it with detectron2.data.detection_utils.read_image(path, 'BGR')",
    "PurePath": "read it with detectron2.data.detection_utils.read_image(path, 'BGR')",
    "dict": "give the array in it",
    "generator": _ONE_BY_ONE,
    "list": _ONE_BY_ONE,
    "tuple": _ONE_BY_ONE,
    "Tensor": "give image.numpy(), channels last",
    "Image": "give numpy.asarray(image.convert('RGB'))[:, :, ::-1]",
}


def check_image(image: Any, pixel_mean: Sequence[float], *, can_scale: bool = False) -> str:
    """Look at the type, the shape and the range of an image.

    Args:
        image: what should be an array `(H, W, C)` of numbers in 0..255.
        pixel_mean: of the model, one value per channel. The range is not looked at where no value is above 1, or one
            is above 255: such a model was trained on other values.
        can_scale: whether messages may advise the argument `scale` of `Predictor`.

    Returns:
        A doubt about the range, in a sentence, or "".

    Raises:
        TypeError: it is not an array of numbers.
        ValueError: it has another shape, no pixels, or values that cannot be meant.

    Example:
        >>> check_image(np.zeros((4, 6, 3), np.uint8), [103.5, 116.3, 123.7])
        ''
        >>> check_image(np.full((4, 6, 3), 0.5), [103.5, 116.3, 123.7])
        'The image (float64) has values from 0.5 to 0.5, but the model expects 0..255: give image * 255.'
    """
    if not isinstance(image, np.ndarray):
        cure = next((f": {_CURES[t.__name__]}" for t in type(image).__mro__ if t.__name__ in _CURES), "")
        raise TypeError(f"Expected an image as an array (H, W, C), got {type(image).__name__}{cure}.")
    if cure := _cure_of_shape(image, len(pixel_mean)):
        shape = f"(H, W, {len(pixel_mean)}) (MODEL.PIXEL_MEAN)"
        raise ValueError(f"Expected an image of shape {shape}, got {image.shape}: {cure}.")
    if image.dtype.kind not in "uif":
        cure = "give scale=255" if can_scale else "give image.astype('uint8') * 255"
        cure = f": {cure}" if image.dtype.kind == "b" else ""
        raise TypeError(f"Expected an image of numbers in 0..255, got an array of {image.dtype}{cure}.")
    if image.dtype == np.uint8 or not 1 < max(pixel_mean) <= 255:  # else a model for another range
        return ""
    low, high, is_float = float(image.min()), float(image.max()), image.dtype.kind == "f"
    text = f"The image ({image.dtype}) has values from {low:g} to {high:g}, but the model expects 0..255"
    if low >= 0 and high <= 255:
        cure = "give scale=255, or image.astype('uint8') if it is as dark as that" if can_scale else "give image * 255"
        return f"{text}: {cure}." if is_float and 0 < high <= 1 else ""
    if is_float and math.isfinite(high - low):
        return f"{text}: scale them as in training."
    sixteen = "give scale=1/257" if can_scale else "give (image // 257).astype('uint8')"
    cure = f"{sixteen} if it has 16 bits" if low >= 0 else "shift and scale them as in training"
    cure = "replace NaN and inf" if is_float else cure
    raise ValueError(f"{text}: {cure}.")


def plain_image(image: np.ndarray, pixel_mean: Sequence[float]) -> np.ndarray:
    """Give an image, after `check_image`, a type that can be resized.

    Args:
        image: array `(H, W, C)`.
        pixel_mean: of the model, one value per channel.

    Returns:
        The image itself where that is possible. Whole numbers become bytes for a model of 8-bit images, so that their
        type changes no result; other numbers get the machine's byte order, and at most 64 bits.

    Example:
        >>> plain_image(np.zeros((4, 6, 3), np.int64), [103.5, 116.3, 123.7]).dtype
        dtype('uint8')
    """
    kind, size = image.dtype.kind, min(image.dtype.itemsize, 8)
    is_8_bit = kind in "ui" and 1 < max(pixel_mean) <= 255
    return np.asarray(image).astype(np.uint8 if is_8_bit else np.dtype(f"{kind}{size}"), copy=False)


def _cure_of_shape(image: np.ndarray, channels: int) -> str:
    """Return what to do about the shape of an array, or ""."""
    shape = image.shape
    if image.ndim == 4:
        return f"a batch: {_ONE_BY_ONE}"
    if image.ndim == 3 and shape[0] == channels != shape[2]:
        return "move the channels to the end, with image.transpose(1, 2, 0)"
    if image.ndim != 3 or shape[2] != channels:
        code = "BGRA2BGR" if shape[2:] == (4,) else "GRAY2BGR"
        return f"use cv2.cvtColor(image, cv2.COLOR_{code}), or read files with read_image(path, 'BGR')"
    return "" if image.size else "it is empty; leave it out"
