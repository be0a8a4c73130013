"""The mapper of data sets with labelled points."""

from typing import Any

import detectron2.data.detection_utils as utils
import detectron2.data.transforms as T
from detectron2.config import configurable
from detectron2.data import DatasetMapper

from .detection_utils import annotations_to_instances, transform_instance_annotations

__all__ = ["PointSupDatasetMapper"]


class PointSupDatasetMapper(DatasetMapper):
    """`DatasetMapper` for annotations with "point_coords" and "point_labels" in place of masks.

    Its "instances" have `gt_boxes`, `gt_classes`, `gt_point_coords` and `gt_point_labels`.

    Args:
        is_train: for training or for inference.
        sample_points: how many points of each instance to draw, anew each time; 0 for all of them.
        **kwargs: arguments of `DatasetMapper`; those about masks and keypoints have no use.
    """

    @configurable
    def __init__(self, is_train: bool, *, sample_points: int = 0, **kwargs: Any):
        super().__init__(is_train, **kwargs)
        if sample_points < 0:
            raise ValueError(f"sample_points (INPUT.SAMPLE_POINTS) must not be negative, got {sample_points}")
        self.sample_points = sample_points

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: T.TransformList, image_shape: tuple[int, int]
    ) -> None:
        annos = [
            transform_instance_annotations(annotation, transforms, image_shape)
            for annotation in _without_masks(dataset_dict.pop("annotations"))
        ]
        instances = annotations_to_instances(annos, image_shape, self.sample_points)
        dataset_dict["instances"] = utils.filter_empty_instances(instances)

    @classmethod
    def from_config(cls, cfg: Any, is_train: bool = True) -> dict[str, Any]:
        """Arguments of the constructor from a config."""
        return {
            **super().from_config(cfg, is_train),
            "sample_points": cfg.INPUT.SAMPLE_POINTS,
            "use_instance_mask": False,
            "use_keypoint": False,
            "recompute_boxes": False,
        }


def _without_masks(annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Annotations of single objects, without what would be transformed for nothing."""
    return [
        {k: v for k, v in annotation.items() if k not in ("segmentation", "keypoints")}
        for annotation in annotations
        if annotation.get("iscrowd", 0) == 0
    ]
