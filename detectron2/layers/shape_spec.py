"""What a module needs to know about a feature map before it is built, and how it finds the maps that it takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

__all__ = ["ShapeSpec", "select_maps", "select_shapes"]


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
