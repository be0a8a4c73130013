"""TensorMask: dense sliding-window instance segmentation (Chen et al., https://arxiv.org/abs/1903.12174).

Importing this package registers the architecture `TensorMask` and its anchor generator;
`add_tensormask_config` adds their config keys.
"""

from .anchor_generator import TensorMaskAnchorGenerator
from .arch import TensorMask
from .config import add_tensormask_config
from .head import TensorMaskHead
from .layers import SwapAlign2Nat, swap_align2nat

__all__ = [
    "SwapAlign2Nat",
    "TensorMask",
    "TensorMaskAnchorGenerator",
    "TensorMaskHead",
    "add_tensormask_config",
    "swap_align2nat",
]
