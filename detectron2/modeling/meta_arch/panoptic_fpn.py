"""Panoptic FPN: Mask R-CNN and a semantic head on the same features.

`N` images, `K` classes of stuff, `C` channels, `H` and `W` height and width in pixels.
"""

import logging
from typing import Any

import torch
from torch import nn

from detectron2.config import CfgNode, configurable
from detectron2.modeling.postprocessing import (
    MaskFormat,
    detector_postprocess,
    paste_predicted_masks,
    sem_seg_postprocess,
)
from detectron2.structures import ImageList, Instances

from ._panoptic_merge import combine_semantic_and_instance_outputs
from .build import META_ARCH_REGISTRY
from .rcnn import GeneralizedRCNN
from .semantic_seg import build_sem_seg_head, sem_seg_targets

__all__ = ["PanopticFPN", "combine_semantic_and_instance_outputs"]

logger = logging.getLogger(__name__)


@META_ARCH_REGISTRY.register()
class PanopticFPN(GeneralizedRCNN):
    """Panoptic Feature Pyramid Networks (Kirillov et al., https://arxiv.org/abs/1901.02446).

    Args:
        sem_seg_head: classifies pixels, with the interface of `SemSegFPNHead`; its class 0 stands for all things.
        combine_overlap_thresh: an instance is dropped when more than this share of it is covered by better ones.
        combine_stuff_area_thresh: stuff regions of fewer pixels are dropped.
        combine_instances_score_thresh: instances with a lower score take no part in the panoptic result.
        **kwargs: arguments of `GeneralizedRCNN`.
    """

    sem_seg_head: Any  # of the interface of SemSegFPNHead
    mask_format: MaskFormat = "full"  # once more: all methods here that post-process know it

    @configurable
    def __init__(
        self,
        *,
        sem_seg_head: nn.Module,
        combine_overlap_thresh: float = 0.5,
        combine_stuff_area_thresh: float = 4096,
        combine_instances_score_thresh: float = 0.5,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.sem_seg_head = sem_seg_head
        self.combine_overlap_thresh = combine_overlap_thresh
        self.combine_stuff_area_thresh = combine_stuff_area_thresh
        self.combine_instances_score_thresh = combine_instances_score_thresh

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Losses in training mode, results otherwise.

        Args:
            batched_inputs: as in `GeneralizedRCNN.forward`; in training also "sem_seg", integer `Tensor[H_i, W_i]`
                with 0 for things, 1, 2 ... for stuff, and the head's `ignore_value`.

        Returns:
            In training the losses by name; in inference for each image a dictionary with "instances" as in
            `GeneralizedRCNN.forward`, "sem_seg" as in `SemanticSegmentor.forward`, and "panoptic_seg" as
            `combine_semantic_and_instance_outputs` returns it.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        labels = sem_seg_targets(self, batched_inputs)
        instances = self._targets(batched_inputs)
        features = self.backbone(images.tensor)
        _, semantic_losses = self.sem_seg_head(features, labels)
        proposals, proposal_losses = self._propose(images, features, batched_inputs, instances)
        _, detector_losses = self.roi_heads(images, features, proposals, instances)
        return {**semantic_losses, **proposal_losses, **detector_losses}

    def inference(self, batched_inputs: list[dict[str, Any]], do_postprocess: bool = True) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  # the documented signature
        """Run the model in inference mode.

        Args:
            batched_inputs: as in `forward`.
            do_postprocess: bring the results to the size that the inputs ask for, and merge them.

        Returns:
            As `forward`; without postprocessing a list of raw `Instances` at the size of the model's input, and
            semantic scores `Tensor[N, K, H, W]` at the size of the padded input.
        """
        if self.training:
            raise ValueError("inference() was called in training mode; call model.eval() first")
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        scores, _ = self.sem_seg_head(features, None)
        proposals, _ = self._propose(images, features, batched_inputs)
        detections, _ = self.roi_heads(images, features, proposals, None)
        return self._merge(detections, scores, batched_inputs, images) if do_postprocess else (detections, scores)

    def _merge(
        self,
        detections: list[Instances],
        scores: torch.Tensor,
        batched_inputs: list[dict[str, Any]],
        images: ImageList,
    ) -> list[dict[str, Any]]:
        """Results of each image at the size that its input asks for."""
        outputs = []
        for i, (item, size) in enumerate(zip(batched_inputs, images.image_sizes, strict=True)):
            height, width = item.get("height", size[0]), item.get("width", size[1])
            semantic = sem_seg_postprocess(scores[i], size, height, width)
            outputs.append(self._merge_image(detections[i], semantic, self.mask_format))
        return outputs

    def _merge_image(self, detections: Instances, semantic: torch.Tensor, mask_format: MaskFormat) -> dict[str, Any]:
        """Results of one image.

        Args:
            detections: raw detections.
            semantic: scores, `Tensor[K, H, W]`, at the size of the results.
            mask_format: as `detector_postprocess` takes it.

        Returns:
            "sem_seg", "instances" and "panoptic_seg".
        """
        height, width = semantic.shape[1:]
        if mask_format == "full":
            instances = detector_postprocess(detections, height, width)
        else:  # the merge pastes one mask at a time
            instances = detector_postprocess(detections, height, width, mask_format="roi")
        panoptic = combine_semantic_and_instance_outputs(
            instances,
            semantic.argmax(dim=0),
            self.combine_overlap_thresh,
            self.combine_stuff_area_thresh,
            self.combine_instances_score_thresh,
        )
        instances = paste_predicted_masks(instances, mask_format)
        return {"sem_seg": semantic, "instances": instances, "panoptic_seg": panoptic}

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Arguments of the constructor from the config."""
        options = cfg.MODEL.PANOPTIC_FPN
        if not options.COMBINE.ENABLED:
            logger.warning(
                "MODEL.PANOPTIC_FPN.COMBINE.ENABLED has no effect; for results without merging call "
                "model.inference(inputs, do_postprocess=False)"
            )
        arguments = super().from_config(cfg)
        _scale_loss_weights(arguments["roi_heads"], options.INSTANCE_LOSS_WEIGHT)
        return {
            **arguments,
            "sem_seg_head": build_sem_seg_head(cfg, arguments["backbone"].output_shape()),
            "combine_overlap_thresh": options.COMBINE.OVERLAP_THRESH,
            "combine_stuff_area_thresh": options.COMBINE.STUFF_AREA_LIMIT,
            "combine_instances_score_thresh": options.COMBINE.INSTANCES_CONFIDENCE_THRESH,
        }


def _scale_loss_weights(roi_heads: nn.Module, factor: float) -> None:
    """Multiply the weights of all losses of ROI heads, in place."""
    if factor == 1.0:
        return
    heads: list[Any] = [module for module in roi_heads.modules() if hasattr(module, "loss_weight")]
    for head in heads:
        weight = head.loss_weight
        if isinstance(weight, dict):
            # A loss of the box predictor without an entry has weight 1.
            weight = {"loss_cls": 1.0, "loss_box_reg": 1.0, **weight}
            head.loss_weight = {name: value * factor for name, value in weight.items()}
        else:
            head.loss_weight = weight * factor
