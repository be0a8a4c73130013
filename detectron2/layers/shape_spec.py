"""What a module needs to know about a feature map before it is built."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["ShapeSpec", "select_shapes"]


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
    unknown = [name for name in names if name not in shapes]
    if unknown or not names:
        raise ValueError(f"{key} names {unknown or 'nothing'}, but the backbone returns {sorted(shapes)}")
    return [shapes[name] for name in names]
