"""The two heads of Panoptic-DeepLab: classes of pixels, and centres and offsets of instances.

Letters: `N` images, `K` classes of things and stuff, `C` channels, `H` and `W` height and width in pixels of the
network's padded input, `s` the common stride of a head in pixels. Offsets are `(y, x)` in pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from detectron2.projects.deeplab import DeepLabV3PlusHead
from detectron2.projects.deeplab._head_parts import branch, build_loss, predictor, train_crop_hw
from detectron2.utils.registry import Registry

__all__ = [
    "INS_EMBED_BRANCHES_REGISTRY",
    "PanopticDeepLabInsEmbedHead",
    "PanopticDeepLabSemSegHead",
    "build_ins_embed_branch",
]

# Entries are called as `head(cfg, input_shape)`, where `input_shape` is the backbone's `output_shape()`; see
# PanopticDeepLabInsEmbedHead for how the head is called.
INS_EMBED_BRANCHES_REGISTRY = Registry("INS_EMBED_BRANCHES")


def build_ins_embed_branch(cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> nn.Module:
    """The head that `cfg.MODEL.INS_EMBED_HEAD.NAME` names, for a backbone of shape `input_shape`."""
    return INS_EMBED_BRANCHES_REGISTRY.get(cfg.MODEL.INS_EMBED_HEAD.NAME)(cfg, input_shape)


@SEM_SEG_HEADS_REGISTRY.register()
class PanopticDeepLabSemSegHead(DeepLabV3PlusHead):
    """DeepLabv3+ with some more layers between the decoder and the classifier (arXiv:1911.10194, section 3).

    Args:
        input_shape: stride and channels of each feature map.
        decoder_channels: channels after joining each map, finest first; the last number is for ASPP.
        norm: norm of the convolutions, as `detectron2.layers.get_norm` takes it.
        head_channels: channels that the classifier sees.
        loss_weight: factor of the loss.
        loss_type: "cross_entropy" or "hard_pixel_mining".
        loss_top_k: part of the pixels that count as hard.
        ignore_value: label of pixels without a loss.
        num_classes: K.
        **kwargs: further arguments of :class:`DeepLabV3PlusHead`.
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        decoder_channels: Sequence[int],
        norm: Any,
        head_channels: int,
        loss_weight: float,
        loss_type: str,
        loss_top_k: float,
        ignore_value: int,
        num_classes: int,
        **kwargs: Any,
    ):
        super().__init__(
            input_shape,
            decoder_channels=decoder_channels,
            norm=norm,
            loss_weight=loss_weight,
            loss_type=loss_type,
            ignore_value=ignore_value,
            num_classes=None,
            **kwargs,
        )
        separable = kwargs.get("use_depthwise_separable_conv", False)
        self.num_classes = num_classes
        self.head = branch(decoder_channels[0], head_channels, norm, separable)
        self.predictor = predictor(head_channels, num_classes)
        self.loss = build_loss(loss_type, ignore_value, loss_top_k)

    def layers(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Scores at the common stride, `Tensor[N, K, H / s, W / s]`."""
        return self.predictor(self.head(self.decode(features)))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        """Arguments of the constructor from `cfg.MODEL.SEM_SEG_HEAD`."""
        return {
            **super().from_config(cfg, input_shape),
            "head_channels": cfg.MODEL.SEM_SEG_HEAD.HEAD_CHANNELS,
            "loss_top_k": cfg.MODEL.SEM_SEG_HEAD.LOSS_TOP_K,
        }


@INS_EMBED_BRANCHES_REGISTRY.register()
class PanopticDeepLabInsEmbedHead(DeepLabV3PlusHead):
    """Predicts a heatmap of centres of instances, and for every pixel the offset to its centre.

    Args:
        input_shape: stride and channels of each feature map.
        decoder_channels: channels after joining each map, finest first; the last number is for ASPP.
        norm: norm of the convolutions, as `detectron2.layers.get_norm` takes it.
        head_channels: channels that the two last layers see.
        center_loss_weight: factor of the loss of the heatmap.
        offset_loss_weight: factor of the loss of the offsets.
        **kwargs: further arguments of :class:`DeepLabV3PlusHead`.
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        decoder_channels: Sequence[int],
        norm: Any,
        head_channels: int,
        center_loss_weight: float,
        offset_loss_weight: float,
        **kwargs: Any,
    ):
        super().__init__(input_shape, decoder_channels=decoder_channels, norm=norm, num_classes=None, **kwargs)
        self.center_loss_weight = center_loss_weight
        self.offset_loss_weight = offset_loss_weight
        # Only the branch of offsets has the depthwise separable form.
        separable = kwargs.get("use_depthwise_separable_conv", False)
        self.center_head = branch(decoder_channels[0], head_channels, norm)
        self.center_predictor = predictor(head_channels, 1)
        self.offset_head = branch(decoder_channels[0], head_channels, norm, separable)
        self.offset_predictor = predictor(head_channels, 2)

    def forward(
        self,
        features: Mapping[str, torch.Tensor],
        center_targets: torch.Tensor | None = None,
        center_weights: torch.Tensor | None = None,
        offset_targets: torch.Tensor | None = None,
        offset_weights: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Predict centres and offsets, or in training compute their losses.

        Args:
            features: feature maps by name, `Tensor[N, C, H / stride, W / stride]`.
            center_targets: in training `Tensor[N, H, W]` (or `[N, 1, H, W]`, as the following).
            center_weights: in training `Tensor[N, H, W]`.
            offset_targets: in training `Tensor[N, 2, H, W]`.
            offset_weights: in training `Tensor[N, H, W]`.

        Returns:
            In training twice None, the losses of the centres and those of the offsets. In inference the heatmap
            `Tensor[N, 1, H, W]`, the offsets `Tensor[N, 2, H, W]` in pixels of the input, and two empty dictionaries.
        """
        center, offset = self.layers(features)
        if not self.training:
            return self._upsampled(center.float()), self._upsampled(offset.float()) * self.common_stride, {}, {}
        if center_targets is None or center_weights is None or offset_targets is None or offset_weights is None:
            raise ValueError("training PanopticDeepLabInsEmbedHead needs targets and weights of centres and offsets")
        return (
            None,
            None,
            self.center_losses(center, center_targets, center_weights),
            self.offset_losses(offset, offset_targets, offset_weights),
        )

    def layers(self, features: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]  # two results where the base has one
        """Heatmap `Tensor[N, 1, H / s, W / s]` and offsets `Tensor[N, 2, H / s, W / s]` in cells of that grid."""
        x = self.decode(features)
        return self.center_predictor(self.center_head(x)), self.offset_predictor(self.offset_head(x))

    def center_losses(
        self, predictions: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Weighted mean squared error of the heatmap.

        Args:
            predictions: `Tensor[N, 1, H / s, W / s]`.
            targets: `Tensor[N, H, W]` or `[N, 1, H, W]`.
            weights: of the pixels, alike.

        Returns:
            `{"loss_center": scalar}`, 0 when no pixel has a weight.
        """
        predicted = self._upsampled(predictions.float(), targets.shape[-2:])[:, 0]
        error = (predicted - _without_channel(targets)).square()
        return {"loss_center": _weighted_mean(error, _without_channel(weights)) * self.center_loss_weight}

    def offset_losses(
        self, predictions: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Weighted mean over pixels of the L1 distance of offsets.

        Args:
            predictions: `Tensor[N, 2, H / s, W / s]` in cells of that grid.
            targets: `Tensor[N, 2, H, W]` in pixels.
            weights: of the pixels, `Tensor[N, H, W]` or `[N, 1, H, W]`.

        Returns:
            `{"loss_offset": scalar}`, 0 when no pixel has a weight.
        """
        predicted = self._upsampled(predictions.float(), targets.shape[-2:]) * self.common_stride
        error = (predicted - targets).abs().sum(dim=1)
        return {"loss_offset": _weighted_mean(error, _without_channel(weights)) * self.offset_loss_weight}

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        """Arguments of the constructor from `cfg.MODEL.INS_EMBED_HEAD`."""
        head = cfg.MODEL.INS_EMBED_HEAD
        return {
            "input_shape": {name: shape for name, shape in input_shape.items() if name in head.IN_FEATURES},
            "project_channels": head.PROJECT_CHANNELS,
            "aspp_dilations": head.ASPP_DILATIONS,
            "aspp_dropout": head.ASPP_DROPOUT,
            "decoder_channels": [head.CONVS_DIM] * (len(head.IN_FEATURES) - 1) + [head.ASPP_CHANNELS],
            "common_stride": head.COMMON_STRIDE,
            "norm": head.NORM,
            "train_size": train_crop_hw(cfg),
            "head_channels": head.HEAD_CHANNELS,
            "center_loss_weight": head.CENTER_LOSS_WEIGHT,
            "offset_loss_weight": head.OFFSET_LOSS_WEIGHT,
            "use_depthwise_separable_conv": cfg.MODEL.PANOPTIC_DEEPLAB.USE_DEPTHWISE_SEPARABLE_CONV,
        }


def _without_channel(x: torch.Tensor) -> torch.Tensor:
    """`Tensor[N, 1, H, W]` or `[N, H, W]` as the latter."""
    return x[:, 0] if x.dim() == 4 else x


def _weighted_mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    total = weights.sum()
    return (values * weights).sum() / torch.where(total > 0, total, 1)
