"""The config keys and their published defaults."""

from detectron2.config import get_cfg
from detectron2.projects.mask2former import add_maskformer2_config


def test_defaults():
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    assert (cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BACKBONE_MULTIPLIER, cfg.SOLVER.WEIGHT_DECAY_EMBED) == ("ADAMW", 0.1, 0.0)
    assert (cfg.INPUT.IMAGE_SIZE, cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE) == (1024, 0.1, 2.0)
    model = cfg.MODEL.MASK_FORMER
    assert (model.TRAIN_NUM_POINTS, model.OVERSAMPLE_RATIO, model.IMPORTANCE_SAMPLE_RATIO) == (12544, 3.0, 0.75)
    assert (model.NUM_OBJECT_QUERIES, model.HIDDEN_DIM, model.DIM_FEEDFORWARD) == (100, 256, 2048)
    assert model.TEST.SEMANTIC_ON and not model.TEST.INSTANCE_ON and not model.TEST.PANOPTIC_ON
    assert cfg.MODEL.SWIN.DEPTHS == [2, 2, 6, 2] and cfg.MODEL.SWIN.DROP_PATH_RATE == 0.3
    assert cfg.MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES == ["res3", "res4", "res5"]
