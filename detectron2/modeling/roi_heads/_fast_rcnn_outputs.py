"""`FastRCNNOutputs`: the former interface of the box predictor's losses and inference.

`R` regions over the whole batch, `K` foreground classes, `B` numbers per box.
"""

from typing import Any

import torch
from torch.nn import functional as F

from detectron2.layers import cross_entropy
from detectron2.structures import Boxes, Instances

from ._box_losses import box_regression_loss, gather_targets

__all__ = ["FastRCNNOutputs"]


class FastRCNNOutputs:
    """What a box predictor answered, together with the proposals that it was asked about.

    Kept for code written against it; new code overrides methods of `FastRCNNOutputLayers`.

    Args:
        box2box_transform: how deltas move a box.
        pred_class_logits: `Tensor[R, K + 1]`.
        pred_proposal_deltas: `Tensor[R, K * B]` or `Tensor[R, B]`.
        proposals: regions of each image with `proposal_boxes`; for the losses also `gt_classes` and `gt_boxes`.
        smooth_l1_beta: where the smooth L1 loss turns from quadratic to linear.
        box_reg_loss_type: as in `FastRCNNOutputLayers`.
    """

    def __init__(
        self,
        box2box_transform: Any,
        pred_class_logits: torch.Tensor,
        pred_proposal_deltas: torch.Tensor,
        proposals: list[Instances],
        smooth_l1_beta: float = 0.0,
        box_reg_loss_type: str = "smooth_l1",
    ):
        self.box2box_transform = box2box_transform
        self.pred_class_logits = pred_class_logits
        self.pred_proposal_deltas = pred_proposal_deltas
        self.smooth_l1_beta = smooth_l1_beta
        self.box_reg_loss_type = box_reg_loss_type
        self.num_preds_per_image = [len(x) for x in proposals]
        self.image_shapes = [x.image_size for x in proposals]

        box_type = type(proposals[0].proposal_boxes) if proposals else Boxes
        box_dim = len(box2box_transform.weights)
        if proposals and proposals[0].has("gt_classes"):
            self.gt_classes, boxes, matched = gather_targets(proposals, pred_class_logits, box_dim)
            self.gt_boxes = box_type(matched)
        else:
            boxes = torch.cat([pred_class_logits.new_zeros(0, box_dim), *(x.proposal_boxes.tensor for x in proposals)])
        self.proposals = box_type(boxes)

    def softmax_cross_entropy_loss(self) -> torch.Tensor:
        """Mean cross entropy of the class logits; statistics go to the open event storage."""
        from . import fast_rcnn  # which imports this module

        fast_rcnn._log_classification_stats(self.pred_class_logits, self.gt_classes)
        return cross_entropy(self.pred_class_logits, self.gt_classes, reduction="mean")

    def box_reg_loss(self) -> torch.Tensor:
        """Box loss; see `FastRCNNOutputLayers.box_reg_loss`."""
        return box_regression_loss(
            self.proposals.tensor,
            self.gt_boxes.tensor,
            self.pred_proposal_deltas,
            self.gt_classes,
            num_classes=self.pred_class_logits.shape[1] - 1,
            box2box_transform=self.box2box_transform,
            loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )

    def losses(self) -> dict[str, torch.Tensor]:
        """`{"loss_cls": scalar, "loss_box_reg": scalar}`."""
        return {"loss_cls": self.softmax_cross_entropy_loss(), "loss_box_reg": self.box_reg_loss()}

    def predict_boxes(self) -> tuple[torch.Tensor, ...]:
        """Refined boxes, for each image `Tensor[Ri, K * B]` or `Tensor[Ri, B]`."""
        boxes = self.box2box_transform.apply_deltas(self.pred_proposal_deltas, self.proposals.tensor)
        return boxes.split(self.num_preds_per_image)

    def predict_probs(self) -> tuple[torch.Tensor, ...]:
        """Class probabilities, for each image `Tensor[Ri, K + 1]`."""
        return F.softmax(self.pred_class_logits, dim=-1).split(self.num_preds_per_image)

    def inference(
        self, score_thresh: float, nms_thresh: float, topk_per_image: int
    ) -> tuple[list[Instances], list[torch.Tensor]]:
        """Detections; see `fast_rcnn_inference` for the arguments and the result."""
        from . import fast_rcnn  # which imports this module

        return fast_rcnn.fast_rcnn_inference(
            list(self.predict_boxes()),
            list(self.predict_probs()),
            self.image_shapes,
            score_thresh,
            nms_thresh,
            topk_per_image,
        )
