"""Deformable DETR and DINO: detectors that predict a set of objects with deformable attention.

Zhu et al., "Deformable DETR", https://arxiv.org/abs/2010.04159; Zhang et al., "DINO", https://arxiv.org/abs/2203.03605.
Importing this package registers the architectures `DeformableDETR` and `DINO`; `add_deformable_detr_config` adds their
config keys.
"""

from . import graphs as _graphs  # noqa: F401  # registers the form that is exported
from .config import add_deformable_detr_config
from .criterion import SetCriterion
from .deformable_detr import DeformableDETR
from .dino import DINO, DINOTransformer
from .matcher import HungarianMatcher, Match, Targets
from .training import DeformableTrainer
from .transformer import DeformableTransformer, Prediction

__all__ = [
    "DINO",
    "DINOTransformer",
    "DeformableDETR",
    "DeformableTrainer",
    "DeformableTransformer",
    "HungarianMatcher",
    "Match",
    "Prediction",
    "SetCriterion",
    "Targets",
    "add_deformable_detr_config",
]
