"""The config keys of TensorMask."""

from detectron2.config import CfgNode

__all__ = ["add_tensormask_config"]


def add_tensormask_config(cfg: CfgNode) -> None:
    """Add the keys of TensorMask, with their defaults, to a config.

    Args:
        cfg: the config to change, usually fresh from `get_cfg()`.
    """
    cfg.MODEL.TENSOR_MASK = CfgNode(
        {
            "IN_FEATURES": ["p2", "p3", "p4", "p5", "p6", "p7"],
            "NUM_CONVS": 4,  # convolutions in each tower
            "NUM_CLASSES": 80,  # without background
            # Classification.
            "CLS_CHANNELS": 256,
            "FOCAL_LOSS_GAMMA": 3.0,
            "FOCAL_LOSS_ALPHA": 0.3,
            "SCORE_THRESH_TEST": 0.05,
            "TOPK_CANDIDATES_TEST": 6000,  # candidates before suppression, over all levels
            "NMS_THRESH_TEST": 0.5,
            # Boxes.
            "BBOX_CHANNELS": 128,
            "BBOX_REG_WEIGHTS": (1.5, 1.5, 0.75, 0.75),
            # Masks.
            "MASK_CHANNELS": 128,
            "MASK_LOSS_WEIGHT": 2.0,
            "POSITIVE_WEIGHT": 1.5,  # of the pixels inside an object in the mask loss
            "ALIGNED_ON": False,  # predict masks in the aligned representation
            "BIPYRAMID_ON": False,  # predict the masks of large windows at a high resolution; needs ALIGNED_ON
        }
    )
