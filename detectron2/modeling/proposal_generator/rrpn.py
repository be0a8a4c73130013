"""The region proposal network with rotated anchors and proposals.

Ma et al., "Arbitrary-Oriented Scene Text Detection via Rotation Proposals" (https://arxiv.org/abs/1703.01086).

Letters: `N` images, `R_i` anchors of level i, `R` their sum, `M` ground-truth boxes of an image. Boxes are
`(x_center, y_center, width, height, angle)`: pixels of the network input, continuous coordinates; degrees,
counter-clockwise.
"""

from typing import Any

import torch

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import RotatedBoxes, pairwise_iou_rotated

from ..box_regression import Box2BoxTransformRotated
from .build import PROPOSAL_GENERATOR_REGISTRY
from .proposal_utils import find_top_rpn_proposals
from .rpn import RPN

__all__ = ["RRPN", "find_top_rrpn_proposals"]


find_top_rrpn_proposals = find_top_rpn_proposals
"""The function for both kinds of boxes: rotated ones are decoded to `Tensor[N, R_i, 5]`."""


@PROPOSAL_GENERATOR_REGISTRY.register()
class RRPN(RPN):
    """Region proposal network that scores rotated anchors, refines them, and keeps the best as rotated proposals.

    Its anchor generator makes rotated boxes (`RotatedAnchorGenerator`), its `box2box_transform` is a
    `Box2BoxTransformRotated`; all other arguments are as of `RPN`.
    """

    @configurable
    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        box_dim = self.anchor_generator.box_dim
        if box_dim != 5:
            raise ValueError(
                f"RRPN needs rotated anchors of 5 numbers, but {type(self.anchor_generator).__name__} makes anchors of "
                f"{box_dim}; set MODEL.ANCHOR_GENERATOR.NAME to RotatedAnchorGenerator"
            )

    def _overlaps(self, gt_boxes: RotatedBoxes, anchors: RotatedBoxes) -> torch.Tensor:
        """IoU of the regions that boxes cover, whatever way they point, `Tensor[M, R]`."""
        return pairwise_iou_rotated(gt_boxes, anchors)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        """Read `cfg.MODEL.RPN` and what belongs to it."""
        return {
            **super().from_config(cfg, input_shape),
            "box2box_transform": Box2BoxTransformRotated(weights=cfg.MODEL.RPN.BBOX_REG_WEIGHTS),
        }
