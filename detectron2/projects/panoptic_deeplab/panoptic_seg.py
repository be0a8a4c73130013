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
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone, build_sem_seg_head
from detectron2.modeling.meta_arch._inputs import normalized_batch
from detectron2.modeling.meta_arch._semantic_targets import padded_label_maps
from detectron2.modeling.meta_arch.rcnn import _DetectorBase
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import ImageList

from ._heads import (
    INS_EMBED_BRANCHES_REGISTRY,
    PanopticDeepLabInsEmbedHead,
    PanopticDeepLabSemSegHead,
    build_ins_embed_branch,
)
from ._instances import instances_of_panoptic
from .post_processing import get_panoptic_segmentation

__all__ = [
    "INS_EMBED_BRANCHES_REGISTRY",
    "PanopticDeepLab",
    "PanopticDeepLabInsEmbedHead",
    "PanopticDeepLabSemSegHead",
    "build_ins_embed_branch",
]


@META_ARCH_REGISTRY.register()
class PanopticDeepLab(_DetectorBase):
    """Panoptic segmentation without boxes (https://arxiv.org/abs/1911.10194).

    Args:
        backbone: image to feature maps.
        sem_seg_head: feature maps to class scores, see :class:`PanopticDeepLabSemSegHead`.
        ins_embed_head: feature maps to centres and offsets, see :class:`PanopticDeepLabInsEmbedHead`.
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
                :class:`PanopticDeepLabTargetGenerator` makes, of which the weight of pixels may be missing; in
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
        # Offsets are distances in the image, and are resized with it.
        offset = offset * offset.new_tensor([height / size_hw[0], width / size_hw[1]])[:, None, None]
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
