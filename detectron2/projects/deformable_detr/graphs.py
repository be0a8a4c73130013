"""Deformable DETR and DINO as graphs, for export. Letters: `N` images, `H` and `W` height and width of the input."""

from collections.abc import Mapping
from typing import Any

import torch

from detectron2.export.graphs import ExportGraph, GraphOptions, register_exportable
from detectron2.export.graphs.rcnn import instances_of_outputs
from detectron2.export.graphs.roi_heads import as_detections, detection_names

from .detector import DeformableDetector, padding_mask

__all__ = ["DeformableDetectorGraph"]


@register_exportable(DeformableDetector)
class DeformableDetectorGraph(ExportGraph):
    """A detector without suppression: the best pairs of a query and a class."""

    task = "instances"

    def __init__(self, model: Any, options: GraphOptions):
        super().__init__(model, options)
        self.sizes_as_formulas = True  # attention asks about the sizes of feature maps
        self.score_threshold = model.test_score_thresh
        self.output_names = detection_names(options)

    def forward(
        self, images: torch.Tensor, image_sizes: torch.Tensor, score_threshold: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """See `ExportGraph.forward`."""
        model = self.model
        with torch.no_grad():
            if score_threshold is None:
                score_threshold = images.new_tensor(self.score_threshold, dtype=torch.float32)
            pixels = self.normalized(images, image_sizes)
            layers, _ = model.predict(model.backbone(pixels), padding_mask(image_sizes, pixels.shape[2:]))
            boxes, scores, classes = model.select(layers[-1], image_sizes)
            if (limit := self.options.max_detections) is not None:
                boxes, scores, classes = boxes[:, :limit], scores[:, :limit], classes[:, :limit]
            found = as_detections(boxes, scores, classes, scores > score_threshold, self.options).outputs
        return tuple(found[name] for name in self.output_names)

    def to_results(self, outputs: Mapping[str, torch.Tensor], image_sizes: torch.Tensor) -> list[dict[str, Any]]:
        """See `ExportGraph.to_results`."""
        return [{"instances": result} for result in instances_of_outputs(outputs, image_sizes)]
