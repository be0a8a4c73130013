"""From a dataset dict to the training input of Panoptic-DeepLab.

Letters: `C` channels, `H` and `W` height and width in pixels of the image as the model gets it.
"""

import copy
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.evaluation.panoptic_evaluation import rgb_to_id_map

from .target_generator import PanopticDeepLabTargetGenerator

__all__ = ["PanopticDeeplabDatasetMapper"]

logger = logging.getLogger(__name__)


class PanopticDeeplabDatasetMapper:
    """Read image and panoptic map of a dataset dict, augment them together, and make the targets.

    The result has all other entries of the dataset dict, "image" (`Tensor[C, H, W]`, uint8), and the targets of
    `PanopticDeepLabTargetGenerator`. The input dict is not changed.

    Args:
        augmentations: augmentations or transforms, applied in order.
        image_format: a format of `detection_utils.read_image`.
        panoptic_target_generator: called with the panoptic map, integer `(H, W)`, and the segments of the image;
            returns a dictionary of targets.
        exif: "apply" or "ignore", see `detection_utils.read_image`.
    """

    @configurable
    def __init__(
        self,
        *,
        augmentations: list[T.Augmentation | T.Transform],
        image_format: str,
        panoptic_target_generator: Callable[[np.ndarray, list[dict[str, Any]]], dict[str, Any]],
        exif: str = "apply",
    ):
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format, self.exif = image_format, exif
        self.panoptic_target_generator = panoptic_target_generator
        logger.info("augmentations used in training: %s", augmentations)

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Make the input of the model from one image of a data set in the standard panoptic format; see the class."""
        dataset_dict = copy.deepcopy(dataset_dict)  # it is changed below
        missing = [key for key in ("pan_seg_file_name", "segments_info") if key not in dataset_dict]
        if missing:
            raise KeyError(
                f"Panoptic-DeepLab trains on panoptic data, but {dataset_dict.get('file_name')!r} has no "
                f"{' and no '.join(missing)}: use a data set in the standard panoptic format (register_coco_panoptic)"
            )
        image = utils.read_image(dataset_dict["file_name"], self.image_format, self.exif)
        utils.check_image_size(dataset_dict, image)
        panoptic = rgb_to_id_map(utils.read_image(dataset_dict.pop("pan_seg_file_name"), "RGB")).astype(np.int32)
        if panoptic.shape != image.shape[:2]:
            raise ValueError(
                f"the panoptic map of {dataset_dict['file_name']!r} has (height, width) {panoptic.shape}, the image "
                f"{image.shape[:2]}"
            )
        aug_input = T.AugInput(image, sem_seg=panoptic)
        self.augmentations(aug_input)
        panoptic = aug_input.sem_seg
        assert panoptic is not None, "augmentations keep what they are given"
        dataset_dict["image"] = torch.from_numpy(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))
        dataset_dict.update(self.panoptic_target_generator(panoptic, dataset_dict["segments_info"]))
        return dataset_dict

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments of the constructor from a config."""
        augmentations = utils.build_augmentation(cfg, is_train=True)
        if cfg.INPUT.CROP.ENABLED:
            # After resizing and before the flip: crops are of a fixed size.
            augmentations.insert(1, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        # The data sets of one training share their labels.
        metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
        generator = PanopticDeepLabTargetGenerator(
            ignore_label=metadata.ignore_label,
            thing_ids=list(metadata.thing_dataset_id_to_contiguous_id.values()),
            sigma=cfg.INPUT.GAUSSIAN_SIGMA,
            ignore_stuff_in_offset=cfg.INPUT.IGNORE_STUFF_IN_OFFSET,
            small_instance_area=cfg.INPUT.SMALL_INSTANCE_AREA,
            small_instance_weight=cfg.INPUT.SMALL_INSTANCE_WEIGHT,
            ignore_crowd_in_semantic=cfg.INPUT.IGNORE_CROWD_IN_SEMANTIC,
        )
        return {
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "panoptic_target_generator": generator,
            "exif": cfg.INPUT.get("EXIF", "apply"),
        }
