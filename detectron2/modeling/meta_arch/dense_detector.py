"""What one-stage detectors share: they predict densely on every feature map, without regions in between.

Letters: `N` images, `L` levels, `A` anchors per cell, `K` classes, `R_i = H_i * W_i * A` anchors of level i.
Boxes are `(x1, y1, x2, y2)` in pixels of the network input, continuous coordinates.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from detectron2.layers import batched_nms, cat
from detectron2.layers.shape_spec import check_strides, select_maps
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage, has_event_storage, put_image, put_scalar
from detectron2.utils.tracing import when_compiled

from .. import fixed_shapes
from ..backbone import Backbone
from ..postprocessing import detector_postprocess
from ._training_pictures import side_by_side
from .inputs import DetectorBase

__all__ = ["DenseDetector", "permute_to_N_HWA_K", "sum_of_focal_losses"]


def permute_to_N_HWA_K(tensor: torch.Tensor, K: int) -> torch.Tensor:
    """Bring predictions into the order of anchors: `Tensor[N, A * K, H, W]` becomes `Tensor[N, H * W * A, K]`."""
    if tensor.dim() != 4:
        raise ValueError(f"dense predictions have shape (N, A * K, H, W); got {tuple(tensor.shape)}")
    return tensor.unflatten(1, (-1, K)).permute(0, 3, 4, 1, 2).flatten(1, 3)


def _top_k_of_few(scores: torch.Tensor, k: int) -> torch.Tensor:
    return scores.argsort(descending=True, stable=True)[:k]


@when_compiled(_top_k_of_few)  # a compiled graph ends where indices are searched; sorting keeps it whole
@torch.jit.script_if_tracing  # the choice is made for each image anew
def _top_k(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Indices of the k highest of `Tensor[R]`, best first; of equal scores, of which `topk` picks any, the first."""
    if k > 0 and len(scores) > 8 * k:  # sorting a long list takes far longer than finding its k-th element
        survivors = (scores >= scores.topk(k).values.amin()).nonzero()[:, 0]
        return survivors[_top_k_of_few(scores[survivors], k)]
    return _top_k_of_few(scores, k)


class DenseDetector(DetectorBase):
    """Base of one-stage detectors: normalises images, runs backbone and head, and rescales the results.

    A subclass implements `forward_training` and `forward_inference`.

    Args:
        backbone: extracts features.
        head: predicts from the list of feature maps; returns a tuple of lists, one entry for each level.
        head_in_features: names of the feature maps for the head; by default all of the backbone's.
        pixel_mean: mean of each channel, in the order of the image's channels.
        pixel_std: standard deviation of each channel.
    """

    # Set by the subclasses that use them.
    box2box_transform: Any
    num_classes: int
    test_nms_thresh: float
    max_detections_per_image: int
    vis_period: int = 0
    """Iterations between pictures of training; 0 for none."""
    input_format: str | None = "BGR"
    """Meaning of the image's channels, for these pictures."""

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: list[str] | None = None,
        *,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ):
        super().__init__()
        self.backbone = backbone
        self.head = head
        if head_in_features is None:
            shapes = self.backbone.output_shape()
            self.head_in_features = sorted(shapes, key=lambda name: shapes[name].stride or 0)
        else:
            self.head_in_features = head_in_features
        self._set_normalization(pixel_mean, pixel_std)

    def forward(self, batched_inputs: list[dict]):
        """Detect objects, or compute losses in training.

        Args:
            batched_inputs: for each image a dictionary with "image" (`Tensor[C, H, W]`), in training "instances"
                (fields `gt_boxes`, `gt_classes`), and optionally "height" and "width", the wanted size of the output
                in pixels.

        Returns:
            In training a dictionary of losses; otherwise for each image `{"instances": Instances}` with the fields
            `pred_boxes`, `scores` and `pred_classes`.
        """
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        maps = select_maps(features, self.head_in_features)
        strides = getattr(getattr(self, "anchor_generator", None), "strides", ())
        check_strides(maps, self.head_in_features, strides, images.tensor)
        predictions = self.head(maps)
        if self.training:
            gt_instances = self._targets(batched_inputs)
            if self.vis_period > 0 and has_event_storage() and get_event_storage().iter % self.vis_period == 0:
                with torch.no_grad():
                    self.visualize_training(batched_inputs, self.forward_inference(images, maps, predictions))
            return self.forward_training(images, maps, predictions, gt_instances)

        results = self.forward_inference(images, maps, predictions)
        return [
            {"instances": detector_postprocess(result, item.get("height", size[0]), item.get("width", size[1]))}
            for result, item, size in zip(results, batched_inputs, images.image_sizes, strict=True)
        ]

    def forward_training(self, images: ImageList, features, predictions, gt_instances: list[Instances]):
        """Compute the dictionary of losses."""
        raise NotImplementedError(f"{type(self).__name__} must implement forward_training")

    def forward_inference(self, images: ImageList, features, predictions) -> list[Instances]:
        """Turn predictions into detections, in the frame of the network input."""
        raise NotImplementedError(f"{type(self).__name__} must implement forward_inference")

    def _transpose_dense_predictions(
        self, predictions: Sequence[list[torch.Tensor]], dims_per_anchor: list[int]
    ) -> list[list[torch.Tensor]]:
        """Bring every kind of prediction into the order of anchors, see `permute_to_N_HWA_K`."""
        return [
            [permute_to_N_HWA_K(level, dim) for level in levels]
            for levels, dim in zip(predictions, dims_per_anchor, strict=True)
        ]

    def _count_positives(
        self, gt_labels: list[torch.Tensor], initial_value: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Labels `Tensor[N, R]`, which of them are positive, and the moving average of how many: what losses need."""
        labels = torch.stack(gt_labels)
        positive = (labels >= 0) & (labels != self.num_classes)
        num_positive = positive.sum()
        put_scalar("num_pos_anchors", num_positive / len(gt_labels))
        # The average keeps a batch with few objects from shaking the network (and one without any from dividing by 0).
        return labels, positive, self._ema_update("loss_normalizer", num_positive.clamp(min=1), initial_value)

    def _ema_update(self, name: str, value: torch.Tensor | float, initial_value: float, momentum: float = 0.9):
        """Advance and return the moving average `name`, a buffer outside the state dict that stays on the device."""
        if name not in self._buffers:
            start = torch.tensor(float(initial_value), device=self.device)
            self.register_buffer(name, start, persistent=False)
        old = getattr(self, name)
        new = old * momentum + value * (1 - momentum)
        setattr(self, name, new.detach())
        return new

    def _decode_per_level_predictions(
        self,
        anchors: Boxes,
        pred_scores: torch.Tensor,
        pred_deltas: torch.Tensor,
        score_thresh: float,
        topk_candidates: int,
        image_size: tuple[int, int],
        activation: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> Instances:
        """Keep the k best (anchor, class) pairs of a level above the threshold, ranked by `activation` of scores."""
        scores = pred_scores.flatten()
        candidates = (scores > score_thresh).nonzero(as_tuple=True)[0]
        scores = scores[candidates]
        if activation is not None:
            scores = activation(scores)
        best = _top_k(scores, topk_candidates)
        scores, picked = scores[best], candidates[best]
        num_classes = pred_scores.shape[1]
        anchor_index = picked.div(num_classes, rounding_mode="floor")
        boxes = self.box2box_transform.apply_deltas(pred_deltas[anchor_index], anchors.tensor[anchor_index])
        return Instances(image_size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=picked % num_classes)

    def _decode_multi_level_predictions(
        self,
        anchors: list[Boxes],
        pred_scores: list[torch.Tensor],
        pred_deltas: list[torch.Tensor],
        *arguments: Any,
        **options: Any,
    ) -> Instances:
        """Join what `_decode_per_level_predictions` keeps of each level."""
        return Instances.cat(
            [
                self._decode_per_level_predictions(a, s, d, *arguments, **options)
                for a, s, d in zip(anchors, pred_scores, pred_deltas, strict=True)
            ]
        )

    def _detect_in_image(self, *arguments: Any, **options: Any) -> Instances:
        """Do `_decode_multi_level_predictions` of one image, suppress per class, and keep the best."""
        detections = self._decode_multi_level_predictions(*arguments, **options)
        boxes, scores, classes = detections.pred_boxes.tensor, detections.scores, detections.pred_classes
        keep = batched_nms(boxes, scores, classes, self.test_nms_thresh)
        return detections[keep[: self.max_detections_per_image]]

    def visualize_training(self, batched_inputs: list[dict], results: list[Instances]) -> None:
        """Record a picture of the first image: its ground truth beside its up to 20 best detections."""
        if len(batched_inputs) != len(results):
            raise ValueError(f"got {len(batched_inputs)} inputs but results of {len(results)} images")
        image = batched_inputs[0]["image"]
        detected = detector_postprocess(results[0], image.shape[1], image.shape[2])
        gt_boxes = batched_inputs[0]["instances"].gt_boxes
        picture = side_by_side(image, self.input_format, gt_boxes, detected.pred_boxes[:20])
        put_image("Left: GT bounding boxes; Right: up to 20 highest scoring results", picture)


def _focal_term(logits: torch.Tensor, gamma: float) -> torch.Tensor:
    """Loss of negatives, `-p ** gamma * log(1 - p)` with `p = sigmoid(logits)`; of positives for `-logits`."""
    logits = logits.float()
    return logits.sigmoid().pow(gamma) * F.softplus(logits)


def sum_of_focal_losses(
    pred_logits: list[torch.Tensor], labels: torch.Tensor, positive: torch.Tensor, *, alpha: float, gamma: float
) -> torch.Tensor:
    """Sum the focal loss (arXiv:1708.02002, equation 5) over all classes and all anchors whose label is not -1.

    Nearly all targets are 0. So every logit is taken as a negative's, and the few positives are set right afterwards:
    no tensor of targets, and no copy of the logits.

    Args:
        pred_logits: for each level `Tensor[N, R_i, K]`.
        labels: `Tensor[N, R]`.
        positive: `Tensor[N, R]`, which labels are those of a class.
        alpha: weight of positives; of negatives it is `1 - alpha`. Negative: both weigh 1.
        gamma: the focusing parameter.

    Returns:
        A scalar.
    """
    positive_weight, negative_weight = (alpha, 1 - alpha) if alpha >= 0 else (1.0, 1.0)
    level_sizes = [logits.shape[1] for logits in pred_logits]
    per_anchor = cat([_focal_term(logits, gamma).sum(dim=-1) for logits in pred_logits], dim=1)
    total = negative_weight * torch.where(labels >= 0, per_anchor, 0).sum()

    if fixed_shapes.runs_ahead(labels.device):
        index = labels.clamp(0, pred_logits[0].shape[2] - 1).split(level_sizes, dim=1)
        x = cat([x.gather(2, i[..., None])[..., 0] for x, i in zip(pred_logits, index, strict=True)], dim=1)
        x = torch.where(positive, x, 0.0)
        correction = positive_weight * _focal_term(-x, gamma) - negative_weight * _focal_term(x, gamma)
        return total + torch.where(positive, correction, 0.0).sum()

    at_positives = []
    for logits, label, is_positive in zip(
        pred_logits, labels.split(level_sizes, dim=1), positive.split(level_sizes, dim=1), strict=True
    ):
        image_index, anchor_index = is_positive.nonzero(as_tuple=True)
        at_positives.append(logits[image_index, anchor_index, label[image_index, anchor_index]])
    x = cat(at_positives)
    return total + (positive_weight * _focal_term(-x, gamma) - negative_weight * _focal_term(x, gamma)).sum()
