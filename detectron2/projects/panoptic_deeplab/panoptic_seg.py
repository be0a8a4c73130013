"""The architecture of Panoptic-DeepLab.

Letters: `N` images, `K` classes of things and stuff, `C` channels, `H` and `W` height and width in pixels of the
network's padded input, `s` the common stride of a head in pixels. Offsets are `(y, x)` in pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from detectron2.config import CfgNode, configurable
from detectron2.data import Metadata, MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY, Backbone, build_backbone, build_sem_seg_head
from detectron2.modeling.meta_arch.inputs import DetectorBase, normalized_batch
from detectron2.modeling.meta_arch.semantic_seg import padded_label_maps
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.projects.deeplab import DeepLabV3PlusHead
from detectron2.projects.deeplab.head_parts import branch, build_loss, predictor, train_crop_hw
from detectron2.structures import ImageList
from detectron2.utils.registry import Registry, build_part

from .post_processing import get_panoptic_segmentation, instances_of_panoptic

__all__ = [
    "INS_EMBED_BRANCHES_REGISTRY",
    "PanopticDeepLab",
    "PanopticDeepLabInsEmbedHead",
    "PanopticDeepLabSemSegHead",
    "build_ins_embed_branch",
]


# Entries are called as `head(cfg, input_shape)`, where `input_shape` is the backbone's `output_shape()`; see
# PanopticDeepLabInsEmbedHead for how the head is called.
INS_EMBED_BRANCHES_REGISTRY = Registry("INS_EMBED_BRANCHES")


def build_ins_embed_branch(cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> nn.Module:
    """The head that `cfg.MODEL.INS_EMBED_HEAD.NAME` names, for a backbone of shape `input_shape`."""
    return build_part(INS_EMBED_BRANCHES_REGISTRY, "MODEL.INS_EMBED_HEAD.NAME", cfg, input_shape=input_shape)


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
        **kwargs: further arguments of `DeepLabV3PlusHead`.
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
        **kwargs: further arguments of `DeepLabV3PlusHead`.
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
        """Predict centres and offsets from feature maps by name, or in training compute their losses.

        In training the targets of the offsets are `Tensor[N, 2, H, W]`, all others `Tensor[N, H, W]` or
        `[N, 1, H, W]`; the result is twice None, the losses of the centres and those of the offsets. In inference it
        is the heatmap `Tensor[N, 1, H, W]`, the offsets `Tensor[N, 2, H, W]` in pixels of the input, and two empty
        dictionaries.
        """
        center, offset = self.layers(features)
        if not self.training:
            return self._upsampled(center.float()), self._upsampled(offset.float()) * self.common_stride, {}, {}
        if center_targets is None or center_weights is None or offset_targets is None or offset_weights is None:
            raise ValueError("training PanopticDeepLabInsEmbedHead needs targets and weights of centres and offsets")
        center_losses = self.center_losses(center, center_targets, center_weights)
        return None, None, center_losses, self.offset_losses(offset, offset_targets, offset_weights)

    def layers(self, features: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]  # two results where the base has one
        """Heatmap `Tensor[N, 1, H / s, W / s]` and offsets `Tensor[N, 2, H / s, W / s]` in cells of that grid."""
        x = self.decode(features)
        return self.center_predictor(self.center_head(x)), self.offset_predictor(self.offset_head(x))

    def center_losses(
        self, predictions: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """`{"loss_center": scalar}`, the weighted mean squared error of the heatmap; 0 when no pixel has a weight.

        `predictions` are those of `layers`; targets and weights as in `forward`.
        """
        predicted = self._upsampled(predictions.float(), targets.shape[-2:])[:, 0]
        error = (predicted - _without_channel(targets)).square()
        return {"loss_center": _weighted_mean(error, _without_channel(weights)) * self.center_loss_weight}

    def offset_losses(
        self, predictions: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """`{"loss_offset": scalar}`, the weighted mean over pixels of the L1 distance; 0 when no pixel has a weight.

        `predictions` are those of `layers`, in cells of their grid; targets, in pixels, and weights as in `forward`.
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


@META_ARCH_REGISTRY.register()
class PanopticDeepLab(DetectorBase):
    """Panoptic segmentation without boxes (https://arxiv.org/abs/1911.10194).

    Args:
        backbone: image to feature maps.
        sem_seg_head: feature maps to class scores, see `PanopticDeepLabSemSegHead`.
        ins_embed_head: feature maps to centres and offsets, see `PanopticDeepLabInsEmbedHead`.
        metadata: of the data set: `thing_dataset_id_to_contiguous_id`, whose values are the labels of things, and
            `label_divisor`, the factor between a label and the ids of its segments.
        pixel_mean: one value for each channel, subtracted from the image.
        pixel_std: one value for each channel, by which the image is divided.
        stuff_area: stuff of fewer pixels is dropped.
        threshold: centres have a higher value in the heatmap.
        nms_kernel: side in pixels, odd, of the square in which a centre is the highest value.
        top_k: number of centres to use at most.
        predict_instances: also return "instances".
        size_divisibility: images are padded to a multiple of this; if not positive, as the backbone asks.
        benchmark_network_speed: return nothing in inference, to time the network without what follows.
    """

    sem_seg_head: Any
    ins_embed_head: Any

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        ins_embed_head: nn.Module,
        metadata: Metadata,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        stuff_area: int = 2048,
        threshold: float = 0.1,
        nms_kernel: int = 7,
        top_k: int = 200,
        predict_instances: bool = True,
        size_divisibility: int = -1,
        benchmark_network_speed: bool = False,
    ):
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.ins_embed_head = ins_embed_head
        self.meta = metadata
        self.stuff_area = stuff_area
        self.threshold = threshold
        self.nms_kernel = nms_kernel
        self.top_k = top_k
        self.predict_instances = predict_instances
        self.size_divisibility = size_divisibility
        self.benchmark_network_speed = benchmark_network_speed
        self._set_normalization(pixel_mean, pixel_std)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Losses in training mode, segmentations otherwise.

        Args:
            batched_inputs: one dictionary for each image with "image", `Tensor[C, H_i, W_i]`; in training what
                `PanopticDeepLabTargetGenerator` makes, of which the weight of pixels may be missing; in
                inference optionally "height" and "width", the size of the results in pixels.

        Returns:
            In training the losses by name. In inference for each image a dictionary with

            * "sem_seg": `Tensor[K, height, width]`, unnormalised scores;
            * "panoptic_seg": `(segments, None)`, where segments is an int64 `Tensor[height, width]` of
              `label * label_divisor + number`, number 0 for stuff and 1, 2 … for the things of a label; -1 for none;
            * "instances" (if asked for): `Instances` with `pred_classes`, `pred_masks`, `pred_boxes` and `scores`.
        """
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        if self.training:
            return self._losses(features, batched_inputs)
        scores, _ = self.sem_seg_head(features)
        centers, offsets, _, _ = self.ins_embed_head(features)
        if self.benchmark_network_speed:
            return []
        return [
            self._segment(scores[i], centers[i], offsets[i], hw, item.get("height", hw[0]), item.get("width", hw[1]))
            for i, (hw, item) in enumerate(zip(images.image_sizes, batched_inputs, strict=True))
        ]

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Move the images to the model's device, normalise, pad and batch them."""
        return normalized_batch(batched_inputs, self.pixel_mean, self.pixel_std, **self._padding())

    def _padding(self) -> dict[str, Any]:
        if self.size_divisibility > 0:
            return {"size_divisibility": self.size_divisibility}
        return {
            "size_divisibility": self.backbone.size_divisibility,
            "padding_constraints": self.backbone.padding_constraints,
        }

    def _losses(
        self, features: Mapping[str, torch.Tensor], batched_inputs: list[dict[str, Any]]
    ) -> dict[str, torch.Tensor]:
        padding = self._padding()
        labels = padded_label_maps(
            batched_inputs,
            self.device,
            ignore_value=self.sem_seg_head.ignore_value,
            num_classes=getattr(self.sem_seg_head, "num_classes", None),
            **padding,
        )
        weights = None
        if "sem_seg_weights" in batched_inputs[0]:  # other mappers than ours need not know of them
            weights = self._padded("sem_seg_weights", batched_inputs, padding)
        maps = [
            self._padded(name, batched_inputs, padding)
            for name in ("center", "center_weights", "offset", "offset_weights")
        ]
        _, semantic_losses = self.sem_seg_head(features, labels, weights)
        _, _, center_losses, offset_losses = self.ins_embed_head(features, *maps)
        return {**semantic_losses, **center_losses, **offset_losses}

    def _padded(self, name: str, batched_inputs: list[dict[str, Any]], padding: dict[str, Any]) -> torch.Tensor:
        """The entry `name` of all inputs as one tensor, padded with 0 to the size of the images."""
        for i, item in enumerate(batched_inputs):
            if name not in item:
                raise KeyError(
                    f"input {i} of the batch has no {name!r}, only {sorted(item)}: train with "
                    "PanopticDeeplabDatasetMapper; for inference call model.eval()"
                )
        to_device = {"device": self.device, "non_blocking": self.device.type != "cpu"}
        return ImageList.from_tensors([item[name].to(**to_device) for item in batched_inputs], **padding).tensor

    def _segment(
        self,
        scores: torch.Tensor,
        center: torch.Tensor,
        offset: torch.Tensor,
        size_hw: tuple[int, int],
        height: int,
        width: int,
    ) -> dict[str, Any]:
        """Bring the three predictions for an image to the size of the output, and join them there."""
        scores, center, offset = (sem_seg_postprocess(x, size_hw, height, width) for x in (scores, center, offset))
        # Offsets are distances in the image, and are resized with it. In a traced graph these sizes are tensors.
        ratios = (torch.as_tensor(x, dtype=torch.float64) for x in (height / size_hw[0], width / size_hw[1]))
        offset = offset * torch.stack(list(ratios)).to(offset.dtype).to(offset.device)[:, None, None]
        thing_ids = list(self.meta.thing_dataset_id_to_contiguous_id.values())
        panoptic, _ = get_panoptic_segmentation(
            scores.argmax(dim=0, keepdim=True),
            center,
            offset,
            thing_ids,
            self.meta.label_divisor,
            self.stuff_area,
            void_label=-1,
            threshold=self.threshold,
            nms_kernel=self.nms_kernel,
            top_k=self.top_k,
        )
        result: dict[str, Any] = {"sem_seg": scores, "panoptic_seg": (panoptic[0], None)}
        if self.predict_instances:
            divisor = self.meta.label_divisor
            result["instances"] = instances_of_panoptic(panoptic[0], scores, center[0], thing_ids, divisor)
        return result

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Arguments of the constructor from the config."""
        if not cfg.DATASETS.TRAIN:
            raise ValueError("DATASETS.TRAIN is empty: its metadata tells PanopticDeepLab which labels are things")
        backbone = build_backbone(cfg)
        model = cfg.MODEL.PANOPTIC_DEEPLAB
        if model.USE_DEPTHWISE_SEPARABLE_CONV != cfg.MODEL.SEM_SEG_HEAD.USE_DEPTHWISE_SEPARABLE_CONV:
            raise ValueError(
                "MODEL.PANOPTIC_DEEPLAB.USE_DEPTHWISE_SEPARABLE_CONV, for the head of instances, and "
                "MODEL.SEM_SEG_HEAD.USE_DEPTHWISE_SEPARABLE_CONV must be the same"
            )
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "ins_embed_head": build_ins_embed_branch(cfg, backbone.output_shape()),
            "metadata": MetadataCatalog.get(cfg.DATASETS.TRAIN[0]),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "stuff_area": model.STUFF_AREA,
            "threshold": model.CENTER_THRESHOLD,
            "nms_kernel": model.NMS_KERNEL,
            "top_k": model.TOP_K_INSTANCE,
            "predict_instances": model.PREDICT_INSTANCES,
            "size_divisibility": model.SIZE_DIVISIBILITY,
            "benchmark_network_speed": model.BENCHMARK_NETWORK_SPEED,
        }
