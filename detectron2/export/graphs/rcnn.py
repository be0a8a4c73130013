"""R-CNNs with fixed shapes.

Letters: `N` images, `R` proposals of an image, `D` detections that an image may have, `T` rows of the outputs, `H` and
`W` height and width in pixels of the input.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from detectron2.modeling.meta_arch.panoptic_fpn import PanopticFPN
from detectron2.modeling.meta_arch.rcnn import GeneralizedRCNN, ProposalNetwork
from detectron2.modeling.roi_heads.keypoint_head import keypoint_rcnn_inference
from detectron2.structures import Boxes, Instances

from .graph import ExportGraph, GraphOptions, NotExportableError, graph_part, register_exportable
from .regions import paste_masks
from .roi_heads import as_detections, detection_names
from .segmentation import semantic_scores

__all__ = ["GeneralizedRCNNGraph", "PanopticFPNGraph", "ProposalNetworkGraph", "instances_of_outputs"]


def instances_of_outputs(outputs: Mapping[str, torch.Tensor], image_sizes: torch.Tensor) -> list[Instances]:
    """Make of the outputs of a detector, padded or flat, the `Instances` of each image."""
    results = []
    for i, (height, width) in enumerate(image_sizes.tolist()):
        of_image = _of_image(outputs, i)
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


def _of_image(outputs: Mapping[str, torch.Tensor], index: int) -> dict[str, torch.Tensor]:
    """The rows of one image, by name."""
    per_detection = {name: outputs[name] for name in _PER_DETECTION if name in outputs}
    if "count" in outputs:
        return {name: rows[index, : int(outputs["count"][index])] for name, rows in per_detection.items()}
    mine = outputs["image_index"] == index
    return {name: rows[mine] for name, rows in per_detection.items()}


def _pasted(outputs: Mapping[str, torch.Tensor], size_hw: Sequence[Any]) -> torch.Tensor:
    """Masks of the outputs at the size of the input, of 0 and 1: uint8 `Tensor[N, D, H, W]` or `Tensor[T, H, W]`."""
    masks, boxes = outputs["masks"], outputs["boxes"]
    if masks.dim() == 3:
        return paste_masks(masks, boxes, size_hw)
    return paste_masks(masks.flatten(0, 1), boxes.flatten(0, 1), size_hw).unflatten(0, masks.shape[:2])


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
        found = self.roi_heads(features, proposals, image_sizes, score_threshold)
        if "masks" in found and self.options.masks == "pasted":
            found["masks"] = _pasted(found, size_hw)
        return found

    def to_results(self, outputs: Mapping[str, torch.Tensor], image_sizes: torch.Tensor) -> list[dict[str, Any]]:
        """See `ExportGraph.to_results`."""
        return [{"instances": result} for result in instances_of_outputs(outputs, image_sizes)]


@register_exportable(PanopticFPN)
class PanopticFPNGraph(GeneralizedRCNNGraph):
    """Instances and semantic scores; merging them is left to the program that runs the graph."""

    replaces = ("forward", "inference", "preprocess_image", "_propose")

    def __init__(self, model: Any, options: GraphOptions):
        super().__init__(model, options)
        self.semantic = semantic_scores(model.sem_seg_head, options)
        self.output_names = (*self.output_names, "sem_seg")
        self.task = "panoptic"

    def outputs(self, features, image_sizes, score_threshold, size_hw):
        """See `ExportGraph.outputs`."""
        found = super().outputs(features, image_sizes, score_threshold, size_hw)
        return {**found, "sem_seg": self.semantic(features)}

    def to_results(self, outputs: Mapping[str, torch.Tensor], image_sizes: torch.Tensor) -> list[dict[str, Any]]:
        """See `ExportGraph.to_results`."""
        instances = instances_of_outputs(outputs, image_sizes)
        return [{"instances": x, "sem_seg": y} for x, y in zip(instances, outputs["sem_seg"], strict=True)]


@register_exportable(ProposalNetwork)
class ProposalNetworkGraph(ExportGraph):
    """Proposals alone: boxes and logits of objectness."""

    replaces = ("forward", "preprocess_image")
    task = "proposals"

    def __init__(self, model: Any, options: GraphOptions):
        super().__init__(model, options)
        self.proposals = graph_part(model.proposal_generator, options, "the proposal generator")
        self.output_names = ("boxes", "scores", "count" if options.outputs == "padded" else "image_index")

    def outputs(self, features, image_sizes, score_threshold, size_hw):
        """See `ExportGraph.outputs`."""
        boxes, logits, found = self.proposals(features, image_sizes)
        if self.options.max_detections is not None:  # the best come first
            boxes, logits, found = (x[:, : self.options.max_detections] for x in (boxes, logits, found))
        outputs = dict(as_detections(boxes, logits, torch.zeros_like(logits).long(), found, self.options).outputs)
        del outputs["classes"]
        return outputs

    def to_results(self, outputs: Mapping[str, torch.Tensor], image_sizes: torch.Tensor) -> list[dict[str, Any]]:
        """See `ExportGraph.to_results`."""
        results = []
        for i, size_hw in enumerate(image_sizes.tolist()):
            of_image = _of_image(outputs, i)
            result = Instances(tuple(size_hw), proposal_boxes=Boxes(of_image["boxes"]))
            result.objectness_logits = of_image["scores"]
            results.append({"proposals": result})
        return results
