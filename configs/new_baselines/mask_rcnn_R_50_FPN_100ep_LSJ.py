# Mask R-CNN, ResNet-50 FPN, COCO, from scratch for 100 epochs with large-scale jitter (Simple Copy-Paste, arXiv 2012.07177).
# tools/lazyconfig_train_net.py --config-file configs/new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py --num-gpus 64
from functools import partial

from fvcore.common.param_scheduler import MultiStepParamScheduler

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.layers.batch_norm import NaiveSyncBatchNorm
from detectron2.solver import WarmupParamScheduler

from ..common.data.coco import dataloader
from ..common.models.mask_rcnn_fpn import model
from ..common.optim import SGD as optimizer
from ..common.train import train

# ------------------------------------------------------------------------------------------------ data
_SIZE = 1024

dataloader.train.mapper.augmentations = [
    L(T.ResizeScale)(min_scale=0.1, max_scale=2.0, target_height=_SIZE, target_width=_SIZE),
    L(T.FixedSizeCrop)(crop_size=(_SIZE, _SIZE)),
    L(T.RandomFlip)(horizontal=True),
]
dataloader.train.mapper.recompute_boxes = True  # cropping a mask makes its box smaller than the cropped box
dataloader.train.total_batch_size = 64

# ----------------------------------------------------------------------------------------------- model
# Trained from scratch, so everything is normalized over the batch and nothing is frozen.
model.backbone.bottom_up.freeze_at = 0
model.backbone.bottom_up.stem.norm = "SyncBN"
model.backbone.bottom_up.stages.norm = "SyncBN"
model.backbone.norm = "SyncBN"

# Two convolutions in the RPN head, four in the box head.
model.proposal_generator.head.conv_dims = [-1, -1]
model.roi_heads.box_head.conv_dims = [256, 256, 256, 256]
model.roi_heads.box_head.fc_dims = [1024]

# GPUs see different numbers of regions (masks only of objects, in some images none): weigh their statistics by that.
_region_norm = partial(NaiveSyncBatchNorm, stats_mode="N")
model.roi_heads.box_head.conv_norm = _region_norm
model.roi_heads.mask_head.conv_norm = _region_norm

# -------------------------------------------------------------------------------------------- training
# 100 epochs: 184375 iterations * 64 images / 118k images
train.max_iter = 184375
train.amp.enabled = True
train.ddp.fp16_compression = True

optimizer.lr = 0.1
optimizer.weight_decay = 4e-5

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(
        values=[1.0, 0.1, 0.01],
        milestones=[163889, 177546],
        num_updates=train.max_iter,
    ),
    warmup_length=500 / train.max_iter,
    warmup_factor=0.067,
)
