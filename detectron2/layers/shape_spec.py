"""What a module needs to know about a feature map before it is built."""

from dataclasses import dataclass

__all__ = ["ShapeSpec"]


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
