"""Building blocks of mappers: reading images, transforming annotations, default augmentations.

A mapper turns one dataset dict into what a model eats; `DatasetMapper` is the default one, written with the functions
of this module, and so are most custom ones.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from . import transforms as T
from ._annotations import (
    annotations_to_instances,
    annotations_to_instances_rotated,
    filter_empty_instances,
    get_bbox,
    transform_instance_annotations,
    transform_keypoint_annotations,
    transform_proposals,
    transform_rotated_annotation,
)

# Projects import these private names from here, hence the redundant aliases.
from ._images import _EXIF_ORIENT as _EXIF_ORIENT
from ._images import _M_RGB2YUV as _M_RGB2YUV
from ._images import _M_YUV2RGB as _M_YUV2RGB
from ._images import _apply_exif_orientation as _apply_exif_orientation
from ._images import convert_image_to_rgb, convert_PIL_to_numpy, read_image
from .catalog import MetadataCatalog, MissingMetadataError

__all__ = [
    "SizeMismatchError",
    "annotations_to_instances",
    "annotations_to_instances_rotated",
    "build_augmentation",
    "build_transform_gen",
    "check_image_size",
    "check_metadata_consistency",
    "convert_PIL_to_numpy",
    "convert_image_to_rgb",
    "create_keypoint_hflip_indices",
    "filter_empty_instances",
    "gen_crop_transform_with_instance",
    "get_bbox",
    "get_fed_loss_cls_weights",
    "read_image",
    "transform_instance_annotations",
    "transform_keypoint_annotations",
    "transform_proposals",
    "transform_rotated_annotation",
]

logger = logging.getLogger(__name__)


class SizeMismatchError(ValueError):
    """The image has another size than its annotation says."""


def check_image_size(dataset_dict: dict[str, Any], image: np.ndarray) -> None:
    """Hold an image against the size in its dataset dict; add the size if the dict has none.

    Args:
        dataset_dict: one image of the data set, perhaps with "height" and "width"; both are set afterwards.
        image: the image that was read for it.

    Raises:
        SizeMismatchError: if the sizes differ.
    """
    h, w = image.shape[:2]
    expected_hw = (dataset_dict.setdefault("height", h), dataset_dict.setdefault("width", w))
    if expected_hw == (h, w):
        return
    file_name = dataset_dict.get("file_name", "<no file_name>")
    hint = "read another file, or correct height and width in the data set"
    if expected_hw == (w, h):
        hint = (
            "height and width are swapped: most likely the annotations were made without turning the image as its EXIF "
            "orientation says; remove that tag from the file, or annotate the upright image"
        )
    raise SizeMismatchError(
        f"the image {file_name!r} is {w} pixels wide and {h} high, but its annotation says {expected_hw[1]} wide and "
        f"{expected_hw[0]} high; {hint}"
    )


def check_metadata_consistency(key: str, dataset_names: Sequence[str]) -> None:
    """Check that data sets agree in one entry of their metadata.

    Args:
        key: the entry, for example "thing_classes".
        dataset_names: registered names.

    Raises:
        ValueError: if they differ.
        AttributeError: if one has no such entry.
    """
    values = [getattr(MetadataCatalog.get(name), key) for name in dataset_names]
    for name, value in zip(dataset_names, values, strict=True):
        if value != values[0]:
            raise ValueError(
                f"data sets that are used together must have the same metadata {key!r}, but {dataset_names[0]!r} has "
                f"{values[0]!r} and {name!r} has {value!r}"
            )


def _at_least_one(dataset_names: str | Sequence[str]) -> list[str]:
    names = [dataset_names] if isinstance(dataset_names, str) else list(dataset_names)
    if not names:
        raise ValueError("no data set is named whose metadata could be used; set DATASETS.TRAIN to registered names")
    return names


def create_keypoint_hflip_indices(dataset_names: str | Sequence[str]) -> list[int]:
    """Which keypoint takes the place of each keypoint when the image is flipped horizontally.

    Args:
        dataset_names: one or more registered names, whose metadata have `keypoint_names` and `keypoint_flip_map`.

    Returns:
        One index for each keypoint.

    Raises:
        ValueError: if no data set is named, they differ in these, or the flip map names an unknown keypoint.
        AttributeError: if one of them has no such metadata.
    """
    names = _at_least_one(dataset_names)
    for name in names:
        lacking = [k for k in ("keypoint_names", "keypoint_flip_map") if MetadataCatalog.get(name).get(k) is None]
        if lacking:
            raise MissingMetadataError(
                f"the metadata of data set {name!r} has no {' and no '.join(lacking)}, which is needed where images "
                f"with keypoints are flipped. MetadataCatalog.get({name!r}).set(keypoint_names=..., keypoint_flip_map="
                "...): the names in the order of the annotations, and pairs of names that change places, such as "
                "[('left_eye', 'right_eye')]; [] if none do. (With the detectron2 command: in a .py file for --import.)"
            )
    check_metadata_consistency("keypoint_names", names)
    check_metadata_consistency("keypoint_flip_map", names)
    metadata = MetadataCatalog.get(names[0])
    keypoints = list(metadata.keypoint_names)
    mirrored = dict(metadata.keypoint_flip_map)
    unknown = sorted({n for pair in mirrored.items() for n in pair} - set(keypoints))
    if unknown:
        raise ValueError(f"keypoint_flip_map of {names[0]!r} names {unknown}, which are not in its keypoint_names")
    mirrored.update({right: left for left, right in mirrored.items()})
    return [keypoints.index(mirrored.get(name, name)) for name in keypoints]


def get_fed_loss_cls_weights(dataset_names: str | Sequence[str], freq_weight_power: float = 1.0) -> torch.Tensor:
    """How likely the federated loss is to sample each class (Zhou et al., "CenterNet2", 2021).

    Args:
        dataset_names: one or more registered names, whose metadata have `class_image_count`: a list of
            `{"id": ..., "image_count": ...}`.
        freq_weight_power: exponent of the number of images; 0.5 is usual.

    Returns:
        One weight for each class, in the order of ids.

    Raises:
        ValueError: if no data set is named, or they differ in these.
    """
    names = _at_least_one(dataset_names)
    check_metadata_consistency("class_image_count", names)
    counts = sorted(MetadataCatalog.get(names[0]).class_image_count, key=lambda entry: entry["id"])
    return torch.tensor([c["image_count"] for c in counts], dtype=torch.float32) ** freq_weight_power


def gen_crop_transform_with_instance(
    crop_size: tuple[int, int], image_size: tuple[int, int], instance: dict[str, Any]
) -> T.CropTransform:
    """A random crop that contains the centre of an instance.

    Args:
        crop_size: `(height, width)` of the window in pixels.
        image_size: `(height, width)` of the image in pixels.
        instance: an annotation with "bbox" and "bbox_mode".

    Returns:
        The crop, which can be inverted.

    Raises:
        ValueError: if the centre of the box lies outside the image.
    """
    x1, y1, x2, y2 = get_bbox(instance)
    center_yx = ((y1 + y2) * 0.5, (x1 + x2) * 0.5)
    if not (0 <= center_yx[0] <= image_size[0] and 0 <= center_yx[1] <= image_size[1]):
        raise ValueError(
            f"the centre of the box, (x, y) = {center_yx[::-1]}, lies outside the image of (height, width) {image_size}"
        )
    origin_yx = []
    for center, crop, size in zip(center_yx, crop_size, image_size, strict=True):
        low = max(int(np.floor(center)) - crop, 0)
        high = min(max(size - crop, 0), int(np.ceil(center)))
        # The legacy global generator is the one that workers seed.
        origin_yx.append(np.random.randint(min(low, high), high + 1))  # noqa: NPY002
    return T.CropTransform(origin_yx[1], origin_yx[0], crop_size[1], crop_size[0], image_size[1], image_size[0])


def build_augmentation(cfg: Any, is_train: bool) -> list[T.Augmentation]:
    """The default augmentations of a config: resizing, and flips for training.

    Args:
        cfg: a config with the node `INPUT`.
        is_train: for training or for testing.

    Returns:
        A list that may be added to.

    Raises:
        ValueError: if `INPUT.RANDOM_FLIP` is unknown.
    """
    if not is_train:
        return [T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]
    flip = cfg.INPUT.RANDOM_FLIP
    if flip not in ("none", "horizontal", "vertical"):
        raise ValueError(f'INPUT.RANDOM_FLIP must be "none", "horizontal" or "vertical", got {flip!r}')
    augmentations: list[T.Augmentation] = [
        T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING)
    ]
    if flip != "none":
        augmentations.append(T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical"))
    return augmentations


# Name of earlier versions that projects still use.
build_transform_gen = build_augmentation
