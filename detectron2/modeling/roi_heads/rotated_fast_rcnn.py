"""Fast R-CNN on rotated boxes: its last layers, its inference, and the ROI heads that use them.

`N` images, `R` regions over the whole batch (`Ri` in image i), `K` foreground classes, `D` detections. Boxes are
`(x_center, y_center, width, height, angle)`: pixels of the network's input image; degrees, counter-clockwise. Class
index `K` is background.
"""

from typing import Any

import torch
from torch import nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransformRotated
from detectron2.structures import Instances, RotatedBoxes, pairwise_iou_rotated

from .fast_rcnn import FastRCNNOutputLayers, detections_of_image
from .roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads

__all__ = [
    "RROIHeads",
    "RotatedFastRCNNOutputLayers",
    "fast_rcnn_inference_rotated",
    "fast_rcnn_inference_single_image_rotated",
]


def fast_rcnn_inference_rotated(
    boxes: list[torch.Tensor],
    scores: list[torch.Tensor],
    image_shapes: list[tuple[int, int]],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[list[Instances], list[torch.Tensor]]:
    """Turn the scored rotated boxes of every image into detections; see `fast_rcnn_inference`.

    Boxes are `Tensor[Ri, K * 5]` or `Tensor[Ri, 5]`; only nearly upright ones are clipped. The field `pred_boxes` of
    the detections is `RotatedBoxes`.
    """
    results = [
        fast_rcnn_inference_single_image_rotated(b, s, shape, score_thresh, nms_thresh, topk_per_image)
        for b, s, shape in zip(boxes, scores, image_shapes, strict=True)
    ]
    return [r[0] for r in results], [r[1] for r in results]


@torch.no_grad()
def fast_rcnn_inference_single_image_rotated(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    image_shape: tuple[int, int],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[Instances, torch.Tensor]:
    """`fast_rcnn_inference_rotated` of one image; see `fast_rcnn_inference_single_image`."""
    return detections_of_image(RotatedBoxes, boxes, scores, image_shape, score_thresh, nms_thresh, topk_per_image)


class RotatedFastRCNNOutputLayers(FastRCNNOutputLayers):
    """Two linear layers that score each region's class and refine its rotated box.

    Losses are those of `FastRCNNOutputLayers` on five deltas; `box_reg_loss_type` must be "smooth_l1", as the other
    losses are defined for upright boxes only.

    Args:
        input_shape: shape of a region's feature, which is flattened; or just its number of channels.
        box2box_transform: a `Box2BoxTransformRotated`.
        **kwargs: see `FastRCNNOutputLayers`.
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec | int, *, box2box_transform: Any, **kwargs: Any):
        super().__init__(input_shape, box2box_transform=box2box_transform, **kwargs)
        if self.box_reg_loss_type != "smooth_l1":
            raise ValueError(
                f"rotated boxes are trained with the loss 'smooth_l1', not {self.box_reg_loss_type!r}; set "
                "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE"
            )

    def _detections(self, *arguments: Any) -> tuple[list[Instances], list[torch.Tensor]]:
        return fast_rcnn_inference_rotated(*arguments)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        """Arguments of the constructor from `cfg.MODEL.ROI_HEADS` and `cfg.MODEL.ROI_BOX_HEAD`."""
        return {
            **super().from_config(cfg, input_shape),
            "box2box_transform": Box2BoxTransformRotated(weights=cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS),
        }


@ROI_HEADS_REGISTRY.register()
class RROIHeads(StandardROIHeads):
    """A box head for rotated boxes, as in Rotated Faster R-CNN. It predicts neither masks nor keypoints.

    Args:
        **kwargs: arguments of `StandardROIHeads`: a `box_pooler` of type "ROIAlignRotated", a `box_predictor` that is a
            `RotatedFastRCNNOutputLayers`, and nothing for masks and keypoints.
    """

    @configurable
    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        for what, key, on in (
            ("masks", "MODEL.MASK_ON", self.mask_on),
            ("keypoints", "MODEL.KEYPOINT_ON", self.keypoint_on),
            ("training on predicted boxes", "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", self.train_on_pred_boxes),
        ):
            if on:
                raise ValueError(f"RROIHeads, for rotated boxes, has no {what}; set {key} to False")

    def _overlaps(self, gt_boxes: RotatedBoxes, proposal_boxes: RotatedBoxes) -> torch.Tensor:
        """IoU `Tensor[G, P]` of rotated boxes."""
        return pairwise_iou_rotated(gt_boxes, proposal_boxes)

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Constructor arguments of the box branch; meant to be overridden, the dictionary to be edited."""
        pooler_type = cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE
        if pooler_type != "ROIAlignRotated":
            raise ValueError(
                f"RROIHeads pools rotated boxes, which {pooler_type!r} cannot; set MODEL.ROI_BOX_HEAD.POOLER_TYPE to "
                "'ROIAlignRotated'"
            )
        return super()._init_box_head(cfg, input_shape)

    @classmethod
    def _build_box_predictor(cls, cfg: CfgNode, input_shape: Any) -> nn.Module:
        return RotatedFastRCNNOutputLayers(cfg, input_shape)
