"""Building blocks of mappers: reading images, transforming annotations, default augmentations.

A mapper turns one dataset dict into the input of a model. `DatasetMapper` and most custom mappers are written with
these functions.
"""

import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.utils.data as torchdata

from detectron2.structures import (
    BitMasks,
    Boxes,
    BoxMode,
    Instances,
    Keypoints,
    PolygonMasks,
    RotatedBoxes,
    polygons_to_bitmask,
)
from detectron2.utils.logger import log_first_n

from . import transforms as T
from .catalog import Metadata, MetadataCatalog, MissingMetadataError
from .formats.reading import why_swapped
from .formats.run_lengths import decode_mask

# Projects import these private names from here, hence the redundant aliases.
from .images import _EXIF_ORIENT as _EXIF_ORIENT
from .images import _M_RGB2YUV as _M_RGB2YUV
from .images import _M_YUV2RGB as _M_YUV2RGB
from .images import _apply_exif_orientation as _apply_exif_orientation
from .images import convert_image_to_rgb, convert_PIL_to_numpy, read_image

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
    "keypoint_hflip_indices_of",
    "read_image",
    "transform_instance_annotations",
    "transform_keypoint_annotations",
    "transform_proposals",
    "transform_rotated_annotation",
]

Transforms = T.Transform | Sequence[T.Transform]


class SizeMismatchError(ValueError):
    """The image has another size than its annotation says."""


def check_image_size(dataset_dict: dict[str, Any], image: np.ndarray) -> None:
    """Compare the size of an image with that in its dataset dict; add the size if the dict has none.

    Args:
        dataset_dict: one image of the data set; "height" and "width" are set afterwards.
        image: the image that was read for it.

    Raises:
        SizeMismatchError: if the sizes differ.
    """
    h, w = image.shape[:2]
    expected_hw = (dataset_dict.setdefault("height", h), dataset_dict.setdefault("width", w))
    if expected_hw == (h, w):
        return
    file_name = dataset_dict.get("file_name", "<no file_name>")
    hint = "Read another file, or correct height and width in the data set."
    if expected_hw == (w, h):
        hint = why_swapped(os.fspath(file_name), (h, w))
    raise SizeMismatchError(
        f"the image {file_name!r} is {w} pixels wide and {h} high, but its annotation says {expected_hw[1]} wide and "
        f"{expected_hw[0]} high. {hint}"
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
    """Return which keypoint takes the place of each keypoint when the image is flipped horizontally.

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
    return keypoint_hflip_indices_of(MetadataCatalog.get(names[0]))


def keypoint_hflip_indices_of(metadata: Metadata) -> list[int]:
    """Return what `create_keypoint_hflip_indices` does, of metadata with `keypoint_names` and `keypoint_flip_map`."""
    keypoints = list(metadata.keypoint_names)
    mirrored = dict(metadata.keypoint_flip_map)
    unknown = sorted({n for pair in mirrored.items() for n in pair} - set(keypoints))
    if unknown:
        raise ValueError(
            f"keypoint_flip_map of {metadata.get('name')!r} names {unknown}, which are not in its keypoint_names"
        )
    mirrored.update({right: left for left, right in mirrored.items()})
    return [keypoints.index(mirrored.get(name, name)) for name in keypoints]


def get_fed_loss_cls_weights(dataset_names: str | Sequence[str], freq_weight_power: float = 1.0) -> torch.Tensor:
    """Return how likely the federated loss is to sample each class (Zhou et al., "CenterNet2", 2021).

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
    """Draw a crop that contains the centre of an instance, or the point of the image that is nearest to it.

    Args:
        crop_size: `(height, width)` of the window in pixels.
        image_size: `(height, width)` of the image in pixels.
        instance: an annotation with "bbox" and "bbox_mode".

    Returns:
        The crop, which can be inverted.
    """
    x1, y1, x2, y2 = get_bbox(instance)
    center_yx = np.clip(((y1 + y2) * 0.5, (x1 + x2) * 0.5), 0, image_size)
    origin_yx = []
    for center, crop, size in zip(center_yx, crop_size, image_size, strict=True):
        low = max(int(np.floor(center)) - crop, 0)
        high = min(max(size - crop, 0), int(np.ceil(center)))
        # The legacy global generator is the one that workers seed.
        origin_yx.append(np.random.randint(min(low, high), high + 1))  # noqa: NPY002
    return T.CropTransform(origin_yx[1], origin_yx[0], crop_size[1], crop_size[0], image_size[1], image_size[0])


def build_augmentation(cfg: Any, is_train: bool) -> list[T.Augmentation]:
    """Make the default augmentations of a config: resizing, and flips for training.

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
    sizes, sampling = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    if sampling == "range" and len(sizes) == 1:
        sizes = (*sizes, *sizes)
    augmentations: list[T.Augmentation] = [T.ResizeShortestEdge(sizes, cfg.INPUT.MAX_SIZE_TRAIN, sampling)]
    if flip != "none":
        augmentations.append(T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical"))
    return augmentations


# Name of earlier versions that projects still use.
build_transform_gen = build_augmentation


def _as_one(transforms: Transforms) -> Any:
    return T.TransformList(list(transforms)) if isinstance(transforms, (tuple, list)) else transforms


def describe_annotation(annotation: dict[str, Any], index: int | None = None) -> str:
    """Say which annotation it is, for error messages."""
    number = "" if index is None else f" number {index}"
    words = {"id": " id {}", "category_id": " (category_id {})"}
    return f"annotation{number}" + "".join(w.format(annotation[key]) for key, w in words.items() if key in annotation)


def _box_and_mode(annotation: dict[str, Any]) -> tuple[Any, Any]:
    if missing := [key for key in ("bbox", "bbox_mode") if key not in annotation]:
        raise KeyError(f"{describe_annotation(annotation)} has no {' and no '.join(map(repr, missing))}")
    return annotation["bbox"], annotation["bbox_mode"]


def get_bbox(annotation: dict[str, Any]) -> np.ndarray:
    """Return the box of an annotation in absolute coordinates.

    Args:
        annotation: one annotation, with "bbox" and "bbox_mode".

    Returns:
        `(x1, y1, x2, y2)`, a new float64 array.

    Raises:
        KeyError: if one of them is missing.
    """
    bbox, mode = _box_and_mode(annotation)
    if mode == BoxMode.XYXY_ABS:
        return np.array(bbox, dtype=np.float64)
    if mode == BoxMode.XYWH_ABS:
        x, y, w, h = bbox
        return np.array([x, y, x + w, y + h], dtype=np.float64)
    return np.asarray(BoxMode.convert(list(bbox), mode, BoxMode.XYXY_ABS), dtype=np.float64)


def make_boxes_absolute(annotations: Sequence[dict[str, Any]], image_hw: tuple[int, int]) -> None:
    """Write boxes that are shares of the image's width and height in pixels, changing their annotations in place."""
    height, width = image_hw
    for annotation in annotations:
        mode: Any = annotation.get("bbox_mode")
        if mode in _ABSOLUTE and "bbox" in annotation:
            annotation["bbox"] = np.array(annotation["bbox"], dtype=np.float64) * (width, height, width, height)
            annotation["bbox_mode"] = _ABSOLUTE[mode]


_ABSOLUTE = {BoxMode.XYXY_REL: BoxMode.XYXY_ABS, BoxMode.XYWH_REL: BoxMode.XYWH_ABS}


def boxes_of(annotations: list[dict[str, Any]]) -> np.ndarray:
    """Return the boxes `(N, 4)` of annotations, as `get_bbox` does: in one step where all have the same usual mode."""
    mode = annotations[0].get("bbox_mode") if annotations else None
    if mode is BoxMode.XYXY_ABS or mode is BoxMode.XYWH_ABS:
        boxes = [a["bbox"] for a in annotations if "bbox" in a and a.get("bbox_mode") is mode]
        if len(boxes) == len(annotations) and all(len(box) == 4 for box in boxes):
            together = np.array(boxes, dtype=np.float64)
            if mode is BoxMode.XYWH_ABS:
                together[:, 2:] += together[:, :2]
            return together
    return np.array([get_bbox(a) for a in annotations], dtype=np.float64).reshape(-1, 4)


def transform_proposals(
    dataset_dict: dict[str, Any],
    image_shape: tuple[int, int],
    transforms: T.Transform,
    *,
    proposal_topk: int,
    min_box_size: float = 0,
) -> None:
    """Transform the precomputed proposals of an image, if it has any.

    Changes the dict in place: takes "proposal_boxes", "proposal_objectness_logits" and "proposal_bbox_mode" out, and
    puts "proposals" in: `Instances` with `proposal_boxes` and `objectness_logits`, clipped to the image.

    Args:
        dataset_dict: one image of the data set; its proposals are sorted by descending score.
        image_shape: `(height, width)` of the transformed image.
        transforms: what was done to the image.
        proposal_topk: how many to keep.
        min_box_size: proposals whose width or height in pixels does not exceed this are removed.
    """
    if "proposal_boxes" not in dataset_dict:
        return
    mode = dataset_dict.pop("proposal_bbox_mode", BoxMode.XYXY_ABS)
    raw = np.array(dataset_dict.pop("proposal_boxes"))
    boxes = Boxes(_as_one(transforms).apply_box(BoxMode.convert(raw, mode, BoxMode.XYXY_ABS)))
    logits = torch.as_tensor(np.asarray(dataset_dict.pop("proposal_objectness_logits"), dtype=np.float32))
    boxes.clip(image_shape)
    keep = boxes.nonempty(threshold=min_box_size)
    proposals = Instances(image_shape)
    proposals.proposal_boxes = boxes[keep][:proposal_topk]
    proposals.objectness_logits = logits[keep][:proposal_topk]
    dataset_dict["proposals"] = proposals


def transform_segmentation(
    annotation: dict[str, Any], transforms: Any, image_hw: tuple[int, int]
) -> list[np.ndarray] | np.ndarray:
    """Return the transformed polygons of an annotation, or its mask as uint8 `(H, W)`."""
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        polygons = [np.array(p, dtype=np.float64).reshape(-1, 2) for p in segmentation]
        return [p.reshape(-1) for p in transforms.apply_polygons(polygons)]
    before = _as_bitmap(annotation)
    after = transforms.apply_segmentation(np.minimum(before, 1))
    if after.shape[:2] != image_hw:
        raise ValueError(
            f"the mask of {describe_annotation(annotation)} has (height, width) {before.shape}, which becomes "
            f"{after.shape[:2]} where the image becomes {image_hw}: mask and image differ in size"
        )
    # Padding may have a label of its own (FixedSizeCrop: 255), which is not the object.
    return (after == 1).view(np.uint8)


def _as_bitmap(annotation: dict[str, Any], index: int | None = None) -> np.ndarray:
    """Return the mask of an annotation that has no polygons: uint8 `(H, W)`, zero outside the object."""
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, dict):
        return decode_mask(segmentation)
    if isinstance(segmentation, np.ndarray) and segmentation.ndim == 2:
        if segmentation.dtype != np.uint8:  # transforms do not take bool
            segmentation = (segmentation != 0).view(np.uint8)
        return segmentation
    shape = f" and shape {segmentation.shape}" if isinstance(segmentation, np.ndarray) else ""
    raise ValueError(
        f"the segmentation of {describe_annotation(annotation, index)} has type {type(segmentation).__name__}{shape}; "
        "supported are polygons as list[list[float] or ndarray], COCO's RLE as a dict, or a mask as an ndarray (H, W)"
    )


def transform_instance_annotations(
    annotation: dict[str, Any],
    transforms: Transforms,
    image_size: tuple[int, int],
    *,
    keypoint_hflip_indices: Sequence[int] | np.ndarray | None = None,
) -> dict[str, Any]:
    """Transform box, segmentation and keypoints of one instance.

    The box goes through `apply_box` and is clipped to the image, polygons through `apply_polygons`, masks (bitmaps, or
    from RLE) through `apply_segmentation`, keypoints through `apply_coords`.

    Args:
        annotation: one annotation of a dataset dict; it is changed in place (the arrays in it are not).
        transforms: what was done to the image.
        image_size: `(height, width)` of the transformed image.
        keypoint_hflip_indices: see `create_keypoint_hflip_indices`.

    Returns:
        The same dict. "bbox" is a float64 array of mode `XYXY_ABS`; "segmentation" a list of `(2P,)` arrays, or an
        uint8 `(H, W)` mask if it was a mask; "keypoints" `(K, 3)`.

    Raises:
        KeyError: if the annotation has no box.
        ValueError: if the segmentation is neither polygons nor a mask, or the keypoints do not fit the flip indices.
    """
    transform = _as_one(transforms)
    h, w = image_size
    bbox = transform.apply_box(get_bbox(annotation)[None])[0]
    annotation["bbox"] = np.minimum(bbox.clip(min=0), (w, h, w, h))
    annotation["bbox_mode"] = BoxMode.XYXY_ABS
    if "segmentation" in annotation:
        annotation["segmentation"] = transform_segmentation(annotation, transform, (h, w))
    if "keypoints" in annotation:
        annotation["keypoints"] = transform_keypoint_annotations(
            annotation["keypoints"], transform, image_size, keypoint_hflip_indices
        )
    return annotation


def transform_keypoint_annotations(
    keypoints: Sequence[float] | np.ndarray,
    transforms: Transforms,
    image_size: tuple[int, int],
    keypoint_hflip_indices: Sequence[int] | np.ndarray | None = None,
) -> np.ndarray:
    """Transform the keypoints of one instance.

    A keypoint that ends outside the image is marked as not labelled. If the image was flipped horizontally, left and
    right keypoints change places.

    Args:
        keypoints: `[x1, y1, v1, ..., xK, yK, vK]` or `(K, 3)`; `v` is COCO's visibility (0: not labelled).
        transforms: what was done to the image.
        image_size: `(height, width)` of the transformed image.
        keypoint_hflip_indices: see `create_keypoint_hflip_indices`.

    Returns:
        `(K, 3)` float64. Where `v` is 0 and the image was flipped, all three numbers are 0.

    Raises:
        ValueError: if the flip indices are of another number, or missing for an image that was flipped.
    """
    transform = _as_one(transforms)
    keypoints = np.array(keypoints, dtype=np.float64).reshape(-1, 3)
    if keypoint_hflip_indices is not None and len(keypoints) != len(keypoint_hflip_indices):
        raise ValueError(
            f"an annotation has {len(keypoints)} keypoints, but the data set has {len(keypoint_hflip_indices)} "
            f"keypoint_names; every annotation must list all of them (with v = 0 where one is not labelled)"
        )
    xy = transform.apply_coords(keypoints[:, :2].copy())
    h, w = image_size
    inside = ((xy >= 0) & (xy <= (w, h))).all(axis=1)
    keypoints[:, :2] = xy
    keypoints[~inside, 2] = 0

    applied = transform.transforms if isinstance(transform, T.TransformList) else [transform]
    if sum(isinstance(t, T.HFlipTransform) for t in applied) % 2 == 1:
        if keypoint_hflip_indices is None:
            raise ValueError(
                "keypoints of an image that is flipped need keypoint_hflip_indices: set keypoint_names and "
                "keypoint_flip_map in the metadata of the data set and use create_keypoint_hflip_indices, "
                "or set INPUT.RANDOM_FLIP to 'none'"
            )
        keypoints = keypoints[np.asarray(keypoint_hflip_indices), :]
        keypoints[keypoints[:, 2] == 0] = 0  # COCO's convention for keypoints that are not labelled
    return keypoints


def annotations_to_instances(
    annos: list[dict[str, Any]], image_size: tuple[int, int], mask_format: str = "polygon"
) -> Instances:
    """Gather transformed annotations of one image into `Instances`.

    Args:
        annos: annotations, each after `transform_instance_annotations`.
        image_size: `(height, width)` of the transformed image.
        mask_format: "polygon" or "bitmask": the kind of `gt_masks`. If not all masks of the image are polygons,
            they become bitmaps nevertheless: the opposite cannot be done without loss.

    Returns:
        `Instances` with `gt_boxes`, `gt_classes`, and `gt_masks` and `gt_keypoints` if the annotations have them.

    Raises:
        ValueError: if a segmentation is malformed, or only some annotations have one.
    """
    if mask_format not in ("polygon", "bitmask"):
        raise ValueError(f'mask_format (INPUT.MASK_FORMAT) must be "polygon" or "bitmask", got {mask_format!r}')
    target = Instances(image_size)
    target.gt_boxes = Boxes(torch.from_numpy(boxes_of(annos).astype(np.float32)))
    target.gt_classes = _classes(annos)
    if _all_or_none_have("segmentation", annos):
        target.gt_masks = _masks(annos, image_size, mask_format)
    if _all_or_none_have("keypoints", annos):
        target.gt_keypoints = _keypoints(annos)
    return target


def _classes(annos: list[dict[str, Any]]) -> torch.Tensor:
    for i, anno in enumerate(annos):
        if "category_id" not in anno:
            raise KeyError(f"{describe_annotation(anno, i)} has no 'category_id'")
    return torch.from_numpy(np.array([int(a["category_id"]) for a in annos], dtype=np.int64))


def _all_or_none_have(key: str, annos: list[dict[str, Any]]) -> bool:
    lacking = [i for i, a in enumerate(annos) if key not in a]
    if lacking and len(lacking) < len(annos):
        raise ValueError(
            f"{describe_annotation(annos[lacking[0]], lacking[0])} has no {key!r} where others of the same image have; "
            f"add it to all annotations or remove it from all"
        )
    return bool(annos) and not lacking


def _masks(annos: list[dict[str, Any]], image_hw: tuple[int, int], mask_format: str) -> PolygonMasks | BitMasks:
    """Gather transformed segmentations: bitmaps where those are asked for, or where not all are polygons."""
    for i, anno in enumerate(annos):
        for polygon in anno["segmentation"] if isinstance(anno["segmentation"], list) else ():
            if len(polygon) % 2 != 0 or len(polygon) < 6:
                raise ValueError(
                    f"{describe_annotation(anno, i)} has a polygon of {len(polygon)} numbers; a polygon is "
                    "[x1, y1, ..., xn, yn] with at least three points"
                )
    if all(isinstance(a["segmentation"], list) for a in annos):
        polygons = PolygonMasks([a["segmentation"] for a in annos])
        return polygons if mask_format == "polygon" else BitMasks.from_polygon_masks(polygons, *image_hw)
    if mask_format == "polygon" and torchdata.get_worker_info() is None:  # many workers would all say it
        log_first_n(
            logging.INFO,
            "INPUT.MASK_FORMAT is 'polygon', but some images have masks that are not polygons (RLE or bitmaps):"
            " all masks of such an image are given as bitmaps.",
        )
    masks = torch.empty((len(annos), *image_hw), dtype=torch.bool)
    for i, anno in enumerate(annos):
        is_polygon = isinstance(anno["segmentation"], list)
        mask = polygons_to_bitmask(anno["segmentation"], *image_hw) if is_polygon else _as_bitmap(anno, i)
        if mask.shape != tuple(image_hw):
            raise ValueError(
                f"the mask of {describe_annotation(anno, i)} has shape {mask.shape}, but the image has "
                f"(height, width) {tuple(image_hw)}"
            )
        if mask.dtype != np.bool_:
            mask = mask != 0
        masks[i] = torch.from_numpy(mask if min(mask.strides) >= 0 else mask.copy())
    return BitMasks(masks)


def _keypoints(annos: list[dict[str, Any]]) -> Keypoints:
    points = [np.asarray(a["keypoints"], dtype=np.float64).reshape(-1, 3) for a in annos]
    for i, (anno, one) in enumerate(zip(annos, points, strict=True)):
        if len(one) != len(points[0]):
            raise ValueError(
                f"{describe_annotation(anno, i)} has {len(one)} keypoints where the first one of the image has "
                f"{len(points[0])}; all annotations must list the same keypoints"
            )
    return Keypoints(np.stack(points))


def transform_rotated_annotation(annotation: dict[str, Any], transforms: Transforms) -> dict[str, Any]:
    """Transform the box of one instance as a rotated box.

    Args:
        annotation: one annotation of a dataset dict, with a box of any absolute mode; it is changed in place.
        transforms: what was done to the image.

    Returns:
        The same dict. Only "bbox" is transformed: a float64 array `(center_x, center_y, width, height, angle)` of mode
        `XYWHA_ABS`, not clipped to the image.
    """
    bbox, mode = _box_and_mode(annotation)
    bbox = BoxMode.convert(np.array(bbox, dtype=np.float64), mode, BoxMode.XYWHA_ABS)
    annotation["bbox"] = _as_one(transforms).apply_rotated_box(np.array(bbox)[None])[0]
    annotation["bbox_mode"] = BoxMode.XYWHA_ABS
    return annotation


def annotations_to_instances_rotated(annos: list[dict[str, Any]], image_size: tuple[int, int]) -> Instances:
    """Gather annotations with rotated boxes of one image into `Instances`.

    Args:
        annos: annotations, each after `transform_rotated_annotation`.
        image_size: `(height, width)` of the transformed image.

    Returns:
        `Instances` with `gt_boxes` (`RotatedBoxes`, nearly horizontal ones clipped to the image) and `gt_classes`.
    """
    boxes = np.array([a["bbox"] for a in annos], dtype=np.float32).reshape(-1, 5)
    target = Instances(image_size)
    target.gt_boxes = RotatedBoxes(torch.from_numpy(boxes))
    target.gt_boxes.clip(image_size)
    target.gt_classes = _classes(annos)
    return target


def filter_empty_instances(
    instances: Instances,
    by_box: bool = True,
    by_mask: bool = True,
    box_threshold: float = 1e-5,
    return_mask: bool = False,
) -> Instances | tuple[Instances, torch.Tensor]:
    """Remove instances of which nothing is left, for example after a crop.

    Args:
        instances: with `gt_boxes`, perhaps `gt_masks`.
        by_box: remove those with empty boxes.
        by_mask: remove those with empty masks.
        box_threshold: a box is empty if its width or height in pixels does not exceed this.
        return_mask: also return which were kept.

    Returns:
        The instances that are not empty; with `return_mask` also a boolean tensor of `N` elements.

    Raises:
        ValueError: if neither boxes nor masks are looked at.
    """
    if not by_box and not by_mask:
        raise ValueError("filter_empty_instances needs by_box=True or by_mask=True")
    keep = _has_size(instances.gt_boxes, box_threshold) if by_box else torch.ones(len(instances), dtype=torch.bool)
    if by_mask and instances.has("gt_masks"):
        has_mask = instances.gt_masks.nonempty()
        keep = keep.to(has_mask.device) & has_mask
    if not all(keep.tolist()):  # the usual case needs no copy of all masks
        instances = instances[keep]
    return (instances, keep) if return_mask else instances


def _has_size(boxes: Any, threshold: float) -> torch.Tensor:
    """Return `boxes.nonempty(threshold)`; for the few boxes of an image NumPy takes less time than PyTorch."""
    if type(boxes) is not Boxes or not boxes.tensor.is_cpu or boxes.tensor.requires_grad:
        return boxes.nonempty(threshold=threshold)
    x1, y1, x2, y2 = boxes.tensor.numpy().T
    return torch.from_numpy((x2 - x1 > threshold) & (y2 - y1 > threshold))
