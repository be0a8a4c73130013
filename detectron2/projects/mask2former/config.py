"""The config keys of Mask2Former."""

from detectron2.config import CfgNode

__all__ = ["add_maskformer2_config"]


def add_maskformer2_config(cfg: CfgNode) -> None:
    """Add the keys of Mask2Former, with their published defaults, to a config, usually fresh from `get_cfg()`."""
    # How training data are read and augmented: a name in MASK_FORMER_MAPPERS.
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    # Of the mappers mask_former_*: colours distorted as in SSD, a crop that is drawn again while one class covers more
    # than this share of it, and the square (if positive) that the image is padded to.
    cfg.INPUT.COLOR_AUG_SSD = False
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0
    cfg.INPUT.SIZE_DIVISIBILITY = -1
    # Of the mappers coco_*_lsj: side of the square crop, and the range of sizes, relative to it, that an image is
    # resized to.
    cfg.INPUT.IMAGE_SIZE = 1024
    cfg.INPUT.MIN_SCALE = 0.1
    cfg.INPUT.MAX_SCALE = 2.0

    cfg.SOLVER.OPTIMIZER = "ADAMW"
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1  # factor on the learning rate of the backbone
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0
    cfg.SOLVER.POLY_LR_POWER = 0.9  # of the schedule "WarmupPolyLR", see add_deeplab_config
    cfg.SOLVER.POLY_LR_CONSTANT_ENDING = 0.0

    head = cfg.MODEL.SEM_SEG_HEAD
    head.MASK_DIM = 256  # channels of the map that queries are compared with
    head.PIXEL_DECODER_NAME = "MSDeformAttnPixelDecoder"
    head.TRANSFORMER_ENC_LAYERS = 0  # layers of deformable attention in the pixel decoder
    head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = ["res3", "res4", "res5"]
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS = 4
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = 8

    cfg.MODEL.MASK_FORMER = CfgNode(
        {
            "TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
            "TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",  # the only one that this decoder reads
            "HIDDEN_DIM": 256,
            "NUM_OBJECT_QUERIES": 100,
            "NHEADS": 8,
            "DROPOUT": 0.1,  # in the pixel decoder
            "DIM_FEEDFORWARD": 2048,
            "DEC_LAYERS": 6,  # one more than there are layers: the queries have a loss before the first one, too
            "PRE_NORM": False,
            "ENFORCE_INPUT_PROJ": False,  # a convolution before the decoder even where channels are as it wants them
            "SIZE_DIVISIBILITY": 32,  # images are padded to a multiple of this; if negative, as the backbone asks
            # The loss, its weights, and the points that masks are compared at; see SetCriterion.
            "DEEP_SUPERVISION": True,
            "NO_OBJECT_WEIGHT": 0.1,
            "CLASS_WEIGHT": 1.0,
            "DICE_WEIGHT": 1.0,
            "MASK_WEIGHT": 20.0,
            "TRAIN_NUM_POINTS": 112 * 112,
            "OVERSAMPLE_RATIO": 3.0,
            "IMPORTANCE_SAMPLE_RATIO": 0.75,
            "TEST": {
                "SEMANTIC_ON": True,
                "INSTANCE_ON": False,
                "PANOPTIC_ON": False,
                # In a panoptic result: the least score of a query, and the least share of its mask that is left to it.
                "OBJECT_MASK_THRESHOLD": 0.0,
                "OVERLAP_THRESHOLD": 0.0,
                # Of semantic segmentation alone: resize masks, not class scores, to the size of the result.
                "SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE": False,
            },
        }
    )

    # Of the backbone "D2SwinTransformer"; see detectron2.modeling.SwinTransformer.
    cfg.MODEL.SWIN = CfgNode(
        {
            "PRETRAIN_IMG_SIZE": 224,
            "PATCH_SIZE": 4,
            "EMBED_DIM": 96,
            "DEPTHS": [2, 2, 6, 2],
            "NUM_HEADS": [3, 6, 12, 24],
            "WINDOW_SIZE": 7,
            "MLP_RATIO": 4.0,
            "QKV_BIAS": True,
            "QK_SCALE": None,
            "DROP_RATE": 0.0,
            "ATTN_DROP_RATE": 0.0,
            "DROP_PATH_RATE": 0.3,
            "APE": False,
            "PATCH_NORM": True,
            "OUT_FEATURES": ["res2", "res3", "res4", "res5"],
            "USE_CHECKPOINT": False,
        }
    )
