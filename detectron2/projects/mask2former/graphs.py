"""Mask2Former as a graph, for export: semantic segmentation."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional as F

from detectron2.export.graphs import ExportGraph, GraphOptions, NotExportableError, register_exportable

from .mask_former_model import MaskFormer

__all__ = ["MaskFormerGraph"]


@register_exportable(MaskFormer)
class MaskFormerGraph(ExportGraph):
    """Scores of classes at the size of the padded input."""

    replaces = ("forward", "preprocess_image", "semantic_inference")
    task = "semantic"
    output_names = ("sem_seg",)

    def __init__(self, model: Any, options: GraphOptions):
        super().__init__(model, options)
        if model.instance_on or model.panoptic_on:
            raise NotExportableError(
                "of Mask2Former, semantic scores can be exported: masks of instances belong to queries, not to boxes, "
                "and exported models have no such output. Set MODEL.MASK_FORMER.TEST.INSTANCE_ON and PANOPTIC_ON to "
                "False, and SEMANTIC_ON to True"
            )
        self.sizes_as_formulas = True  # positions of cells depend on the sizes of maps

    def _padding(self) -> tuple[int, int]:
        return 0, self.model.size_divisibility

    def outputs(self, features, image_sizes, score_threshold, size_hw):
        """See `ExportGraph.outputs`."""
        found = self.model.sem_seg_head(features)
        divisibility = max(self.model.size_divisibility, 1)
        padded_hw = [self._multiple(size, divisibility) for size in size_hw]
        masks = F.interpolate(found["pred_masks"], size=padded_hw, mode="bilinear", align_corners=False).sigmoid()
        classes = found["pred_logits"].softmax(-1)[..., :-1]
        return {"sem_seg": (classes.transpose(1, 2) @ masks.flatten(2)).unflatten(2, padded_hw)}

    def to_results(self, outputs: Mapping[str, torch.Tensor], image_sizes: torch.Tensor) -> list[dict[str, Any]]:
        """See `ExportGraph.to_results`."""
        return [{"sem_seg": scores} for scores in outputs["sem_seg"]]
