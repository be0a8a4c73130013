"""Semantic segmentation as a graph."""

from collections.abc import Mapping
from typing import Any

import torch

from detectron2.modeling.meta_arch.semantic_seg import SemanticSegmentor

from .graph import ExportGraph, register_exportable

__all__ = ["SemanticSegmentorGraph"]


@register_exportable(SemanticSegmentor)
class SemanticSegmentorGraph(ExportGraph):
    """Scores of classes at the size of the padded input."""

    replaces = ("forward", "preprocess_image")
    task = "semantic"
    output_names = ("sem_seg",)

    def outputs(self, features, image_sizes, score_threshold, size_hw):
        """See `ExportGraph.outputs`."""
        scores, _ = self.model.sem_seg_head(features, None)
        return {"sem_seg": scores}

    def to_results(self, outputs: Mapping[str, torch.Tensor], image_sizes: torch.Tensor) -> list[dict[str, Any]]:
        """See `ExportGraph.to_results`."""
        return [{"sem_seg": scores} for scores in outputs["sem_seg"]]
