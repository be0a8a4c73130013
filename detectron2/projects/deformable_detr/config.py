"""Config keys of Deformable DETR and DINO."""

from detectron2.config import CfgNode as CN

__all__ = ["add_deformable_detr_config"]


def add_deformable_detr_config(cfg: CN) -> None:
    """Add the keys of Deformable DETR and DINO to `cfg`, in place; defaults are those of Deformable DETR."""
    cfg.MODEL.DEFORMABLE_DETR = CN()
    cfg.MODEL.DEFORMABLE_DETR.NUM_CLASSES = 80
    # Feature maps of the backbone, finest first. Further ones, up to NUM_FEATURE_LEVELS, are made of the last one.
    cfg.MODEL.DEFORMABLE_DETR.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.DEFORMABLE_DETR.NUM_FEATURE_LEVELS = 4
    cfg.MODEL.DEFORMABLE_DETR.NUM_OBJECT_QUERIES = 300

    cfg.MODEL.DEFORMABLE_DETR.ENC_LAYERS = 6
    cfg.MODEL.DEFORMABLE_DETR.DEC_LAYERS = 6
    cfg.MODEL.DEFORMABLE_DETR.HIDDEN_DIM = 256
    cfg.MODEL.DEFORMABLE_DETR.NHEADS = 8
    cfg.MODEL.DEFORMABLE_DETR.N_POINTS = 4
    cfg.MODEL.DEFORMABLE_DETR.DIM_FEEDFORWARD = 1024
    cfg.MODEL.DEFORMABLE_DETR.DROPOUT = 0.1
    # Of DeformableDETR; DINO always refines boxes and proposes queries.
    cfg.MODEL.DEFORMABLE_DETR.WITH_BOX_REFINE = False
    cfg.MODEL.DEFORMABLE_DETR.TWO_STAGE = False

    # What matching costs, and what losses are multiplied by.
    cfg.MODEL.DEFORMABLE_DETR.COST_CLASS = 2.0
    cfg.MODEL.DEFORMABLE_DETR.COST_BBOX = 5.0
    cfg.MODEL.DEFORMABLE_DETR.COST_GIOU = 2.0
    cfg.MODEL.DEFORMABLE_DETR.CLASS_WEIGHT = 2.0
    cfg.MODEL.DEFORMABLE_DETR.BBOX_WEIGHT = 5.0
    cfg.MODEL.DEFORMABLE_DETR.GIOU_WEIGHT = 2.0
    cfg.MODEL.DEFORMABLE_DETR.FOCAL_ALPHA = 0.25

    cfg.MODEL.DEFORMABLE_DETR.SCORE_THRESH_TEST = 0.0

    cfg.MODEL.DINO = CN()
    # Whether contents of queries are learned, and only their boxes proposed.
    cfg.MODEL.DINO.MIXED_QUERY_SELECTION = True
    # Whether the box of a layer is also improved by the loss of the next one.
    cfg.MODEL.DINO.LOOK_FORWARD_TWICE = True
    # Denoising: about how many noisy objects are restored in each image; 0 for none.
    cfg.MODEL.DINO.DN_NUMBER = 100
    # Half of this share of labels is drawn anew.
    cfg.MODEL.DINO.DN_LABEL_NOISE_RATIO = 0.5
    # How far corners move, in halves of a side.
    cfg.MODEL.DINO.DN_BOX_NOISE_SCALE = 1.0
    # Whether all layers of the decoder have the same heads, as published; in detrex and MMDetection each has its own.
    cfg.MODEL.DINO.SHARE_HEADS = True
    # The sines of positions, as published; detrex has 10000 and -0.5.
    cfg.MODEL.DINO.POSITION_TEMPERATURE = 20.0
    cfg.MODEL.DINO.POSITION_OFFSET = 0.0
