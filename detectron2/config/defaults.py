"""Every key of the YAML config system, with its default value.

`get_cfg()` hands out clones of `_C`. Projects may extend `_C` itself when they are imported, so it stays unfrozen
and is looked up by name each time.

Conventions: `*_TRAIN` and `*_TEST` mark keys that matter in one mode only; boxes are `(x1, y1, x2, y2)` in
absolute pixels of the network input; `(dx, dy, dw, dh)` are box deltas; a list with one entry per feature map may
have a single entry instead, which then serves all of them.
"""

from typing import Any

from detectron2.config.node import CfgNode

__all__: list[str] = []

_MODEL: dict[str, Any] = {
    "META_ARCHITECTURE": "GeneralizedRCNN",  # a name in META_ARCH_REGISTRY
    "DEVICE": "cuda",
    # Checkpoint to start from: a path, an https:// address, or detectron2://... (the model zoo). "" loads nothing.
    "WEIGHTS": "",
    "MASK_ON": False,
    "KEYPOINT_ON": False,
    "LOAD_PROPOSALS": False,  # read proposals from DATASETS.PROPOSAL_FILES_* with every image
    # Subtracted from, and dividing, the pixels; one number per channel, in the channel order of INPUT.FORMAT.
    # ImageNet's means in BGR. The std is 1 because the Caffe-style weights have it folded into their first
    # convolution; weights trained by torchvision want [57.375, 57.12, 58.395].
    "PIXEL_MEAN": [103.53, 116.28, 123.675],
    "PIXEL_STD": [1.0, 1.0, 1.0],
    "BACKBONE": {
        "NAME": "build_resnet_backbone",  # a name in BACKBONE_REGISTRY
        "FREEZE_AT": 2,  # how many stages are not trained, the stem being the first: 2 freezes the stem and res2
    },
    # ResNet and ResNeXt, as backbone and as the res5 head of C4 models.
    "RESNETS": {
        "DEPTH": 50,
        "OUT_FEATURES": ["res4"],  # ["res2", "res3", "res4", "res5"] under an FPN
        "NORM": "FrozenBN",  # "FrozenBN", "BN", "SyncBN", "GN", ... or "" for none
        "NUM_GROUPS": 1,  # > 1 makes it a ResNeXt
        "WIDTH_PER_GROUP": 64,  # channels of one group in res2's 3x3 convolutions
        "STEM_OUT_CHANNELS": 64,
        "RES2_OUT_CHANNELS": 256,  # 64 for depths 18 and 34, which have no bottlenecks
        "STRIDE_IN_1X1": True,  # where a bottleneck strides: its 1x1 (MSRA weights) or its 3x3 (torchvision, ResNeXt)
        "RES5_DILATION": 1,  # 2 keeps res5 at stride 16 (the DC5 models)
        "DEFORM_ON_PER_STAGE": [False, False, False, False],  # deformable 3x3 in res2, res3, res4, res5
        "DEFORM_MODULATED": False,  # True: Deformable ConvNets v2
        "DEFORM_NUM_GROUPS": 1,
    },
    "FPN": {
        "IN_FEATURES": [],  # bottom-up maps, fine to coarse, each with twice the stride of the one before
        "OUT_CHANNELS": 256,
        "NORM": "",
        "FUSE_TYPE": "sum",  # "sum" or "avg": how the top-down and lateral maps are joined
    },
    "PROPOSAL_GENERATOR": {
        "NAME": "RPN",  # "RPN", "RRPN" or "PrecomputedProposals"
        "MIN_SIZE": 0,  # pixels: a proposal must be wider and taller than this
    },
    "ANCHOR_GENERATOR": {
        "NAME": "DefaultAnchorGenerator",  # a name in ANCHOR_GENERATOR_REGISTRY
        "SIZES": [[32, 64, 128, 256, 512]],  # square root of the anchor area in pixels, one list per feature map
        "ASPECT_RATIOS": [[0.5, 1.0, 2.0]],  # height / width, one list per feature map
        "ANGLES": [[-90, 0, 90]],  # degrees, counter-clockwise; rotated anchors only
        "OFFSET": 0.0,  # of the first anchor's center from the image corner, in strides, within [0, 1)
    },
    "RPN": {
        "HEAD_NAME": "StandardRPNHead",  # a name in RPN_HEAD_REGISTRY
        "IN_FEATURES": ["res4"],  # ["p2", "p3", "p4", "p5", "p6"] over an FPN
        "CONV_DIMS": [-1],  # channels of the head's hidden 3x3 convolutions; -1: as many as come in
        # Anchors reaching further outside the image than this many pixels are not trained on; < 0 keeps them all.
        "BOUNDARY_THRESH": -1,
        # IoU of an anchor with its best ground-truth box -> label: below 0.3 background (0), from 0.7 object (1),
        # in between ignored (-1).
        "IOU_THRESHOLDS": [0.3, 0.7],
        "IOU_LABELS": [0, -1, 1],
        "BATCH_SIZE_PER_IMAGE": 256,  # anchors sampled per image for the loss
        "POSITIVE_FRACTION": 0.5,  # at most this share of them are objects
        "BBOX_REG_LOSS_TYPE": "smooth_l1",  # "smooth_l1", "giou", "diou" or "ciou"
        "BBOX_REG_LOSS_WEIGHT": 1.0,
        "BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0, 1.0),  # scales of (dx, dy, dw, dh)
        "SMOOTH_L1_BETA": 0.0,  # 0 is plain L1
        "LOSS_WEIGHT": 1.0,  # of both RPN losses
        # Best-scoring proposals kept before NMS (of each feature map) and after NMS (of each image).
        "PRE_NMS_TOPK_TRAIN": 12000,
        "PRE_NMS_TOPK_TEST": 6000,
        "POST_NMS_TOPK_TRAIN": 2000,
        "POST_NMS_TOPK_TEST": 1000,
        "NMS_THRESH": 0.7,
    },
    "ROI_HEADS": {
        "NAME": "Res5ROIHeads",  # a name in ROI_HEADS_REGISTRY
        "NUM_CLASSES": 80,  # foreground classes; the background is not counted
        "IN_FEATURES": ["res4"],  # shared by the box, mask and keypoint heads
        "IOU_THRESHOLDS": [0.5],  # IoU of a proposal with its best ground-truth box ...
        "IOU_LABELS": [0, 1],  # ... -> background (0) or object (1)
        "BATCH_SIZE_PER_IMAGE": 512,  # regions sampled per image for the losses
        "POSITIVE_FRACTION": 0.25,
        "PROPOSAL_APPEND_GT": True,  # add the ground-truth boxes to the proposals before sampling
        "SCORE_THRESH_TEST": 0.05,  # lower finds a little more and costs time in NMS
        "NMS_THRESH_TEST": 0.5,
    },
    "ROI_BOX_HEAD": {
        "NAME": "",  # a name in ROI_BOX_HEAD_REGISTRY, e.g. "FastRCNNConvFCHead"; C4 models have none
        "NUM_CONV": 0,
        "CONV_DIM": 256,
        "NUM_FC": 0,
        "FC_DIM": 1024,
        "NORM": "",  # of the convolutions
        "POOLER_TYPE": "ROIAlignV2",
        "POOLER_RESOLUTION": 14,
        "POOLER_SAMPLING_RATIO": 0,  # samples per bin and axis; 0 adapts to the size of the region
        "CLS_AGNOSTIC_BBOX_REG": False,
        "BBOX_REG_LOSS_TYPE": "smooth_l1",  # "smooth_l1", "giou", "diou" or "ciou"
        "BBOX_REG_LOSS_WEIGHT": 1.0,
        "BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0),  # chosen to give the deltas about unit variance
        "SMOOTH_L1_BETA": 0.0,  # 0 is plain L1
        "TRAIN_ON_PRED_BOXES": False,  # feed the box head's own boxes, not the proposals, to the heads after it
        # For long-tailed vocabularies: one sigmoid per class, and the federated loss, which samples the negative
        # classes in proportion to (image count) ** power.
        "USE_SIGMOID_CE": False,
        "USE_FED_LOSS": False,
        "FED_LOSS_FREQ_WEIGHT_POWER": 0.5,
        "FED_LOSS_NUM_CLASSES": 50,
    },
    # One entry per stage; the number of entries is the number of stages.
    "ROI_BOX_CASCADE_HEAD": {
        "IOUS": (0.5, 0.6, 0.7),
        "BBOX_REG_WEIGHTS": ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0)),
    },
    "ROI_MASK_HEAD": {
        "NAME": "MaskRCNNConvUpsampleHead",
        "NUM_CONV": 0,
        "CONV_DIM": 256,
        "NORM": "",
        "POOLER_TYPE": "ROIAlignV2",
        "POOLER_RESOLUTION": 14,
        "POOLER_SAMPLING_RATIO": 0,
        "CLS_AGNOSTIC_MASK": False,
    },
    "ROI_KEYPOINT_HEAD": {
        "NAME": "KRCNNConvDeconvUpsampleHead",
        "CONV_DIMS": (512,) * 8,
        "NUM_KEYPOINTS": 17,  # as in COCO
        "POOLER_TYPE": "ROIAlignV2",
        "POOLER_RESOLUTION": 14,
        "POOLER_SAMPLING_RATIO": 0,
        "MIN_KEYPOINTS_PER_IMAGE": 1,  # images with fewer visible keypoints are not trained on
        # True divides the loss by the visible keypoints of the batch; False by all that the sampled regions could
        # have, so that an image with few visible ones does not dominate (then use LOSS_WEIGHT 4).
        "NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS": True,
        "LOSS_WEIGHT": 1.0,
    },
    "SEM_SEG_HEAD": {
        "NAME": "SemSegFPNHead",
        "IN_FEATURES": ["p2", "p3", "p4", "p5"],
        "NUM_CLASSES": 54,
        "IGNORE_VALUE": 255,  # label of the pixels without a loss
        "CONVS_DIM": 128,
        "COMMON_STRIDE": 4,  # every map is brought to this stride before they are added
        "NORM": "GN",
        "LOSS_WEIGHT": 1.0,
    },
    "PANOPTIC_FPN": {
        "INSTANCE_LOSS_WEIGHT": 1.0,
        "COMBINE": {
            "ENABLED": True,  # kept for old files; nothing reads it
            "OVERLAP_THRESH": 0.5,  # drop an instance if more than this share of it is already covered
            "STUFF_AREA_LIMIT": 4096,  # pixels: smaller stuff regions are dropped
            "INSTANCES_CONFIDENCE_THRESH": 0.5,
        },
    },
    "RETINANET": {
        "NUM_CLASSES": 80,
        "IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
        "NUM_CONVS": 4,  # of each tower, not counting the predicting layer
        "NORM": "",  # "", "BN", "SyncBN", "GN": statistics are kept apart for each feature map
        "PRIOR_PROB": 0.01,  # score of every anchor when training starts; sets the bias of the class scores
        "IOU_THRESHOLDS": [0.4, 0.5],  # as in MODEL.RPN
        "IOU_LABELS": [0, -1, 1],
        "FOCAL_LOSS_GAMMA": 2.0,
        "FOCAL_LOSS_ALPHA": 0.25,
        "BBOX_REG_LOSS_TYPE": "smooth_l1",  # "smooth_l1", "giou", "diou" or "ciou"
        "BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0, 1.0),
        "SMOOTH_L1_LOSS_BETA": 0.1,
        "SCORE_THRESH_TEST": 0.05,
        "TOPK_CANDIDATES_TEST": 1000,  # per feature map, before NMS
        "NMS_THRESH_TEST": 0.5,
    },
}

_INPUT: dict[str, Any] = {
    "FORMAT": "BGR",  # a Pillow mode ("RGB", "L", ...), or "BGR"
    "MASK_FORMAT": "polygon",  # "polygon" or "bitmask"
    # The shorter side is resized to one of these lengths, unless the longer side would pass MAX_SIZE.
    "MIN_SIZE_TRAIN": (800,),
    "MIN_SIZE_TRAIN_SAMPLING": "choice",  # "choice": one of the values; "range": between two values
    "MAX_SIZE_TRAIN": 1333,
    "MIN_SIZE_TEST": 800,  # 0 leaves test images as they are
    "MAX_SIZE_TEST": 1333,
    "RANDOM_FLIP": "horizontal",  # "horizontal", "vertical" or "none"
    "CROP": {
        "ENABLED": False,
        "TYPE": "relative_range",  # "relative", "relative_range", "absolute" or "absolute_range"
        "SIZE": [0.9, 0.9],  # (height, width): a share of the image, or pixels for the absolute types
    },
}

_DATASETS: dict[str, Any] = {
    "TRAIN": (),  # registered names; several are trained on as one
    "TEST": (),
    "PROPOSAL_FILES_TRAIN": (),  # one per data set, used with MODEL.LOAD_PROPOSALS
    "PROPOSAL_FILES_TEST": (),
    "PRECOMPUTED_PROPOSAL_TOPK_TRAIN": 2000,
    "PRECOMPUTED_PROPOSAL_TOPK_TEST": 1000,
}

_DATALOADER: dict[str, Any] = {
    "NUM_WORKERS": 4,  # processes per GPU
    "ASPECT_RATIO_GROUPING": True,  # keep wide and tall images in separate batches: less padding
    "SAMPLER_TRAIN": "TrainingSampler",  # or "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler"
    "REPEAT_THRESHOLD": 0.0,  # classes in a smaller share of the images than this are repeated
    "REPEAT_SQRT": True,
    "FILTER_EMPTY_ANNOTATIONS": True,  # do not train on images without objects
}

_SOLVER: dict[str, Any] = {
    "IMS_PER_BATCH": 16,  # of all GPUs together
    # The number of GPUs that batch size, learning rate and schedule were chosen for; they are scaled when training
    # with another number. 0 leaves them alone.
    "REFERENCE_WORLD_SIZE": 0,
    "MAX_ITER": 40000,
    "CHECKPOINT_PERIOD": 5000,
    "BASE_LR": 0.001,
    "BASE_LR_END": 0.0,  # where cosine schedules end
    "MOMENTUM": 0.9,
    "NESTEROV": False,
    "WEIGHT_DECAY": 0.0001,
    "WEIGHT_DECAY_NORM": 0.0,  # of normalization layers
    "WEIGHT_DECAY_BIAS": None,  # None: WEIGHT_DECAY
    "BIAS_LR_FACTOR": 1.0,
    "LR_SCHEDULER_NAME": "WarmupMultiStepLR",  # or "WarmupCosineLR", "WarmupStepWithFixedGammaLR"
    "STEPS": (30000,),  # iterations at which the rate is multiplied by GAMMA
    "GAMMA": 0.1,
    "NUM_DECAYS": 3,  # of WarmupStepWithFixedGammaLR
    "RESCALE_INTERVAL": False,
    "WARMUP_METHOD": "linear",  # "linear" or "constant"
    "WARMUP_FACTOR": 0.001,  # of the rate at iteration 0
    "WARMUP_ITERS": 1000,
    "CLIP_GRADIENTS": {
        "ENABLED": False,
        "CLIP_TYPE": "value",  # "value": each element; "norm": the norm of each parameter; "full_model": of all
        "CLIP_VALUE": 1.0,
        "NORM_TYPE": 2.0,  # .inf for the largest element
    },
    "AMP": {"ENABLED": False},  # mixed precision while training
}

_TEST: dict[str, Any] = {
    "EVAL_PERIOD": 0,  # iterations between evaluations while training; 0: only at the end
    "EXPECTED_RESULTS": [],  # [[task, metric, value, tolerance], ...], e.g. [["bbox", "AP", 38.5, 0.2]]
    "KEYPOINT_OKS_SIGMAS": [],  # one per keypoint; empty means those of COCO
    "DETECTIONS_PER_IMAGE": 100,
    "AUG": {
        "ENABLED": False,
        "MIN_SIZES": (400, 500, 600, 700, 800, 900, 1000, 1100, 1200),
        "MAX_SIZE": 4000,
        "FLIP": True,
    },
    "PRECISE_BN": {"ENABLED": False, "NUM_ITER": 200},
}

_C = CfgNode(
    {
        # Version of the key schema. Files of an older one are translated while they are merged (see compat.py).
        "VERSION": 2,
        "MODEL": _MODEL,
        "INPUT": _INPUT,
        "DATASETS": _DATASETS,
        "DATALOADER": _DATALOADER,
        "SOLVER": _SOLVER,
        "TEST": _TEST,
        "OUTPUT_DIR": "./output",
        "SEED": -1,  # < 0: a different one every time
        "CUDNN_BENCHMARK": False,  # pays off when images have the same size
        "FLOAT32_PRECISION": "",  # "", "highest", "high" or "medium": see torch.set_float32_matmul_precision
        "VIS_PERIOD": 0,  # iterations between training pictures; 0: none
        "GLOBAL": {"HACK": 1.0},  # for experiments; reached from anywhere through detectron2.config.global_cfg
    }
)
