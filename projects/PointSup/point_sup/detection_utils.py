"""From annotations with labelled points to the `Instances` that models are trained with.

`N` instances of an image, `P` points of each. Points are `(x, y)` in continuous pixel coordinates of the image; their
labels are 1 on the object, 0 off it, and -1 where a point is not to be used.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import detectron2.data.detection_utils as utils
import detectron2.data.transforms as T
from detectron2.structures import Instances

__all__ = ["annotations_to_instances", "transform_instance_annotations"]


def transform_instance_annotations(
    annotation: dict[str, Any], transforms: T.Transform | Sequence[T.Transform], image_size: tuple[int, int]
) -> dict[str, Any]:
    """Transform box and points of one instance.

    Args:
        annotation: one annotation of a dataset dict; it is changed in place (the lists in it are not).
        transforms: what was done to the image.
        image_size: `(height, width)` of the transformed image.

    Returns:
        The same dict: "bbox" as `detectron2.data.detection_utils.transform_instance_annotations` leaves it,
        "point_coords" a float64 array `(P, 2)`, "point_labels" an int64 array `(P,)` with -1 for points that have left
        the image.

    Raises:
        ValueError: if points are missing, or there are not as many labels as points.
    """
    missing = [key for key in ("point_coords", "point_labels") if key not in annotation]
    if missing:
        raise ValueError(
            f"an annotation (id {annotation.get('id')}) has no {' and no '.join(map(repr, missing))}: point "
            "supervision needs a data set with points; see tools/prepare_coco_point_annotations_without_masks.py, and "
            "register_coco_point_annotations, which hands these keys through"
        )
    coords = np.array(annotation["point_coords"], dtype=np.float64).reshape(-1, 2)
    labels = np.array(annotation["point_labels"], dtype=np.int64)
    if labels.shape != (len(coords),) or not np.isin(labels, (-1, 0, 1)).all():
        raise ValueError(
            f"an annotation (id {annotation.get('id')}) has {len(coords)} point_coords with the point_labels "
            f"{labels.tolist()}; expected as many labels, each 0 or 1 (or -1 to leave the point out)"
        )
    transform: Any = transforms if isinstance(transforms, T.Transform) else T.TransformList(list(transforms))
    annotation = utils.transform_instance_annotations(annotation, transform, image_size)
    coords = transform.apply_coords(coords)
    height, width = image_size
    inside = ((coords >= 0) & (coords <= (width, height))).all(axis=1)
    annotation["point_coords"] = coords
    annotation["point_labels"] = np.where(inside, labels, -1)
    return annotation


def annotations_to_instances(
    annos: list[dict[str, Any]], image_size: tuple[int, int], sample_points: int = 0
) -> Instances:
    """Gather transformed annotations of one image into `Instances`.

    Args:
        annos: annotations, each after `transform_instance_annotations`.
        image_size: `(height, width)` of the transformed image.
        sample_points: how many points of each instance to draw at random; 0 for all of them.

    Returns:
        `Instances` with `gt_boxes`, `gt_classes`, `gt_point_coords` `Tensor[N, P, 2]` and `gt_point_labels`
        `Tensor[N, P]`, int64. Where an instance has fewer points than others, label -1 fills up.
    """
    bare = [{k: v for k, v in anno.items() if k not in ("segmentation", "keypoints")} for anno in annos]
    target = utils.annotations_to_instances(bare, image_size)
    most = max((len(anno["point_labels"]) for anno in annos), default=0)
    coords = np.zeros((len(annos), most, 2), dtype=np.float32)
    labels = np.full((len(annos), most), -1, dtype=np.int64)
    absent = np.ones((len(annos), most), dtype=np.float32)
    for i, anno in enumerate(annos):
        count = len(anno["point_labels"])
        coords[i, :count] = anno["point_coords"]
        labels[i, :count] = anno["point_labels"]
        absent[i, :count] = 0
    target.gt_point_coords = torch.from_numpy(coords)
    target.gt_point_labels = torch.from_numpy(labels)
    if 0 < sample_points < most:
        # A random order of the points of each instance, with what only fills up at the end.
        order = (torch.rand(labels.shape) + torch.from_numpy(absent)).argsort(dim=1)[:, :sample_points]
        target.gt_point_coords = target.gt_point_coords.gather(1, order.unsqueeze(2).expand(-1, -1, 2))
        target.gt_point_labels = target.gt_point_labels.gather(1, order)
    return target
