"""A palette of distinct colours, and random colours from it.

The palette was made by farthest-point sampling in CIELAB among colours of medium lightness and clear hue (no greys), so
its first colours differ most, and any prefix of it is a good palette by itself.
"""

import random

import numpy as np

__all__ = ["colormap", "random_color", "random_colors"]

_HEX = (
    "0078d2 b4e100 f0002d 00f0d2 f01ec3 ffc387 a54b69 4b782d 00f069 784be1 ffc300 1ed2ff "
    "f0a5ff ff7800 f00f78 a54b1e d2e178 967800 2d9600 87f096 ff7878 b43c96 008769 785aa5 "
    "2d78ff e169ff b4b4ff b4b400 ff96c3 f0a53c 96f05a 2dc3c3 ff784b 00964b 1e96d2 87c387 "
    "a587ff 963cb4 96964b c31e3c 78961e 875a1e ffa596 e13c00 ff005a ff5ab4 ff6996 b469a5 "
    "f0d25a 00f0a5 1ec35a c36900 2dc31e f078e1 d2874b b44b4b c32d1e 78b400 4b5ac3 e1e100 "
    "b40fb4 ff00a5 e1d287 87c35a 87f0c3 b42d69 e17887 c3e14b ffa500 a55ab4 696900 7896ff"
)
_PALETTE = np.array([tuple(bytes.fromhex(color)) for color in _HEX.split()], dtype=np.float32)


def colormap(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """Return the whole palette, float32 `(colours, 3)`, in BGR or RGB order; `maximum` is full intensity, 255 or 1."""
    if maximum not in (1, 255):
        raise ValueError(f"maximum must be 255 or 1, got {maximum!r}.")
    palette = _PALETTE * np.float32(maximum / 255)
    return palette if rgb else palette[:, ::-1].copy()


def random_color(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """Draw one colour, a float32 array (3,), with NumPy's global generator; the arguments are those of `colormap`."""
    return colormap(rgb, maximum)[np.random.randint(0, len(_PALETTE))]  # noqa: NPY002  # seeded by users through numpy


def random_colors(N: int, rgb: bool = False, maximum: int = 255) -> list[np.ndarray]:
    """Draw `N` different colours, float32 arrays (3,), at most the size of the palette; the rest as in `colormap`."""
    if len(_PALETTE) < N:
        raise ValueError(f"The palette has {len(_PALETTE)} colours; {N} different ones were asked for.")
    palette = colormap(rgb, maximum)
    return [palette[index] for index in random.sample(range(len(_PALETTE)), N)]
