"""The base of all ROI heads, and what they have in common.

`N` images, `R` regions over the whole batch (`Ri` in image i), `P` proposals and `G` ground truth objects of one
image, `K` foreground classes. Boxes are `(x1, y1, x2, y2)` in pixels of the network's input image. Class index `K` is
background.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator.proposal_utils import add_ground_truth_to_proposals
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import ImageList, Instances, pairwise_iou
from detectron2.utils.events import put_scalar

from ._matched_masks import take_matched
from ._sampling import check_labels, mean_count

__all__ = ["ROIHeads", "check_known_boxes", "feature_list", "pooler_from_config"]


def feature_list(features: Mapping[str, torch.Tensor] | Sequence[torch.Tensor], names: Sequence[str]) -> list:
    """The feature maps called `names`; a list is taken to hold just these already."""
    return [features[name] for name in names] if isinstance(features, Mapping) else list(features)


def pooler_from_config(
    head: CfgNode, in_features: Sequence[str], input_shape: Mapping[str, ShapeSpec]
) -> tuple[ROIPooler, ShapeSpec]:
    """The pooler that `head.POOLER_*` describes and the shape of a region that it pools from `in_features`."""
    unknown = [name for name in in_features if name not in input_shape]
    if unknown:
        raise ValueError(f"MODEL.ROI_HEADS.IN_FEATURES names {unknown}, but the backbone returns {sorted(input_shape)}")
    channels = {input_shape[name].channels for name in in_features}
    if len(channels) != 1:
        raise ValueError(
            f"one pooler can only read features of equal width, but {list(in_features)} have "
            f"{[input_shape[name].channels for name in in_features]} channels; change MODEL.ROI_HEADS.IN_FEATURES"
        )
    side = head.POOLER_RESOLUTION
    pooler = ROIPooler(
        output_size=side,
        scales=tuple(1.0 / (input_shape[name].stride or 1) for name in in_features),
        sampling_ratio=head.POOLER_SAMPLING_RATIO,
        pooler_type=head.POOLER_TYPE,
    )
    return pooler, ShapeSpec(channels=channels.pop(), height=side, width=side)


def check_known_boxes(heads: nn.Module, instances: list[Instances]) -> None:
    """Raise when `forward_with_given_boxes` cannot be answered."""
    if heads.training:
        raise ValueError("forward_with_given_boxes is for inference; call model.eval() first")
    if instances and not (instances[0].has("pred_boxes") and instances[0].has("pred_classes")):
        raise ValueError(
            "forward_with_given_boxes needs instances with pred_boxes and pred_classes, got fields "
            f"{sorted(instances[0].get_fields())}"
        )


class ROIHeads(nn.Module):
    """Base of all ROI heads: it matches proposals with ground truth and samples those to learn from.

    Args:
        num_classes: number of foreground classes.
        batch_size_per_image: number of proposals to sample from each image.
        positive_fraction: at most this share of them is foreground.
        proposal_matcher: assigns each proposal a ground truth box, or none.
        proposal_append_gt: whether ground truth boxes join the proposals. Early in training few proposals overlap an
            object well, and without them there would be little foreground.
    """

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        batch_size_per_image: int,
        positive_fraction: float,
        proposal_matcher: Matcher,
        proposal_append_gt: bool = True,
    ):
        super().__init__()
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.num_classes = num_classes
        self.proposal_matcher = proposal_matcher
        self.proposal_append_gt = proposal_append_gt

    def _sample_proposals(
        self, matched_idxs: torch.Tensor, matched_labels: torch.Tensor, gt_classes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sample proposals of one image at random, and label them.

        Args:
            matched_idxs: `Tensor[P]`, for each proposal the ground truth that fits it best.
            matched_labels: `Tensor[P]`, 1 where they overlap enough, 0 where not, -1 for proposals to pass over.
            gt_classes: `Tensor[G]`, labels of the ground truth; may be empty.

        Returns:
            Indices of the sampled proposals, foreground first, and their labels in `[0, K]`.
        """
        if gt_classes.numel() > 0:
            labels = gt_classes[matched_idxs]
            labels = labels.masked_fill(matched_labels == 0, self.num_classes).masked_fill(matched_labels == -1, -1)
        else:
            labels = torch.full_like(matched_idxs, self.num_classes)
        foreground, background = subsample_labels(
            labels, self.batch_size_per_image, self.positive_fraction, self.num_classes
        )
        sampled = torch.cat([foreground, background])
        return sampled, labels[sampled]

    def _overlaps(self, gt_boxes: Any, proposal_boxes: Any) -> torch.Tensor:
        """IoU `Tensor[G, P]` of ground truth and proposals of one image, which decides what matches."""
        return pairwise_iou(gt_boxes, proposal_boxes)

    @torch.no_grad()
    def label_and_sample_proposals(self, proposals: list[Instances], targets: list[Instances]) -> list[Instances]:
        """Match the proposals with the ground truth and sample `batch_size_per_image` of each image.

        Args:
            proposals: for each image its proposals with `proposal_boxes` and `objectness_logits`.
            targets: for each image its ground truth with `gt_boxes`, `gt_classes` and other `gt_*` fields.

        Returns:
            For each image the sampled proposals with `gt_classes` and, unless the image has no ground truth, all
            other `gt_*` fields of the matched ground truth. On background they are those of the nearest object, and
            mean nothing.
        """
        check_labels(targets, self.num_classes)
        if self.proposal_append_gt:
            proposals = add_ground_truth_to_proposals(targets, proposals)
        sampled_proposals, num_background, num_sampled = [], [], 0
        for per_image, target in zip(proposals, targets, strict=True):
            overlaps = self._overlaps(target.gt_boxes, per_image.proposal_boxes)
            matched, match_labels = self.proposal_matcher(overlaps)
            sampled, labels = self._sample_proposals(matched, match_labels, target.gt_classes)
            chosen = per_image[sampled]
            chosen.gt_classes = labels
            if len(target) > 0:
                matched = matched[sampled]
                for name, value in target.get_fields().items():
                    if name.startswith("gt_") and not chosen.has(name):
                        chosen.set(name, take_matched(value, matched))
            sampled_proposals.append(chosen)
            num_background.append((labels == self.num_classes).sum())
            num_sampled += labels.numel()
        background = mean_count(num_background)
        put_scalar("roi_head/num_fg_samples", num_sampled / max(len(targets), 1) - background)
        put_scalar("roi_head/num_bg_samples", background)
        return sampled_proposals

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """Predict for every proposal.

        Args:
            images: the batch that entered the backbone.
            features: feature maps by name, each `Tensor[N, C, H, W]`.
            proposals: for each image its proposals with `proposal_boxes` and `objectness_logits`.
            targets: in training, for each image its ground truth: `gt_boxes`, `gt_classes`, and for the heads that
                need them `gt_masks` and `gt_keypoints`.

        Returns:
            In inference the detections of each image and `{}`; in training the sampled proposals (some heads return
            an empty list) and the losses by name.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(images, features, proposals, targets)")

    def _labelled(self, proposals: list[Instances], targets: list[Instances] | None) -> list[Instances]:
        """`label_and_sample_proposals` with a clear error when there is no ground truth."""
        if targets is None:
            raise ValueError(
                f"{type(self).__name__} is in training mode but got no ground truth (targets); "
                "give every input an 'instances' entry, or call model.eval() for inference"
            )
        return self.label_and_sample_proposals(proposals, targets)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Arguments of the constructor from `cfg.MODEL.ROI_HEADS`."""
        roi = cfg.MODEL.ROI_HEADS
        return {
            "num_classes": roi.NUM_CLASSES,
            "batch_size_per_image": roi.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": roi.POSITIVE_FRACTION,
            "proposal_append_gt": roi.PROPOSAL_APPEND_GT,
            "proposal_matcher": Matcher(roi.IOU_THRESHOLDS, roi.IOU_LABELS, allow_low_quality_matches=False),
        }
