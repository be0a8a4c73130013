"""The config keys of Panoptic-DeepLab."""

from detectron2.config import CfgNode
from detectron2.projects.deeplab import add_deeplab_config

__all__ = ["add_panoptic_deeplab_config"]


def add_panoptic_deeplab_config(cfg: CfgNode) -> None:
    """Add the keys of Panoptic-DeepLab, and those of DeepLab, with their defaults to a config."""
    add_deeplab_config(cfg)
    # What the training targets are made like, see PanopticDeepLabTargetGenerator.
    cfg.INPUT.GAUSSIAN_SIGMA = 10
    cfg.INPUT.IGNORE_STUFF_IN_OFFSET = True
    cfg.INPUT.SMALL_INSTANCE_AREA = 4096
    cfg.INPUT.SMALL_INSTANCE_WEIGHT = 3
    cfg.INPUT.IGNORE_CROWD_IN_SEMANTIC = False

    cfg.SOLVER.OPTIMIZER = "ADAM"  # or "SGD"

    cfg.MODEL.SEM_SEG_HEAD.HEAD_CHANNELS = 256
    cfg.MODEL.SEM_SEG_HEAD.LOSS_TOP_K = 0.2  # part of the pixels that hard pixel mining averages over

    # Heatmap of centres and offsets to them.
    cfg.MODEL.INS_EMBED_HEAD = CfgNode(
        {
            "NAME": "PanopticDeepLabInsEmbedHead",
            "IN_FEATURES": ["res2", "res3", "res5"],
            "PROJECT_FEATURES": ["res2", "res3"],
            "PROJECT_CHANNELS": [32, 64],
            "ASPP_CHANNELS": 256,
            "ASPP_DILATIONS": [6, 12, 18],
            "ASPP_DROPOUT": 0.1,
            "HEAD_CHANNELS": 32,
            "CONVS_DIM": 128,
            "COMMON_STRIDE": 4,
            "NORM": "SyncBN",
            "CENTER_LOSS_WEIGHT": 200.0,
            "OFFSET_LOSS_WEIGHT": 0.01,
        }
    )

    cfg.MODEL.PANOPTIC_DEEPLAB = CfgNode(
        {
            "STUFF_AREA": 2048,  # pixels of the output: smaller stuff regions are dropped
            "CENTER_THRESHOLD": 0.1,
            "NMS_KERNEL": 7,  # pixels of the output, odd: of two centres this close the higher one stays
            "TOP_K_INSTANCE": 200,
            "PREDICT_INSTANCES": True,  # also return "instances"
            "USE_DEPTHWISE_SEPARABLE_CONV": False,  # in the head of instances
            "SIZE_DIVISIBILITY": -1,  # images are padded to a multiple of this; otherwise as the backbone asks
            "BENCHMARK_NETWORK_SPEED": False,  # return nothing in inference, to time the network alone
        }
    )
