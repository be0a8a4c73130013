"""From a dataset dict to the training input of Mask2Former: an image, and a class and a mask for each object.

Letters: `C` channels, `M` objects, `H` and `W` height and width in pixels of the image as the model gets it.
"""

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.data.images import to_chw_tensor
from detectron2.evaluation.panoptic_evaluation import rgb_to_id_map
from detectron2.projects.point_rend import ColorAugSSDTransform
from detectron2.structures import BitMasks, Instances

__all__ = ["MASK_FORMER_MAPPERS", "MaskFormerDatasetMapper"]

MASK_FORMER_MAPPERS: dict[str, tuple[str, bool]] = {
    "coco_instance_lsj": ("instances", True),
    "coco_panoptic_lsj": ("panoptic", True),
    "mask_former_instance": ("instances", False),
    "mask_former_panoptic": ("panoptic", False),
    "mask_former_semantic": ("semantic", False),
}
"""For each name that INPUT.DATASET_MAPPER_NAME may have: what objects are made of, and whether images are scaled and
cut to one size (large-scale jitter)."""

_GREY = 128  # of padding
_OUTSIDE = -1  # an id that segments do not have


class MaskFormerDatasetMapper(DatasetMapper):
    """Read the image and the ground truth of a dataset dict, augment them together, and make objects of them.

    The result has all other entries of the dataset dict, "image" (`Tensor[C, H, W]`), and "instances" with
    `gt_classes`, `gt_masks` (`BitMasks`) and `gt_boxes`. An object is an instance, a class of a label map, or a segment
    of a panoptic map that is not a crowd.

    Args:
        source: what objects are made of: "instances" ("annotations"), "semantic" ("sem_seg_file_name") or "panoptic"
            ("pan_seg_file_name" and "segments_info").
        ignore_label: label of pixels of label maps that belong to no class.
        size_divisibility: side of the square that images are padded to, in pixels; 0 or less to pad none.
        **kwargs: arguments of `DatasetMapper`.

    Raises:
        ValueError: there is no such source.

    Example::

        mapper = MaskFormerDatasetMapper(cfg)  # with the keys of add_maskformer2_config
        loader = build_detection_train_loader(cfg, mapper=mapper)
    """

    @configurable
    def __init__(self, *, source: str, ignore_label: int = 255, size_divisibility: int = -1, **kwargs: Any):
        if source not in ("instances", "semantic", "panoptic"):
            raise ValueError(f'source is "instances", "semantic" or "panoptic"; got {source!r}')
        super().__init__(**kwargs)
        self.source = source
        self.ignore_label = ignore_label
        self.size_divisibility = size_divisibility

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Make the input of the model from one image of a data set in the standard format; see the class."""
        if self.source == "instances":
            self._require(dataset_dict, "annotations")
            result = super().__call__({k: v for k, v in dataset_dict.items() if k != "sem_seg_file_name"})
        else:
            result = self._read_label_map(dataset_dict)
        height, width = result["image"].shape[1:]
        down, right = (max(self.size_divisibility - size, 0) for size in (height, width))
        if down or right:
            result["image"] = F.pad(result["image"], (0, right, 0, down), value=_GREY)
            small = result["instances"]
            result["instances"] = Instances((height + down, width + right), **small.get_fields())
            if small.has("gt_masks"):
                result["instances"].gt_masks = BitMasks(F.pad(small.gt_masks.tensor, (0, right, 0, down)))
        return result

    def _require(self, dataset_dict: dict[str, Any], *keys: str) -> None:
        missing = [key for key in keys if key not in dataset_dict]
        if missing:
            raise KeyError(
                f"{dataset_dict.get('file_name')!r} has no {' and no '.join(missing)}, which objects are made of here: "
                "use another data set, or another INPUT.DATASET_MAPPER_NAME"
            )

    def _read_label_map(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Image and objects of a label map or a panoptic map."""
        is_panoptic = self.source == "panoptic"
        name = "pan_seg_file_name" if is_panoptic else "sem_seg_file_name"
        self._require(dataset_dict, name, *(["segments_info"] if is_panoptic else []))
        image = utils.read_image(dataset_dict["file_name"], self.image_format, self.exif)
        utils.check_image_size(dataset_dict, image)
        if is_panoptic:
            labels = rgb_to_id_map(utils.read_image(dataset_dict[name], "RGB")).astype(np.int32)
        else:
            labels = utils.read_image(dataset_dict[name], "L").squeeze(2)
        if labels.shape != image.shape[:2]:
            raise ValueError(
                f"{dataset_dict[name]!r} has (height, width) {labels.shape}, but the image "
                f"{dataset_dict['file_name']!r} {image.shape[:2]}"
            )
        aug_input = T.AugInput(image, sem_seg=labels)
        self.augmentations(aug_input)
        labels = torch.from_numpy(np.ascontiguousarray(aug_input.sem_seg))
        if is_panoptic:
            segments = [x for x in dataset_dict["segments_info"] if not x.get("iscrowd", 0)]
            values, classes = [x["id"] for x in segments], [x["category_id"] for x in segments]
        else:
            values = classes = [x for x in labels.unique().tolist() if x != self.ignore_label]
        masks = labels == torch.tensor(values, dtype=labels.dtype).view(-1, 1, 1)
        is_seen = BitMasks(masks).nonempty()
        masks = BitMasks(masks[is_seen])
        return {
            **{k: v for k, v in dataset_dict.items() if k not in (name, "annotations", "sem_seg_file_name")},
            "image": to_chw_tensor(aug_input.image),
            "instances": Instances(
                (masks.tensor.shape[1], masks.tensor.shape[2]),
                gt_classes=torch.tensor(classes, dtype=torch.int64)[is_seen],
                gt_masks=masks,
                gt_boxes=masks.get_bounding_boxes(),
            ),
        }

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Arguments of the constructor from a config."""
        name = cfg.INPUT.DATASET_MAPPER_NAME
        if name not in MASK_FORMER_MAPPERS:
            raise ValueError(f"INPUT.DATASET_MAPPER_NAME is one of {', '.join(MASK_FORMER_MAPPERS)}; got {name!r}")
        source, has_jitter = MASK_FORMER_MAPPERS[name]
        arguments = {
            **super().from_config(cfg, is_train),
            "source": source,
            "ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "use_instance_mask": True,
            "instance_mask_format": "bitmask",
            "recompute_boxes": True,
        }
        if is_train:
            outside = _OUTSIDE if source == "panoptic" else arguments["ignore_label"]
            arguments["augmentations"] = _jitter(cfg, outside) if has_jitter else _crop(cfg, source, outside)
            arguments["size_divisibility"] = -1 if has_jitter else cfg.INPUT.SIZE_DIVISIBILITY
        return arguments


def _jitter(cfg: CfgNode, outside: int) -> list[T.Augmentation | T.Transform]:
    """Flip; then scale, and cut or pad to a square; pixels of the padding have the label `outside`."""
    side, (_, *flip) = cfg.INPUT.IMAGE_SIZE, utils.build_augmentation(cfg, is_train=True)
    scale = T.ResizeScale(cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE, side, side)
    return [*flip, scale, T.FixedSizeCrop((side, side), pad_value=_GREY, seg_pad_value=outside)]


def _crop(cfg: CfgNode, source: str, outside: int) -> list[T.Augmentation | T.Transform]:
    """Resize, cut so that no class (in panoptic maps no segment) prevails, distort colours, and flip."""
    resize, *flip = utils.build_augmentation(cfg, is_train=True)
    steps: list[T.Augmentation | T.Transform] = [resize]
    crop = cfg.INPUT.CROP
    if crop.ENABLED and source == "instances":
        steps.append(T.RandomCrop(crop.TYPE, crop.SIZE))
    elif crop.ENABLED:
        steps.append(T.RandomCrop_CategoryAreaConstraint(crop.TYPE, crop.SIZE, crop.SINGLE_CATEGORY_MAX_AREA, outside))
    if cfg.INPUT.COLOR_AUG_SSD:
        steps.append(ColorAugSSDTransform(img_format=cfg.INPUT.FORMAT))
    return [*steps, *flip]
