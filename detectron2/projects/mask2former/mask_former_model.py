"""The architecture of Mask2Former.

Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", https://arxiv.org/abs/2112.01527.

Letters: `N` images, `Q` queries, `K` classes, `M` objects of an image, `D` detections, `H` and `W` height and width in
pixels of the network's padded input.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from detectron2.config import CfgNode, configurable
from detectron2.data import Metadata, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone, build_sem_seg_head
from detectron2.modeling.meta_arch.inputs import DetectorBase, normalized_batch
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import BitMasks, ImageList, Instances, PolygonMasks

from .criterion import SetCriterion, loss_weights
from .matcher import HungarianMatcher
from .post_processing import instances_of_queries, panoptic_of_queries, semantic_of_queries
from .published_weights import LAYOUTS, convert_published_weights

__all__ = ["MaskFormer"]


@META_ARCH_REGISTRY.register()
class MaskFormer(DetectorBase):
    """Semantic, instance and panoptic segmentation as the prediction of a set of masks with classes.

    Args:
        backbone: image to feature maps.
        sem_seg_head: feature maps to classes and masks of queries, see `MaskFormerHead`.
        criterion: the loss, see `SetCriterion`.
        num_queries: Q.
        object_mask_threshold: see `panoptic_of_queries`.
        overlap_threshold: see `panoptic_of_queries`.
        metadata: of the data set: `thing_dataset_id_to_contiguous_id`, whose values are the classes of things; needed
            for panoptic results.
        size_divisibility: images are padded to a multiple of this; if negative, as the backbone asks.
        sem_seg_postprocess_before_inference: whether masks are brought to the size of the result before they are put
            together. If false, semantic scores are, which takes less time where classes are fewer than queries.
            Instances and panoptic segments are made of masks of that size in any case.
        pixel_mean: one value for each channel, subtracted from the image.
        pixel_std: one value for each channel, by which the image is divided.
        semantic_on: whether results have "sem_seg".
        panoptic_on: whether results have "panoptic_seg".
        instance_on: whether results have "instances".
        test_topk_per_image: how many instances an image has at most.
    """

    sem_seg_head: Any
    known_programs: ClassVar = tuple(layout.program for layout in LAYOUTS)

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        criterion: nn.Module,
        num_queries: int,
        object_mask_threshold: float,
        overlap_threshold: float,
        metadata: Metadata,
        size_divisibility: int,
        sem_seg_postprocess_before_inference: bool,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        semantic_on: bool,
        panoptic_on: bool,
        instance_on: bool,
        test_topk_per_image: int,
    ):
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        self.num_queries = num_queries
        self.object_mask_threshold = object_mask_threshold
        self.overlap_threshold = overlap_threshold
        self.metadata = metadata
        self.size_divisibility = size_divisibility if size_divisibility >= 0 else backbone.size_divisibility
        self.sem_seg_postprocess_before_inference = sem_seg_postprocess_before_inference or panoptic_on or instance_on
        self.semantic_on = semantic_on
        self.panoptic_on = panoptic_on
        self.instance_on = instance_on
        self.test_topk_per_image = test_topk_per_image
        self._set_normalization(pixel_mean, pixel_std)

    def convert_weights(self, weights: dict[str, Any]) -> dict[str, Any]:
        """Rename weights of a file, which `DetectionCheckpointer` is about to load; see `published_weights`."""
        return convert_published_weights(weights)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Losses in training mode, segmentations otherwise.

        Args:
            batched_inputs: one dictionary for each image with "image", `Tensor[C, H_i, W_i]`; in training "instances"
                with `gt_classes` and `gt_masks` (`BitMasks`, `PolygonMasks` or a tensor `[M, H_i, W_i]`): objects, for
                semantic segmentation one for each class in the image; in inference optionally "height" and "width",
                the size of the results in pixels.

        Returns:
            In training the weighted losses by name. In inference for each image a dictionary with what is asked for:

            * "sem_seg": `Tensor[K, height, width]`, see `semantic_of_queries`;
            * "panoptic_seg": a map and its segments, see `panoptic_of_queries`;
            * "instances": see `instances_of_queries`.
        """
        images = self.preprocess_image(batched_inputs)
        outputs = self.sem_seg_head(self.backbone(images.tensor))
        if self.training:
            losses = self.criterion(outputs, self.prepare_targets(self._targets(batched_inputs), images))
            weights: Any = self.criterion.weight_dict
            return {name: loss * weights[name] for name, loss in losses.items() if name in weights}
        return [
            self._result(
                outputs["pred_logits"][i].float(),
                F.interpolate(
                    outputs["pred_masks"][i : i + 1].float(),
                    size=images.tensor.shape[-2:],
                    mode="bilinear",
                    align_corners=False,
                )[0],
                hw,
                (item.get("height", hw[0]), item.get("width", hw[1])),
            )
            for i, (item, hw) in enumerate(zip(batched_inputs, images.image_sizes, strict=True))
        ]

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Move the images to the model's device, normalise, pad and batch them."""
        padding: dict[str, Any] = {"pad_to": self.pad_to} if self.training and self.pad_to else {}
        padding["size_divisibility"] = self.size_divisibility
        return normalized_batch(batched_inputs, self.pixel_mean, self.pixel_std, **padding)

    def prepare_targets(self, targets: Sequence[Instances], images: ImageList) -> list[dict[str, torch.Tensor]]:
        """Classes `labels`, int64 `Tensor[M]`, and `masks`, bool `Tensor[M, H, W]`, of the objects of each image."""
        height, width = images.tensor.shape[-2:]
        prepared = []
        for target, size in zip(targets, images.image_sizes, strict=True):
            if not len(target):
                masks = torch.zeros(0, height, width, dtype=torch.bool, device=self.device)
                prepared.append({"labels": torch.zeros(0, dtype=torch.int64, device=self.device), "masks": masks})
                continue
            if not target.has("gt_masks"):
                raise ValueError(
                    "'instances' of the batch have no gt_masks, which Mask2Former learns from: use a data set with "
                    "masks, and a mapper that reads them (INPUT.DATASET_MAPPER_NAME)"
                )
            masks = target.gt_masks
            if isinstance(masks, PolygonMasks):
                masks = BitMasks.from_polygon_masks(masks, *size)
            masks = masks.tensor if isinstance(masks, BitMasks) else masks
            masks = masks.to(self.device, torch.bool)
            masks = F.pad(masks, (0, width - masks.shape[2], 0, height - masks.shape[1]))
            prepared.append({"labels": target.gt_classes, "masks": masks})
        return prepared

    def _result(
        self, logits: torch.Tensor, masks: torch.Tensor, size_hw: tuple[int, int], wanted_hw: tuple[int, int]
    ) -> dict[str, Any]:
        """The result of one image from its logits of classes, and of masks `Tensor[Q, H, W]`."""
        result: dict[str, Any] = {}
        if self.sem_seg_postprocess_before_inference:
            masks = sem_seg_postprocess(masks, size_hw, *wanted_hw)
        if self.semantic_on:
            scores = self.semantic_inference(logits, masks)
            if not self.sem_seg_postprocess_before_inference:
                scores = sem_seg_postprocess(scores, size_hw, *wanted_hw)
            result["sem_seg"] = scores
        if self.panoptic_on:
            result["panoptic_seg"] = self.panoptic_inference(logits, masks)
        if self.instance_on:
            result["instances"] = self.instance_inference(logits, masks)
        return result

    def semantic_inference(self, mask_cls: torch.Tensor, mask_pred: torch.Tensor) -> torch.Tensor:
        """See `semantic_of_queries`."""
        return semantic_of_queries(mask_cls, mask_pred)

    def panoptic_inference(
        self, mask_cls: torch.Tensor, mask_pred: torch.Tensor
    ) -> tuple[torch.Tensor, list[dict[str, Any]]]:
        """See `panoptic_of_queries`."""
        return panoptic_of_queries(
            mask_cls, mask_pred, self._thing_classes(), self.object_mask_threshold, self.overlap_threshold
        )

    def instance_inference(self, mask_cls: torch.Tensor, mask_pred: torch.Tensor) -> Instances:
        """See `instances_of_queries`; of a panoptic model things alone."""
        things = self._thing_classes() if self.panoptic_on else None
        return instances_of_queries(mask_cls, mask_pred, self.test_topk_per_image, things)

    def _thing_classes(self) -> set[int]:
        things = self.metadata.get("thing_dataset_id_to_contiguous_id")
        if things is None:
            raise ValueError(
                f"the metadata of {self.metadata.get('name')!r}, the first of DATASETS.TRAIN, do not say which classes "
                "are things: register that data set, or set thing_dataset_id_to_contiguous_id in its metadata"
            )
        return set(things.values())

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments of the constructor from the config."""
        backbone = build_backbone(cfg)
        head: Any = build_sem_seg_head(cfg, backbone.output_shape())
        model = cfg.MODEL.MASK_FORMER
        weights = {"ce": model.CLASS_WEIGHT, "mask": model.MASK_WEIGHT, "dice": model.DICE_WEIGHT}
        criterion = SetCriterion(
            head.num_classes,
            HungarianMatcher(*(weights[name] for name in ("ce", "mask", "dice")), num_points=model.TRAIN_NUM_POINTS),
            loss_weights(**weights, num_inner=model.DEC_LAYERS - 1 if model.DEEP_SUPERVISION else 0),
            eos_coef=model.NO_OBJECT_WEIGHT,
            num_points=model.TRAIN_NUM_POINTS,
            oversample_ratio=model.OVERSAMPLE_RATIO,
            importance_sample_ratio=model.IMPORTANCE_SAMPLE_RATIO,
        )
        return {
            "backbone": backbone,
            "sem_seg_head": head,
            "criterion": criterion,
            "num_queries": model.NUM_OBJECT_QUERIES,
            "object_mask_threshold": model.TEST.OBJECT_MASK_THRESHOLD,
            "overlap_threshold": model.TEST.OVERLAP_THRESHOLD,
            # A config made for inference may name no training data.
            "metadata": MetadataCatalog.get(cfg.DATASETS.TRAIN[0]) if cfg.DATASETS.TRAIN else Metadata(),
            "size_divisibility": model.SIZE_DIVISIBILITY,
            "sem_seg_postprocess_before_inference": model.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "semantic_on": model.TEST.SEMANTIC_ON,
            "panoptic_on": model.TEST.PANOPTIC_ON,
            "instance_on": model.TEST.INSTANCE_ON,
            "test_topk_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        }
