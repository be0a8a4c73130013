"""DeepLab: semantic segmentation with dilated convolutions.

DeepLabv3 (Chen et al., https://arxiv.org/abs/1706.05587) and DeepLabv3+ (Chen et al.,
https://arxiv.org/abs/1802.02611). Importing this package registers the backbone `build_resnet_deeplab_backbone` and
the heads `DeepLabV3Head` and `DeepLabV3PlusHead`; `add_deeplab_config` adds their config keys.
"""

from .build_solver import build_lr_scheduler
from .config import add_deeplab_config
from .loss import DeepLabCE
from .lr_scheduler import WarmupPolyLR
from .resnet import DeepLabStem, build_resnet_deeplab_backbone
from .semantic_seg import DeepLabV3Head, DeepLabV3PlusHead

__all__ = [
    "DeepLabCE",
    "DeepLabStem",
    "DeepLabV3Head",
    "DeepLabV3PlusHead",
    "WarmupPolyLR",
    "add_deeplab_config",
    "build_lr_scheduler",
    "build_resnet_deeplab_backbone",
]
