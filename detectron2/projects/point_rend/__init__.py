"""PointRend: masks and label maps that are refined point by point where they are least certain.

Kirillov, Wu, He, Girshick: PointRend: Image Segmentation as Rendering, https://arxiv.org/abs/1912.08193; the implicit
variant is section 5 of Cheng, Parkhi, Kirillov: Pointly-Supervised Instance Segmentation,
https://arxiv.org/abs/2104.06404. Importing this package registers its heads by name; `add_pointrend_config` adds their
keys to a config.
"""

from . import graphs as _graphs  # noqa: F401  # registers the forms that are exported
from .coarse_mask_head import CoarseMaskHead
from .color_augmentation import ColorAugSSDTransform
from .config import add_pointrend_config
from .mask_head import ImplicitPointRendMaskHead, PointRendMaskHead
from .point_head import (
    POINT_HEAD_REGISTRY,
    ImplicitPointHead,
    StandardPointHead,
    build_point_head,
    roi_mask_point_loss,
)
from .roi_heads import PointRendROIHeads
from .semantic_seg import PointRendSemSegHead

__all__ = [
    "POINT_HEAD_REGISTRY",
    "CoarseMaskHead",
    "ColorAugSSDTransform",
    "ImplicitPointHead",
    "ImplicitPointRendMaskHead",
    "PointRendMaskHead",
    "PointRendROIHeads",
    "PointRendSemSegHead",
    "StandardPointHead",
    "add_pointrend_config",
    "build_point_head",
    "roi_mask_point_loss",
]
