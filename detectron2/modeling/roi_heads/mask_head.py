"""Mask heads of Mask R-CNN (https://arxiv.org/abs/1703.06870): one small mask per region and class.

`R` regions over the whole batch, `K` classes, `M` side of the predicted mask in cells, `P` side of the pooled features.
A mask covers exactly its region's box; its cells are logits while training and probabilities in inference.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ConvTranspose2d, ShapeSpec, blocks, cat
from detectron2.layers.weight_init import c2_msra_fill
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage, has_event_storage, put_image, put_scalar
from detectron2.utils.registry import Registry, build_part

from .numerics import full_precision, select_class, split_by_image

__all__ = [
    "ROI_MASK_HEAD_REGISTRY",
    "BaseMaskRCNNHead",
    "MaskRCNNConvUpsampleHead",
    "build_mask_head",
    "mask_rcnn_inference",
    "mask_rcnn_loss",
]

# Entries are called as `head(cfg, input_shape)`.
ROI_MASK_HEAD_REGISTRY = Registry("ROI_MASK_HEAD")


def _mask_targets(instances: list[Instances], side: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ground truth of all regions: masks cropped to each proposal, `Tensor[R, side, side]`, and `Tensor[R]` labels."""
    masks, classes = [], []
    for per_image in instances:
        if len(per_image) == 0:
            continue  # an image without objects has no `gt_masks` at all
        boxes = per_image.proposal_boxes.tensor
        masks.append(per_image.gt_masks.crop_and_resize(boxes, side).to(device=device))
        classes.append(per_image.gt_classes.to(dtype=torch.int64))
    if not masks:
        return torch.zeros(0, side, side, device=device), torch.zeros(0, dtype=torch.int64, device=device)
    return cat(masks), cat(classes)


def _log_mask_statistics(logits: torch.Tensor, targets: torch.Tensor) -> None:
    """Pixel accuracy and error rates of `logits > 0` against boolean `targets`, both `Tensor[R, M, M]`."""
    if not has_event_storage():
        return
    wrong = (logits.detach() > 0) != targets
    positive = targets.sum()
    negative = targets.numel() - positive
    put_scalar("mask_rcnn/accuracy", 1 - wrong.sum() / max(wrong.numel(), 1))
    put_scalar("mask_rcnn/false_positive", (wrong & ~targets).sum() / negative.clamp(min=1))
    put_scalar("mask_rcnn/false_negative", (wrong & targets).sum() / positive.clamp(min=1))


def _log_mask_images(logits: torch.Tensor, targets: torch.Tensor, vis_period: int) -> None:
    """Every `vis_period` iterations put each predicted mask beside its ground truth into the open storage."""
    if vis_period <= 0 or not has_event_storage() or get_event_storage().iter % vis_period != 0:
        return
    pairs = torch.cat([logits.detach().sigmoid(), targets.to(logits.dtype)], dim=2)  # side by side
    for i, pair in enumerate(pairs):
        put_image(f"Left: mask prediction;   Right: mask GT ({i})", pair.expand(3, -1, -1))


def mask_rcnn_loss(pred_mask_logits: torch.Tensor, instances: list[Instances], vis_period: int = 0) -> torch.Tensor:
    """Mean binary cross entropy over the cells of the mask of each region's own class (Mask R-CNN, section 3).

    Args:
        pred_mask_logits: `Tensor[R, K, M, M]`, or `Tensor[R, 1, M, M]` when masks do not depend on the class.
        instances: foreground regions of each image, `R` in all, with `proposal_boxes`, `gt_classes` and `gt_masks`.
            The fields may be absent on images without regions.
        vis_period: number of iterations between pictures of predictions and targets; 0 for never.

    Returns:
        A scalar; zero, but still connected to the predictions, without regions.
    """
    side = pred_mask_logits.shape[-1]
    if pred_mask_logits.shape[-2] != side:
        raise ValueError(f"mask predictions must be square, got {tuple(pred_mask_logits.shape[-2:])} (height, width)")
    targets, classes = _mask_targets(instances, side, pred_mask_logits.device)
    if targets.shape[0] == 0:
        return pred_mask_logits.sum() * 0

    logits = full_precision(select_class(pred_mask_logits, classes))
    positive = targets if targets.dtype == torch.bool else targets > 0.5
    _log_mask_statistics(logits, positive)
    _log_mask_images(logits, positive, vis_period)
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="mean")


def mask_rcnn_inference(pred_mask_logits: torch.Tensor, pred_instances: list[Instances]) -> None:
    """Set `pred_masks` of every image: the probabilities of the predicted class, `Tensor[Ri, 1, M, M]`.

    Pasting them into the image is left to `detector_postprocess`, which knows the size that is asked for.

    Args:
        pred_mask_logits: `Tensor[R, K, M, M]` or `Tensor[R, 1, M, M]`, regions of all images after one another.
        pred_instances: detections of each image with `pred_classes`; changed in place.
    """
    if not pred_instances:
        return
    logits = pred_mask_logits
    if logits.shape[1] > 1:
        # The sigmoid is taken after the choice: K times less work.
        logits = select_class(logits, cat([x.pred_classes for x in pred_instances])).unsqueeze(1)
    masks = full_precision(logits).sigmoid()
    for per_image, mask in zip(pred_instances, split_by_image(masks, pred_instances), strict=True):
        per_image.pred_masks = mask


class BaseMaskRCNNHead(nn.Module):
    """Loss and inference of Mask R-CNN; a subclass supplies `layers`.

    Args:
        loss_weight: factor of the loss.
        vis_period: number of iterations between pictures of masks in the event storage; 0 for never.
    """

    @configurable
    def __init__(self, *, loss_weight: float = 1.0, vis_period: int = 0):
        super().__init__()
        self.vis_period = vis_period
        self.loss_weight = loss_weight

    def forward(self, x: Any, instances: list[Instances]) -> Any:
        """Predict a mask for every region.

        Args:
            x: features of the regions, in the form that `layers` takes, usually `Tensor[R, C, P, P]`.
            instances: the regions: in training foreground proposals with ground truth, in inference detections.

        Returns:
            In training `{"loss_mask": scalar}`; in inference `instances`, with `pred_masks` set.
        """
        x = self.layers(x)
        if self.training:
            return {"loss_mask": mask_rcnn_loss(x, instances, self.vis_period) * self.loss_weight}
        mask_rcnn_inference(x, instances)
        return instances

    def layers(self, x: Any) -> torch.Tensor:
        """Mask logits `Tensor[R, K, M, M]` from the features of the regions."""
        raise NotImplementedError(f"{type(self).__name__} must define layers(x)")

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        """Arguments of the constructor from the config."""
        return {"vis_period": cfg.VIS_PERIOD}


@ROI_MASK_HEAD_REGISTRY.register()
class MaskRCNNConvUpsampleHead(BaseMaskRCNNHead, nn.Sequential):
    """3x3 convolutions, one 2x2 up-convolution of stride 2, and a 1x1 predictor (Mask R-CNN, figure 4).

    Args:
        input_shape: shape of the pooled features of a region.
        num_classes: number of masks per region; 1 when masks do not depend on the class.
        conv_dims: output channels of the convolutions; the last entry is that of the up-convolution.
        conv_norm: normalisation after each convolution, as `detectron2.layers.get_norm` takes it.
        **kwargs: arguments of `BaseMaskRCNNHead`.
    """

    @configurable
    def __init__(
        self, input_shape: ShapeSpec, *, num_classes: int, conv_dims: Sequence[int], conv_norm: str = "", **kwargs: Any
    ):
        super().__init__(**kwargs)
        if not conv_dims:
            raise ValueError("conv_dims must hold at least the width of the up-convolution, got an empty list")
        width: Any = input_shape.channels
        self.conv_norm_relus = []
        for i, out_width in enumerate(conv_dims[:-1], start=1):
            conv = blocks.conv_norm(width, out_width, 3, conv_norm, activation=F.relu)
            self.add_module(f"mask_fcn{i}", conv)
            self.conv_norm_relus.append(conv)
            width = out_width
        self.deconv = ConvTranspose2d(width, conv_dims[-1], kernel_size=2, stride=2)
        self.add_module("deconv_relu", nn.ReLU())
        self.predictor = Conv2d(conv_dims[-1], num_classes, kernel_size=1)

        for layer in [*self.conv_norm_relus, self.deconv]:
            c2_msra_fill(layer)
        # Near-zero logits at the start: every cell begins undecided.
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)  # pyright: ignore[reportArgumentType]  # bias=True above

    def layers(self, x: torch.Tensor) -> torch.Tensor:
        """`Tensor[R, C, P, P]` to logits `Tensor[R, K, 2P, 2P]`."""
        for layer in self:
            x = layer(x)
        return x

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        """Arguments of the constructor from `cfg.MODEL.ROI_MASK_HEAD`."""
        head = cfg.MODEL.ROI_MASK_HEAD
        return {
            **super().from_config(cfg, input_shape),
            "input_shape": input_shape,
            "num_classes": 1 if head.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "conv_dims": [head.CONV_DIM] * (head.NUM_CONV + 1),  # one more for the up-convolution
            "conv_norm": head.NORM,
        }


def build_mask_head(cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
    """The mask head that `cfg.MODEL.ROI_MASK_HEAD.NAME` names, for features of shape `input_shape`."""
    return build_part(ROI_MASK_HEAD_REGISTRY, "MODEL.ROI_MASK_HEAD.NAME", cfg, input_shape=input_shape)
