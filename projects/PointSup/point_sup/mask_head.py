"""Mask heads that learn from labelled points, for `MODEL.ROI_MASK_HEAD.NAME`. Inference is that of their base classes.

`R` regions over the whole batch, `K` classes, `M` side of the predicted mask in cells, `P` points of a region.
"""

from typing import Any

import torch

from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.projects.point_rend import ImplicitPointRendMaskHead, roi_mask_point_loss
from detectron2.projects.point_rend.point_features import point_sample
from detectron2.structures import Instances

from .point_utils import get_point_coords_from_point_annotation

__all__ = ["ImplicitPointRendPointSupHead", "MaskRCNNConvUpsamplePointSupHead", "mask_rcnn_point_loss"]


def mask_rcnn_point_loss(pred_mask_logits: torch.Tensor, instances: list[Instances]) -> torch.Tensor:
    """Binary cross entropy of masks of Mask R-CNN at labelled points (section 3.2).

    The prediction at a point is interpolated bilinearly between the cells of the mask.

    Args:
        pred_mask_logits: `Tensor[R, K, M, M]`, or `Tensor[R, 1, M, M]` when masks do not depend on the class.
        instances: foreground regions of each image with `proposal_boxes`, `gt_classes`, `gt_point_coords` and
            `gt_point_labels`.

    Returns:
        A scalar; zero, but still connected to the predictions, without regions or points.
    """
    coords, labels = get_point_coords_from_point_annotation(instances)
    if labels.numel() == 0:
        return pred_mask_logits.sum() * 0
    return roi_mask_point_loss(point_sample(pred_mask_logits, coords, align_corners=False), instances, labels)


@ROI_MASK_HEAD_REGISTRY.register()
class MaskRCNNConvUpsamplePointSupHead(MaskRCNNConvUpsampleHead):
    """`MaskRCNNConvUpsampleHead`, trained with points; the arguments are the same."""

    def forward(self, x: torch.Tensor, instances: list[Instances]) -> Any:
        """Predict a mask for every region.

        Args:
            x: features of the regions, `Tensor[R, C, S, S]`.
            instances: the regions: in training foreground proposals with labelled points, in inference detections.

        Returns:
            In training `{"loss_mask": scalar}`; in inference `instances`, with `pred_masks` set.
        """
        if not self.training:
            return super().forward(x, instances)
        return {"loss_mask": mask_rcnn_point_loss(self.layers(x), instances) * self.loss_weight}


@ROI_MASK_HEAD_REGISTRY.register()
class ImplicitPointRendPointSupHead(ImplicitPointRendMaskHead):
    """`ImplicitPointRendMaskHead`, trained with labelled points instead of random ones; the arguments are the same."""

    def _uniform_sample_train_points(self, instances: list[Instances]) -> tuple[torch.Tensor, torch.Tensor]:
        return get_point_coords_from_point_annotation(instances)
