"""Semantic segmentation: a class for every pixel.

`N` images, `K` classes, `C` channels, `H` and `W` height and width in pixels of the network's padded input.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.layers.blocks import conv_norm
from detectron2.layers.weight_init import c2_msra_fill
from detectron2.modeling.backbone import Backbone, build_backbone
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import ImageList
from detectron2.utils.registry import PartRegistry, build_part

from .build import META_ARCH_REGISTRY
from .inputs import DetectorBase

__all__ = ["SEM_SEG_HEADS_REGISTRY", "SemSegFPNHead", "SemanticSegmentor", "build_sem_seg_head", "padded_label_maps"]


def padded_label_maps(
    batched_inputs: Sequence[dict[str, Any]],
    device: torch.device,
    *,
    ignore_value: int,
    num_classes: int | None = None,
    size_divisibility: int = 0,
    padding_constraints: Mapping[str, int] | None = None,
) -> torch.Tensor:
    """The "sem_seg" of every input as one tensor, padded with `ignore_value`.

    Args:
        batched_inputs: dictionaries with "sem_seg", integer `Tensor[H_i, W_i]`, of the size of "image".
        device: where the result goes.
        ignore_value: label of pixels that count nowhere.
        num_classes: K; labels outside of `0 ... K - 1` are refused. None to take any.
        size_divisibility: as for the images.
        padding_constraints: as for the images.

    Returns:
        int64 `Tensor[N, H, W]`.

    Raises:
        KeyError: an input has no "sem_seg".
        TypeError: a label map holds no integers.
        ValueError: a label map has another size than its image, or a label outside the classes.
    """
    maps = []
    for i, item in enumerate(batched_inputs):
        if "sem_seg" not in item:
            raise KeyError(
                f"input {i} of the batch has no 'sem_seg', only {sorted(item)}: training needs label maps of "
                "(height, width), which DatasetMapper reads from `sem_seg_file_name`; for inference call model.eval()"
            )
        labels = item["sem_seg"]
        where = f"input {i} of the batch" + (f" ({item['file_name']})" if "file_name" in item else "")
        size_hw = tuple(item["image"].shape[-2:])
        if tuple(labels.shape) != size_hw:
            raise ValueError(
                f"the label map of {where} has shape {tuple(labels.shape)}, its image (height, width) {size_hw}"
            )
        if labels.is_floating_point():
            raise TypeError(f"the label map of {where} has type {labels.dtype}, expected integers")
        # Elsewhere than on the CPU the question would wait for the device.
        if num_classes is not None and labels.device.type == "cpu":
            _check_labels(labels, num_classes, ignore_value, where)
        maps.append(labels.to(device, non_blocking=device.type != "cpu").long())
    return ImageList.from_tensors(maps, size_divisibility, ignore_value, padding_constraints).tensor


def _check_labels(labels: torch.Tensor, num_classes: int, ignore_value: int, where: str) -> None:
    """Raise on labels outside the classes, which on an accelerator would end in an assertion without a message."""
    values = labels.numpy()
    # Negative labels are huge when read without sign: one comparison instead of two.
    unsigned = values.view(f"u{values.itemsize}")
    fine = np.count_nonzero(unsigned < num_classes)
    if not 0 <= ignore_value < num_classes:
        fine += np.count_nonzero(values == ignore_value)
    if fine == values.size:
        return
    wrong = values[(unsigned >= num_classes) & (values != ignore_value)]
    raise ValueError(
        f"the label map of {where} has the label {int(wrong[0])} ({wrong.size} pixels have a label outside "
        f"the classes); expected 0 to {num_classes - 1} (MODEL.SEM_SEG_HEAD.NUM_CLASSES is {num_classes}), or "
        f"{ignore_value} for pixels without a label (MODEL.SEM_SEG_HEAD.IGNORE_VALUE)"
    )


# Entries are called as `head(cfg, input_shape)`, where `input_shape` is the backbone's `output_shape()`; the head is
# called as `head(features, targets)` and returns `(logits or None, losses)`.
SEM_SEG_HEADS_REGISTRY = PartRegistry("SEM_SEG_HEADS")


def build_sem_seg_head(cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> nn.Module:
    """The semantic head that `cfg.MODEL.SEM_SEG_HEAD.NAME` names, for a backbone of shape `input_shape`."""
    return build_part(SEM_SEG_HEADS_REGISTRY, "MODEL.SEM_SEG_HEAD.NAME", cfg, input_shape=input_shape)


def semantic_loss(logits: torch.Tensor, targets: torch.Tensor, ignore_value: int) -> torch.Tensor:
    """Mean cross entropy of logits `Tensor[N, K, H, W]` over the pixels of `targets` with a label, 0 if none has."""
    total = F.cross_entropy(logits, targets, ignore_index=ignore_value, reduction="sum")
    return total / (targets != ignore_value).sum().clamp(min=1)


@META_ARCH_REGISTRY.register()
class SemanticSegmentor(DetectorBase):
    """Any model for semantic segmentation of two parts: features of the image, and a head that classifies pixels.

    Args:
        backbone: image to feature maps.
        sem_seg_head: feature maps to scores at the size of the padded input, and in training losses; see
            `SemSegFPNHead` for its interface. Its attribute `ignore_value` is the label of pixels that do not count;
            with an attribute `num_classes` labels are checked.
        pixel_mean: one value for each channel, subtracted from the image.
        pixel_std: one value for each channel, by which the image is divided.
    """

    sem_seg_head: Any  # of the interface of SemSegFPNHead

    @configurable
    def __init__(
        self, *, backbone: Backbone, sem_seg_head: nn.Module, pixel_mean: Sequence[float], pixel_std: Sequence[float]
    ):
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self._set_normalization(pixel_mean, pixel_std)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Losses in training mode, scores otherwise.

        Args:
            batched_inputs: one dictionary for each image with "image", `Tensor[C, H_i, W_i]`; in training "sem_seg",
                integer `Tensor[H_i, W_i]` of class indices; in inference optionally "height" and "width", the size of
                the result in pixels.

        Returns:
            In training the losses by name; in inference for each image `{"sem_seg": Tensor[K, height, width]}`, the
            unnormalised scores.
        """
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        targets = None
        # Custom heads may train without label maps; ours says so when it misses them.
        if self.training and "sem_seg" in batched_inputs[0]:
            targets = sem_seg_targets(self, batched_inputs)
        results, losses = self.sem_seg_head(features, targets)
        if self.training:
            return losses
        return [
            {"sem_seg": sem_seg_postprocess(result, size, item.get("height", size[0]), item.get("width", size[1]))}
            for result, item, size in zip(results, batched_inputs, images.image_sizes, strict=True)
        ]

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Arguments of the constructor from the config."""
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }


def sem_seg_targets(model: Any, batched_inputs: list[dict[str, Any]]) -> torch.Tensor:
    """Label maps of a batch, int64 `Tensor[N, H, W]`, padded as the model's backbone asks and its head can ignore."""
    return padded_label_maps(
        batched_inputs,
        model.device,
        ignore_value=model.sem_seg_head.ignore_value,
        num_classes=getattr(model.sem_seg_head, "num_classes", None),
        size_divisibility=model.backbone.size_divisibility,
        padding_constraints=model.backbone.padding_constraints,
    )


@SEM_SEG_HEADS_REGISTRY.register()
class SemSegFPNHead(nn.Module):
    """Head of the semantic branch of Panoptic FPN (https://arxiv.org/abs/1901.02446, section 3 and figure 3).

    Every feature map goes through 3x3 convolutions, each followed by doubling its size, until it has the common
    stride; the maps are added, and a 1x1 convolution classifies each cell.

    Args:
        input_shape: stride and channels of each feature map.
        num_classes: K.
        conv_dims: channels of the convolutions.
        common_stride: stride at which the maps are added, in pixels of the input; a power of two.
        loss_weight: factor of the loss.
        norm: normalisation after each convolution, as `detectron2.layers.get_norm` takes it.
        ignore_value: label of pixels without a loss.
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        num_classes: int,
        conv_dims: int,
        common_stride: int,
        loss_weight: float = 1.0,
        norm: str | Callable[[int], nn.Module] | None = None,
        ignore_value: int = -1,
    ):
        super().__init__()
        if not input_shape:
            raise ValueError("SemSegFPNHead needs at least one feature map (MODEL.SEM_SEG_HEAD.IN_FEATURES)")
        strides: dict[str, Any] = {name: shape.stride for name, shape in input_shape.items()}
        self.in_features = sorted(strides, key=lambda name: strides[name])
        self.num_classes = num_classes
        self.common_stride = common_stride
        self.loss_weight = loss_weight
        self.ignore_value = ignore_value

        self.scale_heads = []
        for name in self.in_features:
            ratio, rest = divmod(strides[name], common_stride)
            if rest or ratio < 1 or ratio & (ratio - 1):
                raise ValueError(
                    f"the feature map {name!r} has stride {strides[name]}, which is not common_stride {common_stride} "
                    "(MODEL.SEM_SEG_HEAD.COMMON_STRIDE) times a power of two"
                )
            head = _scale_head(input_shape[name].channels, conv_dims, ratio.bit_length() - 1, norm)
            self.scale_heads.append(head)
            self.add_module(name, head)
        self.predictor = Conv2d(conv_dims, num_classes, kernel_size=1)
        c2_msra_fill(self.predictor)

    def forward(
        self, features: Mapping[str, torch.Tensor], targets: torch.Tensor | None = None
    ) -> tuple[torch.Tensor | None, dict[str, torch.Tensor]]:
        """Classify pixels, or in training compute the loss.

        Args:
            features: feature maps by name, `Tensor[N, C, H / stride, W / stride]`.
            targets: in training int64 `Tensor[N, H, W]`.

        Returns:
            In training None and the losses; in inference scores `Tensor[N, K, H, W]` and an empty dictionary.
        """
        logits = self.layers(features)
        if not self.training:
            scores = F.interpolate(logits, scale_factor=self.common_stride, mode="bilinear", align_corners=False)
            return scores, {}
        if targets is None:
            raise KeyError(
                "SemSegFPNHead got no targets in training: every input needs 'sem_seg', a label map of (height, width)"
            )
        return None, self.losses(logits, targets)

    def layers(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Scores at the common stride, `Tensor[N, K, H / common_stride, W / common_stride]`."""
        first, *rest = self.in_features
        x = getattr(self, first)(features[first])
        for name in rest:
            x = x + getattr(self, name)(features[name])
        return self.predictor(x)

    def losses(self, predictions: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        """Cross entropy of what `layers` returns, at the size of `targets`, int64 `Tensor[N, H, W]`."""
        logits = F.interpolate(
            predictions.float(), scale_factor=self.common_stride, mode="bilinear", align_corners=False
        )  # in half precision the sum over all pixels would lose most of its digits
        return {"loss_sem_seg": semantic_loss(logits, targets, self.ignore_value) * self.loss_weight}

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        """Arguments of the constructor from `cfg.MODEL.SEM_SEG_HEAD`."""
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": {name: shape for name, shape in input_shape.items() if name in head.IN_FEATURES},
            "num_classes": head.NUM_CLASSES,
            "conv_dims": head.CONVS_DIM,
            "common_stride": head.COMMON_STRIDE,
            "loss_weight": head.LOSS_WEIGHT,
            "norm": head.NORM,
            "ignore_value": head.IGNORE_VALUE,
        }


def _scale_head(
    in_channels: Any, channels: int, doublings: int, norm: str | Callable[[int], nn.Module] | None
) -> nn.Sequential:
    """A convolution before each doubling, and at least one."""
    layers: list[nn.Module] = []
    for _ in range(max(1, doublings)):
        conv = conv_norm(in_channels, channels, 3, norm, activation=F.relu)
        c2_msra_fill(conv)
        layers.append(conv)
        if doublings:
            layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
        in_channels = channels
    return nn.Sequential(*layers)
