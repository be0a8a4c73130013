"""Transforming all annotations of an image at once: the same as one after the other, in a fraction of the time."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from detectron2.structures import BoxMode

from . import transforms as T
from ._annotations import boxes_of, transform_keypoint_annotations
from ._segmentations import transform_segmentation

# Upright boxes stay upright ones under these, and `x` does not depend on `y`.
_KEEP_AXES = frozenset({T.ResizeTransform, T.HFlipTransform, T.VFlipTransform, T.NoOpTransform})


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
    """The annotations whose polygons can be moved point by point, and these polygons, each of shape `(2P,)`."""
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
    """Boxes `(N, 4)` and polygons after the transforms."""
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
