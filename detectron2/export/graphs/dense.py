"""One-stage detectors with fixed shapes.

Letters: `N` images, `K` classes, `R_i` anchors of level i, `k` candidates of a level, `M` of all levels.
"""

from collections.abc import Mapping
from typing import Any

import torch

from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.meta_arch.retinanet import RetinaNet

from .graph import ExportGraph, GraphOptions, graph_part, register_exportable
from .rcnn import instances_of_outputs
from .roi_heads import as_detections, detection_names, max_detections
from .selection import best_labelled, top_k

__all__ = ["DenseDetectorGraph", "FCOSGraph", "RetinaNetGraph"]


class DenseDetectorGraph(ExportGraph):
    """Base of one-stage detectors; a subclass defines `probabilities`."""

    task = "instances"
    dims_per_anchor: tuple[int | None, ...]
    """For each kind of prediction how many numbers an anchor has; None for the number of classes."""

    def __init__(self, model: Any, options: GraphOptions):
        super().__init__(model, options)
        self.anchors = graph_part(model.anchor_generator, options, "the anchor generator")
        self.score_threshold = model.test_score_thresh
        self.output_names = detection_names(options)

    def probabilities(self, score_threshold: torch.Tensor, *predictions: torch.Tensor) -> torch.Tensor:
        """Scores `Tensor[N, R_i, K]` of a level from all predictions but boxes; minus infinity below the threshold."""
        raise NotImplementedError(f"{type(self).__name__} must define probabilities()")

    def outputs(self, features, image_sizes, score_threshold, size_hw):
        """See `ExportGraph.outputs`."""
        model = self.model
        maps = [features[name] for name in model.head_in_features]
        dims = [model.num_classes if dim is None else dim for dim in self.dims_per_anchor]
        predictions = model._transpose_dense_predictions(model.head(maps), dims)
        levels = [
            self._candidates(anchors, deltas, self.probabilities(score_threshold, logits, *others))
            for anchors, logits, deltas, *others in zip(self.anchors(maps), *predictions, strict=True)
        ]
        boxes, scores, classes = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))
        limit = max_detections(self.options, model.max_detections_per_image)
        chosen = best_labelled(
            boxes, scores, classes, model.num_classes, model.test_nms_thresh, limit, self.options.nms
        )
        boxes = boxes.gather(1, chosen.index[..., None].expand(-1, -1, 4))
        detections = as_detections(boxes, chosen.scores, classes.gather(1, chosen.index), chosen.found, self.options)
        return detections.outputs

    def _candidates(
        self, anchors: torch.Tensor, deltas: torch.Tensor, scores: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The best (anchor, class) pairs of a level: boxes `Tensor[N, k, 4]`, scores and classes `Tensor[N, k]`."""
        k, num_classes = self.model.test_topk_candidates, scores.shape[2]
        best = top_k(scores.flatten(1), k, self.options.nms)
        row = best.index // num_classes
        picked = deltas.gather(1, row[..., None].expand(-1, -1, 4)).flatten(0, 1)
        boxes = self.model.box2box_transform.apply_deltas(picked, anchors[row.flatten()]).unflatten(0, (-1, k))
        usable = best.found & torch.isfinite(boxes).all(dim=2)
        boxes = torch.where(usable[..., None], boxes, 0.0)
        return boxes, torch.where(usable, best.scores, float("-inf")), best.index % num_classes

    def to_results(self, outputs: Mapping[str, torch.Tensor], image_sizes: torch.Tensor) -> list[dict[str, Any]]:
        """See `ExportGraph.to_results`."""
        return [{"instances": result} for result in instances_of_outputs(outputs, image_sizes)]


_DENSE_METHODS = (
    "forward",
    "preprocess_image",
    "forward_inference",
    "inference_single_image",
    "_detect_in_image",
    "_decode_multi_level_predictions",
    "_decode_per_level_predictions",
)


@register_exportable(RetinaNet)
class RetinaNetGraph(DenseDetectorGraph):
    """RetinaNet."""

    replaces = (*_DENSE_METHODS, "inference")
    dims_per_anchor = (None, 4)

    def probabilities(self, score_threshold: torch.Tensor, *predictions: torch.Tensor) -> torch.Tensor:
        """See `DenseDetectorGraph.probabilities`."""
        (logits,) = predictions
        scores = logits.sigmoid()
        return torch.where(scores > score_threshold, scores, float("-inf"))


@register_exportable(FCOS)
class FCOSGraph(DenseDetectorGraph):
    """FCOS."""

    replaces = _DENSE_METHODS
    dims_per_anchor = (None, 4, 1)

    def probabilities(self, score_threshold: torch.Tensor, *predictions: torch.Tensor) -> torch.Tensor:
        """See `DenseDetectorGraph.probabilities`."""
        logits, centerness = predictions
        scores = (logits.float().sigmoid() * centerness.float().sigmoid()).sqrt()
        return torch.where(scores > score_threshold, scores, float("-inf"))
