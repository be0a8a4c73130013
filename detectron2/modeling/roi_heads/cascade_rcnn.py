"""Cascade R-CNN (https://arxiv.org/abs/1712.00726): box heads in a row, each refining the boxes of the one before.

`N` images, `R` regions over the whole batch (`Ri` in image i), `K` foreground classes. Boxes are
`(x1, y1, x2, y2)` in pixels of the network's input image. Class index `K` is background.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.autograd.function import Function

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import fixed_shapes
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage, has_event_storage, put_scalar

from . import fast_rcnn
from .box_head import build_box_head
from .fast_rcnn import FastRCNNOutputLayers
from .roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads, feature_list, mean_count, pooler_from_config

__all__ = ["CascadeROIHeads"]


class _ScaleGradient(Function):
    """The identity in the forward pass; the backward pass multiplies the gradient by `scale`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.scale = scale
        return x

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None]:  # pyright: ignore
        return grad_output * ctx.scale, None


@ROI_HEADS_REGISTRY.register()
class CascadeROIHeads(StandardROIHeads):
    """ROI heads whose box branch is a cascade; mask and keypoint heads work on its final boxes.

    Args:
        box_in_features: names of the feature maps that the box heads pool from.
        box_pooler: pools the features of a region; shared by all stages.
        box_heads: the layers before the predictor, one for each stage.
        box_predictors: the predictor of each stage; boxes must not depend on the class.
        proposal_matchers: matches the boxes that enter each stage with ground truth; the first one also decides the
            sampling.
        **kwargs: arguments of `StandardROIHeads`, without those of its box branch and `proposal_matcher`.
    """

    @configurable
    def __init__(
        self,
        *,
        box_in_features: list[str],
        box_pooler: ROIPooler,
        box_heads: Sequence[nn.Module],
        box_predictors: Sequence[nn.Module],
        proposal_matchers: Sequence[Matcher],
        **kwargs: Any,
    ):
        if "proposal_matcher" in kwargs:
            raise ValueError("CascadeROIHeads takes proposal_matchers, one for each stage, and no proposal_matcher")
        stages = {"box_heads": len(box_heads), "box_predictors": len(box_predictors)}
        stages["proposal_matchers"] = len(proposal_matchers)
        if len(set(stages.values())) != 1:
            raise ValueError(f"every stage of the cascade needs a head, a predictor and a matcher, got {stages}")
        self.num_cascade_stages = len(box_heads)
        super().__init__(
            box_in_features=box_in_features,
            box_pooler=box_pooler,
            box_head=_module_list(box_heads),
            box_predictor=_module_list(box_predictors),
            proposal_matcher=proposal_matchers[0],
            **kwargs,
        )
        self.proposal_matchers = proposal_matchers

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Constructor arguments of the cascade; meant to be overridden, the dictionary to be edited."""
        roi, cascade = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_CASCADE_HEAD
        if len(cascade.BBOX_REG_WEIGHTS) != len(cascade.IOUS):
            raise ValueError(
                "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS and IOUS have an entry for each stage, but there are "
                f"{len(cascade.BBOX_REG_WEIGHTS)} and {len(cascade.IOUS)}"
            )
        if not cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
            raise ValueError(
                "a cascade hands one box per region to the next stage: set "
                "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG to True"
            )
        if cascade.IOUS[0] != roi.IOU_THRESHOLDS[0]:
            raise ValueError(
                "the first stage is trained on the sampled proposals, so MODEL.ROI_BOX_CASCADE_HEAD.IOUS[0] "
                f"({cascade.IOUS[0]}) must equal MODEL.ROI_HEADS.IOU_THRESHOLDS[0] ({roi.IOU_THRESHOLDS[0]})"
            )
        box_pooler, pooled = pooler_from_config(cfg.MODEL.ROI_BOX_HEAD, roi.IN_FEATURES, input_shape)
        box_heads = [build_box_head(cfg, pooled) for _ in cascade.IOUS]
        return {
            "box_in_features": roi.IN_FEATURES,
            "box_pooler": box_pooler,
            "box_heads": box_heads,
            "box_predictors": [
                FastRCNNOutputLayers(cfg, head.output_shape, box2box_transform=Box2BoxTransform(weights=weights))
                for head, weights in zip(box_heads, cascade.BBOX_REG_WEIGHTS, strict=True)
            ],
            "proposal_matchers": [Matcher([iou], [0, 1], allow_low_quality_matches=False) for iou in cascade.IOUS],
        }

    def _box_losses(
        self, features: dict[str, torch.Tensor], proposals: list[Instances], targets: list[Instances] | None
    ) -> dict[str, torch.Tensor]:
        return self._forward_box(features, proposals, targets)

    def _forward_box(
        self, features: dict[str, torch.Tensor], proposals: list[Instances], targets: list[Instances] | None = None
    ) -> Any:
        """Run all stages: losses ending in `_stage0` ...; or detections with the last boxes and the mean scores."""
        if self.training and targets is None:
            raise ValueError("training a cascade needs the ground truth: _forward_box(features, proposals, targets)")
        maps = feature_list(features, self.box_in_features)
        image_sizes = [x.image_size for x in proposals]
        outputs, boxes = [], []
        for stage in range(self.num_cascade_stages):
            if stage > 0:
                proposals = self._create_proposals_from_boxes(boxes, image_sizes)
                if self.training:
                    proposals = self._match_and_label_boxes(proposals, stage, targets or [])
            predictions = self._run_stage(maps, proposals, stage)
            if not self.training or stage + 1 < self.num_cascade_stages:  # the last boxes are not used in training
                boxes = self.box_predictor[stage].predict_boxes(predictions, proposals)
            outputs.append((self.box_predictor[stage], predictions, proposals))
        return self._losses_of_stages(outputs) if self.training else self._merge_stages(outputs, boxes, image_sizes)

    def _losses_of_stages(self, outputs: list[tuple[Any, Any, list[Instances]]]) -> dict[str, torch.Tensor]:
        losses = {}
        for stage, (predictor, predictions, proposals) in enumerate(outputs):
            scope = get_event_storage().name_scope(f"stage{stage}") if has_event_storage() else nullcontext()
            with scope:
                of_stage = predictor.losses(predictions, proposals)
            losses.update({f"{name}_stage{stage}": value for name, value in of_stage.items()})
        return losses

    def _merge_stages(
        self,
        outputs: list[tuple[Any, Any, list[Instances]]],
        boxes: list[torch.Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        of_stages = [predictor.predict_probs(predictions, regions) for predictor, predictions, regions in outputs]
        scores = [torch.stack(of_image).mean(dim=0) for of_image in zip(*of_stages, strict=True)]
        last = outputs[-1][0]
        # Through the module, so that whoever replaces the function there is heard.
        detections, _ = fast_rcnn.fast_rcnn_inference(
            boxes, scores, image_sizes, last.test_score_thresh, last.test_nms_thresh, last.test_topk_per_image
        )
        return detections

    @torch.no_grad()
    def _match_and_label_boxes(
        self, proposals: list[Instances], stage: int, targets: list[Instances]
    ) -> list[Instances]:
        """Set `gt_classes` and `gt_boxes` of the boxes that enter a stage, in place. All are used; none is drawn."""
        num_foreground, num_background = [], []
        for per_image, target in zip(proposals, targets, strict=True):
            matched, labels = self.proposal_matchers[stage](pairwise_iou(target.gt_boxes, per_image.proposal_boxes))
            if len(target) > 0:
                per_image.gt_classes = target.gt_classes[matched].masked_fill(labels == 0, self.num_classes)
                per_image.gt_boxes = target.gt_boxes[matched]
            else:
                per_image.gt_classes = torch.full_like(matched, self.num_classes)
                per_image.gt_boxes = Boxes(torch.zeros_like(per_image.proposal_boxes.tensor))
            num_foreground.append((labels == 1).sum())
            num_background.append((labels == 0).sum())
        put_scalar(f"stage{stage}/roi_head/num_fg_samples", mean_count(num_foreground))
        put_scalar(f"stage{stage}/roi_head/num_bg_samples", mean_count(num_background))
        return proposals

    def _run_stage(self, features: list[torch.Tensor], proposals: list[Instances], stage: int) -> Any:
        """What the predictor of a stage answers for all regions, usually scores and deltas."""
        x = self.box_pooler(features, [x.proposal_boxes for x in proposals])
        if self.training:
            # All stages pull at the backbone; together they weigh as much as one head.
            x = _ScaleGradient.apply(x, 1.0 / self.num_cascade_stages)
        return self.box_predictor[stage](self.box_head[stage](x))

    def _create_proposals_from_boxes(
        self, boxes: list[torch.Tensor], image_sizes: list[tuple[int, int]]
    ) -> list[Instances]:
        """Turn predicted boxes, `Tensor[Ri, 4]` of each image, into the proposals of the next stage, clipped."""
        of_images = [Boxes(tensor.detach()) for tensor in boxes]  # no gradient flows from one stage into the next one
        for of_image, image_size in zip(of_images, image_sizes, strict=True):
            of_image.clip(image_size)
        if self.training:  # in inference empty ones stay, for the scores are averaged box by box
            rows = fixed_shapes.indices_of([of_image.nonempty() for of_image in of_images])
            of_images = [of_image[index] for of_image, index in zip(of_images, rows, strict=True)]
        return [Instances(size, proposal_boxes=b) for size, b in zip(image_sizes, of_images, strict=True)]

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        """Arguments of the constructor from the config."""
        arguments = super().from_config(cfg, input_shape)
        del arguments["proposal_matcher"]
        return arguments


def _module_list(modules: Sequence[nn.Module]) -> nn.ModuleList:
    return modules if isinstance(modules, nn.ModuleList) else nn.ModuleList(modules)
