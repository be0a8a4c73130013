"""The residual networks of DeepLab: a stem of three small convolutions, and dilation in place of stride.

The stages are called `res2` to `res5`. A stage of dilation 1 halves the resolution (except `res2`), any other keeps it,
so that `res5` has stride 32, 16 (dilation 2) or 8 (dilations 2 and 4).
"""

from typing import Any

import torch
import torch.nn.functional as F

from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.resnet import (
    BASIC_BLOCK_DEPTHS,
    STAGE_NAMES,
    BasicStem,
    BottleneckBlock,
    DeformBottleneckBlock,
    Norm,
    ResNet,
    blocks_in_stages,
    conv,
    initialize,
)

__all__ = ["DeepLabStem", "build_resnet_deeplab_backbone"]


class DeepLabStem(CNNBlockBase):
    """Three 3x3 convolutions, the first of stride 2, and a 3x3 max pooling of stride 2.

    It replaces the 7x7 convolution of the standard network, and its two further layers make ResNet-50 "R-52" and
    ResNet-101 "R-103".

    Args:
        in_channels: channels of the image.
        out_channels: channels of the output, twice those of the first two convolutions.
        norm: a norm as `detectron2.layers.get_norm` takes it.
    """

    def __init__(self, in_channels: int = 3, out_channels: int = 128, norm: Norm = "BN"):
        super().__init__(in_channels, out_channels, 4)
        half = out_channels // 2
        self.conv1 = conv(in_channels, half, 3, norm, stride=2)
        self.conv2 = conv(half, half, 3, norm)
        self.conv3 = conv(half, out_channels, 3, norm)
        initialize(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `Tensor[N, in_channels, H, W]` to `Tensor[N, out_channels, H/4, W/4]` (rounded up)."""
        for layer in (self.conv1, self.conv2, self.conv3):
            x = F.relu_(layer(x))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


_STEMS: dict[str, type[BasicStem] | type[DeepLabStem]] = {"basic": BasicStem, "deeplab": DeepLabStem}


@BACKBONE_REGISTRY.register()
def build_resnet_deeplab_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """The dilated `ResNet` that `cfg.MODEL.RESNETS` and `cfg.MODEL.BACKBONE.FREEZE_AT` describe."""
    options = cfg.MODEL.RESNETS
    blocks_per_stage = blocks_in_stages(options.DEPTH)
    _check_options(options, blocks_per_stage)
    res2, res3, res4, _ = blocks_per_stage
    # Multi-grid: https://arxiv.org/abs/1706.05587, section 3.2.1
    grid = [options.RES5_DILATION * factor for factor in options.RES5_MULTI_GRID]
    dilations = [[1] * res2, [1] * res3, [options.RES4_DILATION] * res4, grid]
    image_channels: Any = input_shape.channels
    stem = _STEMS[options.STEM_TYPE](image_channels, options.STEM_OUT_CHANNELS, options.NORM)

    stages, in_channels = [], options.STEM_OUT_CHANNELS
    deepest = max((STAGE_NAMES.index(name) for name in options.OUT_FEATURES if name != "stem"), default=-1)
    for i in range(deepest + 1):
        num_blocks, out_channels = blocks_per_stage[i], options.RES2_OUT_CHANNELS * 2**i
        keeps_resolution = i == 0 or (i == 2 and options.RES4_DILATION > 1) or (i == 3 and options.RES5_DILATION > 1)
        kwargs: dict[str, Any] = {
            "bottleneck_channels": options.NUM_GROUPS * options.WIDTH_PER_GROUP * 2**i,
            "stride_per_block": [1 if keeps_resolution else 2] + [1] * (num_blocks - 1),
            "dilation_per_block": dilations[i],
            "num_groups": options.NUM_GROUPS,
            "stride_in_1x1": options.STRIDE_IN_1X1,
            "norm": options.NORM,
        }
        block_class: type[CNNBlockBase] = BottleneckBlock
        if options.DEFORM_ON_PER_STAGE[i]:
            block_class = DeformBottleneckBlock
            kwargs.update(deform_modulated=options.DEFORM_MODULATED, deform_num_groups=options.DEFORM_NUM_GROUPS)
        stages.append(
            ResNet.make_stage(block_class, num_blocks, in_channels=in_channels, out_channels=out_channels, **kwargs)
        )
        in_channels = out_channels
    return ResNet(stem, stages, out_features=options.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)


def _check_options(options: CfgNode, blocks_per_stage: tuple[int, ...]) -> None:
    wrong = []
    if options.DEPTH in BASIC_BLOCK_DEPTHS:
        wrong.append(f"DEPTH {options.DEPTH} (only networks of bottleneck blocks can be dilated: 50, 101 or 152)")
    if options.STEM_TYPE not in _STEMS:
        wrong.append(f"STEM_TYPE {options.STEM_TYPE!r} (must be one of {sorted(_STEMS)})")
    if options.RES4_DILATION not in (1, 2):
        wrong.append(f"RES4_DILATION {options.RES4_DILATION} (must be 1 or 2)")
    if options.RES5_DILATION not in (1, 2, 4):
        wrong.append(f"RES5_DILATION {options.RES5_DILATION} (must be 1, 2 or 4)")
    if options.RES4_DILATION == 2 and options.RES5_DILATION != 4:
        wrong.append(f"RES5_DILATION {options.RES5_DILATION} (must be 4 behind a RES4_DILATION of 2)")
    if len(options.RES5_MULTI_GRID) != blocks_per_stage[3]:
        wrong.append(f"RES5_MULTI_GRID {options.RES5_MULTI_GRID} (needs {blocks_per_stage[3]} numbers, one per block)")
    unknown = [name for name in options.OUT_FEATURES if name not in ("stem", *STAGE_NAMES)]
    if unknown:
        wrong.append(f"OUT_FEATURES {unknown} (choose of {['stem', *STAGE_NAMES]})")
    if wrong:
        raise ValueError("MODEL.RESNETS cannot be built: " + "; ".join(wrong))
