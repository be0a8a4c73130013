"""ROI heads: all that an R-CNN computes for each region.

In training they match proposals with ground truth and sample them; then they pool the features of each region and
predict its class and box, and if asked its mask and keypoints.

`N` images, `R` regions over the whole batch (`Ri` in image i), `K` foreground classes. Boxes are
`(x1, y1, x2, y2)` in pixels of the network's input image. Class index `K` is background.
"""

import inspect
from typing import Any

import torch
from torch import nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.resnet import BottleneckBlock, ResNet
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator.proposal_utils import (
    add_ground_truth_to_proposals as add_ground_truth_to_proposals,  # imported from here by other projects
)
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.registry import Registry, lookup

from ._base import ROIHeads, check_known_boxes, feature_list, pooler_from_config
from ._sampling import select_foreground_proposals, select_proposals_with_visible_keypoints
from .box_head import build_box_head
from .fast_rcnn import FastRCNNOutputLayers
from .keypoint_head import build_keypoint_head
from .mask_head import build_mask_head

__all__ = [
    "ROI_HEADS_REGISTRY",
    "ROIHeads",
    "Res5ROIHeads",
    "StandardROIHeads",
    "build_roi_heads",
    "select_foreground_proposals",
    "select_proposals_with_visible_keypoints",
]

# Entries are called as `heads(cfg, input_shape)`, where `input_shape` is the backbone's `output_shape()`.
ROI_HEADS_REGISTRY = Registry("ROI_HEADS")


def build_roi_heads(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """The ROI heads that `cfg.MODEL.ROI_HEADS.NAME` names, for a backbone of shape `input_shape`."""
    return lookup(ROI_HEADS_REGISTRY, cfg.MODEL.ROI_HEADS.NAME, "MODEL.ROI_HEADS.NAME")(cfg, input_shape)


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
        """Add masks to detections whose boxes are known.

        Args:
            features: feature maps by name.
            instances: for each image its detections with `pred_boxes` and `pred_classes`.

        Returns:
            The same instances, with `pred_masks` if there is a mask head.
        """
        check_known_boxes(self, instances)
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
        losses = self._forward_box(features, proposals)
        losses.update(self._forward_mask(features, proposals))
        losses.update(self._forward_keypoint(features, proposals))
        return proposals, losses

    def forward_with_given_boxes(
        self, features: dict[str, torch.Tensor], instances: list[Instances]
    ) -> list[Instances]:
        """Add masks and keypoints to detections whose boxes are known.

        Args:
            features: feature maps by name.
            instances: for each image its detections with `pred_boxes` and `pred_classes`.

        Returns:
            The same instances, with `pred_masks` and `pred_keypoints` as far as there are heads for them.
        """
        check_known_boxes(self, instances)
        instances = self._forward_mask(features, instances)
        return self._forward_keypoint(features, instances)

    def _forward_box(self, features: dict[str, torch.Tensor], proposals: list[Instances]) -> Any:
        """The box branch.

        Args:
            features: feature maps by name, or a list of those in `box_in_features`.
            proposals: for each image its regions with `proposal_boxes`, in training labelled. With
                `train_on_pred_boxes` their boxes are replaced by the predicted ones.

        Returns:
            In training the losses by name; in inference the detections of each image.
        """
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
        """The mask branch.

        Args:
            features: feature maps by name, or a list of those in `mask_in_features`.
            instances: in training labelled proposals, of which the foreground is used; in inference detections.

        Returns:
            In training the losses by name; in inference the instances with `pred_masks`. Without a mask head the
            losses are empty and the instances as they came.
        """
        if not self.mask_on:
            return {} if self.training else instances
        if self.training:
            instances, _ = select_foreground_proposals(instances, self.num_classes)
        x = self._head_input(features, instances, self.mask_in_features, self.mask_pooler)
        return self.mask_head(x, instances)

    def _forward_keypoint(self, features: dict[str, torch.Tensor], instances: list[Instances]) -> Any:
        """The keypoint branch.

        Args:
            features: feature maps by name, or a list of those in `keypoint_in_features`.
            instances: in training labelled proposals, of which those with a visible keypoint are used; in inference
                detections.

        Returns:
            In training the losses by name; in inference the instances with `pred_keypoints`. Without a keypoint head
            the losses are empty and the instances as they came.
        """
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
            "box_predictor": FastRCNNOutputLayers(cfg, box_head.output_shape),
        }

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Constructor arguments of the mask branch, none when `cfg.MODEL.MASK_ON` is off."""
        if not cfg.MODEL.MASK_ON:
            return {}
        in_features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        pooler, shape = _optional_pooler(cfg.MODEL.ROI_MASK_HEAD, in_features, input_shape)
        return {
            "mask_in_features": in_features,
            "mask_pooler": pooler,
            "mask_head": build_mask_head(cfg, shape),
        }

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
        arguments = {
            **super().from_config(cfg),
            "train_on_pred_boxes": cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES,
        }
        for init in (cls._init_box_head, cls._init_mask_head, cls._init_keypoint_head):
            # A subclass may define one as a plain method and call it in its own __init__, after this one.
            if inspect.ismethod(init):
                arguments.update(init(cfg, input_shape))
        return arguments
