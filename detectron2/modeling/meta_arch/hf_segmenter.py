"""Segmenters of Hugging Face transformers that predict a mask and a class for each query, as models of this package.

`N` images, `Q` queries, `K` classes, `D` detections, `H` and `W` height and width in pixels. Classes of panoptic
segmentation are the things, then the stuff; label maps of this package have 0 for things and 1, 2 ... for stuff.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from detectron2.config import CfgNode, configurable
from detectron2.modeling.postprocessing import areas_and_certainties
from detectron2.structures import BitMasks, ImageList, Instances

from ._transformers import (
    TransformersModel,
    arguments_from,
    built_network,
    class_names,
    pixel_mask,
    read_config,
    require_kind,
    token_ids,
)
from .build import META_ARCH_REGISTRY
from .semantic_seg import padded_label_maps

__all__ = ["HFSegmenter"]

_TASKS = ("instance", "semantic", "panoptic")
_KINDS = {"instance": ("thing",), "semantic": ("stuff",), "panoptic": ("thing", "stuff")}
# Networks of one resolution: images are padded to a square, and each query is one object.
_SQUARE = ("eomt", "eomt_dinov3")
_MODELS = ("mask2former", "maskformer", "oneformer", *_SQUARE)
# What OneFormer reads beside the image, in the words that it was trained with.
_TASK_TEXT = "the task is {}"
_OBJECT_TEXT = "a photo with a {}"
_EMPTY_TEXTS = {"instance": "an instance photo", "semantic": "a semantic photo", "panoptic": "an panoptic photo"}


@META_ARCH_REGISTRY.register_addition
class HFSegmenter(TransformersModel):
    """A segmenter of Hugging Face transformers, with inputs and outputs of a model of this package.

    Mask2Former, MaskFormer, OneFormer and EoMT. The losses are the library's own. Masks are brought to the size of the
    image before they are compared with a threshold; the library does that at 384 x 384 pixels (Mask2Former) or at the
    size that the network gives (MaskFormer), and is equal where that is the size of the image.

    OneFormer reads the name of the task, and in training the classes of the objects in the image. The numbers of these
    words come from the tokenizer beside `pretrained` or `config`, and are kept in the config of the network.

    Args:
        config: the config of the network: a mapping, JSON text, a JSON file, a folder with `config.json`, or a name on
            the hub.
        pretrained: a folder or a name on the hub with weights to start from; "" for random ones. Weights of another
            number of labels are left out.
        task: "instance", "semantic" or "panoptic": what is learned and what comes out.
        num_things: for "panoptic", how many of the classes are things; they come first.
        label_ids: for each class the label of the network; empty if class k is label k.
        pixel_mean: one value for each channel, subtracted from the image, in the order of its channels. Networks of
            transformers expect 255 times the `image_mean` of their `preprocessor_config.json`.
        pixel_std: one value for each channel, by which the image is divided.
        input_format: "BGR" or "RGB", the order of the image's channels; the network gets RGB.
        size_divisibility: images are padded to a multiple of this; 0 for 32. EoMT takes squares of one size only.
        ignore_value: label of pixels in label maps that do not count.
        test_score_thresh: in inference only instances with a score above this are kept.
        max_detections_per_image: in inference at most this many instances are kept, the best ones.
        object_mask_thresh: in a panoptic result queries of a lower score have no part.
        overlap_thresh: in a panoptic result a segment is dropped unless more than this share of it is left to it.

    Raises:
        ImportError: transformers is not installed.
        FileNotFoundError: there is no such config or weights.
        ValueError: the config is of a model that is not one of these, the task is unknown, or OneFormer has no
            tokenizer.

    Example::

        cfg = get_cfg()
        cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "HFSegmenter", "MODEL.MASK_ON", True])
        cfg.merge_from_list(["MODEL.HF.PRETRAINED", "facebook/mask2former-swin-tiny-coco-instance"])
        model = build_model(cfg)
    """

    task_tokens: torch.Tensor

    @configurable
    def __init__(
        self,
        *,
        config: str | Mapping[str, Any],
        pretrained: str = "",
        task: str = "instance",
        num_things: int = 0,
        label_ids: Sequence[int] = (),
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
        input_format: str = "RGB",
        size_divisibility: int = 0,
        ignore_value: int = 255,
        test_score_thresh: float = 0.0,
        max_detections_per_image: int = 100,
        object_mask_thresh: float = 0.8,
        overlap_thresh: float = 0.8,
    ):
        if task not in _TASKS:
            raise ValueError(f"MODEL.HF.TASK is one of {', '.join(_TASKS)}; got {task!r}")
        content = read_config(config)
        require_kind(content, _MODELS, "HFSegmenter")
        if content["model_type"] == "oneformer":
            content = _with_text(content, pretrained or config)
        super().__init__(
            built_network(content, pretrained, "AutoModelForUniversalSegmentation"),
            content,
            label_ids=label_ids,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
            input_format=input_format,
            size_divisibility=size_divisibility or 32,
        )
        self.task = task
        self.num_things = {"instance": self.num_classes, "semantic": 0}.get(task, num_things)
        if task == "panoptic" and not 0 < num_things < self.num_classes:
            raise ValueError(
                f"panoptic segmentation needs things and stuff, but num_things (MODEL.HF.NUM_THINGS) is {num_things} "
                f"of {self.num_classes} classes"
            )
        self.square_size = content["image_size"] if content["model_type"] in _SQUARE else 0
        self.reads_text = content["model_type"] == "oneformer"
        if self.reads_text:
            tokens = self._tokens(_TASK_TEXT.format(task), content["task_seq_len"])
            self.register_buffer("task_tokens", tokens, persistent=False)
        self.ignore_value = ignore_value
        self.test_score_thresh = test_score_thresh
        self.max_detections_per_image = max_detections_per_image
        self.object_mask_thresh = object_mask_thresh
        self.overlap_thresh = overlap_thresh

    @property
    def portable_keys(self) -> dict[str, Any]:
        """See `TransformersModel.portable_keys`."""
        return {**super().portable_keys, "MODEL.HF.NUM_THINGS": self.num_things}

    def train(self, mode: bool = True) -> "HFSegmenter":
        """Set training or evaluation mode; parts of OneFormer have a switch of their own, which dropout goes by."""
        super().train(mode)
        for module in self.network.modules():
            if "is_training" in vars(module):
                module.is_training = mode
        return self

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Losses in training mode, results otherwise.

        Args:
            batched_inputs: one dictionary for each image with "image", `Tensor[C, H, W]`; in training "instances" with
                `gt_masks` (of any kind) and `gt_classes` for the tasks "instance" and "panoptic", and "sem_seg", an
                integer `Tensor[H, W]`, for "semantic" and "panoptic"; in inference optionally "height" and "width",
                the size of the results in pixels.

        Returns:
            In training the losses by the library's names, weighted, so that their sum is the library's loss. In
            inference for each image, as the task is: "instances", with `pred_masks`, `Tensor[D, height, width]` of
            bool, `pred_boxes` around them, `scores` and `pred_classes`, best first; "sem_seg", scores
            `Tensor[K, height, width]`, for "panoptic" of things together and each kind of stuff; "panoptic_seg", as
            `PanopticFPN` gives it.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        return self._losses(images, self._ground_truth(batched_inputs, images))

    def inference(self, batched_inputs: list[dict[str, Any]], do_postprocess: bool = True) -> Any:
        """Run the model in inference mode.

        Args:
            batched_inputs: as of `forward`.
            do_postprocess: whether to make results of queries.

        Returns:
            As of `forward`; without postprocessing what `queries` returns.
        """
        images = self.preprocess_image(batched_inputs)
        found = self.queries(images.tensor, pixel_mask(images.image_sizes, images.tensor))
        if not do_postprocess:
            return found
        padded_hw = tuple(images.tensor.shape[2:])
        results = []
        for scores, masks, item, size in zip(*found, batched_inputs, images.image_sizes, strict=True):
            wanted_hw = (item.get("height", size[0]), item.get("width", size[1]))
            masks = _resized(masks, padded_hw)[:, : size[0], : size[1]]
            results.append(self._result(scores, _resized(masks, wanted_hw)))
        return results

    def queries(self, images: torch.Tensor, inside: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Classes and masks of all queries.

        Args:
            images: RGB, normalised and padded, `Tensor[N, 3, H, W]`.
            inside: 1 where the images are, int64 `Tensor[N, H, W]`.

        Returns:
            Probabilities of classes `Tensor[N, Q, K + 1]`, of which the last is for no object, and logits of masks
            `Tensor[N, Q, height, width]`, in cells of the network.
        """
        outputs = self._run(images, inside)
        scores = outputs.class_queries_logits.softmax(-1)
        return torch.cat([scores[..., self.label_index], scores[..., -1:]], -1), outputs.masks_queries_logits

    def _run(self, images: torch.Tensor, inside: torch.Tensor, **options: Any) -> Any:
        if getattr(self.network.config, "use_auxiliary_loss", False):
            options["output_hidden_states"] = True  # MaskFormer reads them there
        if not self.square_size:
            options["pixel_mask"] = inside
        if self.reads_text:
            options["task_inputs"] = self.task_tokens.expand(images.shape[0], -1)
        return self.network(pixel_values=images, **options)

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """See `TransformersModel.preprocess_image`; networks of one resolution get squares of it."""
        images = super().preprocess_image(batched_inputs)
        if not self.square_size:
            return images
        side = max(max(size) for size in images.image_sizes)
        if side > self.square_size:
            raise ValueError(
                f"an image has a side of {side} pixels, but this network takes squares of {self.square_size}: set "
                f"INPUT.MAX_SIZE_TRAIN and INPUT.MAX_SIZE_TEST to at most {self.square_size}"
            )
        return ImageList.from_tensors(list(images), padding_constraints={"square_size": self.square_size})

    # --------------------------------------------------------------------------------------------------------- training

    def _ground_truth(self, batched_inputs: list[dict[str, Any]], images: ImageList) -> list[tuple[Any, torch.Tensor]]:
        """Masks of each image, float `Tensor[G, H, W]` at the size of the batch, and their labels `Tensor[G]`."""
        padded_hw = tuple(images.tensor.shape[2:])
        found = [_Segments(padded_hw, self.device) for _ in batched_inputs]
        if self.task != "semantic":
            for segments, target, size in zip(found, self._targets(batched_inputs), images.image_sizes, strict=True):
                if not target.has("gt_masks") and len(target):
                    raise ValueError(
                        "'instances' of the batch have no gt_masks, which HFSegmenter learns from: set MODEL.MASK_ON, "
                        "and use a data set with masks"
                    )
                if len(target):
                    masks: Any = target.gt_masks
                    if not isinstance(masks, BitMasks):
                        masks = BitMasks.from_polygon_masks(masks, *size)
                    segments.add(masks.tensor.to(self.device), target.gt_classes)
        if self.task != "instance":
            stuff = self.num_classes - self.num_things
            first = 1 if self.num_things else 0  # label 0 of panoptic data stands for all things
            maps = padded_label_maps(
                batched_inputs, self.device, ignore_value=self.ignore_value, num_classes=stuff + first
            )
            for segments, labels, (height, width) in zip(found, maps, images.image_sizes, strict=True):
                labels = labels[:height, :width]
                present = labels.unique()
                present = present[(present >= first) & (present != self.ignore_value)]
                segments.add(labels == present[:, None, None], present - first + self.num_things)
        return [(torch.cat(x.masks), self._labels_of(torch.cat(x.classes))) for x in found]

    def _text_of(self, labels: torch.Tensor) -> torch.Tensor:
        """What OneFormer reads of an image with objects of these labels: tokens `Tensor[texts, length]`."""
        config = self.transformers_config
        count, length = config["num_queries"] - config["text_encoder_n_ctx"], config["text_encoder_context_length"]
        texts = [_OBJECT_TEXT.format(config["id2label"][str(i)]) for i in sorted(labels.tolist())][:count]
        texts += [_EMPTY_TEXTS[self.task]] * (count - len(texts))
        tokens = {text: self._tokens(text, length) for text in set(texts)}
        return torch.stack([tokens[text] for text in texts]).to(self.device)

    def _tokens(self, text: str, length: int) -> torch.Tensor:
        """Tokens of a text, filled up with zeros."""
        ids = torch.tensor(self.transformers_config["text_ids"][text])
        return F.pad(ids, (0, length - len(ids)))

    def _losses(self, images: ImageList, targets: list[tuple[Any, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Weighted losses; those of inner layers, which some networks compare one by one, get a number."""
        parts: list[dict[str, torch.Tensor]] = []
        text = {"text_inputs": torch.stack([self._text_of(labels) for _, labels in targets])} if self.reads_text else {}
        # The library returns the sum alone, and multiplies the parts by their weights in place.
        handle = self.network.criterion.register_forward_hook(lambda module, inputs, losses: parts.append(losses))
        try:
            self._run(
                images.tensor,
                pixel_mask(images.image_sizes, images.tensor),
                mask_labels=[masks for masks, _ in targets],
                class_labels=[labels for _, labels in targets],
                **text,
            )
        finally:
            handle.remove()
        calls = parts if self.square_size else parts[-1:]  # others count inner layers within the last call
        inner = {f"{name}_{i}": loss for i, part in enumerate(calls[:-1]) for name, loss in part.items()}
        return {**calls[-1], **inner}

    # -------------------------------------------------------------------------------------------------------- inference

    def _result(self, scores: torch.Tensor, masks: torch.Tensor) -> dict[str, Any]:
        """The result of one image from probabilities `Tensor[Q, K + 1]` and mask logits `Tensor[Q, height, width]`."""
        of_classes = scores[:, :-1]
        result: dict[str, Any] = {}
        if self.task != "semantic":
            result["instances"] = self._instances(of_classes[:, : self.num_things], masks)
        if self.task != "instance":
            semantic = torch.einsum("qk,qhw->khw", of_classes, masks.sigmoid())
            if self.num_things:
                things = semantic[: self.num_things].amax(0, keepdim=True)
                semantic = torch.cat([things, semantic[self.num_things :]])
            result["sem_seg"] = semantic
        if self.task == "panoptic":
            result["panoptic_seg"] = self._panoptic(scores, masks)
        return result

    def _instances(self, scores: torch.Tensor, masks: torch.Tensor) -> Instances:
        """The best pairs of a query and a class, or where each query is one object, queries."""
        queries = len(scores)
        if self.square_size:
            scores, classes = scores.max(1)
            rows = torch.arange(queries, device=scores.device)
        else:
            scores, best = scores.flatten().topk(min(queries, scores.numel()))
            rows, classes = best // self.num_things, best % self.num_things
        area, certainty = areas_and_certainties(masks, rows)
        scores = scores * certainty
        keep = ((area > 0) & (scores > self.test_score_thresh)).nonzero()[:, 0]
        keep = keep[scores[keep].argsort(descending=True, stable=True)][: self.max_detections_per_image]
        instances = Instances((masks.shape[1], masks.shape[2]))
        instances.pred_masks = masks[rows[keep]] > 0
        instances.pred_boxes = BitMasks(instances.pred_masks).get_bounding_boxes()
        instances.scores, instances.pred_classes = scores[keep], classes[keep]
        return instances

    def _panoptic(self, scores: torch.Tensor, logits: torch.Tensor) -> tuple[torch.Tensor, list[dict[str, Any]]]:
        """Give each pixel to the query that is surest of it, and merge the stuff of a class."""
        best, classes = scores.max(1)
        keep = (classes < self.num_classes) & (best > self.object_mask_thresh)
        best, classes, masks = best[keep], classes[keep].tolist(), logits[keep].sigmoid()
        panoptic = torch.zeros(logits.shape[1:], dtype=torch.int32, device=logits.device)
        segments: list[dict[str, Any]] = []
        if not classes:
            return panoptic, segments
        weighted = masks * best[:, None, None]
        owner = weighted.argmax(0)
        ids: dict[int, int] = {}
        for row, label in enumerate(classes):
            # EoMT asks what is left of the mask; the others, of what is sure of both mask and class.
            whole = (masks if self.square_size else weighted)[row] >= 0.5
            mine = owner == row
            if self.square_size:
                left = mine & whole
            else:
                left = mine
            area, whole_area = int(mine.sum()), int(whole.sum())
            if area == 0 or whole_area == 0 or not left.any() or area / whole_area <= self.overlap_thresh:
                continue
            is_thing = label < self.num_things
            if is_thing or label not in ids:
                category = label if is_thing else label - self.num_things + 1
                number = len(segments) + 1
                score = {"score": float(best[row])}
                segments.append({"id": number, "isthing": is_thing, "category_id": category, **score})
                ids[label] = number
            panoptic[left] = ids[label]
        return panoptic, segments

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments of the constructor from `cfg.MODEL.HF`, and the class names of the training data."""
        options = cfg.MODEL.get("HF", CfgNode())
        task = options.get("TASK", "instance")
        arguments = arguments_from(cfg, _KINDS.get(task, ("thing",)))
        if arguments["config"]["model_type"] == "oneformer":  # the tokenizer may be beside the config
            arguments["config"] = _with_text(arguments["config"], arguments["pretrained"] or options.get("CONFIG", ""))
        return {
            **arguments,
            "task": task,
            "num_things": options.get("NUM_THINGS") or len(class_names(cfg, ("thing",))),
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "test_score_thresh": options.get("SCORE_THRESH_TEST", 0.0),
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "object_mask_thresh": options.get("OBJECT_MASK_THRESH", 0.8),
            "overlap_thresh": options.get("OVERLAP_THRESH", 0.8),
        }


def _with_text(config: dict[str, Any], source: str | Mapping[str, Any]) -> dict[str, Any]:
    """A config of OneFormer with the numbers of all words that it may read, by the tokenizer of `source` if need be."""
    labels = config["id2label"].values()
    texts = {*_EMPTY_TEXTS.values(), *map(_TASK_TEXT.format, _TASKS), *map(_OBJECT_TEXT.format, labels)}
    known = config.get("text_ids", {})
    if not texts <= known.keys():
        length = min(config["task_seq_len"], config["text_encoder_context_length"])
        known = token_ids(sorted(texts), source, length)
    return {**config, "text_ids": known, "is_training": True}  # whether there are parts that only training needs


class _Segments:
    """Ground truth masks of an image, at the size of the batch, as they are collected."""

    def __init__(self, size_hw: Sequence[int], device: torch.device):
        self.size_hw = size_hw
        self.masks = [torch.zeros(0, *size_hw, device=device)]
        self.classes = [torch.zeros(0, dtype=torch.int64, device=device)]

    def add(self, masks: torch.Tensor, classes: torch.Tensor) -> None:
        """Add masks `Tensor[G, H, W]` of the size of the image."""
        height, width = self.size_hw
        self.masks.append(F.pad(masks.float(), (0, width - masks.shape[2], 0, height - masks.shape[1])))
        self.classes.append(classes)


def _resized(masks: torch.Tensor, size_hw: Sequence[int]) -> torch.Tensor:
    """Masks `Tensor[Q, height, width]` at another size."""
    return F.interpolate(masks[None], size=tuple(size_hw), mode="bilinear", align_corners=False)[0]
