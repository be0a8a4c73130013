"""Panoptic FPN: Mask R-CNN and a semantic head on the same features.

`N` images, `K` classes of stuff, `C` channels, `H` and `W` height and width in pixels.
"""

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from detectron2.config import CfgNode, configurable
from detectron2.layers.mask_ops import paste_masks_in_boxes, paste_masks_in_image
from detectron2.layers.run_lengths import decode_part
from detectron2.modeling.postprocessing import (
    MaskFormat,
    detector_postprocess,
    paste_predicted_masks,
    sem_seg_postprocess,
)
from detectron2.structures import ImageList, Instances, ROIMasks
from detectron2.utils.tracing import when_traced

from .build import META_ARCH_REGISTRY
from .inputs import results_and_losses
from .rcnn import GeneralizedRCNN
from .semantic_seg import build_sem_seg_head, sem_seg_targets

__all__ = ["PanopticFPN", "combine_semantic_and_instance_outputs"]


logger = logging.getLogger(__name__)


@META_ARCH_REGISTRY.register()
class PanopticFPN(GeneralizedRCNN):
    """Panoptic Feature Pyramid Networks (Kirillov et al., https://arxiv.org/abs/1901.02446).

    Args:
        sem_seg_head: classifies pixels, with the interface of `SemSegFPNHead`; its class 0 stands for all things.
        combine_overlap_thresh: an instance is dropped when more than this share of it is covered by better ones.
        combine_stuff_area_thresh: stuff regions of fewer pixels are dropped.
        combine_instances_score_thresh: instances with a lower score take no part in the panoptic result.
        **kwargs: arguments of `GeneralizedRCNN`.
    """

    sem_seg_head: Any  # of the interface of SemSegFPNHead
    mask_format: MaskFormat = "full"  # once more: all methods here that post-process know it

    @configurable
    def __init__(
        self,
        *,
        sem_seg_head: nn.Module,
        combine_overlap_thresh: float = 0.5,
        combine_stuff_area_thresh: float = 4096,
        combine_instances_score_thresh: float = 0.5,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.sem_seg_head = sem_seg_head
        self.combine_overlap_thresh = combine_overlap_thresh
        self.combine_stuff_area_thresh = combine_stuff_area_thresh
        self.combine_instances_score_thresh = combine_instances_score_thresh

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Losses in training mode, results otherwise.

        Args:
            batched_inputs: as in `GeneralizedRCNN.forward`; in training also "sem_seg", integer `Tensor[H_i, W_i]`
                with 0 for things, 1, 2 ... for stuff, and the head's `ignore_value`.

        Returns:
            In training the losses by name; in inference for each image a dictionary with "instances" as in
            `GeneralizedRCNN.forward`, "sem_seg" as in `SemanticSegmentor.forward`, and "panoptic_seg" as
            `combine_semantic_and_instance_outputs` returns it.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        labels = sem_seg_targets(self, batched_inputs)
        instances = self._targets(batched_inputs)
        features = self.backbone(images.tensor)
        _, semantic_losses = self.sem_seg_head(features, labels)
        proposals, proposal_losses = self._propose(images, features, batched_inputs, instances)
        found = self.roi_heads(images, features, proposals, instances)
        _, detector_losses = results_and_losses(self.roi_heads, found)
        return {**semantic_losses, **proposal_losses, **detector_losses}

    def inference(self, batched_inputs: list[dict[str, Any]], do_postprocess: bool = True) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  # the documented signature
        """Run the model in inference mode; results as of `forward`.

        Without postprocessing they are neither resized nor merged: a list of raw `Instances` at the size of the model's
        input, and semantic scores `Tensor[N, K, H, W]` at the size of the padded input.
        """
        if self.training:
            raise ValueError("inference() was called in training mode; call model.eval() first")
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        scores, _ = self.sem_seg_head(features, None)
        proposals, _ = self._propose(images, features, batched_inputs)
        found = self.roi_heads(images, features, proposals, None)
        detections, _ = results_and_losses(self.roi_heads, found, len(images) if do_postprocess else None)
        return self._merge(detections, scores, batched_inputs, images) if do_postprocess else (detections, scores)

    def _merge(
        self, detections: list[Instances], scores: torch.Tensor, batched_inputs: list[dict[str, Any]], images: ImageList
    ) -> list[dict[str, Any]]:
        """Results of each image at the size that its input asks for."""
        outputs = []
        for i, (item, size) in enumerate(zip(batched_inputs, images.image_sizes, strict=True)):
            height, width = item.get("height", size[0]), item.get("width", size[1])
            semantic = sem_seg_postprocess(scores[i], size, height, width)
            outputs.append(self._merge_image(detections[i], semantic, self.mask_format))
        return outputs

    def _merge_image(self, detections: Instances, semantic: torch.Tensor, mask_format: MaskFormat) -> dict[str, Any]:
        """Results of one image from raw detections and its scores `Tensor[K, H, W]` at the size of the results."""
        height, width = semantic.shape[1:]
        # Unless whole masks are wanted, the merge pastes one mask at a time.
        options: Any = {} if mask_format == "full" else {"mask_format": "roi"}
        instances = detector_postprocess(detections, height, width, **options)
        panoptic = combine_semantic_and_instance_outputs(
            instances,
            semantic.argmax(dim=0),
            self.combine_overlap_thresh,
            self.combine_stuff_area_thresh,
            self.combine_instances_score_thresh,
        )
        instances = paste_predicted_masks(instances, mask_format)
        return {"sem_seg": semantic, "instances": instances, "panoptic_seg": panoptic}

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Arguments of the constructor from the config."""
        options = cfg.MODEL.PANOPTIC_FPN
        if not options.COMBINE.ENABLED:
            logger.warning(
                "MODEL.PANOPTIC_FPN.COMBINE.ENABLED has no effect; for results without merging call "
                "model.inference(inputs, do_postprocess=False)"
            )
        arguments = super().from_config(cfg)
        _scale_loss_weights(arguments["roi_heads"], options.INSTANCE_LOSS_WEIGHT)
        return {
            **arguments,
            "sem_seg_head": build_sem_seg_head(cfg, arguments["backbone"].output_shape()),
            "combine_overlap_thresh": options.COMBINE.OVERLAP_THRESH,
            "combine_stuff_area_thresh": options.COMBINE.STUFF_AREA_LIMIT,
            "combine_instances_score_thresh": options.COMBINE.INSTANCES_CONFIDENCE_THRESH,
        }


def _scale_loss_weights(roi_heads: nn.Module, factor: float) -> None:
    """Multiply the weights of all losses of ROI heads, in place."""
    if factor == 1.0:
        return
    heads: list[Any] = [module for module in roi_heads.modules() if hasattr(module, "loss_weight")]
    for head in heads:
        weight = head.loss_weight
        if isinstance(weight, dict):
            # A loss of the box predictor without an entry has weight 1.
            weight = {"loss_cls": 1.0, "loss_box_reg": 1.0, **weight}
            head.loss_weight = {name: value * factor for name, value in weight.items()}
        else:
            head.loss_weight = weight * factor


@torch.jit.script_if_tracing
def _combine_in_graph(
    masks: torch.Tensor,
    scores: torch.Tensor,
    classes: torch.Tensor,
    labels: torch.Tensor,
    overlap_threshold: float,
    area_threshold: float,
    score_threshold: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do the work of `combine_semantic_and_instance_outputs`; the segments are a table."""
    owner = torch.zeros_like(labels, dtype=torch.int32)
    none = float("nan")
    table: list[float] = []
    count = 0
    order: list[int] = scores.argsort(descending=True, stable=True).tolist()
    for row in order:
        score = float(scores[row].double())
        free = masks[row] & (owner == 0)
        area, left = int(masks[row].sum()), int(free.sum())
        if score >= score_threshold and left > 0 and (area - left) / area <= overlap_threshold:
            count += 1
            owner = torch.where(free, torch.full_like(owner, count), owner)
            table += [float(count), 1.0, float(classes[row]), score, float(row), none]
    free_labels = torch.where(owner == 0, labels, torch.zeros_like(labels))
    areas: list[int] = torch.bincount(free_labels.flatten()).tolist()
    for label, area in enumerate(areas):
        if label > 0 and area > 0 and area >= area_threshold:
            count += 1
            owner = torch.where(free_labels == label, torch.full_like(owner, count), owner)
            table += [float(count), 0.0, float(label), none, none, float(area)]
    return owner, torch.tensor(table, dtype=torch.float64).view(count, 6)


def _combine_traced(
    instance_results: Instances,
    semantic_results: torch.Tensor,
    overlap_threshold: float,
    stuff_area_thresh: float,
    instances_score_thresh: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take out the tensors, of whole masks."""
    masks, size = instance_results.pred_masks, semantic_results.shape
    if isinstance(masks, ROIMasks):
        masks = masks.to_bitmasks(instance_results.pred_boxes, size[0], size[1]).tensor
    thresholds = overlap_threshold, float(stuff_area_thresh), instances_score_thresh
    scores, classes = instance_results.scores, instance_results.pred_classes
    return _combine_in_graph(masks > 0, scores, classes, semantic_results, *thresholds)


@when_traced(_combine_traced)
def combine_semantic_and_instance_outputs(
    instance_results: Instances,
    semantic_results: torch.Tensor,
    overlap_threshold: float,
    stuff_area_thresh: float,
    instances_score_thresh: float,
) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """Merge the detections and the semantic labels of an image, so that each pixel belongs to one segment at most.

    Args:
        instance_results: with `scores`, `pred_classes` and masks in any format of `detector_postprocess`: boolean
            `pred_masks`, `Tensor[D, H, W]`; `ROIMasks` with `pred_boxes`, pasted one at a time at the threshold 0.5; or
            `pred_masks_rle`.
        semantic_results: integer `Tensor[H, W]`; label 0 stands for all things and is left out.
        overlap_threshold: an instance is dropped when more than this share of it is covered by better ones.
        stuff_area_thresh: stuff is dropped when fewer pixels than this are left of it.
        instances_score_thresh: instances with a lower score are dropped.

    Returns:
        int32 `Tensor[H, W]` with the id of each pixel's segment, 0 for none; and for each segment, in the order of ids
        1, 2 ..., a dictionary with "id", "isthing", "category_id", and for things "score" and "instance_id" (its row in
        `instance_results`), for stuff "area" in pixels. While a graph is traced the segments are the table that
        `detectron2.structures.segments` makes of them, as their number differs from image to image.
    """
    order = torch.argsort(instance_results.scores, descending=True, stable=True)
    scores, rows = instance_results.scores[order].tolist(), order.tolist()
    rows = [row for row, score in zip(rows, scores, strict=True) if score >= instances_score_thresh]
    panoptic, winners = _claim(instance_results, rows, tuple(semantic_results.shape), overlap_threshold)
    panoptic = panoptic.to(semantic_results.device)  # run lengths are on the CPU

    classes = instance_results.pred_classes.tolist()
    segments: list[dict[str, Any]] = [
        {"id": i, "isthing": True, "score": scores[w], "category_id": classes[rows[w]], "instance_id": rows[w]}
        for i, w in enumerate(winners, start=1)
    ]
    return _add_stuff(panoptic, segments, semantic_results, stuff_area_thresh)


def _claim(
    instances: Instances, rows: list[int], size_hw: tuple[int, ...], threshold: float
) -> tuple[torch.Tensor, list[int]]:
    """Let `rows`, best first, claim pixels: a map of 1, 2 ... for those that got them, and their places in `rows`."""
    if not instances.has("pred_masks"):
        parts = (decode_part(instances.pred_masks_rle[row]) for row in rows)
        return _claim_on_cpu(_pixels(parts, size_hw[1]), size_hw, threshold)
    masks = instances.pred_masks
    on_cpu = masks.device.type == "cpu"
    if isinstance(masks, ROIMasks):
        boxes = instances.pred_boxes.tensor
        if on_cpu:
            parts = paste_masks_in_boxes(masks.tensor[rows], boxes[rows], (size_hw[0], size_hw[1]))
            return _claim_on_cpu(_pixels(parts, size_hw[1]), size_hw, threshold)
        one_by_one = (_pasted(masks.tensor[row : row + 1], boxes[row : row + 1], size_hw) for row in rows)
        return _claim_on_device(one_by_one, size_hw, masks.device, threshold)
    masks = masks if masks.dtype == torch.bool else masks > 0
    if on_cpu:
        flat = masks.flatten(1).numpy()
        return _claim_on_cpu((flat[row].nonzero()[0] for row in rows), size_hw, threshold)
    return _claim_on_device((masks[row] for row in rows), size_hw, masks.device, threshold)


def _pasted(masks: torch.Tensor, boxes: torch.Tensor, size_hw: tuple[int, ...]) -> torch.Tensor:
    """One mask, `Tensor[H, W]`."""
    return paste_masks_in_image(masks, boxes, (size_hw[0], size_hw[1]))[0]


def _pixels(parts: Iterable[tuple[np.ndarray, tuple[int, int]]], width: int) -> Iterator[np.ndarray]:
    """The indices of the pixels of masks that are given by a part of the image, and where this begins."""
    for bits, (left, top) in parts:
        y, x = bits.nonzero()
        yield (y + top) * width + x + left


def _claim_on_cpu(
    pixels_of_each: Iterable[np.ndarray], size_hw: tuple[int, ...], threshold: float
) -> tuple[torch.Tensor, list[int]]:
    """`_claim` by the pixels of each instance, ascending indices into the flat image: no work for other pixels."""
    owner = np.zeros(size_hw[0] * size_hw[1], dtype=np.int32)
    winners: list[int] = []
    for position, pixels in enumerate(pixels_of_each):
        free = pixels[owner[pixels] == 0]
        # An instance of which nothing is left is none, even where everything may be covered (threshold 1).
        if len(free) == 0 or (len(pixels) - len(free)) / len(pixels) > threshold:
            continue
        winners.append(position)
        owner[free] = len(winners)
    return torch.from_numpy(owner).view(size_hw), winners


def _claim_on_device(
    masks: Iterable[torch.Tensor], size_hw: tuple[int, ...], device: torch.device, threshold: float
) -> tuple[torch.Tensor, list[int]]:
    """`_claim` by boolean masks `Tensor[H, W]`. Asking for a number means to wait: decisions stay on the device."""
    owner = torch.zeros(size_hw, dtype=torch.int32, device=device)
    winners = torch.zeros((), dtype=torch.int32, device=device)
    decisions = []
    for mask in masks:
        free = mask & (owner == 0)
        area, left = mask.sum(), free.sum()
        # In double precision, like the division of Python numbers; without pixels it is NaN and "<=" is false.
        won = ((area - left).double() / area.double() <= threshold) & (left > 0)
        winners = winners + won
        owner = torch.where(free & won, winners, owner)
        decisions.append(won)
    won = torch.stack(decisions).tolist() if decisions else []
    return owner, [position for position, yes in enumerate(won) if yes]


def _add_stuff(
    panoptic: torch.Tensor, segments: list[dict[str, Any]], labels: torch.Tensor, area_threshold: float
) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """Fill the free pixels of a map with the labels that have enough of them left."""
    free_labels = torch.where(panoptic == 0, labels, 0)
    areas = torch.bincount(free_labels.flatten()).tolist()
    id_of_label = [0] * max(len(areas), 1)
    for label, area in enumerate(areas):
        if label == 0 or area == 0 or area < area_threshold:
            continue
        id_of_label[label] = len(segments) + 1
        segments.append({"id": id_of_label[label], "isthing": False, "category_id": label, "area": area})
    table = torch.tensor(id_of_label, dtype=torch.int32, device=panoptic.device)
    return panoptic + table[free_labels.long()], segments
