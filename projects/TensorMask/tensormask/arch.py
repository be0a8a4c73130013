"""The architecture TensorMask.

Letters: `N` images, `K` classes, `A` windows per cell, `R_i` windows of level i, `R` their sum over levels, `D`
detections, `P` windows. Boxes are `(x1, y1, x2, y2)` in pixels of the network's input.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import batched_nms, cat, paste_masks_in_image
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_anchor_generator, build_backbone
from detectron2.modeling.box_regression import Box2BoxTransform, _dense_box_regression_loss
from detectron2.modeling.meta_arch.dense_detector import DenseDetector, sum_of_focal_losses
from detectron2.modeling.meta_arch.inputs import required_entry
from detectron2.modeling.roi_heads.matched_masks import take_matched
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import put_scalar

from .assignment import assign_windows
from .head import TensorMaskHead

__all__ = ["TensorMask"]


@META_ARCH_REGISTRY.register()
class TensorMask(DenseDetector):
    """Slides windows over the image and predicts in each a class, a box and a mask (arXiv:1903.12174).

    Args:
        backbone: extracts features.
        head: predicts logits, deltas and masks, see `TensorMaskHead`.
        head_in_features: names of the feature maps for the head, the finest first.
        anchor_generator: makes the windows, see `TensorMaskAnchorGenerator`.
        min_window_size: side of the smallest window in pixels; it is assigned to all smaller objects too.
        box2box_transform: turns deltas and windows into boxes and back.
        num_classes: `K`, without background.
        focal_loss_alpha: weight of positives in the focal loss; of negatives it is one minus this.
        focal_loss_gamma: how strongly the focal loss plays down what is classified well already.
        mask_loss_weight: factor of the mask loss.
        mask_pos_weight: weight of the pixels inside an object in the mask loss.
        score_threshold: in inference only scores above this are considered.
        topk_candidates: candidates that an image keeps before suppression.
        nms_threshold: IoU above which the lower of two boxes of a class goes.
        detections_im: detections that an image keeps.
        pixel_mean: mean of each channel, in the order of the image's channels.
        pixel_std: standard deviation of each channel.
    """

    head: Any  # of the interface of TensorMaskHead

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: list[str],
        anchor_generator: nn.Module,
        min_window_size: float,
        box2box_transform: Box2BoxTransform,
        num_classes: int,
        focal_loss_alpha: float = 0.3,
        focal_loss_gamma: float = 3.0,
        mask_loss_weight: float = 2.0,
        mask_pos_weight: float = 1.5,
        score_threshold: float = 0.05,
        topk_candidates: int = 6000,
        nms_threshold: float = 0.5,
        detections_im: int = 100,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ):
        super().__init__(backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.num_classes = num_classes
        self.in_features = head_in_features
        self.anchor_generator: Any = anchor_generator
        self.min_window_size = min_window_size
        self.box2box_transform = box2box_transform
        self.focal_loss_alpha = focal_loss_alpha
        self.focal_loss_gamma = focal_loss_gamma
        self.mask_loss_weight = mask_loss_weight
        self.mask_pos_weight = mask_pos_weight
        self.score_threshold = score_threshold
        self.topk_candidates = topk_candidates
        self.nms_threshold = nms_threshold
        self.detections_im = detections_im

    def forward(self, batched_inputs: list[dict]):
        """Segment objects, or compute losses in training.

        Args:
            batched_inputs: for each image a dictionary with "image" (`Tensor[C, H, W]`), in training "instances"
                (fields `gt_boxes`, `gt_classes`, `gt_masks`), and optionally "height" and "width", the wanted size of
                the output in pixels.

        Returns:
            In training the losses by name; otherwise for each image `{"instances": Instances}` with `pred_boxes`,
            `scores`, `pred_classes` and, if masks are on, `pred_masks`, boolean `Tensor[D, height, width]`.
        """
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        maps = [features[name] for name in self.head_in_features]
        predictions = self.head(maps)
        if self.training:
            gt_instances = required_entry(batched_inputs, "instances", self.device, "training needs the ground truth")
            return self.forward_training(images, maps, predictions, gt_instances)
        results = self.forward_inference(images, maps, predictions)
        mask_features = predictions[2]
        return [
            {"instances": self._postprocess(result, i, mask_features, x.get("height", hw[0]), x.get("width", hw[1]))}
            for i, (result, x, hw) in enumerate(zip(results, batched_inputs, images.image_sizes, strict=True))
        ]

    def forward_training(
        self,
        images: ImageList,
        features: list[torch.Tensor],
        predictions: tuple[Any, ...],
        gt_instances: list[Instances],
    ) -> dict[str, torch.Tensor]:
        """Compute the losses, each divided by the number of windows with an object.

        Args:
            images: the batch.
            features: the feature maps of the head.
            predictions: what the head returned.
            gt_instances: the ground truth of each image.

        Returns:
            The scalars `loss_cls`, `loss_box_reg` and, if masks are on, `loss_mask`.
        """
        logits, deltas = self._transpose_dense_predictions(predictions[:2], [self.num_classes, 4])
        windows, unit_lengths, indexes = self.anchor_generator(features)
        all_windows, all_units = Boxes.cat(windows), cat(unit_lengths)
        assigned = torch.stack([self.assign(all_windows, all_units, gt) for gt in gt_instances])  # N, R
        positive = assigned >= 0
        num_positive = positive.sum()
        put_scalar("num_pos_windows", num_positive / len(gt_instances))
        normalizer = num_positive.clamp(min=1)

        labels, boxes = [], []
        for gt, index in zip(gt_instances, assigned, strict=True):
            labels.append(_rows(gt.gt_classes.long(), index, self.num_classes))
            boxes.append(_rows(gt.gt_boxes.tensor, index, 0))
        loss_cls = sum_of_focal_losses(
            logits, torch.stack(labels), positive, alpha=self.focal_loss_alpha, gamma=self.focal_loss_gamma
        )
        loss_box_reg = _dense_box_regression_loss(windows, self.box2box_transform, deltas, boxes, positive)
        losses = {"loss_cls": loss_cls / normalizer, "loss_box_reg": loss_box_reg / normalizer}
        if predictions[2] is not None:
            image, window = positive.nonzero(as_tuple=True)
            place, chosen = cat(indexes)[window], all_windows.tensor[window]
            loss_mask = self._mask_loss(predictions[2], image, place, chosen, assigned[image, window], gt_instances)
            losses["loss_mask"] = loss_mask / normalizer * self.mask_loss_weight
        return losses

    @torch.no_grad()
    def assign(self, windows: Boxes, unit_lengths: torch.Tensor, gt: Instances) -> torch.Tensor:
        """Assign objects of one image to windows, see `assign_windows`; int64 `Tensor[R]`, -1 for none."""
        return assign_windows(gt.gt_boxes.tensor, windows.tensor, unit_lengths, self.min_window_size)

    def _mask_loss(
        self,
        mask_features: list[torch.Tensor],
        image: torch.Tensor,
        place: torch.Tensor,
        windows: torch.Tensor,
        assigned: torch.Tensor,
        gt_instances: list[Instances],
    ) -> torch.Tensor:
        """Sum over windows of the mean binary cross entropy of their cells.

        Args:
            mask_features: as the head returned them.
            image: `Tensor[P]`, the image of each window with an object.
            place: `Tensor[P, 4]`, its level, row, column and number in the cell.
            windows: `Tensor[P, 4]`.
            assigned: `Tensor[P]`, the index of its object in the image.
            gt_instances: the ground truth of each image.

        Returns:
            A scalar.
        """
        total = mask_features[0].new_zeros((), dtype=torch.float32)
        for level, anchor, rows in self._groups(place):
            # Every layer takes part in every step, even without an object: distributed training waits for it.
            if level > 0 and len(rows) == 0:
                continue
            logits = self.head.masks_at(mask_features, level, anchor, image[rows], place[rows, 1], place[rows, 2])
            with torch.no_grad():
                targets = _mask_targets(
                    gt_instances, image[rows], assigned[rows], windows[rows], self.head.mask_side(level, anchor)
                )
                weights = 1 + targets * (self.mask_pos_weight - 1)
            loss = F.binary_cross_entropy_with_logits(logits, targets, weight=weights, reduction="sum")
            total = total + loss / (logits.shape[1] * logits.shape[2])
        return total

    def _groups(self, place: torch.Tensor) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Split windows by level and number in the cell: pairs of these, and the rows of `place` that have them."""
        num_anchors = len(self.head.mask_sizes)
        kind = place[:, 0] * num_anchors + place[:, 3]
        order = kind.argsort(stable=True)
        counts = torch.bincount(kind, minlength=num_anchors * len(self.head.lambdas)).tolist()
        for i, rows in enumerate(order.split(counts)):
            yield *divmod(i, num_anchors), rows

    def forward_inference(
        self, images: ImageList, features: list[torch.Tensor], predictions: tuple[Any, ...]
    ) -> list[Instances]:
        """Detect objects in each image.

        Args:
            images: the batch.
            features: the feature maps of the head.
            predictions: what the head returned.

        Returns:
            For each image its detections, best first, with the fields `pred_boxes`, `scores`, `pred_classes`,
            `windows` (boxes) and `window_indexes` (level, row, column, number in the cell).
        """
        logits, deltas = self._transpose_dense_predictions(predictions[:2], [self.num_classes, 4])
        windows, _, indexes = self.anchor_generator(features)
        windows, indexes = Boxes.cat(windows), cat(indexes)
        return [
            self.inference_single_image(
                cat([x[i] for x in logits]), cat([x[i] for x in deltas]), windows, indexes, image_size
            )
            for i, image_size in enumerate(images.image_sizes)
        ]

    def inference_single_image(
        self,
        box_cls: torch.Tensor,
        box_delta: torch.Tensor,
        windows: Boxes,
        indexes: torch.Tensor,
        image_size: tuple[int, int],
    ) -> Instances:
        """Detect objects in one image: threshold, decode, suppress per class, and keep the best.

        Args:
            box_cls: logits `Tensor[R, K]`.
            box_delta: `Tensor[R, 4]`.
            windows: `R` boxes.
            indexes: int64 `Tensor[R, 4]`.
            image_size: `(height, width)`.

        Returns:
            As `forward_inference`.
        """
        flat = box_cls.flatten()
        # The sigmoid is monotonic, so it is enough to apply it to what passes.
        candidates = (flat > _logit(self.score_threshold)).nonzero(as_tuple=True)[0]
        order = flat[candidates].argsort(descending=True, stable=True)[: self.topk_candidates]
        picked = candidates[order]
        window = picked.div(self.num_classes, rounding_mode="floor")
        detections = Instances(image_size)
        detections.pred_boxes = Boxes(self.box2box_transform.apply_deltas(box_delta[window], windows.tensor[window]))
        detections.scores = flat[picked].sigmoid()
        detections.pred_classes = picked % self.num_classes
        detections.windows = windows[window]
        detections.window_indexes = indexes[window]
        keep = batched_nms(detections.pred_boxes.tensor, detections.scores, detections.pred_classes, self.nms_threshold)
        return detections[keep[: self.detections_im]]

    def _postprocess(
        self,
        detections: Instances,
        image_index: int,
        mask_features: list[torch.Tensor] | None,
        height: int,
        width: int,
    ) -> Instances:
        """Bring detections to the size of the output, and paste their masks into their windows."""
        scale_x, scale_y = width / detections.image_size[1], height / detections.image_size[0]
        detections = Instances((height, width), **detections.get_fields())
        for boxes in (detections.pred_boxes, detections.windows):
            boxes.scale(scale_x, scale_y)
        detections.pred_boxes.clip((height, width))
        detections = detections[detections.pred_boxes.nonempty()]
        if mask_features is not None:
            place, device = detections.window_indexes, detections.pred_boxes.device
            masks = torch.zeros(len(detections), height, width, dtype=torch.bool, device=device)
            for level, anchor, rows in self._groups(place):
                if len(rows) == 0:
                    continue
                images = torch.full_like(rows, image_index)
                logits = self.head.masks_at(mask_features, level, anchor, images, place[rows, 1], place[rows, 2])
                masks[rows] = paste_masks_in_image(logits.sigmoid(), detections.windows[rows], (height, width))
            detections.pred_masks = masks
        detections.remove("windows")
        detections.remove("window_indexes")
        return detections

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments of the constructor from `cfg.MODEL.TENSOR_MASK` and what belongs to it."""
        options = cfg.MODEL.TENSOR_MASK
        backbone = build_backbone(cfg)
        shapes = [backbone.output_shape()[name] for name in options.IN_FEATURES]
        min_window_size, mask_sizes = _window_sizes(cfg, [shape.stride for shape in shapes])
        return {
            "backbone": backbone,
            "head": TensorMaskHead(cfg, len(mask_sizes), mask_sizes, shapes),
            "head_in_features": options.IN_FEATURES,
            "anchor_generator": build_anchor_generator(cfg, shapes),
            "min_window_size": min_window_size,
            "box2box_transform": Box2BoxTransform(weights=options.BBOX_REG_WEIGHTS),
            "num_classes": options.NUM_CLASSES,
            "focal_loss_alpha": options.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": options.FOCAL_LOSS_GAMMA,
            "mask_loss_weight": options.MASK_LOSS_WEIGHT,
            "mask_pos_weight": options.POSITIVE_WEIGHT,
            "score_threshold": options.SCORE_THRESH_TEST,
            "topk_candidates": options.TOPK_CANDIDATES_TEST,
            "nms_threshold": options.NMS_THRESH_TEST,
            "detections_im": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }


def _logit(probability: float) -> float:
    if probability <= 0:
        return -math.inf
    return math.inf if probability >= 1 else math.log(probability / (1 - probability))


def _rows(values: torch.Tensor, index: torch.Tensor, fill: int) -> torch.Tensor:
    """`values[index]`, with `fill` where the index is -1."""
    return torch.cat([values, values.new_full((1, *values.shape[1:]), fill)])[index]


def _mask_targets(
    gt_instances: list[Instances], image: torch.Tensor, assigned: torch.Tensor, windows: torch.Tensor, side: int
) -> torch.Tensor:
    """Cut the masks of objects out at windows, float32 `Tensor[P, side, side]`; `image` ascends."""
    counts = torch.bincount(image, minlength=len(gt_instances)).tolist()
    parts = [
        take_matched(gt.gt_masks, objects).crop_and_resize(boxes, side)
        for gt, objects, boxes in zip(gt_instances, assigned.split(counts), windows.split(counts), strict=True)
        if len(objects)
    ]
    return torch.cat(parts).float() if parts else windows.new_zeros(0, side, side)


def _window_sizes(cfg: CfgNode, strides: Sequence[Any]) -> tuple[float, list[int]]:
    """The side of the smallest window in pixels, and for each window of a cell its side in units, rounded up."""
    sizes, ratios = cfg.MODEL.ANCHOR_GENERATOR.SIZES, cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS
    if any(ratio != 1.0 for of_level in ratios for ratio in of_level):
        raise ValueError(f"windows are squares: MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS must be [[1.0]], got {ratios}")
    if len(sizes) != len(strides):
        raise ValueError(
            f"MODEL.ANCHOR_GENERATOR.SIZES has {len(sizes)} entries, but needs one each for {len(strides)} levels"
        )
    in_units = [
        [math.ceil(size / stride) for size in of_level] for of_level, stride in zip(sizes, strides, strict=True)
    ]
    if any(of_level != in_units[0] for of_level in in_units):
        raise ValueError(
            "all levels share the layers of masks, so MODEL.ANCHOR_GENERATOR.SIZES must be the same multiples of the "
            f"strides at each; they are {in_units}"
        )
    return min(size for of_level in sizes for size in of_level), in_units[0]
