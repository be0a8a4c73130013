"""Instance segmentation learned from boxes and a few labelled points instead of masks.

Cheng, Parkhi, Kirillov: Pointly-Supervised Instance Segmentation, https://arxiv.org/abs/2104.06404. Importing this
package registers its mask heads, and its data sets by name; nothing is read before they are used.
"""

from .config import add_point_sup_config
from .dataset_mapper import PointSupDatasetMapper
from .detection_utils import annotations_to_instances, transform_instance_annotations
from .mask_head import ImplicitPointRendPointSupHead, MaskRCNNConvUpsamplePointSupHead, mask_rcnn_point_loss
from .point_utils import get_point_coords_from_point_annotation
from .register_point_annotations import register_all_coco_point_annotations, register_coco_point_annotations

__all__ = [
    "ImplicitPointRendPointSupHead",
    "MaskRCNNConvUpsamplePointSupHead",
    "PointSupDatasetMapper",
    "add_point_sup_config",
    "annotations_to_instances",
    "get_point_coords_from_point_annotation",
    "mask_rcnn_point_loss",
    "register_all_coco_point_annotations",
    "register_coco_point_annotations",
    "transform_instance_annotations",
]

register_all_coco_point_annotations()
