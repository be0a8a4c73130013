"""The functions that add keys to a config, for models that come with the library but whose keys are not defaults.

The tables hold names only, because the config package does not import models.
"""

from collections.abc import Sequence

__all__ = ["PROJECT_FOLDERS", "PROJECT_KEYS", "PROJECT_PARTS", "PROJECT_TRAINERS", "adders_of"]

_DEEPLAB = (
    "SOLVER.POLY_LR_POWER",
    "SOLVER.POLY_LR_CONSTANT_ENDING",
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA",
    "MODEL.RESNETS.STEM_TYPE",
    "MODEL.RESNETS.RES4_DILATION",
    "MODEL.RESNETS.RES5_MULTI_GRID",
    "MODEL.SEM_SEG_HEAD.LOSS_TYPE",
    "MODEL.SEM_SEG_HEAD.PROJECT_FEATURES",
    "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS",
    "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS",
    "MODEL.SEM_SEG_HEAD.ASPP_DILATIONS",
    "MODEL.SEM_SEG_HEAD.ASPP_DROPOUT",
    "MODEL.SEM_SEG_HEAD.USE_DEPTHWISE_SEPARABLE_CONV",
)

PROJECT_KEYS: dict[str, tuple[str, ...]] = {
    "detectron2.projects.deeplab.add_deeplab_config": _DEEPLAB,
    "detectron2.projects.panoptic_deeplab.add_panoptic_deeplab_config": (
        *_DEEPLAB,
        "MODEL.PANOPTIC_DEEPLAB",
        "MODEL.INS_EMBED_HEAD",
        "MODEL.SEM_SEG_HEAD.HEAD_CHANNELS",
        "MODEL.SEM_SEG_HEAD.LOSS_TOP_K",
        "INPUT.GAUSSIAN_SIGMA",
        "INPUT.IGNORE_STUFF_IN_OFFSET",
        "INPUT.SMALL_INSTANCE_AREA",
        "INPUT.SMALL_INSTANCE_WEIGHT",
        "INPUT.IGNORE_CROWD_IN_SEMANTIC",
    ),
    "detectron2.projects.point_rend.add_pointrend_config": (
        "MODEL.POINT_HEAD",
        "MODEL.IMPLICIT_POINTREND",
        "MODEL.ROI_MASK_HEAD.IN_FEATURES",
        "MODEL.ROI_MASK_HEAD.FC_DIM",
        "MODEL.ROI_MASK_HEAD.NUM_FC",
        "MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION",
        "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON",
        "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA",
        "INPUT.COLOR_AUG_SSD",
    ),
    "detectron2.projects.mask2former.add_maskformer2_config": (
        "MODEL.MASK_FORMER",
        "MODEL.SWIN",
        "MODEL.SEM_SEG_HEAD.MASK_DIM",
        "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME",
        "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS",
        "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES",
        "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS",
        "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS",
        "INPUT.DATASET_MAPPER_NAME",
        "INPUT.COLOR_AUG_SSD",
        "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA",
        "INPUT.SIZE_DIVISIBILITY",
        "INPUT.IMAGE_SIZE",
        "INPUT.MIN_SCALE",
        "INPUT.MAX_SCALE",
        "SOLVER.BACKBONE_MULTIPLIER",
        "SOLVER.WEIGHT_DECAY_EMBED",
        "SOLVER.POLY_LR_POWER",
        "SOLVER.POLY_LR_CONSTANT_ENDING",
    ),
    "detectron2.projects.deformable_detr.add_deformable_detr_config": ("MODEL.DEFORMABLE_DETR", "MODEL.DINO"),
    "point_sup.add_point_sup_config": ("INPUT.POINT_SUP", "INPUT.SAMPLE_POINTS"),
    "tensormask.add_tensormask_config": ("MODEL.TENSOR_MASK",),
    "tridentnet.add_tridentnet_config": ("MODEL.TRIDENT",),
}
"""Maps the dotted name of a function that takes a config to the keys, or groups of keys, that it adds."""

PROJECT_PARTS: dict[str, tuple[str, ...]] = {
    "detectron2.projects.deeplab.add_deeplab_config": (
        "DeepLabV3Head",
        "DeepLabV3PlusHead",
        "build_resnet_deeplab_backbone",
    ),
    "detectron2.projects.panoptic_deeplab.add_panoptic_deeplab_config": ("PanopticDeepLab",),
    "detectron2.projects.point_rend.add_pointrend_config": (
        *("PointRendROIHeads", "PointRendSemSegHead", "PointRendMaskHead", "ImplicitPointRendMaskHead"),
    ),
    "detectron2.projects.mask2former.add_maskformer2_config": ("MaskFormer", "MaskFormerHead"),
    "detectron2.projects.deformable_detr.add_deformable_detr_config": ("DeformableDETR", "DINO"),
}
"""Maps the same functions to the names of models and parts that read these keys; a config may set none of the keys."""

PROJECT_FOLDERS = {
    "point_sup": "projects/PointSup",
    "tensormask": "projects/TensorMask",
    "tridentnet": "projects/TridentNet",
}
"""The folders of packages that are not installed with the library."""

PROJECT_TRAINERS = {
    "DINO": "detectron2.projects.deformable_detr.DeformableTrainer",
    "DeformableDETR": "detectron2.projects.deformable_detr.DeformableTrainer",
    "MaskFormer": "detectron2.projects.mask2former.MaskFormerTrainer",
    "PanopticDeepLab": "detectron2.projects.panoptic_deeplab.PanopticDeepLabTrainer",
}
"""The trainer, a class that takes a config, of meta-architectures that the default one does not suit."""


def adders_of(paths: Sequence[str]) -> dict[str, list[str]]:
    """Find as few functions as possible that add the keys with these full names, each with the keys that it adds.

    The function with the most keys comes first. Keys that no function adds are left out.

    >>> adders_of(["MODEL.POINT_HEAD.NUM_FC", "SOLVER.TYPO"])
    {'detectron2.projects.point_rend.add_pointrend_config': ['MODEL.POINT_HEAD.NUM_FC']}
    """
    left = list(paths)
    found: dict[str, list[str]] = {}
    while True:
        covered = {name: [path for path in left if _is_within(path, keys)] for name, keys in PROJECT_KEYS.items()}
        name = max(covered, key=lambda n: len(covered[n]))  # the first of equals, which adds fewer keys
        if not covered[name]:
            return found
        found[name] = covered[name]
        left = [path for path in left if path not in covered[name]]


def _is_within(path: str, keys: tuple[str, ...]) -> bool:
    return any(path == key or path.startswith(f"{key}.") for key in keys)
