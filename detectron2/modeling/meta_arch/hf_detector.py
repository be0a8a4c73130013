"""Detectors of Hugging Face transformers: DETR and its descendants, as models of this package.

`N` images, `Q` queries, `L` labels of the network, `K` classes of the data, `D` detections. Boxes of the network are
`(centre x, centre y, width, height)` in parts of a frame: the image, for networks that are told which pixels are
padding; else the padded batch, because they cannot tell the two apart.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torchvision.ops import box_convert

from detectron2.config import CfgNode, configurable
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import put_scalar

from ._transformers import (
    TransformersModel,
    arguments_from,
    built_network,
    pixel_mask,
    read_config,
    require_kind,
)
from .build import META_ARCH_REGISTRY

__all__ = ["HFDetector"]


@dataclass(frozen=True)
class _Family:
    """How detectors of one kind differ.

    Args:
        is_softmax: the last of the L + 1 scores of a query is for no object, and each query is one detection; else
            scores are independent, and each pair of a query and a label may be one.
        top_k: how many pairs are kept; None for the number of queries.
        knows_padding: whether the network is told what is padding, so that boxes are in parts of the image.
        divisor: what the sides of the batch must be multiples of, from the config.
        is_weighted: whether the losses of the library have their weights already.
    """

    is_softmax: bool
    top_k: int | None = None
    knows_padding: bool = True
    divisor: Callable[[Mapping[str, Any]], int] = lambda config: 1
    is_weighted: bool = False


def _patch(config: Mapping[str, Any]) -> int:
    size = config["patch_size"]
    return size if isinstance(size, int) else math.lcm(*size)


def _windows(config: Mapping[str, Any]) -> int:
    """Patches times windows along a side."""
    backbone = config["backbone_config"]
    return _patch(backbone) * backbone.get("num_windows_side", backbone["num_windows"])


_LIKE_DETR = _Family(is_softmax=True)
_LIKE_DEFORMABLE = _Family(is_softmax=False, top_k=100)
_LIKE_RT_DETR = _Family(is_softmax=False, knows_padding=False, divisor=lambda config: 32, is_weighted=True)
_FAMILIES = {
    "detr": _LIKE_DETR,
    "table-transformer": _LIKE_DETR,
    "yolos": _Family(is_softmax=True, knows_padding=False, divisor=_patch),
    "conditional_detr": _LIKE_DEFORMABLE,
    "dab-detr": _LIKE_DEFORMABLE,
    "deformable_detr": _LIKE_DEFORMABLE,
    "lw_detr": _Family(is_softmax=False, top_k=100, divisor=_windows),
    "rf_detr": _Family(is_softmax=False, divisor=_windows),
    "rt_detr": _LIKE_RT_DETR,
    "rt_detr_v2": _LIKE_RT_DETR,
    "d_fine": _LIKE_RT_DETR,
    "deimv2": _LIKE_RT_DETR,
}


@META_ARCH_REGISTRY.register_addition
class HFDetector(TransformersModel):
    """An object detector of Hugging Face transformers, with inputs and outputs of a model of this package.

    DETR, Conditional, Deformable and DAB-DETR, Table Transformer, YOLOS, RT-DETR (1 and 2), D-FINE, DEIMv2, LW-DETR and
    RF-DETR. The losses are the library's own, and so is how scores are computed; see the module about boxes in padded
    batches. The network is `self.network`; its config is stored with checkpoints, which therefore need no other file.

    Args:
        config: the config of the network: a mapping, JSON text, a JSON file, a folder with `config.json`, or a name on
            the hub.
        pretrained: a folder or a name on the hub with weights to start from; "" for random ones. Weights of another
            number of labels are left out.
        label_ids: for each class the label of the network; empty if class k is label k.
        pixel_mean: one value for each channel, subtracted from the image, in the order of its channels. Networks of
            transformers expect 255 times the `image_mean` of their `preprocessor_config.json`.
        pixel_std: one value for each channel, by which the image is divided.
        input_format: "BGR" or "RGB", the order of the image's channels; the network gets RGB.
        size_divisibility: images are padded to a multiple of this; 0 for what the network needs.
        test_score_thresh: in inference only scores above this are kept.
        max_detections_per_image: in inference at most this many are kept, the best ones.

    Raises:
        ImportError: transformers is not installed.
        FileNotFoundError: there is no such config or weights.
        ValueError: the config is of a model that is not one of these.

    Example::

        cfg = get_cfg()
        cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "HFDetector", "MODEL.HF.PRETRAINED", "PekingU/rtdetr_r18vd"])
        model = build_model(cfg)
    """

    @configurable
    def __init__(
        self,
        *,
        config: str | Mapping[str, Any],
        pretrained: str = "",
        label_ids: Sequence[int] = (),
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
        input_format: str = "RGB",
        size_divisibility: int = 0,
        test_score_thresh: float = 0.0,
        max_detections_per_image: int = 100,
    ):
        content = read_config(config)
        require_kind(content, tuple(_FAMILIES), "HFDetector")
        if content.get("anchor_image_size"):
            content["anchor_image_size"] = None  # computed for each size: the same values at that size
        self.family = _FAMILIES[content["model_type"]]
        super().__init__(
            built_network(content, pretrained, "AutoModelForObjectDetection"),
            content,
            label_ids=label_ids,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
            input_format=input_format,
            size_divisibility=size_divisibility or self.family.divisor(content),
        )
        self.test_score_thresh = test_score_thresh
        self.max_detections_per_image = max_detections_per_image

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Losses in training mode, results otherwise.

        Args:
            batched_inputs: one dictionary for each image with "image", `Tensor[C, H, W]`; in training "instances" with
                `gt_boxes` and `gt_classes`; in inference optionally "height" and "width", the size of the results in
                pixels.

        Returns:
            In training the losses by the library's names, weighted, so that their sum is the library's loss; in
            inference for each image `{"instances": Instances}` with `pred_boxes`, `scores` and `pred_classes`, best
            first.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        outputs = self._run(images, labels=self._ground_truth(batched_inputs, images))
        return self._losses(outputs.loss_dict)

    def inference(self, batched_inputs: list[dict[str, Any]], do_postprocess: bool = True) -> list[Any]:
        """Run the model in inference mode.

        Args:
            batched_inputs: as of `forward`.
            do_postprocess: whether to bring the results to the size that each input asks for.

        Returns:
            As of `forward`; without postprocessing `Instances` in pixels of the network's input, not clipped.
        """
        if self.training:
            raise ValueError("inference() was called in training mode; call model.eval() first")
        images = self.preprocess_image(batched_inputs)
        outputs = self._run(images)
        found = self.select(outputs.logits, outputs.pred_boxes, self._frames(images))
        results = [
            Instances(size, pred_boxes=Boxes(box), scores=score, pred_classes=label)[score > self.test_score_thresh]
            for box, score, label, size in zip(*found, images.image_sizes, strict=True)
        ]
        if not do_postprocess:
            return results
        return [
            {"instances": detector_postprocess(result, item.get("height", size[0]), item.get("width", size[1]))}
            for result, item, size in zip(results, batched_inputs, images.image_sizes, strict=True)
        ]

    def select(
        self, logits: torch.Tensor, boxes: torch.Tensor, frames: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Choose detections as the library does for this kind of network, best first, all with the same shapes.

        Args:
            logits: `Tensor[N, Q, L]`, or `L + 1` where the last is for no object.
            boxes: `Tensor[N, Q, 4]`, in parts of the frames.
            frames: `Tensor[N, 2]`, `(width, height)` in pixels.

        Returns:
            Boxes `Tensor[N, D, 4]` as `(x1, y1, x2, y2)` in pixels, scores and classes `Tensor[N, D]`, with
            `D <= max_detections_per_image`.
        """
        queries = logits.shape[1]
        if self.family.is_softmax:
            scores, classes = logits.softmax(-1)[..., self.label_index].max(-1)
            limit = queries
        else:
            scores = logits[..., self.label_index].sigmoid().flatten(1)
            limit = min(self.family.top_k or queries, scores.shape[1])
        scores, best = scores.topk(min(limit, self.max_detections_per_image), dim=1)
        if self.family.is_softmax:
            classes, rows = classes.gather(1, best), best
        else:
            classes, rows = best % self.num_classes, best // self.num_classes
        corners = box_convert(boxes, "cxcywh", "xyxy") * frames.repeat(1, 2)[:, None]
        return corners.gather(1, rows[..., None].expand(-1, -1, 4)), scores, classes

    def _run(self, images: ImageList, **options: Any) -> Any:
        if self.family.knows_padding:
            options["pixel_mask"] = pixel_mask(images.image_sizes, images.tensor)
        return self.network(pixel_values=images.tensor, **options)

    def _frames(self, images: ImageList) -> torch.Tensor:
        """What boxes are in parts of, `Tensor[N, 2]` of `(width, height)` in pixels."""
        padded = [tuple(images.tensor.shape[2:])] * len(images)
        sizes = torch.tensor(images.image_sizes if self.family.knows_padding else padded, dtype=torch.float32)
        return sizes.flip(1).to(self.device, non_blocking=True)

    def _ground_truth(self, batched_inputs: list[dict[str, Any]], images: ImageList) -> list[dict[str, torch.Tensor]]:
        """Ground truth as the library takes it."""
        labels = []
        for target, frame in zip(self._targets(batched_inputs), self._frames(images), strict=True):
            boxes = box_convert(target.gt_boxes.tensor.float(), "xyxy", "cxcywh") / frame.repeat(2)
            labels.append({"boxes": boxes, "class_labels": self._labels_of(target.gt_classes)})
        return labels

    def _losses(self, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Losses times their weights; what else the library measures becomes training statistics."""
        config = self.network.config
        weights = {
            "loss_ce": getattr(config, "class_loss_coefficient", 1.0),
            "loss_bbox": getattr(config, "bbox_loss_coefficient", 1.0),
            "loss_giou": getattr(config, "giou_loss_coefficient", 1.0),
        }
        losses = {}
        for name, value in values.items():
            base = re.sub(r"(_\d+)?(_enc)?$", "", name)
            if self.family.is_weighted:
                losses[name] = value
            elif base in weights:
                losses[name] = weights[base] * value
            else:
                put_scalar(name, value.detach())
        return losses

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments of the constructor from `cfg.MODEL.HF`, and the class names of the training data."""
        return {
            **arguments_from(cfg),
            "test_score_thresh": cfg.MODEL.get("HF", {}).get("SCORE_THRESH_TEST", 0.0),
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        }
