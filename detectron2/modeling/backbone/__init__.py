"""Networks that turn images into feature maps."""

from .backbone import Backbone
from .build import BACKBONE_REGISTRY, build_backbone
from .fpn import FPN, build_resnet_fpn_backbone, build_retinanet_resnet_fpn_backbone
from .mvit import MViT
from .regnet import RegNet
from .resnet import (
    BasicBlock,
    BasicStem,
    BottleneckBlock,
    DeformBottleneckBlock,
    ResNet,
    ResNetBlockBase,
    build_resnet_backbone,
    make_stage,
)
from .swin import SwinTransformer
from .timm_backbone import (
    TimmBackbone,
    build_retinanet_timm_fpn_backbone,
    build_timm_backbone,
    build_timm_fpn_backbone,
    timm_pixel_statistics,
    use_timm_pixel_statistics,
)
from .transformers_backbone import (
    TransformersBackbone,
    build_retinanet_transformers_fpn_backbone,
    build_transformers_backbone,
    build_transformers_fpn_backbone,
)
from .vit import SimpleFeaturePyramid, ViT, get_vit_lr_decay_rate

__all__ = [
    "BACKBONE_REGISTRY",
    "FPN",
    "Backbone",
    "BasicBlock",
    "BasicStem",
    "BottleneckBlock",
    "DeformBottleneckBlock",
    "MViT",
    "RegNet",
    "ResNet",
    "ResNetBlockBase",
    "SimpleFeaturePyramid",
    "SwinTransformer",
    "TimmBackbone",
    "TransformersBackbone",
    "ViT",
    "build_backbone",
    "build_resnet_backbone",
    "build_resnet_fpn_backbone",
    "build_retinanet_resnet_fpn_backbone",
    "build_retinanet_timm_fpn_backbone",
    "build_retinanet_transformers_fpn_backbone",
    "build_timm_backbone",
    "build_timm_fpn_backbone",
    "build_transformers_backbone",
    "build_transformers_fpn_backbone",
    "get_vit_lr_decay_rate",
    "make_stage",
    "timm_pixel_statistics",
    "use_timm_pixel_statistics",
]
