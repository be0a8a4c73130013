"""Layers that the heads of DeepLab and Panoptic-DeepLab are made of, initialised alike.

Letters: `N` images, `K` classes, `C` channels, `H` and `W` height and width of the network's input in pixels, `s` the
common stride of a head in pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from detectron2.config import CfgNode
from detectron2.layers import ASPP, Conv2d, DepthwiseSeparableConv2d, ShapeSpec, get_norm
from detectron2.layers.weight_init import c2_xavier_fill
from detectron2.modeling.meta_arch.semantic_seg import semantic_loss

from .loss import DeepLabCE

__all__ = [
    "PixelClassifier",
    "aspp",
    "branch",
    "build_loss",
    "conv_norm_relu",
    "conv_pair",
    "labelled_pixel_loss",
    "predictor",
    "sorted_by_stride",
    "train_crop_hw",
]

Norm = str | Callable[[int], nn.Module]
"""A norm as `detectron2.layers.get_norm` takes it; "" for none."""

_HARD_PIXELS = 0.2  # the part of pixels that the published models average over


def sorted_by_stride(shapes: Mapping[str, ShapeSpec]) -> list[str]:
    """Names of feature maps, the finest first."""
    strides: dict[str, Any] = {name: shape.stride for name, shape in shapes.items()}
    return sorted(strides, key=lambda name: strides[name])


def train_crop_hw(cfg: CfgNode) -> Sequence[int] | None:
    """The size of all training images in pixels, if the config crops them to one size."""
    crop = cfg.INPUT.CROP
    if not crop.ENABLED:
        return None
    if crop.TYPE != "absolute":
        raise ValueError(
            f"INPUT.CROP.TYPE is {crop.TYPE!r}, but DeepLab needs to know the size of the training images: set it to "
            '"absolute" with INPUT.CROP.SIZE in pixels, or INPUT.CROP.ENABLED to False'
        )
    return crop.SIZE


def conv_norm_relu(in_channels: Any, out_channels: int, kernel_size: int, norm: Norm) -> Conv2d:
    """A convolution that keeps the resolution, its norm, and ReLU."""
    layer = Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel_size,
        padding=kernel_size // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=F.relu,
    )
    c2_xavier_fill(layer)
    return layer


def conv_pair(in_channels: int, middle: int, out_channels: int, norm: Norm, depthwise_separable: bool) -> nn.Module:
    """Two 3x3 convolutions with `middle` channels between them, or a depthwise separable one as large as both."""
    if depthwise_separable:
        return DepthwiseSeparableConv2d(
            in_channels,
            out_channels,
            kernel_size=5,
            padding=2,
            norm1=norm,
            activation1=F.relu,
            norm2=norm,
            activation2=F.relu,
        )
    return nn.Sequential(conv_norm_relu(in_channels, middle, 3, norm), conv_norm_relu(middle, out_channels, 3, norm))


def branch(in_channels: int, out_channels: int, norm: Norm, depthwise_separable: bool = False) -> nn.Module:
    """What lies between a decoder and one of several classifiers or regressors on it."""
    return conv_pair(in_channels, in_channels, out_channels, norm, depthwise_separable)


def predictor(in_channels: int, out_channels: int) -> Conv2d:
    """The last layer of a branch: a 1x1 convolution that starts near zero."""
    layer = Conv2d(in_channels, out_channels, kernel_size=1)
    nn.init.normal_(layer.weight, std=0.001)
    nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]  # it has a bias
    return layer


def aspp(
    shape: ShapeSpec,
    out_channels: int,
    dilations: Sequence[int],
    *,
    norm: Norm,
    dropout: float,
    train_size_hw: Sequence[int] | None,
    depthwise_separable: bool,
) -> ASPP:
    """`ASPP` on a feature map, whose average is taken over a window of the training size, in pixels, if it is known."""
    stride: Any = shape.stride
    in_channels: Any = shape.channels
    window_hw = None
    if train_size_hw is not None:
        height, width = train_size_hw
        if height % stride or width % stride:
            raise ValueError(
                f"the training size (height {height}, width {width}; INPUT.CROP.SIZE) must be a multiple of the "
                f"feature map's stride, {stride} pixels"
            )
        window_hw = (height // stride, width // stride)
    return ASPP(
        in_channels,
        out_channels,
        dilations,
        norm=norm,
        activation=F.relu,
        pool_kernel_size=window_hw,
        dropout=dropout,
        use_depthwise_separable_conv=depthwise_separable,
    )


class PixelClassifier(nn.Module):
    """What the heads share: scores at the common stride are upsampled, and in training compared with labels."""

    num_classes: int | None
    common_stride: int
    loss_weight: float
    loss: Callable[..., torch.Tensor]

    def layers(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compute the output at the common stride, `Tensor[N, K, H / s, W / s]`."""
        raise NotImplementedError(f"{type(self).__name__} must implement layers")

    def forward(
        self,
        features: Mapping[str, torch.Tensor],
        targets: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor | None, dict[str, torch.Tensor]]:
        """Classify pixels from feature maps by name, or in training compute the loss.

        In training, with int64 targets and optional weights of the pixels, `Tensor[N, H, W]` each, the result is None
        and the losses; in inference scores `Tensor[N, K, H, W]` and an empty dictionary.
        """
        scores = self.layers(features)
        if not self.training:
            return self._upsampled(scores), {}
        if targets is None:
            raise KeyError(
                f"{type(self).__name__} got no targets in training: every input needs 'sem_seg', a label map of "
                "(height, width)"
            )
        return None, self.losses(scores, targets, weights)

    def losses(
        self, predictions: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """`{"loss_sem_seg": scalar}` of what `layers` returns, computed at the size of targets `Tensor[N, H, W]`."""
        scores = self._upsampled(predictions.float(), targets.shape[-2:])
        return {"loss_sem_seg": self.loss(scores, targets, weights) * self.loss_weight}

    def _upsampled(self, x: torch.Tensor, size_hw: Sequence[int] | None = None) -> torch.Tensor:
        """Bring `Tensor[N, C, h, w]` to the input's resolution; `size_hw` cuts off what the last cells reach beyond."""
        factor = float(self.common_stride)  # PyTorch 2.6 compiles no integer that differs between heads
        x = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
        return x if size_hw is None else x[..., : size_hw[0], : size_hw[1]]


def labelled_pixel_loss(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None, *, ignore_value: int
) -> torch.Tensor:
    """Cross entropy of logits `Tensor[N, K, H, W]`, averaged over the pixels that have a label; 0 where none has.

    Targets are int64 `Tensor[N, H, W]`; with weights, of the same shape, the loss of each pixel is multiplied.
    """
    if weights is None:
        return semantic_loss(logits, targets, ignore_value)
    per_pixel = F.cross_entropy(logits, targets, ignore_index=ignore_value, reduction="none")
    return (per_pixel * weights).sum() / (targets != ignore_value).sum().clamp(min=1)


def build_loss(loss_type: str, ignore_value: int, top_k: float = _HARD_PIXELS) -> Callable[..., torch.Tensor]:
    """The loss "cross_entropy" or "hard_pixel_mining", over the part `top_k` of the pixels.

    It is a function of scores `Tensor[N, K, H, W]`, labels `Tensor[N, H, W]` and optional weights of the pixels.
    """
    if loss_type == "cross_entropy":
        return partial(labelled_pixel_loss, ignore_value=ignore_value)
    if loss_type == "hard_pixel_mining":
        return DeepLabCE(ignore_label=ignore_value, top_k_percent_pixels=top_k)
    raise ValueError(
        f'loss_type must be "cross_entropy" or "hard_pixel_mining", got {loss_type!r} (MODEL.SEM_SEG_HEAD.LOSS_TYPE)'
    )
