"""Box heads: from the pooled features of a region to the vector that the box predictor reads.

`R` regions, `C` channels, `P` side of the pooled feature map in cells.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, blocks
from detectron2.layers.weight_init import c2_msra_fill, c2_xavier_fill
from detectron2.utils.registry import Registry, build_part

__all__ = ["ROI_BOX_HEAD_REGISTRY", "FastRCNNConvFCHead", "build_box_head"]

# Entries are called as `head(cfg, input_shape)`.
ROI_BOX_HEAD_REGISTRY = Registry("ROI_BOX_HEAD")


@ROI_BOX_HEAD_REGISTRY.register()
class FastRCNNConvFCHead(nn.Sequential):
    """3x3 convolutions, then fully connected layers, each followed by a ReLU.

    With two layers of 1024 and no convolution this is the head of FPN (https://arxiv.org/abs/1612.03144, section 4.2).

    Args:
        input_shape: channels, height and width of a pooled region.
        conv_dims: output channels of each convolution.
        fc_dims: output width of each fully connected layer.
        conv_norm: normalisation after each convolution, as `detectron2.layers.get_norm` takes it.

    Raises:
        ValueError: when both lists are empty.
    """

    @configurable
    def __init__(
        self, input_shape: ShapeSpec, *, conv_dims: Sequence[int], fc_dims: Sequence[int], conv_norm: str = ""
    ):
        super().__init__()
        if not len(conv_dims) + len(fc_dims):
            raise ValueError(
                "FastRCNNConvFCHead got neither convolutions nor fully connected layers; "
                "set MODEL.ROI_BOX_HEAD.NUM_CONV or NUM_FC (conv_dims, fc_dims) above zero"
            )
        size = [input_shape.channels or 1, input_shape.height or 1, input_shape.width or 1]

        self.conv_norm_relus = []
        for i, width in enumerate(conv_dims, start=1):
            conv = blocks.conv_norm(size[0], width, 3, conv_norm, activation=F.relu)
            self.add_module(f"conv{i}", conv)
            self.conv_norm_relus.append(conv)
            size = [width, *size[1:]]

        self._region_size = tuple(size)  # of what is flattened
        self.fcs = []
        for i, width in enumerate(fc_dims, start=1):
            if i == 1:
                self.add_module("flatten", nn.Flatten())
            fc = nn.Linear(math.prod(size), width)
            self.add_module(f"fc{i}", fc)
            self.add_module(f"fc_relu{i}", nn.ReLU())
            self.fcs.append(fc)
            size = [width]
        for conv in self.conv_norm_relus:  # after all are made: with one seed the published weights come out
            c2_msra_fill(conv)
        for fc in self.fcs:
            c2_xavier_fill(fc)
        self._output_size = tuple(size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`Tensor[R, C, P, P]` to `Tensor[R, fc_dims[-1]]`, or to a feature map when there are only convolutions."""
        for layer in self:
            x = layer(x)
        return x

    @property
    def output_shape(self) -> ShapeSpec:
        """Shape of one region's output."""
        if len(self._output_size) == 1:
            return ShapeSpec(channels=self._output_size[0])
        channels, height, width = self._output_size
        return ShapeSpec(channels=channels, height=height, width=width)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        """Arguments of the constructor from `cfg.MODEL.ROI_BOX_HEAD`."""
        head = cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "conv_dims": [head.CONV_DIM] * head.NUM_CONV,
            "fc_dims": [head.FC_DIM] * head.NUM_FC,
            "conv_norm": head.NORM,
        }


def build_box_head(cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
    """The box head that `cfg.MODEL.ROI_BOX_HEAD.NAME` names, for regions of shape `input_shape`."""
    return build_part(ROI_BOX_HEAD_REGISTRY, "MODEL.ROI_BOX_HEAD.NAME", cfg, input_shape=input_shape)
