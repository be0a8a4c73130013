"""Panoptic-DeepLab as a graph, for export; pixels are grouped by the program that runs it."""

from collections.abc import Mapping
from typing import Any

import torch

from detectron2.export.graphs import ExportGraph, GraphOptions, register_exportable
from detectron2.export.graphs.segmentation import semantic_scores

from .panoptic_seg import PanopticDeepLab

__all__ = ["PanopticDeepLabGraph"]


@register_exportable(PanopticDeepLab)
class PanopticDeepLabGraph(ExportGraph):
    """Scores of classes, the heat map of centres, and offsets in pixels, at the size of the padded input."""

    replaces = ("forward", "preprocess_image")
    task = "panoptic_deeplab"
    output_names = ("sem_seg", "center", "offset")

    def __init__(self, model: Any, options: GraphOptions):
        super().__init__(model, options)
        self.semantic = semantic_scores(model.sem_seg_head, options)

    def _padding(self) -> tuple[int, int]:
        own = self.model.size_divisibility
        return (0, own) if own > 0 else super()._padding()

    def outputs(self, features, image_sizes, score_threshold, size_hw):
        """See `ExportGraph.outputs`."""
        center, offset, _, _ = self.model.ins_embed_head(features)
        return {"sem_seg": self.semantic(features), "center": center, "offset": offset}

    def to_results(self, outputs: Mapping[str, torch.Tensor], image_sizes: torch.Tensor) -> list[dict[str, Any]]:
        """See `ExportGraph.to_results`; a result has "sem_seg", "center" and "offset"."""
        return [{name: outputs[name][i] for name in self.output_names} for i in range(image_sizes.shape[0])]
