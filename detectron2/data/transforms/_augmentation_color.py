"""Augmentations that change colours: brightness, contrast, saturation, lighting.

All of them blend the image with another one: `weight * image + (1 - weight) * other` (Haeberli and Voorhies, "Image
Processing by Interpolation and Extrapolation", 1994). What the image is blended with has single precision: numpy would
compute 8-bit images in double precision otherwise, at half the speed.
"""
# ruff: noqa: NPY002 (the legacy global generator is the one that workers seed)

import numpy as np

from .augmentation import Augmentation
from .transform import BlendTransform

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
