"""Test-time augmentation: predict on several resized and mirrored copies of an image, and merge the predictions.

`A` augmented copies of one image, `D` detections, `K` keypoints or classes, `C` channels, `H` and `W` height and width
in pixels. There are three frames: that of the original image (`height` and `width` of the input), in which results
are; that of the image that was passed; and that of each copy, which the model sees. The transforms of a copy lead from
the first to the last. Boxes are `(x1, y1, x2, y2)`, or rotated `(x_center, y_center, width, height, angle)`, in pixels.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detectron2.config import CfgNode, configurable
from detectron2.config.values import value_problem
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.data.catalog import Metadata
from detectron2.data.images import to_chw_tensor
from detectron2.data.transforms.pixels import through_pil
from detectron2.modeling.roi_heads.numerics import best_after_nms
from detectron2.structures import Boxes, Instances, RotatedBoxes

from .meta_arch import GeneralizedRCNN, PanopticFPN, SemanticSegmentor
from .postprocessing import MaskFormat, check_mask_format, detector_postprocess, sem_seg_postprocess

__all__ = ["DatasetMapperTTA", "GeneralizedRCNNWithTTA", "SemanticSegmentorWithTTA", "build_model_with_tta"]


class DatasetMapperTTA:
    """Makes augmented copies of an input: the image at several sizes and, if asked for, each of them mirrored.

    Args:
        min_sizes: lengths of the shorter edge in pixels, one for each size; 0 keeps the size of the input.
        max_size: the most that the longer edge may have; a copy that would exceed it is made smaller.
        flip: whether to mirror each of them too, left to right.

    Raises:
        ValueError: if there are no `min_sizes`, or a length is impossible.
    """

    @configurable
    def __init__(self, min_sizes: Sequence[int], max_size: int, flip: bool):
        sizes: Any = tuple(min_sizes) if isinstance(min_sizes, Iterable) else min_sizes
        for name, usual, value in (("min_sizes", (1,), sizes), ("max_size", 1, max_size)):
            if problem := value_problem(f"TEST.AUG.{name.upper()}", usual, value):
                raise ValueError(f"{name} of DatasetMapperTTA (TEST.AUG.{name.upper()}) {problem}")
        self.min_sizes = min_sizes
        self.max_size = max_size
        self.flip = flip

    def __call__(self, dataset_dict: dict[str, Any]) -> list[dict[str, Any]]:
        """Make the copies.

        Args:
            dataset_dict: an input of a model: "image", `Tensor[C, H, W]`, and optionally "height" and "width" of the
                original image. It is not changed.

        Returns:
            `len(min_sizes) * (2 if flip else 1)` dictionaries, the mirrored copy after each plain one. "image" is the
            augmented image, "transforms" the `TransformList` from the original image to it; all other entries are
            those of `dataset_dict`, shared and not copied.
        """
        image = dataset_dict["image"].permute(1, 2, 0).cpu().numpy()
        height, width = image.shape[:2]
        original_hw = (dataset_dict.get("height", height), dataset_dict.get("width", width))
        before = [] if original_hw == (height, width) else [T.ResizeTransform(*original_hw, height, width)]
        copies = []
        for min_size in self.min_sizes:
            resize: Any = T.NoOpTransform()
            if min_size > 0:
                new_hw = T.ResizeShortestEdge.get_output_shape(height, width, min_size, self.max_size)
                resize = T.ResizeTransform(height, width, *new_hw)
            resized = _resized(image, resize)
            copies.append((resized, [*before, resize]))
            if self.flip:  # of the resized image: resizing is what takes time
                mirror = T.HFlipTransform(resized.shape[1])
                copies.append((mirror.apply_image(resized), [*before, resize, mirror]))
        return [
            {**dataset_dict, "image": to_chw_tensor(copy), "transforms": T.TransformList(applied)}
            for copy, applied in copies
        ]

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Arguments of the constructor from `cfg.TEST.AUG`."""
        return {"min_sizes": cfg.TEST.AUG.MIN_SIZES, "max_size": cfg.TEST.AUG.MAX_SIZE, "flip": cfg.TEST.AUG.FLIP}


class _ModelWithTTA(nn.Module):
    """Run a model on augmented copies, a few at a time; subclasses merge the predictions."""

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        tta_mapper: Callable[[dict], list[dict]] | None = None,
        batch_size: int = 1,
    ):
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size, the number of copies that the model gets at once, must be > 0: {batch_size}")
        self.cfg = cfg.clone()
        self.model: Any = model.module if isinstance(model, DistributedDataParallel) else model
        self.tta_mapper: Any = DatasetMapperTTA(cfg) if tta_mapper is None else tta_mapper
        self.batch_size = batch_size
        self.training = self.model.training  # what evaluation restores afterwards is the model's own mode

    @torch.no_grad()
    def __call__(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return what the model returns, for inputs that it takes; instead of "image", "file_name" will do."""
        if not isinstance(batched_inputs, (list, tuple)):
            raise TypeError(
                f"expected a list of inputs, got a {type(batched_inputs).__name__}; of one input give [input]"
            )
        return [self._inference_one_image(self._with_image(x)) for x in batched_inputs]

    def _inference_one_image(self, input: dict[str, Any]) -> dict[str, Any]:
        """Predict on one image; its input has "image", "height" and "width"."""
        raise NotImplementedError(f"{type(self).__name__} must define _inference_one_image(input)")

    def _with_image(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """A shallow copy that has "image" (read if it is missing), "height" and "width"."""
        complete = dict(dataset_dict)
        if "image" not in complete:
            if "file_name" not in complete:
                raise KeyError(f"an input needs 'image' or 'file_name', but one has only {sorted(complete)}")
            image_format = getattr(self.model, "input_format", None) or self.cfg.INPUT.FORMAT
            exif = self.cfg.INPUT.get("EXIF", "apply")
            complete["image"] = to_chw_tensor(utils.read_image(complete["file_name"], image_format, exif))
        image = complete["image"]
        if not isinstance(image, torch.Tensor) or image.dim() != 3 or 0 in image.shape:
            got = f"shape {tuple(image.shape)}" if isinstance(image, torch.Tensor) else f"a {type(image).__name__}"
            raise ValueError(f"'image' of an input must be a tensor (C, H, W) with at least one pixel, got {got}")
        complete.setdefault("height", complete["image"].shape[1])
        complete.setdefault("width", complete["image"].shape[2])
        return complete

    def _averaged(
        self,
        predict: Callable[[list[dict[str, Any]]], Iterable[torch.Tensor]],
        augmented_inputs: list[dict[str, Any]],
        tfms: list[T.Transform],
    ) -> torch.Tensor:
        """Mean over all copies of the scores `Tensor[K, H, W]` that `predict` gives for each of a few."""
        total: Any = 0
        for start in range(0, len(augmented_inputs), self.batch_size):
            part = slice(start, start + self.batch_size)
            for scores, tfm in zip(predict(augmented_inputs[part]), tfms[part], strict=True):
                _refuse(
                    "semantic scores", tfm, (T.RotationTransform, T.CropTransform, T.PadTransform, T.ExtentTransform)
                )
                dims = _mirrored_dims(tfm)
                total = (scores.flip(dims) if dims else scores) + total
        return total / len(tfms)

    def _get_augmented_inputs(self, input: dict[str, Any]) -> tuple[list[dict[str, Any]], list[T.Transform]]:
        """The copies that the mapper makes, and apart from them the transforms that lead to each."""
        copies = list(self.tta_mapper(input) or ())
        entries = [sorted(x) if isinstance(x, dict) else type(x).__name__ for x in copies]
        if not entries or not all({"image", "transforms"} <= set(x) for x in entries):
            raise ValueError(
                "tta_mapper must return one or more dictionaries, each with 'image' and 'transforms' (from the "
                f"original image to it), but returned {entries or 'none'}"
            )
        augmented_inputs = [dict(x) for x in copies]
        return augmented_inputs, [x.pop("transforms") for x in augmented_inputs]


class GeneralizedRCNNWithTTA(_ModelWithTTA):
    """A two-stage detector with test-time augmentation, called like the detector itself.

    Boxes are detected in every copy and together go through non-maximum suppression once more. For those that remain,
    every copy predicts masks and keypoints, which are averaged. Never more than `batch_size` copies are on the device:
    the backbone runs twice on each, rather than that the features of all are kept.

    The mapper may resize and flip. Crops and rotations serve for boxes; masks are not averaged over rotations.

    Of a `PanopticFPN`, the semantic scores of all copies are averaged too (the backbone runs a third time), and merged
    with the instances.

    Args:
        cfg: config of the model, which also describes the augmentation (`cfg.TEST.AUG`).
        model: the detector; its weights are shared, not copied.
        tta_mapper: makes augmented copies of an input, like the default `DatasetMapperTTA(cfg)`.
        batch_size: number of copies that the model gets at once.
        keypoint_hflip_indices: for a model of keypoints, which one takes the place of each when the image is mirrored.
            By default read from the metadata (`keypoint_names`, `keypoint_flip_map`) of `cfg.DATASETS.TRAIN`.
        mask_format: how `detector_postprocess` gives masks; None for that of the model.

    Raises:
        TypeError: if the model is of another kind.
        ValueError: if the format of masks is not known; if the model takes precomputed proposals; or predicts
            keypoints, copies are mirrored, and it is not known which keypoints change places, or the indices are not
            those of pairs.
    """

    mask_format: MaskFormat = "full"

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        tta_mapper: Callable[[dict], list[dict]] | None = None,
        batch_size: int = 3,
        *,
        keypoint_hflip_indices: Sequence[int] | None = None,
        mask_format: MaskFormat | None = None,
    ):
        super().__init__(cfg, model, tta_mapper, batch_size)
        inference_on_known_boxes(self.model)  # refuses other models
        self.mask_format = check_mask_format(mask_format or getattr(self.model, "mask_format", "full"))
        if cfg.MODEL.LOAD_PROPOSALS or getattr(self.model, "proposal_generator", self) is None:
            raise ValueError(
                "test-time augmentation cannot use precomputed proposals; set MODEL.LOAD_PROPOSALS to False and train "
                "with a proposal generator (MODEL.PROPOSAL_GENERATOR.NAME other than 'PrecomputedProposals'), or "
                "leave out --tta (tta=True) and set TEST.AUG.ENABLED to False"
            )
        self.keypoint_hflip_indices = keypoint_hflip_indices
        if cfg.MODEL.KEYPOINT_ON and getattr(self.tta_mapper, "flip", False):
            self._keypoint_order_after_flip()  # now rather than when the first image is through

    @contextmanager
    def _turn_off_roi_heads(self, attrs: Sequence[str]) -> Iterator[None]:
        """Within the context, switch off branches of the ROI heads: `attrs` are names such as "mask_on"."""
        heads = self.model.roi_heads
        before = {name: getattr(heads, name) for name in attrs if hasattr(heads, name)}
        try:
            for name in before:
                setattr(heads, name, False)
            yield
        finally:
            for name, value in before.items():
                setattr(heads, name, value)

    def _batch_inference(
        self, batched_inputs: list[dict[str, Any]], detected_instances: list[Instances] | None = None
    ) -> list[Instances]:
        """Raw results of each copy, at most `batch_size` at a time; of known boxes, masks and keypoints for these."""
        outputs: list[Instances] = []
        for start in range(0, len(batched_inputs), self.batch_size):
            part = slice(start, start + self.batch_size)
            known = None if detected_instances is None else detected_instances[part]
            for result in inference_on_known_boxes(self.model)(batched_inputs[part], known, do_postprocess=False):
                if result.has("pred_keypoint_heatmaps"):  # 200 kB for a person: too much for all copies together
                    result.remove("pred_keypoint_heatmaps")
                outputs.append(result)
        return outputs

    def _inference_one_image(self, input: dict[str, Any]) -> dict[str, Instances]:
        """`{"instances": Instances}` of the size of the original image; of a `PanopticFPN` all that it gives."""
        original_hw = (input["height"], input["width"])
        augmented_inputs, tfms = self._get_augmented_inputs(input)
        with self._turn_off_roi_heads(["mask_on", "keypoint_on"]):
            boxes, scores, classes = self._get_augmented_boxes(augmented_inputs, tfms)
        merged = self._merge_detections(boxes, scores, classes, original_hw)
        if self.cfg.MODEL.MASK_ON or self.cfg.MODEL.KEYPOINT_ON:
            count = len(tfms) if len(merged) else 1  # one copy will do to get the fields in their right shapes
            self._add_masks_and_keypoints(merged, augmented_inputs[:count], tfms[:count])
        if isinstance(self.model, PanopticFPN):
            scores = self._averaged(partial(semantic_scores, self.model, output_hw=original_hw), augmented_inputs, tfms)
            return self.model._merge_image(merged, scores, self.mask_format)
        options: Any = {} if self.mask_format == "full" else {"mask_format": self.mask_format}
        return {"instances": detector_postprocess(merged, *original_hw, **options)}

    def _add_masks_and_keypoints(
        self, merged: Instances, augmented_inputs: list[dict[str, Any]], tfms: list[T.Transform]
    ) -> None:
        """Predict masks and keypoints of the detections in all copies, and set their means."""
        known = self._rescale_detected_boxes(augmented_inputs, merged, tfms)
        outputs = self._batch_inference(augmented_inputs, known)
        if self.cfg.MODEL.MASK_ON:
            merged.pred_masks = self._reduce_pred_masks(outputs, tfms)
        if self.cfg.MODEL.KEYPOINT_ON:
            merged.pred_keypoints = self._reduce_pred_keypoints(outputs, tfms)

    def _get_augmented_boxes(
        self, augmented_inputs: list[dict[str, Any]], tfms: list[T.Transform]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Boxes of all copies in the frame of the original image, `Tensor[B, 4]` or `[B, 5]`; scores; classes."""
        outputs = self._batch_inference(augmented_inputs)
        found = torch.cat([x.pred_boxes.tensor for x in outputs])
        # Together to the CPU and back, so that the device is waited for once and not for each copy.
        by_copy = np.split(found.float().cpu().numpy(), np.cumsum([len(x) for x in outputs])[:-1])
        restored = [_apply_to_boxes(tfm.inverse(), boxes) for boxes, tfm in zip(by_copy, tfms, strict=True)]
        boxes = torch.from_numpy(np.concatenate(restored)).to(
            found.device, torch.promote_types(found.dtype, torch.float32)
        )
        return boxes, torch.cat([x.scores for x in outputs]), torch.cat([x.pred_classes for x in outputs])

    def _merge_detections(
        self,
        all_boxes: torch.Tensor,
        all_scores: torch.Tensor | Sequence[torch.Tensor],
        all_classes: torch.Tensor | Sequence[torch.Tensor],
        shape_hw: tuple[int, int],
    ) -> Instances:
        """The best boxes of all copies, `Tensor[B, 4]` or rotated `Tensor[B, 5]`, after non-maximum suppression."""
        return best_boxes(
            all_boxes,
            torch.as_tensor(all_scores, device=all_boxes.device, dtype=all_boxes.dtype),
            torch.as_tensor(all_classes, device=all_boxes.device, dtype=torch.int64),
            shape_hw,
            self.cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            self.cfg.TEST.DETECTIONS_PER_IMAGE,
        )

    def _rescale_detected_boxes(
        self, augmented_inputs: list[dict[str, Any]], merged_instances: Instances, tfms: list[T.Transform]
    ) -> list[Instances]:
        """The chosen detections with their boxes in the frame of each copy, to which `tfms` lead."""
        boxes = merged_instances.pred_boxes
        array = boxes.tensor.float().cpu().numpy()
        in_copies = torch.from_numpy(np.stack([_apply_to_boxes(tfm, array) for tfm in tfms])).to(boxes.tensor)
        return [
            Instances(
                tuple(x["image"].shape[1:3]),
                pred_boxes=type(boxes)(of_copy),
                pred_classes=merged_instances.pred_classes,
                scores=merged_instances.scores,
            )
            for x, of_copy in zip(augmented_inputs, in_copies, strict=True)
        ]

    def _reduce_pred_masks(self, outputs: list[Instances], tfms: list[T.Transform]) -> torch.Tensor:
        """Mean of the masks of all copies, `Tensor[D, 1, M, M]`; of `tfms` only flips matter: a mask covers its box."""
        for tfm in tfms:
            _refuse("masks", tfm, (T.RotationTransform,))
        return average_masks([x.pred_masks for x in outputs], [_mirrored_dims(tfm) for tfm in tfms])

    def _reduce_pred_keypoints(self, outputs: list[Instances], tfms: list[T.Transform]) -> torch.Tensor:
        """Mean of the keypoints of all copies, `Tensor[D, K, 3]` in the frame of the original image."""
        found = torch.stack([x.pred_keypoints for x in outputs])
        restored = found.float().cpu().numpy()
        for of_copy, tfm in zip(restored, tfms, strict=True):
            xy = of_copy[..., :2]
            undo: Any = tfm.inverse()
            of_copy[..., :2] = undo.apply_coords(xy.reshape(-1, 2).copy()).reshape(xy.shape)
            if -1 in _mirrored_dims(tfm):
                order = self._keypoint_order_after_flip()
                if len(order) != of_copy.shape[1]:
                    raise ValueError(
                        f"the model predicts {of_copy.shape[1]} keypoints, but there are {len(order)} "
                        "keypoint_hflip_indices: give one for each, or, where they come from the metadata of "
                        "DATASETS.TRAIN, name the data sets of the training there"
                    )
                of_copy[:] = of_copy[:, order]
        return average_keypoints(torch.from_numpy(restored).to(found.device))

    def _keypoint_order_after_flip(self) -> Sequence[int]:
        """For each keypoint, the index of its counterpart in a mirrored image."""
        if self.keypoint_hflip_indices is None:
            try:
                self.keypoint_hflip_indices = utils.create_keypoint_hflip_indices(self.cfg.DATASETS.TRAIN)
            except (AttributeError, KeyError, ValueError) as e:
                raise ValueError(
                    "mirrored copies show a left hand as a right one, and it is not known which keypoints change "
                    "places: pass keypoint_hflip_indices to GeneralizedRCNNWithTTA, or set keypoint_names and "
                    "keypoint_flip_map in the metadata of the data sets in DATASETS.TRAIN "
                    f"({tuple(self.cfg.DATASETS.TRAIN)}), or set TEST.AUG.FLIP to False ({e})"
                ) from e
        order = list(self.keypoint_hflip_indices)
        if any(not 0 <= j < len(order) or order[j] != i for i, j in enumerate(order)):
            raise ValueError(
                "keypoint_hflip_indices must hold for each keypoint the index of its counterpart, so that two change "
                f"places and others keep their own, such as [1, 0, 2], got {order}"
            )
        return order


class SemanticSegmentorWithTTA(_ModelWithTTA):
    """A model of semantic segmentation with test-time augmentation, called like the model itself.

    The scores of all copies, at the size of the original image, are averaged; never more than `batch_size` of them are
    in memory. Of a model that predicts more, such as a panoptic one, only "sem_seg" is returned. The mapper may resize
    and flip.

    Args:
        cfg: config of the model, which also describes the augmentation (`cfg.TEST.AUG`).
        model: takes the documented inputs and returns "sem_seg", `Tensor[K, H, W]` of scores, for each.
        tta_mapper: makes augmented copies of an input, like the default `DatasetMapperTTA(cfg)`.
        batch_size: number of copies that the model gets at once.
    """

    def _inference_one_image(self, input: dict[str, Any]) -> dict[str, torch.Tensor]:
        """`{"sem_seg": Tensor[K, height, width]}`."""
        augmented_inputs, tfms = self._get_augmented_inputs(input)
        return {"sem_seg": self._averaged(self._scores, augmented_inputs, tfms)}

    def _scores(self, augmented_inputs: list[dict[str, Any]]) -> Iterator[torch.Tensor]:
        for result in self.model(augmented_inputs):
            if "sem_seg" not in result:
                raise TypeError(
                    "SemanticSegmentorWithTTA needs a model that returns 'sem_seg', but "
                    f"{type(self.model).__name__} returns {sorted(result)}"
                )
            yield result["sem_seg"]


def build_model_with_tta(cfg: CfgNode, model: nn.Module, metadata: Metadata | None = None) -> _ModelWithTTA:
    """Return `model` with the augmentation of `cfg.TEST.AUG`, or raise a `TypeError` for models that cannot have it.

    Which keypoints change places in a mirrored image says `metadata`, or else that of `cfg.DATASETS.TRAIN`.
    """
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    if isinstance(inner, SemanticSegmentor):
        return SemanticSegmentorWithTTA(cfg, inner)
    indices = None
    if cfg.MODEL.KEYPOINT_ON and metadata is not None:
        is_known = all(metadata.get(key) is not None for key in ("keypoint_names", "keypoint_flip_map"))
        indices = utils.keypoint_hflip_indices_of(metadata) if is_known else None
    return GeneralizedRCNNWithTTA(cfg, inner, keypoint_hflip_indices=indices)


def _resized(image: np.ndarray, resize: T.Transform) -> np.ndarray:
    """Apply a resize, to bytes with Pillow: the transform's faster kernel differs by a grey level here and there."""
    if isinstance(resize, T.ResizeTransform) and image.dtype == np.uint8:
        new_wh = (resize.new_w, resize.new_h)
        return through_pil(image, lambda pil: pil.resize(new_wh, resize.interp))
    resized = resize.apply_image(image)
    assert resized is not None, "transforms of images return images"
    return resized


def _steps(tfm: T.Transform) -> list[T.Transform]:
    return tfm.transforms if isinstance(tfm, T.TransformList) else [tfm]


def _mirrored_dims(tfm: T.Transform) -> list[int]:
    """The dimensions of `Tensor[..., H, W]` along which a transform mirrors, out of -1 (left to right) and -2."""
    flips = ((-1, T.HFlipTransform), (-2, T.VFlipTransform))
    return [dim for dim, kind in flips if sum(isinstance(step, kind) for step in _steps(tfm)) % 2 == 1]


def _refuse(what: str, tfm: T.Transform, kinds: tuple[type, ...]) -> None:
    """Raise a `ValueError` where a transform has a step of these kinds, over which `what` cannot be averaged."""
    for step in _steps(tfm):
        if isinstance(step, kinds):
            raise ValueError(
                f"{what} cannot be averaged over copies made with a {type(step).__name__}: they would not lie on one "
                "another; let tta_mapper resize and flip only"
            )


def _apply_to_boxes(tfm: Any, boxes: np.ndarray) -> np.ndarray:
    """Transform `(D, 4)` boxes, or rotated ones, `(D, 5)`; the array is not changed."""
    return tfm.apply_rotated_box(boxes.copy()) if boxes.shape[1] == 5 else tfm.apply_box(boxes)


def inference_on_known_boxes(model: Any) -> Callable[..., list[Instances]]:
    """A detector's `inference(inputs, detected_instances, do_postprocess)`."""
    # PanopticFPN.inference takes no detected instances. GeneralizedRCNN.inference does, and runs no semantic head.
    if isinstance(model, PanopticFPN) and type(model).inference is PanopticFPN.inference:
        return partial(GeneralizedRCNN.inference, model)
    if isinstance(model, GeneralizedRCNN) and "detected_instances" in signature(model.inference).parameters:
        return model.inference
    raise TypeError(
        "GeneralizedRCNNWithTTA works on a GeneralizedRCNN whose inference() takes detected_instances, got "
        f"{type(model).__name__}; for semantic segmentation use SemanticSegmentorWithTTA, for other models "
        "there is none: leave out --tta (tta=True), or set TEST.AUG.ENABLED to False"
    )


def semantic_scores(
    model: PanopticFPN, batched_inputs: list[dict[str, Any]], output_hw: tuple[int, int]
) -> Iterator[torch.Tensor]:
    """The semantic scores alone, for each input `Tensor[K, H, W]` at the size of the output."""
    images = model.preprocess_image(batched_inputs)
    scores, _ = model.sem_seg_head(model.backbone(images.tensor), None)
    for of_image, size_hw in zip(scores, images.image_sizes, strict=True):
        yield sem_seg_postprocess(of_image, size_hw, *output_hw)


# Boxes with a lower score are padding, which some custom heads return.
_MIN_SCORE = 1e-8


def best_boxes(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    classes: torch.Tensor,
    image_size_hw: tuple[int, int],
    nms_thresh: float,
    limit: int,
) -> Instances:
    """Return the best boxes that non-maximum suppression within each class keeps, clipped; all for a negative `limit`.

    Boxes are `Tensor[B, 4]` or, rotated, `Tensor[B, 5]`; scores and classes `Tensor[B]`.
    """
    usable = (torch.isfinite(boxes).all(dim=1) & (scores > _MIN_SCORE)).nonzero()[:, 0]
    boxes, scores, classes = boxes[usable], scores[usable], classes[usable]
    candidates = RotatedBoxes(boxes) if boxes.shape[1] == 5 else Boxes(boxes)
    candidates.clip(image_size_hw)
    keep = best_after_nms(candidates.tensor, scores, classes, nms_thresh, limit)
    return Instances(image_size_hw, pred_boxes=candidates[keep], scores=scores[keep], pred_classes=classes[keep])


def average_masks(masks: Sequence[torch.Tensor], flipped_dims: Sequence[Sequence[int]]) -> torch.Tensor:
    """Mean of the masks `Tensor[D, 1, M, M]` of the same boxes in all copies, mirrored along their `flipped_dims`."""
    total = torch.zeros_like(masks[0])
    for mask, dims in zip(masks, flipped_dims, strict=True):
        total += mask.flip(list(dims)) if dims else mask
    return total.div_(len(masks))


def average_keypoints(keypoints: torch.Tensor) -> torch.Tensor:
    """Mean over the copies of keypoints `Tensor[A, D, K, 3]`: x, y and score in one frame, left and right swapped back.

    Positions are weighted by their scores, so that a copy in which a keypoint was hardly seen does not drag it away.
    """
    xy, score = keypoints[..., :2], keypoints[..., 2:]
    weight = score.clamp(min=torch.finfo(score.dtype).tiny)  # where all scores are 0, all copies count the same
    weight = weight / weight.amax(dim=0, keepdim=True)  # before the sum: of such small numbers it would lose digits
    mean_xy = (xy * weight).sum(dim=0) / weight.sum(dim=0)
    return torch.cat([mean_xy, score.mean(dim=0)], dim=-1)
