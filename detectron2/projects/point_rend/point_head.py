"""Point heads: small networks that predict the class of a single point, and their loss on masks.

`R` regions (semantic segmentation: images), `P` points of each, `C` channels, `K` classes.
"""

import itertools
import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.layers.weight_init import c2_msra_fill
from detectron2.modeling.roi_heads.numerics import full_precision, select_class
from detectron2.structures import Instances
from detectron2.utils.events import has_event_storage, put_scalar
from detectron2.utils.registry import Registry, build_part

__all__ = [
    "POINT_HEAD_REGISTRY",
    "ImplicitPointHead",
    "StandardPointHead",
    "build_point_head",
    "roi_mask_point_loss",
]

# Entries are called as `head(cfg, input_shape)`, where `input_shape.channels` counts the fine-grained features.
POINT_HEAD_REGISTRY = Registry("POINT_HEAD")


def _log_point_statistics(logits: torch.Tensor, labels: torch.Tensor) -> None:
    """Accuracy and error rates of `logits > 0` over the points `Tensor[R, P]` that have a label."""
    if not has_event_storage():
        return
    counted, positive = labels >= 0, labels > 0.5
    wrong = ((logits.detach() > 0) != positive) & counted
    num_positive = positive.sum()
    num_counted = counted.sum()
    put_scalar("point/accuracy", 1 - wrong.sum() / num_counted.clamp(min=1))
    put_scalar("point/false_positive", (wrong & ~positive).sum() / (num_counted - num_positive).clamp(min=1))
    put_scalar("point/false_negative", (wrong & positive).sum() / num_positive.clamp(min=1))


def roi_mask_point_loss(
    mask_logits: torch.Tensor, instances: list[Instances], point_labels: torch.Tensor
) -> torch.Tensor:
    """Mean binary cross entropy of the mask logits at points, for the class of each region.

    Args:
        mask_logits: `Tensor[R, K, P]`, or `Tensor[R, 1, P]` when masks do not depend on the class.
        instances: regions of each image, `R` in all, with `gt_classes`.
        point_labels: `Tensor[R, P]` in `[0, 1]`; -1 for a point to pass over. Such points still count in the number
            that the sum is divided by, so that a region with few labelled points does not weigh more than others.

    Returns:
        A scalar; zero, but still connected to the predictions, without regions or points.
    """
    if mask_logits.numel() == 0:
        return mask_logits.sum() * 0
    classes = cat([x.gt_classes for x in instances if len(x) > 0])
    logits = full_precision(select_class(mask_logits, classes))
    _log_point_statistics(logits, point_labels)
    counted = (point_labels >= 0).to(logits.dtype)
    targets = point_labels.to(logits.dtype).clamp(min=0)
    return F.binary_cross_entropy_with_logits(logits, targets, weight=counted, reduction="mean")


@POINT_HEAD_REGISTRY.register()
class StandardPointHead(nn.Module):
    """A perceptron with weights shared by all points (PointRend, section 3.3).

    Args:
        input_shape: its `channels` count the fine-grained features of a point.
        num_classes: number of values of the coarse prediction at a point.
        fc_dim: width of the hidden layers.
        num_fc: number of hidden layers.
        cls_agnostic_mask: whether to predict one value for a point instead of one for each class.
        coarse_pred_each_layer: whether the coarse prediction enters every layer, and not only the first.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        fc_dim: int,
        num_fc: int,
        cls_agnostic_mask: bool = False,
        coarse_pred_each_layer: bool = True,
    ):
        super().__init__()
        if input_shape.channels is None:
            raise ValueError(f"StandardPointHead needs the number of channels of its input, got {input_shape}")
        self.coarse_pred_each_layer = coarse_pred_each_layer
        self.fc_layers = []
        dim = input_shape.channels + num_classes
        for i in range(1, num_fc + 1):
            fc = nn.Conv1d(dim, fc_dim, kernel_size=1)
            c2_msra_fill(fc)  # pyright: ignore[reportArgumentType]  # it takes any convolution
            self.add_module(f"fc{i}", fc)
            self.fc_layers.append(fc)
            dim = fc_dim + (num_classes if coarse_pred_each_layer else 0)
        self.predictor = nn.Conv1d(dim, 1 if cls_agnostic_mask else num_classes, kernel_size=1)
        # Near-zero logits at the start: every point begins undecided.
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)  # pyright: ignore[reportArgumentType]  # bias=True above

    def forward(self, fine_grained_features: torch.Tensor, coarse_features: torch.Tensor) -> torch.Tensor:
        """Logits `Tensor[R, K, P]`, or `Tensor[R, 1, P]` if class agnostic, of points.

        A point is described by the feature maps, `Tensor[R, C, P]`, and the coarse prediction, `Tensor[R, K, P]`.
        """
        x = torch.cat([fine_grained_features, coarse_features], dim=1)
        for fc in self.fc_layers:
            x = F.relu(fc(x))
            if self.coarse_pred_each_layer:
                x = torch.cat([x, coarse_features], dim=1)
        return self.predictor(x)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        """Arguments of the constructor from `cfg.MODEL.POINT_HEAD`."""
        head = cfg.MODEL.POINT_HEAD
        return {
            "input_shape": input_shape,
            "num_classes": head.NUM_CLASSES,
            "fc_dim": head.FC_DIM,
            "num_fc": head.NUM_FC,
            "cls_agnostic_mask": head.CLS_AGNOSTIC_MASK,
            "coarse_pred_each_layer": head.COARSE_PRED_EACH_LAYER,
        }


@POINT_HEAD_REGISTRY.register()
class ImplicitPointHead(nn.Module):
    """A perceptron whose weights are predicted for each region (Implicit PointRend, arXiv:2104.06404, section 5).

    It has no weights of its own: `num_params` numbers are needed for a region, all weights in the order of the layers
    and then all biases.

    Args:
        input_shape: its `channels` count the fine-grained features of a point.
        num_classes: number of classes of masks.
        fc_dim: width of the hidden layers.
        num_fc: number of hidden layers.
        cls_agnostic_mask: whether to predict one value for a point instead of one for each class.
        image_feature_enabled: whether a point is described by the feature maps.
        positional_encoding_enabled: whether a point is described by where it lies in its region: random Fourier
            features (Tancik et al., https://arxiv.org/abs/2006.10739), drawn once and stored with the model.
    """

    positional_encoding_gaussian_matrix: torch.Tensor

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        fc_dim: int,
        num_fc: int,
        cls_agnostic_mask: bool = False,
        image_feature_enabled: bool = True,
        positional_encoding_enabled: bool = True,
    ):
        super().__init__()
        if not (image_feature_enabled or positional_encoding_enabled):
            raise ValueError(
                "a point must be described by something: enable MODEL.IMPLICIT_POINTREND.IMAGE_FEATURE_ENABLED, "
                "MODEL.IMPLICIT_POINTREND.POS_ENC_ENABLED or both"
            )
        if image_feature_enabled and input_shape.channels is None:
            raise ValueError(f"ImplicitPointHead needs the number of channels of its input, got {input_shape}")
        self.image_feature_enabled = image_feature_enabled
        self.positional_encoding_enabled = positional_encoding_enabled
        self.num_classes = 1 if cls_agnostic_mask else num_classes
        self.in_channels = 0
        if image_feature_enabled:
            self.in_channels += input_shape.channels or 0
        if positional_encoding_enabled:
            self.in_channels += 256
            self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, 128))
        widths = [self.in_channels, *[fc_dim] * num_fc, self.num_classes]
        self.layer_shapes = [(out, dim) for dim, out in itertools.pairwise(widths)]
        self.num_params = sum(out * dim + out for out, dim in self.layer_shapes)

    def forward(
        self, fine_grained_features: torch.Tensor | None, point_coords: torch.Tensor, parameters: torch.Tensor
    ) -> torch.Tensor:
        """Logits `Tensor[R, K, P]`, or `Tensor[R, 1, P]` if class agnostic, of points.

        A point is described by the feature maps, `Tensor[R, C, P]` (possibly None when image features are disabled),
        and by `(x, y)` as shares of its region, `Tensor[R, P, 2]`. `parameters` are `Tensor[R, num_params]`.
        """
        described = []
        if self.positional_encoding_enabled:
            described.append(self._encode_position(point_coords))
        if self.image_feature_enabled:
            if fine_grained_features is None:
                raise ValueError("this ImplicitPointHead reads image features, but got None for them")
            described.append(fine_grained_features)
        x = cat(described, dim=1)
        sizes = [math.prod(shape) for shape in self.layer_shapes] + [out for out, _ in self.layer_shapes]
        parts = parameters.split(sizes, dim=1)
        depth = len(self.layer_shapes)
        for i, (weight, bias) in enumerate(zip(parts[:depth], parts[depth:], strict=True)):
            x = torch.baddbmm(bias.unsqueeze(2), weight.unflatten(1, self.layer_shapes[i]), x.to(weight.dtype))
            if i < depth - 1:
                x = F.relu(x)
        return x

    def _encode_position(self, point_coords: torch.Tensor) -> torch.Tensor:
        """Fourier features of points `Tensor[R, P, 2]`: `Tensor[R, 256, P]`."""
        angles = 2 * math.pi * ((2 * point_coords - 1) @ self.positional_encoding_gaussian_matrix)
        return torch.cat([angles.sin(), angles.cos()], dim=2).transpose(1, 2)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        """Arguments of the constructor from `cfg.MODEL.POINT_HEAD` and `cfg.MODEL.IMPLICIT_POINTREND`."""
        head, implicit = cfg.MODEL.POINT_HEAD, cfg.MODEL.IMPLICIT_POINTREND
        return {
            "input_shape": input_shape,
            "num_classes": head.NUM_CLASSES,
            "fc_dim": head.FC_DIM,
            "num_fc": head.NUM_FC,
            "cls_agnostic_mask": head.CLS_AGNOSTIC_MASK,
            "image_feature_enabled": implicit.IMAGE_FEATURE_ENABLED,
            "positional_encoding_enabled": implicit.POS_ENC_ENABLED,
        }


def build_point_head(cfg: CfgNode, input_channels: ShapeSpec) -> Any:
    """The point head that `cfg.MODEL.POINT_HEAD.NAME` names, for points with `input_channels.channels` features."""
    return build_part(POINT_HEAD_REGISTRY, "MODEL.POINT_HEAD.NAME", cfg, input_channels=input_channels)
