"""ROI heads with fixed shapes.

Letters: `N` images, `R` proposals of an image, `K` classes, `D` detections that an image may have, `T` rows for which
masks and keypoints are computed: `N * D` of padded outputs, the detections that there are of flat ones.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNOutputLayers, Res5ROIHeads, StandardROIHeads
from detectron2.modeling.roi_heads.keypoint_head import BaseKeypointRCNNHead
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead
from detectron2.modeling.roi_heads.numerics import full_precision

from .graph import GraphOptions, GraphPart, NotExportableError, graph_part, register_exportable
from .proposals import Proposals
from .selection import best_of_regions, clip_boxes

__all__ = [
    "BoxPredictorGraph",
    "CascadeROIHeadsGraph",
    "Detections",
    "KeypointHeadGraph",
    "MaskHeadGraph",
    "ROIHeadsGraph",
    "Res5ROIHeadsGraph",
    "StandardROIHeadsGraph",
    "as_detections",
    "detection_names",
    "max_detections",
    "of_own_class",
    "region_index",
]


class Detections(NamedTuple):
    """Detections of all images, in the layout of the outputs."""

    boxes: torch.Tensor
    """`Tensor[T, 4]`."""
    classes: torch.Tensor
    """int64 `Tensor[T]`, 0 where there is none."""
    image_index: torch.Tensor
    """int64 `Tensor[T]`."""
    found: torch.Tensor | None
    """bool `Tensor[T]`, where there is a detection; None when all are."""
    outputs: dict[str, torch.Tensor]
    """Boxes, scores and classes by the names of the outputs."""
    padded_boxes: torch.Tensor
    """`Tensor[N, D, 4]`, zeros where there is none."""
    padded_classes: torch.Tensor
    """int64 `Tensor[N, D]`, 0 where there is none."""
    rows: torch.Tensor | None
    """int64 `Tensor[T]`: the detections in `padded_boxes.flatten(0, 1)`; None when they are all of them."""


def detection_names(options: GraphOptions, *further: str) -> tuple[str, ...]:
    """Names of the outputs of a detector; `further` ones come last."""
    where = "count" if options.outputs == "padded" else "image_index"
    return ("boxes", "scores", "classes", where, *further)


def as_detections(
    boxes: torch.Tensor, scores: torch.Tensor, classes: torch.Tensor, found: torch.Tensor, options: GraphOptions
) -> Detections:
    """Bring detections `Tensor[N, D, ...]`, best first, into the layout that `options` ask for."""
    num_images, limit = scores.shape
    image_index = torch.arange(num_images, device=boxes.device)[:, None].expand(num_images, limit).flatten()
    boxes = torch.where(found[..., None], boxes, 0.0)
    some_class = torch.where(found, classes, 0)
    if options.outputs == "flat":
        rows = found.flatten().nonzero()[:, 0]
        outputs = {
            "boxes": boxes.flatten(0, 1)[rows],
            "scores": scores.flatten()[rows],
            "classes": classes.flatten()[rows],
            "image_index": image_index[rows],
        }
        return Detections(
            outputs["boxes"], outputs["classes"], outputs["image_index"], None, outputs, boxes, some_class, rows
        )
    outputs = {
        "boxes": boxes,
        "scores": torch.where(found, scores, 0.0),
        "classes": torch.where(found, classes, -1),
        "count": found.sum(dim=1),
    }
    return Detections(
        boxes.flatten(0, 1), some_class.flatten(), image_index, found.flatten(), outputs, boxes, some_class, None
    )


def in_layout(values: torch.Tensor, detections: Detections) -> torch.Tensor:
    """Bring `Tensor[T, ...]`, computed for every row, into the layout of the outputs; rows without detection are 0."""
    if detections.found is None:
        return values
    shape = detections.outputs["scores"].shape
    empty = ~detections.found.view(-1, *[1] * (values.dim() - 1))
    return values.masked_fill(empty, 0.0).unflatten(0, (shape[0], shape[1]))


def max_detections(options: GraphOptions, configured: int) -> int:
    """`D`: what the options say, else what the model is configured for."""
    if options.max_detections is not None:
        return options.max_detections
    if configured < 0:
        raise NotExportableError(
            "the model keeps all detections of an image (TEST.DETECTIONS_PER_IMAGE is negative), but an exported one "
            "has a fixed number of rows: give max_detections"
        )
    return configured


@register_exportable(FastRCNNOutputLayers)
class BoxPredictorGraph(GraphPart):
    """The classes and boxes of regions."""

    replaces = ("inference", "predict_boxes", "predict_probs", "_detections")

    @property
    def score_threshold(self) -> float:
        """Only scores above it are detections."""
        return self.module.test_score_thresh

    def __call__(self, x: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict.

        Args:
            x: features of the regions, in the form that the predictor takes.
            boxes: `Tensor[N, R, 4]`, the regions.

        Returns:
            Boxes `Tensor[N, R, K, 4]`, or `Tensor[N, R, 1, 4]` when they do not depend on the class, and probabilities
            `Tensor[N, R, K + 1]`, of which the last is that of background.
        """
        scores, deltas = self.module(x)
        refined = self.module.box2box_transform.apply_deltas(deltas, boxes.flatten(0, 1))
        scores = full_precision(scores)
        probabilities = scores.sigmoid() if self.module.use_sigmoid_ce else scores.softmax(dim=-1)
        shape = boxes.shape[:2]
        return refined.unflatten(1, (-1, 4)).unflatten(0, shape), probabilities.unflatten(0, shape)

    def detections(
        self,
        boxes: torch.Tensor,
        probabilities: torch.Tensor,
        found: torch.Tensor,
        image_sizes: torch.Tensor,
        score_threshold: torch.Tensor,
    ) -> Detections:
        """Choose the detections from what was predicted for the regions that are `found`, bool `Tensor[N, R]`."""
        module = self.module
        usable = found & torch.isfinite(boxes).flatten(2).all(dim=2) & torch.isfinite(probabilities).all(dim=2)
        scores = probabilities[..., :-1]
        candidates = (scores > score_threshold) & usable[..., None]
        boxes = torch.where(usable[..., None, None], clip_boxes(boxes, image_sizes), 0.0)
        limit = max_detections(self.options, module.test_topk_per_image)
        chosen = best_of_regions(
            boxes, torch.where(candidates, scores, float("-inf")), module.test_nms_thresh, limit, self.options.nms
        )
        num_classes = scores.shape[2]
        rows = chosen.index if boxes.shape[2] > 1 else chosen.index // num_classes
        boxes = boxes.flatten(1, 2).gather(1, rows[..., None].expand(-1, -1, 4))
        return as_detections(boxes, chosen.scores, chosen.index % num_classes, chosen.found, self.options)


def of_own_class(values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """From `Tensor[T, K, ...]` the slice of each row's class, `Tensor[T, 1, ...]`; `K == 1` serves every class."""
    if values.shape[1] == 1:
        return values
    index = classes.view(-1, *[1] * (values.dim() - 1)).expand(-1, 1, *values.shape[2:])
    return values.gather(1, index)


@register_exportable(BaseMaskRCNNHead)
class MaskHeadGraph(GraphPart):
    """Masks of detections from the features of their regions."""

    def __call__(self, x: Any, detections: Detections) -> torch.Tensor:
        """Probabilities of each detection's own class, `Tensor[T, M, M]`."""
        logits = self.module.layers(x)
        return full_precision(of_own_class(logits, detections.classes)).sigmoid()[:, 0]


@register_exportable(BaseKeypointRCNNHead)
class KeypointHeadGraph(GraphPart):
    """Heat maps of keypoints; their peaks are searched outside of the graph."""

    def __call__(self, x: Any, detections: Detections) -> torch.Tensor:
        """Logits `Tensor[T, number of keypoints, S, S]`."""
        return full_precision(self.module.layers(x))


class ROIHeadsGraph(GraphPart):
    """Base of exportable ROI heads: what an R-CNN asks of them.

    A subclass sets `further` to the names of its outputs beside boxes, scores, classes and their place, and
    `score_threshold`.
    """

    further: tuple[str, ...] = ()
    score_threshold: float = 0.0

    def __call__(
        self,
        features: Mapping[str, torch.Tensor],
        proposals: Proposals,
        image_sizes: torch.Tensor,
        score_threshold: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Detect: the outputs by name."""
        detections = self.detect(features, proposals, image_sizes, score_threshold)
        return {**detections.outputs, **self.of_detections(features, detections)}

    def detect(
        self, features: Any, proposals: Proposals, image_sizes: torch.Tensor, score_threshold: Any
    ) -> Detections:
        """The box branch."""
        raise NotImplementedError(f"{type(self).__name__} must define detect()")

    def of_detections(self, features: Any, detections: Detections) -> dict[str, torch.Tensor]:
        """The other branches: the outputs named in `further`."""
        return {}


def region_index(boxes: torch.Tensor) -> torch.Tensor:
    """The image of each region of `Tensor[N, R, 4]`: int64 `Tensor[N * R]`."""
    num_images, num_regions = boxes.shape[:2]
    return torch.arange(num_images, device=boxes.device)[:, None].expand(num_images, num_regions).flatten()


@register_exportable(StandardROIHeads)
class StandardROIHeadsGraph(ROIHeadsGraph):
    """A box head and, if the model has them, a mask and a keypoint head."""

    replaces = (
        "forward",
        "forward_with_given_boxes",
        "_forward_box",
        "_forward_mask",
        "_forward_keypoint",
        "_head_input",
    )

    def __init__(self, module: Any, options: GraphOptions):
        super().__init__(module, options)
        self._prepare_boxes()
        further = []
        if module.mask_on:
            self.mask_pooler = self._pooler(module.mask_pooler, "mask")
            self.mask_head = graph_part(module.mask_head, options, "the mask head")
            further.append("masks")
        if module.keypoint_on:
            self.keypoint_pooler = self._pooler(module.keypoint_pooler, "keypoint")
            self.keypoint_head = graph_part(module.keypoint_head, options, "the keypoint head")
            further.append("keypoint_heatmaps")
        self.further = tuple(further)

    def _prepare_boxes(self) -> None:
        self.box_pooler = self._pooler(self.module.box_pooler, "box")
        self.predictor = graph_part(self.module.box_predictor, self.options, "the box predictor")
        self.score_threshold = self.predictor.score_threshold

    def _pooler(self, pooler: Any, branch: str) -> Any:
        return None if pooler is None else graph_part(pooler, self.options, f"the pooler of the {branch} head")

    def detect(
        self, features: Any, proposals: Proposals, image_sizes: torch.Tensor, score_threshold: Any
    ) -> Detections:
        """The box branch."""
        maps = [features[name] for name in self.module.box_in_features]
        pooled = self.box_pooler(maps, proposals.boxes.flatten(0, 1), region_index(proposals.boxes))
        boxes, probabilities = self.predictor(self.module.box_head(pooled), proposals.boxes)
        return self.predictor.detections(boxes, probabilities, proposals.found, image_sizes, score_threshold)

    def of_detections(self, features: Any, detections: Detections) -> dict[str, torch.Tensor]:
        """Masks and keypoints."""
        found = {}
        if self.module.mask_on:
            x = self._regions(features, self.module.mask_in_features, self.mask_pooler, detections)
            found["masks"] = in_layout(self.mask_head(x, detections), detections)
        if self.module.keypoint_on:
            x = self._regions(features, self.module.keypoint_in_features, self.keypoint_pooler, detections)
            found["keypoint_heatmaps"] = in_layout(self.keypoint_head(x, detections), detections)
        return found

    def _regions(self, features: Any, names: Any, pooler: Any, detections: Detections) -> Any:
        """What a mask or keypoint head reads: pooled regions or, without a pooler, the feature maps by name."""
        if pooler is None:
            return {name: features[name] for name in names}
        return pooler([features[name] for name in names], detections.boxes, detections.image_index)


@register_exportable(CascadeROIHeads)
class CascadeROIHeadsGraph(StandardROIHeadsGraph):
    """A cascade of box heads."""

    replaces = (*StandardROIHeadsGraph.replaces, "_run_stage", "_create_proposals_from_boxes", "_merge_stages")

    def _prepare_boxes(self) -> None:
        self.box_pooler = self._pooler(self.module.box_pooler, "box")
        self.predictors = [graph_part(x, self.options, "the box predictor") for x in self.module.box_predictor]
        self.score_threshold = self.predictors[-1].score_threshold

    def detect(
        self, features: Any, proposals: Proposals, image_sizes: torch.Tensor, score_threshold: Any
    ) -> Detections:
        """The box branch."""
        maps = [features[name] for name in self.module.box_in_features]
        regions, of_stages = proposals.boxes, []
        boxes = regions[:, :, None]
        for stage, (head, predictor) in enumerate(zip(self.module.box_head, self.predictors, strict=True)):
            if stage > 0:
                regions = clip_boxes(boxes[:, :, 0], image_sizes)
            pooled = self.box_pooler(maps, regions.flatten(0, 1), region_index(regions))
            boxes, probabilities = predictor(head(pooled), regions)
            of_stages.append(probabilities)
        mean = torch.stack(of_stages).mean(dim=0)
        return self.predictors[-1].detections(boxes, mean, proposals.found, image_sizes, score_threshold)


@register_exportable(Res5ROIHeads)
class Res5ROIHeadsGraph(ROIHeadsGraph):
    """Box and mask heads that share the last stage of the backbone."""

    replaces = ("forward", "forward_with_given_boxes", "_shared_roi_transform")

    def __init__(self, module: Any, options: GraphOptions):
        super().__init__(module, options)
        self.pooler = graph_part(module.pooler, options, "the pooler of the ROI heads")
        self.predictor = graph_part(module.box_predictor, options, "the box predictor")
        self.score_threshold = self.predictor.score_threshold
        if module.mask_on:
            self.mask_head = graph_part(module.mask_head, options, "the mask head")
            self.further = ("masks",)

    def _shared(self, features: Any, boxes: torch.Tensor, image_index: torch.Tensor) -> torch.Tensor:
        maps = [features[name] for name in self.module.in_features]
        return self.module.res5(self.pooler(maps, boxes, image_index))

    def detect(
        self, features: Any, proposals: Proposals, image_sizes: torch.Tensor, score_threshold: Any
    ) -> Detections:
        """The box branch."""
        x = self._shared(features, proposals.boxes.flatten(0, 1), region_index(proposals.boxes))
        boxes, probabilities = self.predictor(x.mean(dim=(2, 3)), proposals.boxes)
        return self.predictor.detections(boxes, probabilities, proposals.found, image_sizes, score_threshold)

    def of_detections(self, features: Any, detections: Detections) -> dict[str, torch.Tensor]:
        """Masks."""
        if not self.module.mask_on:
            return {}
        x = self._shared(features, detections.boxes, detections.image_index)
        return {"masks": in_layout(self.mask_head(x, detections), detections)}
