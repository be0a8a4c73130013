"""Panoptic-DeepLab: bottom-up panoptic segmentation (Cheng et al., https://arxiv.org/abs/1911.10194).

Every pixel gets a class and the offset to the centre of its instance; pixels are then grouped around the peaks of a
heatmap of centres. Importing this package registers the architecture `PanopticDeepLab` and its two heads;
`add_panoptic_deeplab_config` adds their config keys.
"""

from . import graphs as _graphs  # noqa: F401  # registers the forms that are exported
from .config import add_panoptic_deeplab_config
from .dataset_mapper import PanopticDeeplabDatasetMapper
from .panoptic_seg import (
    INS_EMBED_BRANCHES_REGISTRY,
    PanopticDeepLab,
    PanopticDeepLabInsEmbedHead,
    PanopticDeepLabSemSegHead,
    build_ins_embed_branch,
)
from .post_processing import get_panoptic_segmentation
from .target_generator import PanopticDeepLabTargetGenerator
from .training import PanopticDeepLabTrainer

__all__ = [
    "INS_EMBED_BRANCHES_REGISTRY",
    "PanopticDeepLab",
    "PanopticDeepLabInsEmbedHead",
    "PanopticDeepLabSemSegHead",
    "PanopticDeepLabTargetGenerator",
    "PanopticDeepLabTrainer",
    "PanopticDeeplabDatasetMapper",
    "add_panoptic_deeplab_config",
    "build_ins_embed_branch",
    "get_panoptic_segmentation",
]
