"""Config keys of PointRend."""

from detectron2.config import CfgNode as CN

__all__ = ["add_pointrend_config"]


def add_pointrend_config(cfg: CN) -> None:
    """Add the keys of PointRend to `cfg`, in place."""
    # Augmentation of semantic segmentation: a crop is drawn again while one class covers more than this share of it.
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0
    # Whether to distort colours as in SSD.
    cfg.INPUT.COLOR_AUG_SSD = False

    # The coarse head: features it reads, hidden layers, and the side of its mask in cells.
    cfg.MODEL.ROI_MASK_HEAD.IN_FEATURES = ("p2",)
    cfg.MODEL.ROI_MASK_HEAD.FC_DIM = 1024
    cfg.MODEL.ROI_MASK_HEAD.NUM_FC = 2
    cfg.MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION = 7
    # Without a point head the coarse mask is the result.
    cfg.MODEL.ROI_MASK_HEAD.POINT_HEAD_ON = False

    cfg.MODEL.POINT_HEAD = CN()
    cfg.MODEL.POINT_HEAD.NAME = "StandardPointHead"
    cfg.MODEL.POINT_HEAD.NUM_CLASSES = 80
    # Feature maps that points are read from.
    cfg.MODEL.POINT_HEAD.IN_FEATURES = ("p2",)
    # Points of a region (semantic segmentation: of an image) in training. OVERSAMPLE_RATIO times as many are drawn, of
    # which the least certain give the share IMPORTANCE_SAMPLE_RATIO; the rest is drawn evenly.
    cfg.MODEL.POINT_HEAD.TRAIN_NUM_POINTS = 14 * 14
    cfg.MODEL.POINT_HEAD.OVERSAMPLE_RATIO = 3
    cfg.MODEL.POINT_HEAD.IMPORTANCE_SAMPLE_RATIO = 0.75
    # In inference each step doubles the resolution and predicts this many points anew.
    cfg.MODEL.POINT_HEAD.SUBDIVISION_STEPS = 5
    cfg.MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS = 28 * 28
    cfg.MODEL.POINT_HEAD.FC_DIM = 256
    cfg.MODEL.POINT_HEAD.NUM_FC = 3
    cfg.MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK = False
    # Whether every layer, and not only the first, sees the coarse prediction.
    cfg.MODEL.POINT_HEAD.COARSE_PRED_EACH_LAYER = True
    # The head that makes the coarse label map in semantic segmentation.
    cfg.MODEL.POINT_HEAD.COARSE_SEM_SEG_HEAD_NAME = "SemSegFPNHead"

    cfg.MODEL.IMPLICIT_POINTREND = CN()
    # What a point of the implicit head is described by.
    cfg.MODEL.IMPLICIT_POINTREND.IMAGE_FEATURE_ENABLED = True
    cfg.MODEL.IMPLICIT_POINTREND.POS_ENC_ENABLED = True
    # Weight of the mean square of the predicted parameters in the loss.
    cfg.MODEL.IMPLICIT_POINTREND.PARAMS_L2_REGULARIZER = 0.00001
