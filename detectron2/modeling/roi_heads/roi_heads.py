"""ROI heads: all that an R-CNN computes for each region.

In training they match proposals with ground truth and sample them; then they pool the features of each region and
predict its class and box, and if asked its mask and keypoints.

`N` images, `R` regions over the whole batch (`Ri` in image i), `K` foreground classes. Boxes are
`(x1, y1, x2, y2)` in pixels of the network's input image. Class index `K` is background.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, nonzero_tuple
from detectron2.layers.shape_spec import select_maps, select_shapes
from detectron2.modeling import fixed_shapes
from detectron2.modeling.backbone.resnet import BottleneckBlock, ResNet
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator.proposal_utils import (
    add_ground_truth_to_proposals as add_ground_truth_to_proposals,  # imported from here by other projects
)
from detectron2.modeling.sampling import check_labels, subsample_labels
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import put_scalar
from detectron2.utils.registry import Registry, build_part

from .box_head import build_box_head
from .fast_rcnn import FastRCNNOutputLayers
from .keypoint_head import build_keypoint_head
from .mask_head import build_mask_head
from .matched_masks import take_matched
from .sampled_together import sampled_together

__all__ = [
    "ROI_HEADS_REGISTRY",
    "ROIHeads",
    "Res5ROIHeads",
    "StandardROIHeads",
    "build_roi_heads",
    "feature_list",
    "mean_count",
    "pooler_from_config",
    "select_foreground_proposals",
    "select_proposals_with_visible_keypoints",
]


def mean_count(counts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean of 0-d integer tensors, one for each image, as a 0-d tensor: nothing waits for the device."""
    return torch.stack(list(counts)).float().mean() if counts else torch.zeros(())


def select_foreground_proposals(
    proposals: list[Instances], bg_label: int
) -> tuple[list[Instances], list[torch.Tensor]]:
    """Keep the regions that are labelled as an object.

    Args:
        proposals: regions of each image with `gt_classes`.
        bg_label: the label of background, which is the number of classes.

    Returns:
        The foreground regions of each image, and for each image the mask `Tensor[R]` that chose them.
    """
    if proposals and not proposals[0].has("gt_classes"):
        raise ValueError(
            "foreground can only be told by `gt_classes`, which the proposals lack; they have "
            f"{sorted(proposals[0].get_fields())}: label them with label_and_sample_proposals first"
        )
    masks = [(x.gt_classes != -1) & (x.gt_classes != bg_label) for x in proposals]
    chosen = []
    for per_image, mask in zip(proposals, masks, strict=True):
        count = fixed_shapes.num_foreground(per_image)
        chosen.append(per_image[nonzero_tuple(mask)[0] if count is None else slice(count)])
    return chosen, masks


def select_proposals_with_visible_keypoints(proposals: list[Instances]) -> list[Instances]:
    """Keep the regions with at least one keypoint that is labelled and lies inside the proposal's box.

    A region without such a keypoint would add nothing to the loss but work. Images without regions may lack the fields
    `proposal_boxes` and `gt_keypoints`.
    """
    learnable = []
    for per_image in proposals:
        if len(per_image) == 0:
            continue
        keypoints = per_image.gt_keypoints.tensor  # (x, y, visibility)
        boxes_xyxy = per_image.proposal_boxes.tensor.unsqueeze(1)
        xy = keypoints[:, :, :2]
        inside = ((xy >= boxes_xyxy[:, :, :2]) & (xy <= boxes_xyxy[:, :, 2:])).all(dim=2)
        learnable.append((inside & (keypoints[:, :, 2] >= 1)).any(dim=1))
    rows = iter(fixed_shapes.indices_of(learnable))
    chosen = [x if len(x) == 0 else x[next(rows)] for x in proposals]
    # Known without asking the device: the lengths are already here.
    put_scalar("keypoint_head/num_fg_samples", sum(len(x) for x in chosen) / max(len(chosen), 1))
    return chosen


def feature_list(features: Mapping[str, torch.Tensor] | Sequence[torch.Tensor], names: Sequence[str]) -> list:
    """The feature maps called `names`; a list is taken to hold just these already."""
    return select_maps(features, names) if isinstance(features, Mapping) else list(features)


def pooler_from_config(
    head: CfgNode, in_features: Sequence[str], input_shape: Mapping[str, ShapeSpec]
) -> tuple[ROIPooler, ShapeSpec]:
    """The pooler that `head.POOLER_*` describes and the shape of a region that it pools from `in_features`."""
    channels = [x.channels for x in select_shapes(input_shape, in_features, "MODEL.ROI_HEADS.IN_FEATURES")]
    if len(set(channels)) != 1:
        raise ValueError(
            f"one pooler can only read features of equal width, but {list(in_features)} have {channels} channels; "
            "change MODEL.ROI_HEADS.IN_FEATURES"
        )
    side = head.POOLER_RESOLUTION
    pooler = ROIPooler(
        output_size=side,
        scales=tuple(1.0 / (input_shape[name].stride or 1) for name in in_features),
        sampling_ratio=head.POOLER_SAMPLING_RATIO,
        pooler_type=head.POOLER_TYPE,
    )
    return pooler, ShapeSpec(channels=channels.pop(), height=side, width=side)


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

    def _class_labels(
        self, matched_idxs: torch.Tensor, matched_labels: torch.Tensor, gt_classes: torch.Tensor
    ) -> torch.Tensor:
        """Labels of all proposals of one image, from a matcher's results."""
        if gt_classes.numel() == 0:
            return torch.full_like(matched_idxs, self.num_classes)
        labels = gt_classes[matched_idxs]
        return labels.masked_fill(matched_labels == 0, self.num_classes).masked_fill(matched_labels == -1, -1)

    def _sample_proposals(
        self, matched_idxs: torch.Tensor, matched_labels: torch.Tensor, gt_classes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw proposals of one image, from a matcher's results: their indices, foreground first, and labels."""
        labels = self._class_labels(matched_idxs, matched_labels, gt_classes)
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
        check_labels(targets, self.num_classes, "set MODEL.ROI_HEADS.NUM_CLASSES")
        own_draw = type(self)._sample_proposals is not ROIHeads._sample_proposals
        if targets and fixed_shapes.runs_ahead(targets[0].gt_classes.device) and not own_draw:
            return sampled_together(self, proposals, targets)
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
        """`label_and_sample_proposals` with a clear error without ground truth."""
        if targets is None:
            raise ValueError(
                f"{type(self).__name__} is in training mode but got no ground truth (targets); "
                "give every input an 'instances' entry, or call model.eval() for inference"
            )
        return self.label_and_sample_proposals(proposals, targets)

    def _check_known_boxes(self, instances: list[Instances]) -> None:
        """Raise when `forward_with_given_boxes` of a subclass cannot be answered."""
        if self.training:
            raise ValueError("forward_with_given_boxes is for inference; call model.eval() first")
        if instances and not (instances[0].has("pred_boxes") and instances[0].has("pred_classes")):
            raise ValueError(
                "forward_with_given_boxes needs instances with pred_boxes and pred_classes, got fields "
                f"{sorted(instances[0].get_fields())}"
            )

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


# Entries are called as `heads(cfg, input_shape)`, where `input_shape` is the backbone's `output_shape()`.
ROI_HEADS_REGISTRY = Registry("ROI_HEADS")


def build_roi_heads(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """The ROI heads that `cfg.MODEL.ROI_HEADS.NAME` names, for a backbone of shape `input_shape`."""
    return build_part(ROI_HEADS_REGISTRY, "MODEL.ROI_HEADS.NAME", cfg, input_shape=input_shape)


def _optional_pooler(head: CfgNode, in_features: list[str], input_shape: dict[str, ShapeSpec]) -> tuple[Any, Any]:
    """A pooler and the shape of a pooled region; without `head.POOLER_TYPE` None and the shapes of the feature maps."""
    if not head.POOLER_TYPE:
        return None, {name: input_shape[name] for name in in_features}
    return pooler_from_config(head, in_features, input_shape)


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeads(ROIHeads):
    """Heads of the C4 models: the last stage of the ResNet runs on every region, and box and mask heads share it.

    See Faster R-CNN with ResNet (https://arxiv.org/abs/1512.03385, appendix A) and Mask R-CNN, figure 4, left.

    Args:
        in_features: the one feature map to pool from.
        pooler: pools the features of a region.
        res5: the shared layers, a module or a list of blocks.
        box_predictor: predicts class and box from the averaged features.
        mask_head: predicts masks from the features before averaging; None for no masks.
        **kwargs: arguments of `ROIHeads`.
    """

    box_predictor: Any  # anything with the interface of FastRCNNOutputLayers
    mask_head: Any

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        pooler: ROIPooler,
        res5: nn.Module | list[nn.Module],
        box_predictor: nn.Module,
        mask_head: nn.Module | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.in_features = in_features
        self.pooler = pooler
        self.res5 = nn.Sequential(*res5) if isinstance(res5, (list, tuple)) else res5
        self.box_predictor = box_predictor
        self.mask_on = mask_head is not None
        if mask_head is not None:
            self.mask_head = mask_head

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Sequential, int]:
        """The shared layers and their number of output channels; meant to be overridden."""
        resnet = cfg.MODEL.RESNETS
        if resnet.DEFORM_ON_PER_STAGE[-1]:
            raise ValueError(
                "Res5ROIHeads has no deformable convolution; the last entry of MODEL.RESNETS.DEFORM_ON_PER_STAGE "
                "must be False"
            )
        # Each stage doubles the width of the one before; res5 is three stages after res2.
        out_channels = resnet.RES2_OUT_CHANNELS * 8
        blocks = ResNet.make_stage(
            BottleneckBlock,
            3,
            stride_per_block=[2, 1, 1],
            in_channels=out_channels // 2,
            bottleneck_channels=resnet.NUM_GROUPS * resnet.WIDTH_PER_GROUP * 8,
            out_channels=out_channels,
            num_groups=resnet.NUM_GROUPS,
            norm=resnet.NORM,
            stride_in_1x1=resnet.STRIDE_IN_1X1,
        )
        return nn.Sequential(*blocks), out_channels

    def _shared_roi_transform(self, features: list[torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        """Features `Tensor[R, C, P, P]` of the regions `boxes`, from a list of the one feature map."""
        return self.res5(self.pooler(features, boxes))

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """See `ROIHeads.forward`; in training the list of instances is empty."""
        if self.training:
            proposals = self._labelled(proposals, targets)
        box_features = self._shared_roi_transform(
            feature_list(features, self.in_features), [x.proposal_boxes for x in proposals]
        )
        predictions = self.box_predictor(box_features.mean(dim=(2, 3)))
        if not self.training:
            del box_features  # the largest tensor here; masks are predicted from the detected boxes, not from it
            detections, _ = self.box_predictor.inference(predictions, proposals)
            return self.forward_with_given_boxes(features, detections), {}

        losses = self.box_predictor.losses(predictions, proposals)
        if self.mask_on:
            foreground, chosen = select_foreground_proposals(proposals, self.num_classes)
            losses.update(self.mask_head(box_features[torch.cat(chosen)], foreground))
        return [], losses

    def forward_with_given_boxes(
        self, features: dict[str, torch.Tensor], instances: list[Instances]
    ) -> list[Instances]:
        """Add `pred_masks`, if there is a mask head, to detections with `pred_boxes` and `pred_classes`."""
        self._check_known_boxes(instances)
        if not self.mask_on:
            return instances
        x = self._shared_roi_transform(feature_list(features, self.in_features), [x.pred_boxes for x in instances])
        return self.mask_head(x, instances)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        """Arguments of the constructor from the config."""
        in_features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        if len(in_features) != 1 or cfg.MODEL.KEYPOINT_ON:
            raise ValueError(
                "Res5ROIHeads reads one feature map and has no keypoint head, but MODEL.ROI_HEADS.IN_FEATURES is "
                f"{list(in_features)} and MODEL.KEYPOINT_ON is {cfg.MODEL.KEYPOINT_ON}; choose StandardROIHeads"
            )
        pooler, pooled = pooler_from_config(cfg.MODEL.ROI_BOX_HEAD, in_features, input_shape)
        # Subclasses written before this was a class method define it with `self` in place of `cls`.
        build = cls._build_res5_block
        res5, out_channels = build(cfg) if inspect.ismethod(build) else build(cls, cfg)  # pyright: ignore
        arguments = {
            **super().from_config(cfg),
            "in_features": in_features,
            "pooler": pooler,
            "res5": res5,
            "box_predictor": FastRCNNOutputLayers(cfg, ShapeSpec(channels=out_channels, height=1, width=1)),
        }
        if cfg.MODEL.MASK_ON:
            shape = ShapeSpec(channels=out_channels, width=pooled.width, height=pooled.height)
            arguments["mask_head"] = build_mask_head(cfg, shape)
        return arguments


@ROI_HEADS_REGISTRY.register()
class StandardROIHeads(ROIHeads):
    """A box head and, if given, a mask and a keypoint head, each with its own pooler and layers.

    Nothing is shared between the heads, so any of them can be replaced alone.

    Args:
        box_in_features: names of the feature maps that the box head pools from.
        box_pooler: pools the features of a region for the box head.
        box_head: layers before the box predictor.
        box_predictor: predicts class and box, with the interface of `FastRCNNOutputLayers`.
        mask_in_features: names of the feature maps for the mask head; None for no masks.
        mask_pooler: pools for the mask head; None hands it the feature maps themselves.
        mask_head: predicts masks; None for no masks.
        keypoint_in_features: names of the feature maps for the keypoint head; None for no keypoints.
        keypoint_pooler: pools for the keypoint head; None hands it the feature maps themselves.
        keypoint_head: predicts keypoints; None for no keypoints.
        train_on_pred_boxes: train the mask and keypoint heads on the boxes that the box head predicts, instead of on
            the proposals.
        **kwargs: arguments of `ROIHeads`.
    """

    box_predictor: Any  # anything with the interface of FastRCNNOutputLayers
    mask_head: Any
    keypoint_head: Any

    @configurable
    def __init__(
        self,
        *,
        box_in_features: list[str],
        box_pooler: ROIPooler,
        box_head: nn.Module,
        box_predictor: nn.Module,
        mask_in_features: list[str] | None = None,
        mask_pooler: ROIPooler | None = None,
        mask_head: nn.Module | None = None,
        keypoint_in_features: list[str] | None = None,
        keypoint_pooler: ROIPooler | None = None,
        keypoint_head: nn.Module | None = None,
        train_on_pred_boxes: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        # `in_features` is the name under which the first releases documented it.
        self.in_features = self.box_in_features = box_in_features
        self.box_pooler = box_pooler
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.mask_on = mask_in_features is not None
        if self.mask_on:
            self.mask_in_features = mask_in_features
            self.mask_pooler = mask_pooler
            self.mask_head = mask_head
        self.keypoint_on = keypoint_in_features is not None
        if self.keypoint_on:
            self.keypoint_in_features = keypoint_in_features
            self.keypoint_pooler = keypoint_pooler
            self.keypoint_head = keypoint_head
        self.train_on_pred_boxes = train_on_pred_boxes

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """See `ROIHeads.forward`."""
        if not self.training:
            detections = self._forward_box(features, proposals)
            return self.forward_with_given_boxes(features, detections), {}
        proposals = self._labelled(proposals, targets)
        # The box head goes first: with train_on_pred_boxes it replaces the boxes that the others learn from.
        losses = self._box_losses(features, proposals, targets)
        losses.update(self._forward_mask(features, proposals))
        losses.update(self._forward_keypoint(features, proposals))
        return proposals, losses

    def _box_losses(
        self, features: dict[str, torch.Tensor], proposals: list[Instances], targets: list[Instances] | None
    ) -> dict[str, torch.Tensor]:
        """The losses of the box branch, which in a cascade needs the ground truth once more."""
        return self._forward_box(features, proposals)

    def forward_with_given_boxes(
        self, features: dict[str, torch.Tensor], instances: list[Instances]
    ) -> list[Instances]:
        """Add `pred_masks` and `pred_keypoints`, as far as there are heads, to detections whose boxes are known.

        Args:
            features: feature maps by name.
            instances: for each image its detections with `pred_boxes` and `pred_classes`.

        Returns:
            The same instances.
        """
        self._check_known_boxes(instances)
        instances = self._forward_mask(features, instances)
        return self._forward_keypoint(features, instances)

    def _forward_box(self, features: dict[str, torch.Tensor], proposals: list[Instances]) -> Any:
        """The box branch: in training the losses by name, of labelled proposals; in inference the detections."""
        maps = feature_list(features, self.box_in_features)
        x = self.box_head(self.box_pooler(maps, [x.proposal_boxes for x in proposals]))
        predictions = self.box_predictor(x)
        if not self.training:
            detections, _ = self.box_predictor.inference(predictions, proposals)
            return detections
        losses = self.box_predictor.losses(predictions, proposals)
        if self.train_on_pred_boxes:
            with torch.no_grad():
                refined = self.box_predictor.predict_boxes_for_gt_classes(predictions, proposals)
                for per_image, boxes in zip(proposals, refined, strict=True):
                    per_image.proposal_boxes = Boxes(boxes)
        return losses

    def _forward_mask(self, features: dict[str, torch.Tensor], instances: list[Instances]) -> Any:
        """The mask branch: in training the losses of the foreground, in inference the instances with `pred_masks`."""
        if not self.mask_on:
            return {} if self.training else instances
        if self.training:
            instances, _ = select_foreground_proposals(instances, self.num_classes)
        x = self._head_input(features, instances, self.mask_in_features, self.mask_pooler)
        return self.mask_head(x, instances)

    def _forward_keypoint(self, features: dict[str, torch.Tensor], instances: list[Instances]) -> Any:
        """The keypoint branch: training losses, or in inference the instances with `pred_keypoints`."""
        if not self.keypoint_on:
            return {} if self.training else instances
        if self.training:
            instances, _ = select_foreground_proposals(instances, self.num_classes)
            instances = select_proposals_with_visible_keypoints(instances)
        x = self._head_input(features, instances, self.keypoint_in_features, self.keypoint_pooler)
        return self.keypoint_head(x, instances)

    def _head_input(self, features: Any, instances: list[Instances], names: Any, pooler: Any) -> Any:
        """What a mask or keypoint head reads: pooled regions or, without a pooler, the feature maps by name."""
        if pooler is None:
            return {name: features[name] for name in names}
        boxes = [x.proposal_boxes if self.training else x.pred_boxes for x in instances]
        return pooler(feature_list(features, names), boxes)

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Constructor arguments of the box branch; meant to be overridden, the dictionary to be edited."""
        in_features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        box_pooler, pooled = pooler_from_config(cfg.MODEL.ROI_BOX_HEAD, in_features, input_shape)
        box_head = build_box_head(cfg, pooled)
        return {
            "box_in_features": in_features,
            "box_pooler": box_pooler,
            "box_head": box_head,
            "box_predictor": cls._build_box_predictor(cfg, box_head.output_shape),
        }

    @classmethod
    def _build_box_predictor(cls, cfg: CfgNode, input_shape: Any) -> nn.Module:
        """The layers behind the box head; rotated boxes have their own."""
        return FastRCNNOutputLayers(cfg, input_shape)

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Constructor arguments of the mask branch, none when `cfg.MODEL.MASK_ON` is off."""
        if not cfg.MODEL.MASK_ON:
            return {}
        in_features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        pooler, shape = _optional_pooler(cfg.MODEL.ROI_MASK_HEAD, in_features, input_shape)
        return {"mask_in_features": in_features, "mask_pooler": pooler, "mask_head": build_mask_head(cfg, shape)}

    @classmethod
    def _init_keypoint_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Constructor arguments of the keypoint branch, none when `cfg.MODEL.KEYPOINT_ON` is off."""
        if not cfg.MODEL.KEYPOINT_ON:
            return {}
        in_features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        pooler, shape = _optional_pooler(cfg.MODEL.ROI_KEYPOINT_HEAD, in_features, input_shape)
        return {
            "keypoint_in_features": in_features,
            "keypoint_pooler": pooler,
            "keypoint_head": build_keypoint_head(cfg, shape),
        }

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        """Arguments of the constructor from the config."""
        arguments = super().from_config(cfg)
        arguments["train_on_pred_boxes"] = cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES
        for init in (cls._init_box_head, cls._init_mask_head, cls._init_keypoint_head):
            # A subclass may define one as a plain method and call it in its own __init__, after this one.
            if inspect.ismethod(init):
                arguments.update(init(cfg, input_shape))
        return arguments
