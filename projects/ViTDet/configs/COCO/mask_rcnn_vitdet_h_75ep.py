# Mask R-CNN, ViTDet-H, COCO, 75 epochs; begins with weights of MAE (arXiv:2111.06377), patches resized to 16.
# tools/lazyconfig_train_net.py --config-file projects/ViTDet/configs/COCO/mask_rcnn_vitdet_h_75ep.py --num-gpus 64
from functools import partial

from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate

from .mask_rcnn_vitdet_b_100ep import dataloader, lr_multiplier, model, optimizer, train

_DEPTH = 32
_GLOBAL = (7, 15, 23, 31)  # the blocks that attend to the whole image

model.backbone.net.embed_dim = 1280
model.backbone.net.depth = _DEPTH
model.backbone.net.num_heads = 16
model.backbone.net.drop_path_rate = 0.5
model.backbone.net.window_block_indexes = [i for i in range(_DEPTH) if i not in _GLOBAL]

train.init_checkpoint = (
    "detectron2://ImageNetPretrained/MAE/mae_pretrain_vit_huge_p14to16.pth?matching_heuristics=True"
)
train.max_iter = 138281  # 75 epochs
lr_multiplier.scheduler.milestones = [122916, 133159]
lr_multiplier.scheduler.num_updates = train.max_iter

optimizer.params.lr_factor_func = partial(get_vit_lr_decay_rate, num_layers=_DEPTH, lr_decay_rate=0.9)
# Weight decay for all: norms and positions as well.
optimizer.params.weight_decay_norm = None
optimizer.params.overrides = {}
