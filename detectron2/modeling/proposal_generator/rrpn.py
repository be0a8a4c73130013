"""The region proposal network with rotated anchors and proposals.

Ma et al., "Arbitrary-Oriented Scene Text Detection via Rotation Proposals" (https://arxiv.org/abs/1703.01086).

Letters: `N` images, `L` levels, `R_i` anchors of level i, `R` their sum, `M` candidates of an image over all levels.
Boxes are `(x_center, y_center, width, height, angle)`: pixels of the network input, continuous coordinates; degrees,
counter-clockwise.
"""

from typing import Any

import torch

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Instances, RotatedBoxes, pairwise_iou_rotated

from ..box_regression import Box2BoxTransformRotated
from .build import PROPOSAL_GENERATOR_REGISTRY
from .proposal_utils import find_top_rpn_proposals
from .rpn import RPN

__all__ = ["RRPN", "find_top_rrpn_proposals"]


def find_top_rrpn_proposals(
    proposals: list[torch.Tensor],
    pred_objectness_logits: list[torch.Tensor],
    image_sizes: list[tuple[int, int]],
    nms_thresh: float,
    pre_nms_topk: int,
    post_nms_topk: int,
    min_box_size: float,
    training: bool,
) -> list[Instances]:
    """Choose the rotated proposals of each image from the boxes of all anchors.

    For each level the `pre_nms_topk` boxes of highest logit; of these, without tiny ones and with upright ones clipped
    to the image, those that survive rotated non-maximum suppression within their level; of these the `post_nms_topk`
    best over all levels.

    Args:
        proposals: for each level the decoded boxes `Tensor[N, R_i, 5]`.
        pred_objectness_logits: for each level `Tensor[N, R_i]`.
        image_sizes: `(height, width)` of each image.
        nms_thresh: IoU above which the lower of two boxes goes.
        pre_nms_topk: how many boxes a level keeps before suppression.
        post_nms_topk: how many boxes an image keeps after suppression; in training, too, for each image on its own.
        min_box_size: boxes with a side of this many pixels (of the network input) or fewer go.
        training: whether the model is being trained: then Inf and NaN are errors; otherwise such boxes are dropped.

    Returns:
        For each image its proposals, best first, with the fields `proposal_boxes` and `objectness_logits`.

    Raises:
        FloatingPointError: in training, when boxes or logits are not finite.
    """
    return find_top_rpn_proposals(
        proposals,
        pred_objectness_logits,
        image_sizes,
        nms_thresh,
        pre_nms_topk,
        post_nms_topk,
        min_box_size,
        training,
    )


@PROPOSAL_GENERATOR_REGISTRY.register()
class RRPN(RPN):
    """Region proposal network that scores rotated anchors, refines them, and keeps the best as rotated proposals.

    Its anchor generator makes rotated boxes (`RotatedAnchorGenerator`), its `box2box_transform` is a
    `Box2BoxTransformRotated`.

    Args:
        *args: see `RPN`.
        **kwargs: see `RPN`.
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
        """IoU of the regions that boxes cover, whatever way they point; see `RPN.label_and_sample_anchors`."""
        return pairwise_iou_rotated(gt_boxes, anchors)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        """Read `cfg.MODEL.RPN` and what belongs to it."""
        return {
            **super().from_config(cfg, input_shape),
            "box2box_transform": Box2BoxTransformRotated(weights=cfg.MODEL.RPN.BBOX_REG_WEIGHTS),
        }
