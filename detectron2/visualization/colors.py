"""Which colour an object gets, and arithmetic on colours: RGB triples of floats from 0 to 1."""

import colorsys
from collections.abc import Sequence
from enum import Enum, unique
from typing import Any

import numpy as np

from detectron2.utils.colormap import colormap

__all__ = ["ColorMode", "change_brightness", "class_color", "instance_colors", "readable_on_dark", "to_rgb", "to_rgba"]

_RED = (1.0, 0.0, 0.0)
_BLACK = (0.0, 0.0, 0.0)
_OFF_WHITE = (1.0, 1.0, 240.0 / 255)

# Turn of the hue circle that keeps any number of successive hues apart.
_GOLDEN_TURN = (5**0.5 - 1) / 2
_READABLE_LUMINANCE = 0.72


@unique
class ColorMode(Enum):
    """Styles of drawing instances.

    Example:
        >>> from detectron2.visualization import ColorMode, Visualizer
        >>> visualizer = Visualizer(np.zeros((60, 80, 3), np.uint8), instance_mode=ColorMode.IMAGE_BW)
        >>> [mode.name for mode in ColorMode]
        ['IMAGE', 'SEGMENTATION', 'IMAGE_BW']
    """

    IMAGE = 0
    """Every instance has a colour of its own; masks are translucent."""
    SEGMENTATION = 1
    """Instances of a class have similar colours (`thing_colors` of the metadata); masks are nearly opaque."""
    IMAGE_BW = 2
    """Like IMAGE, with everything outside of the masks in grey."""


def to_rgb(color: Any) -> tuple[float, float, float]:
    """Convert any colour that matplotlib understands to RGB.

    Args:
        color: a name, a hex string, or numbers from 0 to 1.

    Returns:
        RGB from 0 to 1.

    Example:
        >>> from detectron2.visualization.colors import to_rgb
        >>> to_rgb("red"), to_rgb("#0000ff")
        ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    """
    return to_rgba(color)[:3]


def to_rgba(color: Any, alpha: float | None = None) -> tuple[float, float, float, float]:
    """Convert any colour that matplotlib understands to RGBA.

    Args:
        color: a name, a hex string, or numbers from 0 to 1.
        alpha: opacity that replaces the one of the colour; None to keep it.

    Returns:
        RGBA from 0 to 1.

    Example:
        >>> from detectron2.visualization.colors import to_rgba
        >>> to_rgba("red", alpha=0.5)
        (1.0, 0.0, 0.0, 0.5)
    """
    from matplotlib import colors

    return colors.to_rgba(tuple(color.tolist()) if getattr(color, "ndim", 0) == 1 else color, alpha)


def class_color(index: int, given: Sequence[Sequence[int]] | None = None) -> tuple[float, float, float]:
    """The colour of a class, the same in every picture.

    Args:
        index: contiguous class id.
        given: RGB colours of the classes from 0 to 255, as in the metadata; None for the palette.

    Returns:
        RGB from 0 to 1.

    Example:
        >>> from detectron2.visualization.colors import class_color
        >>> class_color(1, given=[(220, 20, 60), (0, 255, 0)])
        (0.0, 1.0, 0.0)
        >>> [round(channel * 255) for channel in class_color(0)]
        [0, 120, 210]
    """
    if given is not None and 0 <= index < len(given):
        red, green, blue = (float(channel) / 255 for channel in given[index][:3])
    else:
        palette = colormap(rgb=True, maximum=1)
        red, green, blue = palette[index % len(palette)].tolist()
    return red, green, blue


def instance_colors(
    classes: Sequence[int], given: Sequence[Sequence[int]] | None = None
) -> list[tuple[float, float, float]]:
    """A colour for each instance: the first of a class has the colour of its class, later ones turn the hue.

    Args:
        classes: contiguous class ids.
        given: RGB colours of the classes from 0 to 255; None for the palette.

    Returns:
        RGB triples from 0 to 1.

    Example:
        >>> from detectron2.visualization.colors import instance_colors
        >>> colors = instance_colors([17, 17, 0])  # two instances of one class
        >>> len(set(colors))
        3
    """
    seen: dict[int, int] = {}
    colors = []
    for class_id in classes:
        turn = seen.get(class_id, 0)
        seen[class_id] = turn + 1
        hue, lightness, saturation = colorsys.rgb_to_hls(*class_color(class_id, given))
        if turn:
            hue = (hue + turn * _GOLDEN_TURN) % 1.0
            lightness, saturation = min(max(lightness, 0.45), 0.65), max(saturation, 0.7)
        colors.append(colorsys.hls_to_rgb(hue, lightness, saturation))
    return colors


def change_brightness(color: Any, factor: float) -> tuple[float, float, float]:
    """Lighten or darken a colour: its lightness (of HLS) is multiplied by `1 + factor`.

    Args:
        color: any colour that matplotlib understands.
        factor: from -1 (black) to 1; 0 keeps the colour.

    Returns:
        RGB from 0 to 1.

    Example:
        >>> from detectron2.visualization.colors import change_brightness
        >>> change_brightness("red", -0.5)
        (0.5, 0.0, 0.0)
    """
    if not -1.0 <= factor <= 1.0:
        raise ValueError(f"The brightness factor must lie in [-1, 1], got {factor}.")
    hue, lightness, saturation = colorsys.rgb_to_hls(*to_rgb(color))
    return colorsys.hls_to_rgb(hue, min(max(lightness * (1 + factor), 0.0), 1.0), saturation)


def readable_on_dark(color: Any) -> tuple[float, float, float]:
    """Mix a colour with as much white as text on a dark ground needs.

    Args:
        color: any colour that matplotlib understands.

    Returns:
        RGB from 0 to 1.

    Example:
        >>> from detectron2.visualization.colors import readable_on_dark
        >>> [round(channel, 2) for channel in readable_on_dark("blue")]
        [0.7, 0.7, 1.0]
    """
    rgb = np.array(to_rgb(color))
    luminance = float(rgb @ [0.2126, 0.7152, 0.0722])
    white = max(0.0, (_READABLE_LUMINANCE - luminance) / (1 - luminance)) if luminance < 1 else 0.0
    red, green, blue = (rgb + (1 - rgb) * white).tolist()
    return red, green, blue
