"""Keypoint heads of Mask R-CNN (https://arxiv.org/abs/1703.06870, section 5): one heat map per keypoint.

`R` regions over the whole batch, `K` keypoints of an instance, `S` side of the predicted heat map in cells.
A heat map covers exactly its region's box; locating a keypoint is a classification over its `S * S` cells.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ConvTranspose2d, ShapeSpec, cat, interpolate
from detectron2.structures import Instances, heatmaps_to_keypoints
from detectron2.utils.events import get_event_storage, has_event_storage
from detectron2.utils.registry import Registry, build_part

from .numerics import full_precision, split_by_image

__all__ = [
    "ROI_KEYPOINT_HEAD_REGISTRY",
    "BaseKeypointRCNNHead",
    "KRCNNConvDeconvUpsampleHead",
    "build_keypoint_head",
    "keypoint_rcnn_inference",
    "keypoint_rcnn_loss",
]

# Entries are called as `head(cfg, input_shape)`.
ROI_KEYPOINT_HEAD_REGISTRY = Registry("ROI_KEYPOINT_HEAD")

_SKIPPED = "kpts_num_skipped_batches"
_IGNORED_CELL = -100  # the label that cross entropy passes over


def build_keypoint_head(cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
    """The keypoint head that `cfg.MODEL.ROI_KEYPOINT_HEAD.NAME` names, for features of shape `input_shape`."""
    return build_part(ROI_KEYPOINT_HEAD_REGISTRY, "MODEL.ROI_KEYPOINT_HEAD.NAME", cfg, input_shape=input_shape)


def _count_skipped_batch() -> None:
    """Add one to the storage's running number of batches that had no keypoint to learn from."""
    if has_event_storage():
        storage = get_event_storage()
        seen = storage.history(_SKIPPED).latest() if _SKIPPED in storage.histories() else 0
        storage.put_scalar(_SKIPPED, seen + 1, smoothing_hint=False)


def keypoint_rcnn_loss(
    pred_keypoint_logits: torch.Tensor, instances: list[Instances], normalizer: float | None = None
) -> torch.Tensor:
    """Cross entropy over the cells of each heat map whose keypoint is visible and inside its region.

    Args:
        pred_keypoint_logits: `Tensor[R, K, S, S]`.
        instances: foreground regions of each image, `R` in all, with `proposal_boxes` and `gt_keypoints`.
            The fields may be absent on images without regions.
        normalizer: what the sum of the losses is divided by; the number of counted keypoints when None.

    Returns:
        A scalar; zero, but still connected to the predictions, when there is nothing to learn from.
    """
    side = pred_keypoint_logits.shape[-1]
    cells, counted = [], []
    for per_image in instances:
        if len(per_image) == 0:
            continue
        cell, valid = per_image.gt_keypoints.to_heatmap(per_image.proposal_boxes.tensor, side)
        cells.append(cell.reshape(-1))
        counted.append(valid.reshape(-1))
    if not cells:
        _count_skipped_batch()
        return pred_keypoint_logits.sum() * 0

    is_counted = cat(counted).bool()
    # Masked by label and not by index, so that the device is not waited for.
    target = cat(cells).to(torch.int64).masked_fill(~is_counted, _IGNORED_CELL)
    logits = full_precision(pred_keypoint_logits).reshape(-1, side * side)
    loss = F.cross_entropy(logits, target, ignore_index=_IGNORED_CELL, reduction="sum")
    return loss / (is_counted.sum().clamp(min=1) if normalizer is None else normalizer)


def keypoint_rcnn_inference(pred_keypoint_logits: torch.Tensor, pred_instances: list[Instances]) -> None:
    """Set `pred_keypoints` and `pred_keypoint_heatmaps` of every image.

    `pred_keypoints` is `Tensor[Ri, K, 3]` of (x, y, score), in pixels of the network's input image, the score being
    the probability of the best cell; `pred_keypoint_heatmaps` is `Tensor[Ri, K, S, S]`, the logits.

    Args:
        pred_keypoint_logits: `Tensor[R, K, S, S]`, regions of all images after one another.
        pred_instances: detections of each image with `pred_boxes`; changed in place.
    """
    if not pred_instances:
        return
    logits = full_precision(pred_keypoint_logits.detach())
    boxes_xyxy = cat([x.pred_boxes.tensor for x in pred_instances]).detach()
    found = heatmaps_to_keypoints(logits, boxes_xyxy)[:, :, [0, 1, 3]]  # (x, y, logit, probability) without the logit
    of_images = split_by_image(found, pred_instances), split_by_image(logits, pred_instances)
    for per_image, keypoints, maps in zip(pred_instances, *of_images, strict=True):
        per_image.pred_keypoints = keypoints
        per_image.pred_keypoint_heatmaps = maps


class BaseKeypointRCNNHead(nn.Module):
    """Loss and inference of the keypoint branch; a subclass supplies `layers`.

    Args:
        num_keypoints: number of keypoints of an instance.
        loss_weight: factor of the loss.
        loss_normalizer: "visible" divides by the number of counted keypoints of the batch, so that rarely annotated
            keypoints weigh more; a number divides by itself times the number of images.
    """

    @configurable
    def __init__(self, *, num_keypoints: int, loss_weight: float = 1.0, loss_normalizer: float | str = 1.0):
        super().__init__()
        if isinstance(loss_normalizer, str) and loss_normalizer != "visible":
            raise ValueError(f"loss_normalizer must be a number or 'visible', got {loss_normalizer!r}")
        self.num_keypoints = num_keypoints
        self.loss_weight = loss_weight
        self.loss_normalizer = loss_normalizer

    def forward(self, x: Any, instances: list[Instances]) -> Any:
        """Predict the keypoints of every region.

        Args:
            x: features of the regions, usually `Tensor[R, C, P, P]`.
            instances: the regions: in training foreground proposals with ground truth, in inference detections.

        Returns:
            In training `{"loss_keypoint": scalar}`; in inference `instances`, with keypoints set.
        """
        x = self.layers(x)
        if not self.training:
            keypoint_rcnn_inference(x, instances)
            return instances
        per_batch = None if isinstance(self.loss_normalizer, str) else self.loss_normalizer * len(instances)
        return {"loss_keypoint": keypoint_rcnn_loss(x, instances, normalizer=per_batch) * self.loss_weight}

    def layers(self, x: Any) -> torch.Tensor:
        """Heat map logits `Tensor[R, K, S, S]` from the features of the regions."""
        raise NotImplementedError(f"{type(self).__name__} must define layers(x)")

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        """Arguments of the constructor from `cfg.MODEL.ROI_KEYPOINT_HEAD`."""
        head, roi = cfg.MODEL.ROI_KEYPOINT_HEAD, cfg.MODEL.ROI_HEADS
        if head.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS:
            normalizer = "visible"
        else:  # as many keypoints as an image could contribute at most
            normalizer = head.NUM_KEYPOINTS * roi.BATCH_SIZE_PER_IMAGE * roi.POSITIVE_FRACTION
        return {"num_keypoints": head.NUM_KEYPOINTS, "loss_weight": head.LOSS_WEIGHT, "loss_normalizer": normalizer}


@ROI_KEYPOINT_HEAD_REGISTRY.register()
class KRCNNConvDeconvUpsampleHead(BaseKeypointRCNNHead, nn.Sequential):
    """3x3 convolutions, a 4x4 up-convolution of stride 2, and bilinear enlargement by 2 (Mask R-CNN, section 5).

    Args:
        input_shape: shape of the pooled features of a region.
        num_keypoints: number of keypoints of an instance.
        conv_dims: output channels of the convolutions.
        **kwargs: arguments of `BaseKeypointRCNNHead`.
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, num_keypoints: int, conv_dims: Sequence[int], **kwargs: Any):
        super().__init__(num_keypoints=num_keypoints, **kwargs)
        self.up_scale = 2.0
        width: Any = input_shape.channels
        for i, out_width in enumerate(conv_dims, start=1):
            self.add_module(f"conv_fcn{i}", Conv2d(width, out_width, kernel_size=3, stride=1, padding=1))
            self.add_module(f"conv_fcn_relu{i}", nn.ReLU())
            width = out_width
        self.score_lowres = ConvTranspose2d(width, num_keypoints, kernel_size=4, stride=2, padding=1)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu")

    def layers(self, x: torch.Tensor) -> torch.Tensor:
        """`Tensor[R, C, P, P]` to logits `Tensor[R, K, 4P, 4P]`."""
        for layer in self:
            x = layer(x)
        return interpolate(x, scale_factor=self.up_scale, mode="bilinear", align_corners=False)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        """Arguments of the constructor from `cfg.MODEL.ROI_KEYPOINT_HEAD`."""
        return {
            **super().from_config(cfg, input_shape),
            "input_shape": input_shape,
            "conv_dims": cfg.MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS,
        }
