"""Semantic segmentation as a graph."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from detectron2.modeling.meta_arch.semantic_seg import SemanticSegmentor

from .graph import ExportGraph, GraphOptions, graph_part, has_form, register_exportable

__all__ = ["SemanticSegmentorGraph", "semantic_scores"]


def semantic_scores(head: Any, options: GraphOptions) -> Callable[[Mapping[str, torch.Tensor]], torch.Tensor]:
    """A function from feature maps by name to scores `Tensor[N, K, H, W]`: a head's registered form, or the head."""
    if has_form(head):
        return graph_part(head, options, "the semantic head")
    return lambda features: head(features, None)[0]


@register_exportable(SemanticSegmentor)
class SemanticSegmentorGraph(ExportGraph):
    """Scores of classes at the size of the padded input."""

    replaces = ("forward", "preprocess_image")
    task = "semantic"
    output_names = ("sem_seg",)

    def __init__(self, model: Any, options: GraphOptions):
        super().__init__(model, options)
        self.semantic = semantic_scores(model.sem_seg_head, options)

    def outputs(self, features, image_sizes, score_threshold, size_hw):
        """See `ExportGraph.outputs`."""
        return {"sem_seg": self.semantic(features)}

    def to_results(self, outputs: Mapping[str, torch.Tensor], image_sizes: torch.Tensor) -> list[dict[str, Any]]:
        """See `ExportGraph.to_results`."""
        return [{"sem_seg": scores} for scores in outputs["sem_seg"]]
