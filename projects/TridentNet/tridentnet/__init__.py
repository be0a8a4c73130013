"""TridentNet (Li et al. 2019, arXiv:1901.01892); importing it registers its backbone, proposal generator and heads."""

from .config import add_tridentnet_config
from .trident_backbone import TridentBottleneckBlock, build_trident_resnet_backbone, make_trident_stage
from .trident_conv import TridentConv
from .trident_rcnn import TridentRes5ROIHeads, TridentStandardROIHeads, merge_branch_instances
from .trident_rpn import TridentRPN

__all__ = [
    "TridentBottleneckBlock",
    "TridentConv",
    "TridentRPN",
    "TridentRes5ROIHeads",
    "TridentStandardROIHeads",
    "add_tridentnet_config",
    "build_trident_resnet_backbone",
    "make_trident_stage",
    "merge_branch_instances",
]
