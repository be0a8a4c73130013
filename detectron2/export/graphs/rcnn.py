"""R-CNNs with fixed shapes."""

from collections.abc import Mapping
from typing import Any

import torch

from detectron2.modeling.meta_arch.rcnn import GeneralizedRCNN
from detectron2.modeling.roi_heads.keypoint_head import keypoint_rcnn_inference
from detectron2.structures import Boxes, Instances

from .graph import ExportGraph, GraphOptions, NotExportableError, graph_part, register_exportable
from .roi_heads import detection_names

__all__ = ["GeneralizedRCNNGraph", "instances_of_outputs"]


def instances_of_outputs(outputs: Mapping[str, torch.Tensor], image_sizes: torch.Tensor) -> list[Instances]:
    """Make of the outputs of a detector, padded or flat, the `Instances` of each image."""
    results = []
    for i, (height, width) in enumerate(image_sizes.tolist()):
        if "count" in outputs:
            of_image = {
                name: outputs[name][i, : int(outputs["count"][i])] for name in _PER_DETECTION if name in outputs
            }
        else:
            rows = (outputs["image_index"] == i).nonzero()[:, 0]
            of_image = {name: outputs[name][rows] for name in _PER_DETECTION if name in outputs}
        result = Instances((height, width), pred_boxes=Boxes(of_image["boxes"]))
        result.scores, result.pred_classes = of_image["scores"], of_image["classes"]
        if "masks" in of_image:
            masks = of_image["masks"]
            # Pasted ones are those of pixels.
            result.pred_masks = masks[:, :height, :width] > 0 if masks.dtype == torch.uint8 else masks[:, None]
        if "keypoint_heatmaps" in of_image:
            keypoint_rcnn_inference(of_image["keypoint_heatmaps"], [result])
        results.append(result)
    return results


_PER_DETECTION = ("boxes", "scores", "classes", "masks", "keypoint_heatmaps")


@register_exportable(GeneralizedRCNN)
class GeneralizedRCNNGraph(ExportGraph):
    """Features, proposals, and what the ROI heads find."""

    replaces = ("forward", "inference", "preprocess_image", "_propose")

    def __init__(self, model: Any, options: GraphOptions):
        super().__init__(model, options)
        if model.proposal_generator is None:
            raise NotExportableError(
                "the model has no proposal generator (MODEL.PROPOSAL_GENERATOR.NAME is PrecomputedProposals), so its "
                "proposals come with each image; export a model that makes its own"
            )
        self.proposals = graph_part(model.proposal_generator, options, "the proposal generator")
        self.roi_heads = graph_part(model.roi_heads, options, "the ROI heads")
        self.score_threshold = self.roi_heads.score_threshold
        self.output_names = detection_names(options, *self.roi_heads.further)
        self.task = "keypoints" if "keypoint_heatmaps" in self.output_names else "instances"

    def outputs(self, features, image_sizes, score_threshold, size_hw):
        """See `ExportGraph.outputs`."""
        proposals = self.proposals(features, image_sizes)
        return self.roi_heads(features, proposals, image_sizes, score_threshold)

    def to_results(self, outputs: Mapping[str, torch.Tensor], image_sizes: torch.Tensor) -> list[dict[str, Any]]:
        """See `ExportGraph.to_results`."""
        return [{"instances": result} for result in instances_of_outputs(outputs, image_sizes)]
