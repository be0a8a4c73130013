"""Transforming all annotations of an image at once: the same as one after the other, in a fraction of the time."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from detectron2.structures import BoxMode

from . import transforms as T
from ._annotations import boxes_of, transform_keypoint_annotations
from ._segmentations import transform_segmentation


def transform_annotations(
    annotations: list[dict[str, Any]],
    transforms: T.TransformList,
    image_hw: tuple[int, int],
    keypoint_hflip_indices: Sequence[int] | np.ndarray | None = None,
) -> None:
    """Do what `transform_instance_annotations` does to each annotation of an image.

    Boxes take one call of each transform, and so do the polygons of all instances if no transform treats polygons in a
    way of its own (a crop cuts them).

    Args:
        annotations: annotations of a dataset dict; they are changed in place (the arrays in them are not).
        transforms: what was done to the image.
        image_hw: size of the transformed image.
        keypoint_hflip_indices: see `create_keypoint_hflip_indices`.

    Raises:
        KeyError: if an annotation has no box.
        ValueError: if a segmentation is neither polygons nor a mask, or keypoints do not fit the flip indices.
    """
    if not annotations:
        return
    h, w = image_hw
    boxes = transforms.apply_box(boxes_of(annotations))
    for annotation, box in zip(annotations, np.minimum(boxes.clip(min=0), (w, h, w, h)), strict=True):
        annotation["bbox"] = box
        annotation["bbox_mode"] = BoxMode.XYXY_ABS
    _transform_segmentations([a for a in annotations if "segmentation" in a], transforms, image_hw)
    for annotation in annotations:
        if "keypoints" in annotation:
            annotation["keypoints"] = transform_keypoint_annotations(
                annotation["keypoints"], transforms, image_hw, keypoint_hflip_indices
            )


def _transform_segmentations(
    annotations: list[dict[str, Any]], transforms: T.TransformList, image_hw: tuple[int, int]
) -> None:
    moves_points = all(type(t).apply_polygons is T.Transform.apply_polygons for t in transforms.transforms)
    of_points = [a for a in annotations if moves_points and isinstance(a["segmentation"], list)]
    polygons = [np.array(p, dtype=np.float64).reshape(-1) for a in of_points for p in a["segmentation"]]
    if any(len(p) % 2 for p in polygons):
        of_points, polygons = [], []  # one by one, for an error as it is there
    done = {id(a) for a in of_points}
    for annotation in annotations:
        if id(annotation) not in done:
            annotation["segmentation"] = transform_segmentation(annotation, transforms, image_hw)
    if not polygons:
        return
    moved = transforms.apply_coords(np.concatenate(polygons).reshape(-1, 2)).reshape(-1)
    ends = np.cumsum([len(p) for p in polygons]).tolist()
    parts = (moved[end - len(p) : end] for p, end in zip(polygons, ends, strict=True))
    for annotation in of_points:
        annotation["segmentation"] = [next(parts) for _ in annotation["segmentation"]]
