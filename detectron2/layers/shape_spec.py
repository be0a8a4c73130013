"""What a module needs to know about a feature map before it is built, and how it finds the maps that it takes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from detectron2.utils.tracing import when_compiled, when_traced

__all__ = ["ShapeSpec", "check_strides", "select_maps", "select_shapes"]


@dataclass
class ShapeSpec:
    """Static shape of a `(N, channels, height, width)` tensor; an entry that is not known is `None`.

    Modules take one to size their weights, and return one (`output_shape()`) to the module that comes after them.

    Attributes:
        channels: number of channels.
        height: rows of the tensor.
        width: columns of the tensor.
        stride: pixels of the network's input per cell of this tensor.

    Example:
        >>> from detectron2.layers import ShapeSpec
        >>> ShapeSpec(channels=256, stride=16)
        ShapeSpec(channels=256, height=None, width=None, stride=16)
    """

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None


def select_shapes(shapes: Mapping[str, ShapeSpec], names: Sequence[str], key: str) -> list[ShapeSpec]:
    """Return the shapes of the feature maps that a config key names; none, and an unknown one, are a `ValueError`.

    >>> from detectron2.layers.shape_spec import select_shapes
    >>> select_shapes({"res4": ShapeSpec(channels=1024, stride=16)}, ["res4"], "MODEL.RPN.IN_FEATURES")
    [ShapeSpec(channels=1024, height=None, width=None, stride=16)]
    """
    if not isinstance(shapes, Mapping):
        raise ValueError(
            f"output_shape() of the backbone gives {type(shapes).__name__}; expected a dict with a ShapeSpec a map."
        )
    unknown = [name for name in names if name not in shapes]
    if unknown or not names:
        raise ValueError(f"{key} names {unknown or 'nothing'}, but the backbone returns {sorted(shapes)}")
    for name in names:
        if None in (getattr(shapes[name], "channels", None), getattr(shapes[name], "stride", None)):
            raise ValueError(
                f"output_shape() of the backbone gives {shapes[name]!r} for {name!r}; expected a ShapeSpec with "
                "channels and stride."
            )
    return [shapes[name] for name in names]


def select_maps(features: Mapping[str, torch.Tensor], names: Sequence[str]) -> list[torch.Tensor]:
    """Return the feature maps of these names.

    Args:
        features: what the backbone returns: each map `(N, C, H, W)` by its name.
        names: of maps.

    Returns:
        The maps, in the order of the names.

    Raises:
        ValueError: it is not a dict, or a map is not in it.

    Example:
        >>> select_maps({"p2": torch.zeros(1, 8, 4, 4), "p3": torch.zeros(1, 8, 2, 2)}, ["p3"])[0].shape
        torch.Size([1, 8, 2, 2])
    """
    try:
        return [features[name] for name in names]
    except (KeyError, IndexError, TypeError) as e:
        there = ", ".join(map(str, features)) if isinstance(features, Mapping) else type(features).__name__
        raise ValueError(
            f"The backbone must return a dict with the feature maps {', '.join(names)}, those of its output_shape(); "
            f"it returned {there or 'an empty one'}."
        ) from e


def _unchecked(
    maps: Sequence[torch.Tensor], names: Sequence[str], strides: Sequence[int], images: torch.Tensor
) -> None:
    """Graphs have no check."""


@when_traced(_unchecked)
@when_compiled(_unchecked)
def check_strides(
    maps: Sequence[torch.Tensor], names: Sequence[str], strides: Sequence[int], images: torch.Tensor
) -> None:
    """Refuse maps that are far from the size that their strides promise: every box would be in the wrong place.

    Convolutions may round up or down at each step, or have no padding. So a map is refused where its rows or columns
    differ by three or more from the number expected, and are less than two thirds or more than three halves of it.

    Args:
        maps: each `(N, C, H, W)`.
        names: of the maps.
        strides: of the maps, in pixels; where there are none, nothing is compared.
        images: the padded input of the backbone, `(N, C, H, W)`.

    Raises:
        ValueError: a map has another size.

    Example:
        >>> check_strides([torch.zeros(1, 8, 16, 24)], ["p2"], [4], torch.zeros(1, 3, 64, 96))
    """
    for x, name, stride in zip(maps, names, strides, strict=False):
        if not isinstance(stride, int | float):  # an anchor generator of someone's own may have others
            continue
        for cells, pixels in zip(x.shape[-2:], images.shape[-2:], strict=True):
            covered = cells * stride
            if abs(covered - pixels) >= 3 * stride and (3 * covered < 2 * pixels or 2 * covered > 3 * pixels):
                expected = " x ".join(str(math.ceil(side / stride)) for side in images.shape[-2:])
                raise ValueError(
                    f"The backbone returned {name!r} of {x.shape[-2]} x {x.shape[-1]} cells for images of "
                    f"{images.shape[-2]} x {images.shape[-1]} pixels (height x width, padded), but its output_shape() "
                    f"says that this map has the stride {stride}: about {expected} cells. Correct the stride there, or "
                    "the map."
                )
