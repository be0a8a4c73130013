"""The config keys of DeepLab."""

from detectron2.config import CfgNode

__all__ = ["add_deeplab_config"]


def add_deeplab_config(cfg: CfgNode) -> None:
    """Add the keys of DeepLab, with their defaults, to a config, usually fresh from `get_cfg()`."""
    # A schedule of the name "WarmupPolyLR": (1 - progress) ** power, not below the ending, relative to BASE_LR.
    cfg.SOLVER.POLY_LR_POWER = 0.9
    cfg.SOLVER.POLY_LR_CONSTANT_ENDING = 0.0

    # A training crop is drawn again when one category fills more than this part of it; 1.0 takes any crop.
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0

    resnet = cfg.MODEL.RESNETS
    resnet.STEM_TYPE = "deeplab"  # three 3x3 convolutions; "basic" is one 7x7
    resnet.RES4_DILATION = 1
    resnet.RES5_MULTI_GRID = [1, 2, 4]  # factor on RES5_DILATION for each of the three blocks of res5

    head = cfg.MODEL.SEM_SEG_HEAD
    head.LOSS_TYPE = "hard_pixel_mining"  # or "cross_entropy"
    # The maps that the decoder of v3+ joins, and the channels it first reduces each of them to.
    head.PROJECT_FEATURES = ["res2"]
    head.PROJECT_CHANNELS = [48]
    head.ASPP_CHANNELS = 256
    head.ASPP_DILATIONS = [6, 12, 18]
    head.ASPP_DROPOUT = 0.1
    head.USE_DEPTHWISE_SEPARABLE_CONV = False
