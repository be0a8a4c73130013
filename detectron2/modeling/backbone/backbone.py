"""The interface that every backbone offers to the rest of a detector.

A backbone turns a batch of images `Tensor[N, C, H, W]` into a dictionary of feature maps, one for each named output.
"""

import logging
from abc import ABCMeta, abstractmethod

import torch.nn as nn

from detectron2.layers import ShapeSpec

__all__ = ["Backbone", "warn_of_freezing_all"]

logger = logging.getLogger(__name__)


class Backbone(nn.Module, metaclass=ABCMeta):
    """Base class of feature extractors.

    A subclass fills `_out_features` (the names it returns), `_out_feature_channels` and `_out_feature_strides`
    (name to number), or overrides `output_shape`.
    """

    _out_features: list[str]
    _out_feature_channels: dict[str, int]
    _out_feature_strides: dict[str, int]

    def __init__(self):
        super().__init__()

    @abstractmethod
    def forward(self, *args, **kwargs):
        """Compute the features of a batch: a dictionary from feature name to `Tensor[N, C_i, H_i, W_i]`."""

    @property
    def size_divisibility(self) -> int:
        """The number that divides the height and the width of every admissible input; 0 when any size will do."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Further demands on the padded input, as `ImageList.from_tensors` takes them.

        Known keys are `size_divisibility` and `square_size` (pixels; images are padded to a square of this side).
        """
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every feature map that `forward` returns, in the same order."""
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }


def warn_of_freezing_all(freeze_at: int, count: int) -> None:
    """Warn where more parts of a backbone are to be frozen than the `count` that it has."""
    if freeze_at > count:
        logger.warning(
            f"freeze_at (MODEL.BACKBONE.FREEZE_AT) is {freeze_at}, but the backbone has {count} parts, counted from "
            "the stem or embedding: nothing of it is trained."
        )
