"""The default mapper: from a dataset dict to the input of a built-in model.

Letters: `H`, `W` height and width in pixels of the image as the model gets it, `C` channels.
"""

import copy
import functools
import inspect
import itertools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from detectron2.config import configurable
from detectron2.structures import BoxMode, Instances

from . import detection_utils as utils
from . import transforms as T
from .detection_utils import boxes_of, transform_keypoint_annotations, transform_segmentation
from .images import check_exif, to_chw_tensor

__all__ = ["DatasetMapper"]

logger = logging.getLogger(__name__)

_IMMUTABLE = frozenset({bool, int, float, str, bytes, type(None), BoxMode})


def _copied(value: Any) -> Any:
    """Copy a dataset dict deeply, ten times as fast on lists of numbers as `copy.deepcopy`."""
    kind = type(value)
    if kind in _IMMUTABLE:
        return value
    if kind is dict:
        return {key: _copied(v) for key, v in value.items()}
    if kind is list:
        return value[:] if _IMMUTABLE.issuperset(map(type, value)) else [_copied(v) for v in value]
    return copy.deepcopy(value)


def _meets_image(instances: Instances) -> torch.Tensor:
    """Return which rotated boxes have an area and, by their upright bounds, a part in the image: bool `(N,)`."""
    around: Any = BoxMode.convert(instances.gt_boxes.tensor, BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS)
    x1, y1, x2, y2 = around.unbind(dim=1)
    height, width = instances.image_size
    meets = (x2 > 0) & (x1 < width) & (y2 > 0) & (y1 < height)
    return meets & instances.gt_boxes.nonempty(threshold=1e-5)


def _check_label_map(labels: Any, image: np.ndarray, name: str, done: Sequence[T.Transform] = ()) -> None:
    """Refuse a label map that has another size than its image, as it is read or after the transforms `done`."""
    if labels is not None and labels.shape == image.shape[:2]:
        return
    what, cure = "is", "Give it the size of its image."
    if done:
        what = f"is, after {', '.join(type(t).__name__ for t in done)},"
        cure = "apply_segmentation of a transform must do to it what apply_image does to the image."
    size = None if labels is None else labels.shape
    raise ValueError(f"the label map {name!r} {what} {size}, (height, width), and its image {image.shape[:2]}. {cure}")


@functools.lru_cache(maxsize=256)
def _may_ask_for_boxes(kind: type[T.Augmentation], input_args: tuple[str, ...] | None) -> bool:
    """Whether an augmentation, or one inside of it, may depend on where the objects are, as `MinIoURandomCrop` does."""
    parameters = inspect.signature(kind.get_transform).parameters.values()
    asked = input_args or [p.name for p in parameters]
    return "boxes" in asked or any(p.kind is p.VAR_POSITIONAL for p in parameters)


class DatasetMapper:
    """Read the image of a dataset dict, augment it together with its annotations, and make tensors of them.

    The result has all other entries of the dataset dict, and

    * "image": `(C, H, W)` tensor, uint8 in the order of `image_format` (float32 for floating-point images); it lies in
      memory as `(H, W, C)`, so that `image.permute(1, 2, 0)` is contiguous;
    * "instances" (training): `Instances` with `gt_boxes`, `gt_classes`, and `gt_masks` and `gt_keypoints` if used; with
      rotated boxes only `gt_boxes` (`RotatedBoxes`) and `gt_classes`;
    * "sem_seg": `(H, W)` int64 tensor of labels, if the data set has "sem_seg_file_name";
    * "proposals": `Instances`, if precomputed proposals are used.

    Crowd annotations (`iscrowd`) take no part. The input dict is not changed. Subclasses usually override
    `_transform_annotations`, or write `__call__` anew.

    Args:
        is_train: for training or for inference.
        augmentations: augmentations or transforms, applied in order.
        image_format: a format of `detection_utils.read_image`; None keeps what the files have (16 bits, or any number
            of channels, for which the model needs as many values in `MODEL.PIXEL_MEAN`).
        use_instance_mask: whether to use segmentations of instances, where there are any.
        use_keypoint: whether to use keypoints, where there are any.
        instance_mask_format: "polygon" or "bitmask".
        keypoint_hflip_indices: see `detection_utils.create_keypoint_hflip_indices`.
        precomputed_proposal_topk: how many precomputed proposals to keep; None to use none.
        recompute_boxes: whether to replace boxes by the tightest ones around the masks, which a crop may have cut;
            needs masks.
        use_rotated_boxes: whether the model takes rotated boxes, without masks and keypoints; upright ones then become
            rotated ones of angle 0. Otherwise rotated boxes become the upright ones around them.
        exif: "apply" to turn images upright as their EXIF data say, "ignore" if annotations are of the stored ones.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: list[T.Augmentation | T.Transform],
        image_format: str | None,
        use_instance_mask: bool = False,
        use_keypoint: bool = False,
        instance_mask_format: str = "polygon",
        keypoint_hflip_indices: np.ndarray | list[int] | None = None,
        precomputed_proposal_topk: int | None = None,
        recompute_boxes: bool = False,
        use_rotated_boxes: bool = False,
        exif: str = "apply",
    ):
        if recompute_boxes and not use_instance_mask:
            raise ValueError("recompute_boxes=True needs use_instance_mask=True: boxes are computed from masks")
        if use_rotated_boxes and (use_instance_mask or use_keypoint):
            raise ValueError(
                "use_rotated_boxes=True goes with neither masks nor keypoints: models of rotated boxes have no heads "
                "for them (set MODEL.MASK_ON and MODEL.KEYPOINT_ON to False)"
            )
        if instance_mask_format not in ("polygon", "bitmask"):
            raise ValueError(f'instance_mask_format must be "polygon" or "bitmask", got {instance_mask_format!r}')
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.use_instance_mask = use_instance_mask
        self.instance_mask_format = instance_mask_format
        self.use_keypoint = use_keypoint
        self.keypoint_hflip_indices = keypoint_hflip_indices
        self.proposal_topk = precomputed_proposal_topk
        self.recompute_boxes = recompute_boxes
        self.use_rotated_boxes = use_rotated_boxes
        self.exif = check_exif(exif)
        logger.info("augmentations used in %s: %s", "training" if is_train else "inference", augmentations)

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one image of a data set in the standard format to what the built-in models accept; see the class.

        A missing file is a FileNotFoundError, an image of another size than annotated a `SizeMismatchError`, and an
        annotation that is not usable a ValueError, whose message names file and annotation.
        """
        unused = () if self.is_train else ("annotations",)
        dataset_dict = {key: _copied(value) for key, value in dataset_dict.items() if key not in unused}
        image = utils.read_image(dataset_dict["file_name"], format=self.image_format, exif=self.exif)
        utils.check_image_size(dataset_dict, image)
        utils.make_boxes_absolute(dataset_dict.get("annotations", ()), image.shape[:2])
        sem_seg_gt, sem_seg_name = None, dataset_dict.pop("sem_seg_file_name", None)
        if sem_seg_name is not None:
            sem_seg_gt = utils.read_image(sem_seg_name, "L").squeeze(2)
            _check_label_map(sem_seg_gt, image, sem_seg_name)

        boxes = None
        if any(_may_ask_for_boxes(type(a), a.input_args) for a in getattr(self.augmentations, "augs", ())):
            boxes = boxes_of([a for a in dataset_dict.get("annotations", ()) if a.get("iscrowd", 0) == 0])
        aug_input = T.AugInput(image, boxes=boxes, sem_seg=sem_seg_gt)
        transforms = self.augmentations(aug_input)
        image, sem_seg_gt = aug_input.image, aug_input.sem_seg
        image_shape = image.shape[:2]  # (height, width)
        stored = getattr(aug_input, "stored_image", None)  # see `ResizeLater`
        if stored is None:
            dataset_dict["image"] = to_chw_tensor(image)
        else:
            dataset_dict["stored_image"], dataset_dict["image_size_hw"] = to_chw_tensor(stored), image_shape
        if sem_seg_name is not None:
            _check_label_map(sem_seg_gt, image, sem_seg_name, transforms.transforms)
            labels: Any = sem_seg_gt
            dataset_dict["sem_seg"] = torch.from_numpy(labels.astype(np.int64))

        if self.proposal_topk is not None:
            utils.transform_proposals(dataset_dict, image_shape, transforms, proposal_topk=self.proposal_topk)
        if "annotations" in dataset_dict:
            try:
                self._transform_annotations(dataset_dict, transforms, image_shape)
            except ValueError as e:
                raise ValueError(f"in the annotations of {dataset_dict['file_name']!r}: {e}") from e
        return dataset_dict

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: T.TransformList, image_shape: tuple[int, int]
    ) -> None:
        """Replace "annotations" by "instances"."""
        annos = [a for a in dataset_dict.pop("annotations") if a.get("iscrowd", 0) == 0]
        if self.use_rotated_boxes:
            annos = [utils.transform_rotated_annotation(annotation, transforms) for annotation in annos]
            instances = utils.annotations_to_instances_rotated(annos, image_shape)
            dataset_dict["instances"] = instances[_meets_image(instances)]
            return
        uses = {"segmentation": self.use_instance_mask, "keypoints": self.use_keypoint}
        unused = [key for key, used in uses.items() if not used]
        for annotation, key in itertools.product(annos, unused):
            annotation.pop(key, None)
        transform_annotations(annos, transforms, image_shape, self.keypoint_hflip_indices)
        instances = utils.annotations_to_instances(annos, image_shape, mask_format=self.instance_mask_format)
        if self.recompute_boxes and instances.has("gt_masks"):
            # A crop may leave a part of the object that is smaller than the cropped box.
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        dataset_dict["instances"] = utils.filter_empty_instances(instances)

    @classmethod
    def from_config(cls, cfg: Any, is_train: bool = True) -> dict[str, Any]:
        """Arguments of the constructor from a config."""
        augmentations = utils.build_augmentation(cfg, is_train)
        crops = is_train and cfg.INPUT.CROP.ENABLED
        if crops:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        topk = cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN if is_train else cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST
        flip_indices = None
        if cfg.MODEL.KEYPOINT_ON and len(cfg.DATASETS.TRAIN) > 0:
            try:
                flip_indices = utils.create_keypoint_hflip_indices(cfg.DATASETS.TRAIN)
            except ValueError:
                if is_train:  # else nothing is flipped, and the training data need not be known
                    raise
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "use_instance_mask": cfg.MODEL.MASK_ON,
            "use_keypoint": cfg.MODEL.KEYPOINT_ON,
            "instance_mask_format": cfg.INPUT.MASK_FORMAT,
            "keypoint_hflip_indices": flip_indices,
            "precomputed_proposal_topk": topk if cfg.MODEL.LOAD_PROPOSALS else None,
            "recompute_boxes": crops and cfg.MODEL.MASK_ON,
            "use_rotated_boxes": cfg.MODEL.ANCHOR_GENERATOR.NAME == "RotatedAnchorGenerator",
            "exif": cfg.INPUT.get("EXIF", "apply"),
        }


# Upright boxes stay upright ones under these, and `x` does not depend on `y`.
_KEEP_AXES = frozenset({T.ResizeTransform, T.HFlipTransform, T.VFlipTransform, T.NoOpTransform})


def transform_annotations(
    annotations: list[dict[str, Any]],
    transforms: T.TransformList,
    image_hw: tuple[int, int],
    keypoint_hflip_indices: Sequence[int] | np.ndarray | None = None,
) -> None:
    """Do what `transform_instance_annotations` does to each annotation of an image, in place.

    Boxes take one call of each transform, and so do the polygons of all instances if no transform treats polygons in a
    way of its own (a crop cuts them).
    """
    if not annotations:
        return
    h, w = image_hw
    segmented = [a for a in annotations if "segmentation" in a]
    of_points, polygons = _polygons_to_move(segmented, transforms)
    boxes, moved = _move(boxes_of(annotations), polygons, transforms)
    for annotation, box in zip(annotations, np.minimum(np.maximum(boxes, 0), (w, h, w, h)), strict=True):
        annotation["bbox"] = box
        annotation["bbox_mode"] = BoxMode.XYXY_ABS
    done = {id(a) for a in of_points}
    for annotation in segmented:
        if id(annotation) not in done:
            annotation["segmentation"] = transform_segmentation(annotation, transforms, image_hw)
    parts = iter(moved)
    for annotation in of_points:
        annotation["segmentation"] = [next(parts) for _ in annotation["segmentation"]]
    for annotation in annotations:
        if "keypoints" in annotation:
            annotation["keypoints"] = transform_keypoint_annotations(
                annotation["keypoints"], transforms, image_hw, keypoint_hflip_indices
            )


def _polygons_to_move(
    annotations: list[dict[str, Any]], transforms: T.TransformList
) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Return the annotations whose polygons can be moved point by point, and these polygons, each `(2P,)`."""
    if any(type(t).apply_polygons is not T.Transform.apply_polygons for t in transforms.transforms):
        return [], []
    of_points = [a for a in annotations if isinstance(a["segmentation"], list)]
    polygons = [np.array(p, dtype=np.float64).reshape(-1) for a in of_points for p in a["segmentation"]]
    if any(len(p) % 2 for p in polygons):
        return [], []  # one by one, for an error as it is there
    return of_points, polygons


def _move(
    boxes: np.ndarray, polygons: list[np.ndarray], transforms: T.TransformList
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return boxes `(N, 4)` and polygons after the transforms."""
    if not all(type(t) in _KEEP_AXES and type(t).apply_box is T.Transform.apply_box for t in transforms.transforms):
        boxes = transforms.apply_box(boxes)
        if not polygons:
            return boxes, []
        points = transforms.apply_coords(np.concatenate(polygons).reshape(-1, 2)).reshape(-1)
    else:
        # Two corners tell where such a box goes, and they take the way of the polygons.
        points = np.concatenate([boxes.reshape(-1), *polygons])
        points = transforms.apply_coords(points.reshape(-1, 2)).reshape(-1)
        first, second = points[: boxes.size].reshape(-1, 2, 2).transpose(1, 0, 2)
        boxes = np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=1)
        points = points[boxes.size :]
    ends = itertools.accumulate(map(len, polygons))
    return boxes, [points[end - len(p) : end] for p, end in zip(polygons, ends, strict=True)]
