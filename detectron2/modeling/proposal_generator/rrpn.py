"""The region proposal network with rotated anchors and proposals.

Ma et al., "Arbitrary-Oriented Scene Text Detection via Rotation Proposals" (https://arxiv.org/abs/1703.01086).

Letters: `N` images, `L` levels, `R_i` anchors of level i, `R` their sum, `M` candidates of an image over all levels.
Boxes are `(x_center, y_center, width, height, angle)`: pixels of the network input, continuous coordinates; degrees,
counter-clockwise.
"""

from collections.abc import Sequence
from typing import Any

import torch

from detectron2.config import configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.layers._ops.rotated_nms import greedy_nms
from detectron2.structures import Instances, RotatedBoxes, pairwise_iou_rotated
from detectron2.utils.memory import retry_if_cuda_oom

from ..box_regression import Box2BoxTransformRotated
from .build import PROPOSAL_GENERATOR_REGISTRY
from .proposal_utils import _not_finite_message, _top_candidates
from .rpn import RPN

__all__ = ["RRPN", "find_top_rrpn_proposals"]


def _proposals_from_rotated_candidates(
    boxes: Sequence[torch.Tensor],
    logits: Sequence[torch.Tensor],
    image_sizes: Sequence[tuple[int, int]],
    nms_thresh: float,
    post_nms_topk: int,
    min_box_size: float,
    training: bool,
) -> list[Instances]:
    """Clip, drop what is tiny, suppress within each level, and keep the best over all levels.

    Args:
        boxes: for each level `Tensor[N, M_i, 5]`.
        logits: for each level `Tensor[N, M_i]`.
        image_sizes: `(height, width)` of each image.
        nms_thresh: IoU above which the lower of two boxes goes.
        post_nms_topk: how many proposals an image keeps.
        min_box_size: boxes with a side of this many pixels or fewer go.
        training: raise on numbers that are not finite, which inference drops.

    Returns:
        What :func:`find_top_rrpn_proposals` returns.
    """
    level = cat([torch.full((b.shape[1],), i, dtype=torch.int64, device=b.device) for i, b in enumerate(boxes)])
    all_boxes = cat(list(boxes), dim=1)
    all_logits = cat(list(logits), dim=1).to(all_boxes.dtype)  # under autocast the logits are of lower precision
    finite = torch.isfinite(all_boxes).all(dim=2) & torch.isfinite(all_logits)
    if training and not bool(finite.all()):
        raise FloatingPointError(_not_finite_message(all_boxes, all_logits, finite))

    proposals = []
    for of_image, image_logits, usable, image_size in zip(all_boxes, all_logits, finite, image_sizes, strict=True):
        clipped = RotatedBoxes(of_image)
        clipped.clip(image_size)
        keep = (usable & clipped.nonempty(threshold=min_box_size)).nonzero(as_tuple=True)[0]
        candidates, scores = clipped.tensor[keep], image_logits[keep]
        best = greedy_nms(candidates, scores, nms_thresh, level[keep], limit=post_nms_topk)
        result = Instances(image_size)
        result.proposal_boxes = RotatedBoxes(candidates[best])
        result.objectness_logits = scores[best]
        proposals.append(result)
    return proposals


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
    logits, indices = _top_candidates(pred_objectness_logits, pre_nms_topk)
    boxes = [b.gather(1, i[..., None].expand(-1, -1, 5)) for b, i in zip(proposals, indices, strict=True)]
    return _proposals_from_rotated_candidates(
        boxes, logits, image_sizes, nms_thresh, post_nms_topk, min_box_size, training
    )


@PROPOSAL_GENERATOR_REGISTRY.register()
class RRPN(RPN):
    """Region proposal network that scores rotated anchors, refines them, and keeps the best as rotated proposals.

    Its anchor generator makes rotated boxes (`RotatedAnchorGenerator`), its `box2box_transform` is a
    `Box2BoxTransformRotated`.

    Args:
        *args: see :class:`RPN`.
        **kwargs: see :class:`RPN`.
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

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[RotatedBoxes], gt_instances: list[Instances]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Decide which anchors of each image enter the loss, and what they should predict.

        Anchors are matched by the IoU of the regions they cover, whatever way they point.

        Args:
            anchors: the anchors of each level.
            gt_instances: for each image its ground truth.

        Returns:
            For each image a label for every anchor, `Tensor[R]` int8: 1 positive, 0 negative, -1 not in the loss; and
            the ground-truth box matched to it, `Tensor[R, 5]`, meaningful for positive anchors.
        """
        all_anchors = RotatedBoxes.cat(anchors)
        gt_labels, matched_boxes = [], []
        for gt in gt_instances:
            quality = retry_if_cuda_oom(pairwise_iou_rotated)(gt.gt_boxes, all_anchors)
            matched, labels = retry_if_cuda_oom(self.anchor_matcher)(quality)
            # The anchors may have waited on the CPU for memory.
            labels, matched = labels.to(all_anchors.device), matched.to(all_anchors.device)
            if self.anchor_boundary_thresh >= 0:
                inside = all_anchors.inside_box(gt.image_size, self.anchor_boundary_thresh)
                labels = labels.masked_fill(~inside, -1)
            gt_labels.append(self._subsample_labels(labels))
            boxes = gt.gt_boxes.tensor
            matched_boxes.append(boxes[matched] if len(boxes) else torch.zeros_like(all_anchors.tensor))
        return gt_labels, matched_boxes

    @torch.no_grad()
    def predict_proposals(
        self,
        anchors: list[RotatedBoxes],
        pred_objectness_logits: list[torch.Tensor],
        pred_anchor_deltas: list[torch.Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """Decode the most promising anchors and keep the best as proposals; no gradient flows through them.

        Args:
            anchors: the anchors of each level.
            pred_objectness_logits: for each level `Tensor[N, R_i]`.
            pred_anchor_deltas: for each level `Tensor[N, R_i, 5]`.
            image_sizes: `(height, width)` of each image.

        Returns:
            What :func:`find_top_rrpn_proposals` returns.
        """
        logits, indices = _top_candidates(pred_objectness_logits, self.pre_nms_topk[self.training])
        boxes = []
        for level_anchors, deltas, index in zip(anchors, pred_anchor_deltas, indices, strict=True):
            picked = deltas.gather(1, index[..., None].expand(-1, -1, 5))
            decoded = self.box2box_transform.apply_deltas(picked.flatten(0, 1), level_anchors.tensor[index.flatten()])
            boxes.append(decoded.view(*index.shape, 5))
        return _proposals_from_rotated_candidates(
            boxes,
            logits,
            image_sizes,
            self.nms_thresh,
            self.post_nms_topk[self.training],
            self.min_box_size,
            self.training,
        )

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        """Read `cfg.MODEL.RPN` and what belongs to it."""
        return {
            **super().from_config(cfg, input_shape),
            "box2box_transform": Box2BoxTransformRotated(weights=cfg.MODEL.RPN.BBOX_REG_WEIGHTS),
        }
