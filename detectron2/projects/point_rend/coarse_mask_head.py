"""The small head that sees a whole region and predicts a coarse mask, or the parameters of an implicit one.

`R` regions, `C` channels, `P` side of the pooled features.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.layers.weight_init import c2_msra_fill, c2_xavier_fill

__all__ = ["CoarseMaskHead"]


class CoarseMaskHead(nn.Module):
    """A convolution that halves the resolution, then fully connected layers (PointRend, section 4.1).

    Args:
        input_shape: shape of the pooled features of a region: channels, height and width.
        conv_dim: channels of the convolution. Wider features are first reduced to it.
        fc_dims: widths of the hidden layers.
        output_shape: shape of what is predicted for a region: `(classes, side, side)`, or `(parameters,)`.
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, conv_dim: int, fc_dims: Sequence[int], output_shape: Sequence[int]):
        super().__init__()
        channels, height, width = input_shape.channels, input_shape.height, input_shape.width
        if channels is None or height is None or width is None:
            raise ValueError(f"CoarseMaskHead needs channels, height and width of its input, got {input_shape}")
        self.output_shape = tuple(output_shape)
        self.reduce_channel_dim_conv = None
        if channels > conv_dim:
            self.reduce_channel_dim_conv = Conv2d(channels, conv_dim, kernel_size=1, activation=F.relu)
            c2_msra_fill(self.reduce_channel_dim_conv)
            channels = conv_dim
        self.reduce_spatial_dim_conv = Conv2d(channels, conv_dim, kernel_size=2, stride=2, activation=F.relu)
        c2_msra_fill(self.reduce_spatial_dim_conv)

        self.fcs = []
        dim = conv_dim * (height // 2) * (width // 2)
        for i, fc_dim in enumerate(fc_dims, start=1):
            fc = nn.Linear(dim, fc_dim)
            c2_xavier_fill(fc)
            self.add_module(f"fc{i}", fc)
            self.fcs.append(fc)
            dim = fc_dim
        self.prediction = nn.Linear(dim, math.prod(self.output_shape))
        # Near-zero logits at the start: every cell begins undecided.
        nn.init.normal_(self.prediction.weight, std=0.001)
        nn.init.zeros_(self.prediction.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`Tensor[R, C, P, P]` to `Tensor[R, *output_shape]`, logits."""
        if self.reduce_channel_dim_conv is not None:
            x = self.reduce_channel_dim_conv(x)
        x = self.reduce_spatial_dim_conv(x).flatten(1)
        for fc in self.fcs:
            x = F.relu(fc(x))
        return self.prediction(x).unflatten(1, self.output_shape)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # The first release called the hidden layers coarse_mask_fc1, coarse_mask_fc2, ...
        old = f"{prefix}coarse_mask_fc"
        for key in [k for k in state_dict if k.startswith(old)]:
            state_dict[f"{prefix}fc{key.removeprefix(old)}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        """Arguments of the constructor from `cfg.MODEL.ROI_MASK_HEAD`, for a coarse mask of every class."""
        head = cfg.MODEL.ROI_MASK_HEAD
        side = head.OUTPUT_SIDE_RESOLUTION
        return {
            "input_shape": input_shape,
            "conv_dim": head.CONV_DIM,
            "fc_dims": [head.FC_DIM] * head.NUM_FC,
            "output_shape": (cfg.MODEL.ROI_HEADS.NUM_CLASSES, side, side),
        }
