"""The heads of DeepLabv3 and DeepLabv3+, which turn feature maps into class scores of pixels.

Letters: `N` images, `K` classes, `C` channels, `H` and `W` height and width of the network's input in pixels, `s` the
common stride of a head in pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY

from .head_parts import (
    Norm,
    PixelClassifier,
    aspp,
    build_loss,
    conv_norm_relu,
    conv_pair,
    predictor,
    sorted_by_stride,
    train_crop_hw,
)

__all__ = ["DeepLabV3Head", "DeepLabV3PlusHead"]


@SEM_SEG_HEADS_REGISTRY.register()
class DeepLabV3Head(PixelClassifier):
    """ASPP on the last feature map, and a classifier (https://arxiv.org/abs/1706.05587, section 3.3).

    Args:
        input_shape: stride and channels of the feature map; exactly one.
        num_classes: K.
        conv_dims: channels that the classifier sees; equal to `aspp_channels`.
        common_stride: stride of the feature map in pixels.
        aspp_channels: channels of every branch of ASPP.
        aspp_dilations: dilations of its three 3x3 branches.
        aspp_dropout: probability of dropping one of its output values.
        norm: norm of the convolutions, as `detectron2.layers.get_norm` takes it.
        train_size: `(height, width)` of the training crops in pixels: the average in ASPP is then taken over a window
            of that size, also in inference. None averages the whole map.
        loss_weight: factor of the loss.
        loss_type: "cross_entropy" or "hard_pixel_mining" (`DeepLabCE` over a fifth of the pixels).
        ignore_value: label of pixels without a loss.
        use_depthwise_separable_conv: whether the 3x3 branches are depthwise separable.
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        num_classes: int,
        conv_dims: int,
        common_stride: int,
        aspp_channels: int,
        aspp_dilations: Sequence[int],
        aspp_dropout: float,
        norm: Norm = "",
        train_size: Sequence[int] | None = None,
        loss_weight: float = 1.0,
        loss_type: str = "cross_entropy",
        ignore_value: int = -1,
        use_depthwise_separable_conv: bool = False,
    ):
        super().__init__()
        self.in_features = sorted_by_stride(input_shape)
        if len(self.in_features) != 1:
            raise ValueError(
                f"DeepLabV3Head works on one feature map, got {self.in_features} (MODEL.SEM_SEG_HEAD.IN_FEATURES); "
                "DeepLabV3PlusHead joins several"
            )
        shape = input_shape[self.in_features[0]]
        if shape.stride != common_stride:
            raise ValueError(
                f"the feature map {self.in_features[0]!r} has stride {shape.stride}, but the common stride is "
                f"{common_stride} (MODEL.SEM_SEG_HEAD.COMMON_STRIDE); DeepLabV3Head resizes only what it has classified"
            )
        if conv_dims != aspp_channels:
            raise ValueError(
                f"the classifier sees what ASPP puts out: conv_dims {conv_dims} (MODEL.SEM_SEG_HEAD.CONVS_DIM) must "
                f"equal aspp_channels {aspp_channels} (ASPP_CHANNELS)"
            )
        self.num_classes = num_classes
        self.common_stride = common_stride
        self.loss_weight = loss_weight
        self.loss_type = loss_type
        self.ignore_value = ignore_value
        self.aspp = aspp(
            shape,
            aspp_channels,
            aspp_dilations,
            norm=norm,
            dropout=aspp_dropout,
            train_size_hw=train_size,
            depthwise_separable=use_depthwise_separable_conv,
        )
        self.predictor = predictor(conv_dims, num_classes)
        self.loss = build_loss(loss_type, ignore_value)

    def layers(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Scores at the common stride, `Tensor[N, K, H / s, W / s]`."""
        return self.predictor(self.aspp(features[self.in_features[0]]))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        """Arguments of the constructor from `cfg.MODEL.SEM_SEG_HEAD`."""
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": {name: shape for name, shape in input_shape.items() if name in head.IN_FEATURES},
            "num_classes": head.NUM_CLASSES,
            "conv_dims": head.CONVS_DIM,
            "common_stride": head.COMMON_STRIDE,
            "aspp_channels": head.ASPP_CHANNELS,
            "aspp_dilations": head.ASPP_DILATIONS,
            "aspp_dropout": head.ASPP_DROPOUT,
            "norm": head.NORM,
            "train_size": train_crop_hw(cfg),
            "loss_weight": head.LOSS_WEIGHT,
            "loss_type": head.LOSS_TYPE,
            "ignore_value": head.IGNORE_VALUE,
            "use_depthwise_separable_conv": head.USE_DEPTHWISE_SEPARABLE_CONV,
        }


@SEM_SEG_HEADS_REGISTRY.register()
class DeepLabV3PlusHead(PixelClassifier):
    """ASPP, a decoder that joins finer maps one after the other, and a classifier (arXiv:1802.02611, section 3.1).

    Args:
        input_shape: stride and channels of each feature map.
        project_channels: channels to which each map but the coarsest is reduced before it is joined; finest map first.
        aspp_dilations: dilations of the three 3x3 branches of ASPP.
        aspp_dropout: probability of dropping one of its output values.
        decoder_channels: channels after joining each map, finest first; the last number is for ASPP.
        common_stride: stride of the finest map in pixels.
        norm: norm of the convolutions, as `detectron2.layers.get_norm` takes it.
        train_size: as in `DeepLabV3Head`.
        loss_weight: factor of the loss.
        loss_type: "cross_entropy" or "hard_pixel_mining" (`DeepLabCE` over a fifth of the pixels).
        ignore_value: label of pixels without a loss.
        num_classes: K. None leaves the classifier out, and the head is only a decoder: `layers` then returns its
            features.
        use_depthwise_separable_conv: whether ASPP's 3x3 branches and the decoder's convolutions (then 5x5) are
            depthwise separable.
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        project_channels: Sequence[int],
        aspp_dilations: Sequence[int],
        aspp_dropout: float,
        decoder_channels: Sequence[int],
        common_stride: int,
        norm: Norm,
        train_size: Sequence[int] | None,
        loss_weight: float = 1.0,
        loss_type: str = "cross_entropy",
        ignore_value: int = -1,
        num_classes: int | None = None,
        use_depthwise_separable_conv: bool = False,
    ):
        super().__init__()
        self.in_features = sorted_by_stride(input_shape)
        _check_decoder(self.in_features, input_shape, project_channels, decoder_channels, common_stride)
        self.num_classes = num_classes
        self.decoder_only = num_classes is None
        self.common_stride = common_stride
        self.loss_weight = loss_weight
        self.loss_type = loss_type
        self.ignore_value = ignore_value

        *finer, coarsest = self.in_features
        self.decoder = nn.ModuleDict()
        for i, name in enumerate(finer):
            # Projected to few channels, the details of a fine map do not outweigh what they are joined with.
            project_conv = conv_norm_relu(input_shape[name].channels, project_channels[i], 1, norm)
            joined, out = project_channels[i] + decoder_channels[i + 1], decoder_channels[i]
            fuse_conv = conv_pair(joined, out, out, norm, use_depthwise_separable_conv)
            self.decoder[name] = nn.ModuleDict({"project_conv": project_conv, "fuse_conv": fuse_conv})
        pyramid = aspp(
            input_shape[coarsest],
            decoder_channels[-1],
            aspp_dilations,
            norm=norm,
            dropout=aspp_dropout,
            train_size_hw=train_size,
            depthwise_separable=use_depthwise_separable_conv,
        )
        self.decoder[coarsest] = nn.ModuleDict({"project_conv": pyramid})
        if num_classes is not None:
            self.predictor = predictor(decoder_channels[0], num_classes)
            self.loss = build_loss(loss_type, ignore_value)

    def layers(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Scores at the common stride, `Tensor[N, K, H / s, W / s]`; without a classifier the decoder's features."""
        x = self.decode(features)
        return x if self.decoder_only else self.predictor(x)

    def decode(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Features at the common stride, `Tensor[N, decoder_channels[0], H / s, W / s]`."""
        *finer, coarsest = self.in_features
        stages: dict[str, Any] = dict(self.decoder.items())
        x = stages[coarsest]["project_conv"](features[coarsest])
        for name in reversed(finer):
            detail = stages[name]["project_conv"](features[name])
            x = F.interpolate(x, size=detail.shape[-2:], mode="bilinear", align_corners=False)
            x = stages[name]["fuse_conv"](torch.cat([detail, x], dim=1))
        return x

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        """Arguments of the constructor from `cfg.MODEL.SEM_SEG_HEAD`."""
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": {name: shape for name, shape in input_shape.items() if name in head.IN_FEATURES},
            "project_channels": head.PROJECT_CHANNELS,
            "aspp_dilations": head.ASPP_DILATIONS,
            "aspp_dropout": head.ASPP_DROPOUT,
            "decoder_channels": [head.CONVS_DIM] * (len(head.IN_FEATURES) - 1) + [head.ASPP_CHANNELS],
            "common_stride": head.COMMON_STRIDE,
            "norm": head.NORM,
            "train_size": train_crop_hw(cfg),
            "loss_weight": head.LOSS_WEIGHT,
            "loss_type": head.LOSS_TYPE,
            "ignore_value": head.IGNORE_VALUE,
            "num_classes": head.NUM_CLASSES,
            "use_depthwise_separable_conv": head.USE_DEPTHWISE_SEPARABLE_CONV,
        }


def _check_decoder(
    names: list[str],
    shapes: Mapping[str, ShapeSpec],
    project_channels: Sequence[int],
    decoder_channels: Sequence[int],
    common_stride: int,
) -> None:
    if not names:
        raise ValueError("the decoder needs at least one feature map (IN_FEATURES)")
    if len(project_channels) != len(names) - 1 or len(decoder_channels) != len(names):
        raise ValueError(
            f"the decoder of the feature maps {names} needs {len(names) - 1} project_channels (PROJECT_CHANNELS) and "
            f"{len(names)} decoder_channels; got {list(project_channels)} and {list(decoder_channels)}"
        )
    if shapes[names[0]].stride != common_stride:
        raise ValueError(
            f"the finest feature map, {names[0]!r}, has stride {shapes[names[0]].stride}, but the common stride is "
            f"{common_stride} (COMMON_STRIDE)"
        )
