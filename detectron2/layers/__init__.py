"""Building blocks of models: convolutions, normalizations, region operators, losses."""

from importlib.metadata import version

import torch

try:
    import torchvision.ops  # noqa: F401
except (ImportError, OSError, RuntimeError) as e:
    if isinstance(e, ModuleNotFoundError):  # which says enough
        raise
    raise ImportError(
        f"torchvision {version('torchvision')} does not run with PyTorch {torch.__version__} ({e}). Each is compiled "
        "for one release and build (CPU, or a version of CUDA) of the other. Install both anew, together and from the "
        "same index: pip install --force-reinstall torch torchvision"
    ) from e

from .aspp import ASPP
from .batch_norm import CycleBatchNormList, FrozenBatchNorm2d, LayerNorm, NaiveSyncBatchNorm, get_norm
from .blocks import CNNBlockBase, DepthwiseSeparableConv2d
from .deform_conv import DeformConv, ModulatedDeformConv, deform_conv, modulated_deform_conv
from .deformable_attention import (
    DeformableEncoderLayer,
    MultiScaleDeformableAttention,
    multi_scale_deformable_attention,
)
from .losses import ciou_loss, diou_loss
from .mask_ops import encode_masks, paste_masks_as_rle, paste_masks_in_boxes, paste_masks_in_image
from .nms import batched_nms, batched_nms_rotated, nms, nms_rotated
from .position_embedding import SinePositionEmbedding, sine_embedding
from .roi_align import ROIAlign, roi_align
from .roi_align_rotated import ROIAlignRotated, roi_align_rotated
from .shape_spec import ShapeSpec
from .wrappers import (
    BatchNorm2d,
    Conv2d,
    ConvTranspose2d,
    Linear,
    cat,
    check_if_dynamo_compiling,
    cross_entropy,
    disable_torch_compiler,
    empty_input_loss_func_wrapper,
    interpolate,
    move_device_like,
    nonzero_tuple,
    shapes_to_tensor,
)

__all__ = [
    "ASPP",
    "BatchNorm2d",
    "CNNBlockBase",
    "Conv2d",
    "ConvTranspose2d",
    "CycleBatchNormList",
    "DeformConv",
    "DeformableEncoderLayer",
    "DepthwiseSeparableConv2d",
    "FrozenBatchNorm2d",
    "LayerNorm",
    "Linear",
    "ModulatedDeformConv",
    "MultiScaleDeformableAttention",
    "NaiveSyncBatchNorm",
    "ROIAlign",
    "ROIAlignRotated",
    "ShapeSpec",
    "SinePositionEmbedding",
    "batched_nms",
    "batched_nms_rotated",
    "cat",
    "check_if_dynamo_compiling",
    "ciou_loss",
    "cross_entropy",
    "deform_conv",
    "diou_loss",
    "disable_torch_compiler",
    "empty_input_loss_func_wrapper",
    "encode_masks",
    "get_norm",
    "interpolate",
    "modulated_deform_conv",
    "move_device_like",
    "multi_scale_deformable_attention",
    "nms",
    "nms_rotated",
    "nonzero_tuple",
    "paste_masks_as_rle",
    "paste_masks_in_boxes",
    "paste_masks_in_image",
    "roi_align",
    "roi_align_rotated",
    "shapes_to_tensor",
    "sine_embedding",
]
