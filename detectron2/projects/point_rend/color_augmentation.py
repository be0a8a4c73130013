"""The colour distortion of SSD (Liu et al., https://arxiv.org/abs/1512.02325, section 2.2).

`H`, `W` height and width of an image in pixels.
"""

import random
from typing import Any

import numpy as np
from fvcore.transforms.transform import NoOpTransform, Transform

__all__ = ["ColorAugSSDTransform"]

# Hues are halves of degrees, so that they fit into a byte: red is 0, green 60, blue 120.
_FULL_CIRCLE = 180
# Pixels that are converted at once: the arrays in between fit into the cache, which makes it twice as fast.
_BLOCK_PIXELS = 1 << 15
# Reciprocals of the values of a byte as fixed point numbers of 12 bits, of which an 8-bit conversion makes integers
# without division. The entry for 0 is 0: grey has no hue, and black no saturation.
_BITS = 12
_BYTE = np.arange(1, 256)
_SATURATION_STEP = np.r_[0, np.rint((255 << _BITS) / _BYTE)].astype(np.int32)
_HUE_STEP = np.r_[0, np.rint((_FULL_CIRCLE << _BITS) / (6.0 * _BYTE))].astype(np.int32)


def _rgb_to_hsv(red: np.ndarray, green: np.ndarray, blue: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hue in `[0, 180)`, saturation and value in `[0, 255]`, all int32, of uint8 channels."""
    red, green, blue = (x.astype(np.int32) for x in (red, green, blue))
    value = np.maximum(np.maximum(red, green), blue)
    span = value - np.minimum(np.minimum(red, green), blue)
    half = 1 << (_BITS - 1)
    saturation = (span * _SATURATION_STEP.take(value) + half) >> _BITS
    # Which channel is the greatest says in which third of the circle the hue lies; the other two, where in it.
    offset = np.where(
        value == red, green - blue, np.where(value == green, blue - red + 2 * span, red - green + 4 * span)
    )
    hue = (offset * _HUE_STEP.take(span) + half) >> _BITS
    hue += (hue < 0) * np.int32(_FULL_CIRCLE)
    return hue, saturation, value


def _hsv_to_rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, ...]:
    """The uint8 channels red, green, blue of what `_rgb_to_hsv` returns."""
    # Every channel falls from `value` by `value * saturation` times a trapezoid of the hue. The hue is one of 180, so
    # the trapezoids are tables.
    sixth = np.arange(_FULL_CIRCLE, dtype=np.float32) * np.float32(6 / _FULL_CIRCLE)
    depth = (value * saturation).astype(np.float32) / np.float32(255)
    bright = value.astype(np.float32)
    channels = []
    for start in (5, 3, 1):  # red, green, blue
        k = (start + sixth) % 6
        table = np.clip(np.minimum(k, 4 - k), 0, 1)
        channels.append(np.rint(bright - depth * table.take(hue)).astype(np.uint8))
    return tuple(channels)


class ColorAugSSDTransform(Transform):
    """Distort brightness, contrast, saturation and hue, each with probability one half and a random amount.

    Brightness comes first; contrast comes before or after saturation and hue, with equal probability. Positions do
    not change. Every call of `apply_image` draws anew from Python's `random`, so an object of this class is put into
    a list of augmentations once.

    Args:
        img_format: order of the channels, "BGR" or "RGB".
        brightness_delta: at most this much is added to every value, or subtracted.
        contrast_low: least factor of all values.
        contrast_high: greatest factor of all values.
        saturation_low: least factor of the saturation.
        saturation_high: greatest factor of the saturation.
        hue_delta: the hue is turned by at most this many of the 180 steps of a circle (2 degrees each).
    """

    def __init__(
        self,
        img_format: str,
        brightness_delta: int = 32,
        contrast_low: float = 0.5,
        contrast_high: float = 1.5,
        saturation_low: float = 0.5,
        saturation_high: float = 1.5,
        hue_delta: int = 18,
    ):
        super().__init__()
        if img_format not in ("BGR", "RGB"):
            raise ValueError(f'img_format (INPUT.FORMAT) must be "BGR" or "RGB", got {img_format!r}')
        self.img_format = img_format
        self.brightness_delta = brightness_delta
        self.contrast_low, self.contrast_high = contrast_low, contrast_high
        self.saturation_low, self.saturation_high = saturation_low, saturation_high
        self.hue_delta = hue_delta

    @property
    def is_rgb(self) -> bool:
        """Whether red is the first channel."""
        return self.img_format == "RGB"

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Return `coords` as they are."""
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Return `segmentation` as it is."""
        return segmentation

    def inverse(self) -> Transform:
        """Nothing, as far as positions go; colours are not restored."""
        return NoOpTransform()

    def apply_image(self, img: np.ndarray, interp: Any = None) -> np.ndarray:
        """Distort an image.

        Args:
            img: uint8 `(H, W, 3)`; it is not changed.
            interp: ignored.

        Returns:
            An image of the same shape and type; `img` itself when nothing is drawn.
        """
        if img.ndim != 3 or img.shape[2] != 3 or img.dtype != np.uint8:
            raise ValueError(f"expected an image of shape (H, W, 3) and dtype uint8, got {img.shape} and {img.dtype}")
        img = self.brightness(img)
        if random.randrange(2):
            return self._saturation_and_hue(self.contrast(img))
        return self.contrast(self._saturation_and_hue(img))

    def convert(self, img: np.ndarray, alpha: float = 1, beta: float = 0) -> np.ndarray:
        """`img * alpha + beta`, cut off at 0 and 255 and towards zero, as uint8."""
        # All values of a byte are few: they are computed once, and looked up.
        table = np.arange(256, dtype=np.float32) * np.float32(alpha) + np.float32(beta)
        return np.clip(table, 0, 255).astype(np.uint8).take(img)

    def brightness(self, img: np.ndarray) -> np.ndarray:
        """Perhaps add a random number to all values."""
        if not random.randrange(2):
            return img
        return self.convert(img, beta=random.uniform(-self.brightness_delta, self.brightness_delta))

    def contrast(self, img: np.ndarray) -> np.ndarray:
        """Perhaps multiply all values by a random factor."""
        if not random.randrange(2):
            return img
        return self.convert(img, alpha=random.uniform(self.contrast_low, self.contrast_high))

    def _saturation_and_hue(self, img: np.ndarray) -> np.ndarray:
        """Perhaps multiply the saturation by a random factor, perhaps turn the hue by a random angle."""
        factor = random.uniform(self.saturation_low, self.saturation_high) if random.randrange(2) else None
        turn = random.randint(-self.hue_delta, self.hue_delta) if random.randrange(2) else None
        if factor is None and turn is None:
            return img
        out = np.empty(img.shape, dtype=np.uint8)
        pixels, changed = img.reshape(-1, 3), out.reshape(-1, 3)
        for start in range(0, len(pixels), _BLOCK_PIXELS):
            block = pixels[start : start + _BLOCK_PIXELS].T
            hue, saturation, value = _rgb_to_hsv(*(block if self.is_rgb else block[::-1]))
            if factor is not None:
                saturation = self.convert(saturation, alpha=factor)
            if turn is not None:
                hue = (hue + turn) % _FULL_CIRCLE
            channels = _hsv_to_rgb(hue, saturation, value)
            changed[start : start + _BLOCK_PIXELS] = np.stack(channels if self.is_rgb else channels[::-1], axis=1)
        return out
