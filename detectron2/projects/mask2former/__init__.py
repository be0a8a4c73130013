"""Mask2Former: one model for semantic, instance and panoptic segmentation (Cheng et al., arXiv:2112.01527).

Learned queries look at the image through masks that they predict themselves, and each becomes a class and a mask.
Importing this package registers the architecture `MaskFormer`, its head and its decoders, and the backbone
`D2SwinTransformer`; `add_maskformer2_config` adds their config keys.
"""

from . import graphs as _graphs  # noqa: F401  # registers the form that is exported
from .config import add_maskformer2_config
from .criterion import SetCriterion
from .dataset_mapper import MASK_FORMER_MAPPERS, MaskFormerDatasetMapper
from .mask_former_head import MaskFormerHead
from .mask_former_model import MaskFormer
from .matcher import HungarianMatcher
from .pixel_decoder import MSDeformAttnPixelDecoder
from .swin import D2SwinTransformer
from .training import MaskFormerTrainer
from .transformer_decoder import TRANSFORMER_DECODER_REGISTRY, MultiScaleMaskedTransformerDecoder

__all__ = [
    "MASK_FORMER_MAPPERS",
    "TRANSFORMER_DECODER_REGISTRY",
    "D2SwinTransformer",
    "HungarianMatcher",
    "MSDeformAttnPixelDecoder",
    "MaskFormer",
    "MaskFormerDatasetMapper",
    "MaskFormerHead",
    "MaskFormerTrainer",
    "MultiScaleMaskedTransformerDecoder",
    "SetCriterion",
    "add_maskformer2_config",
]
