# Mask R-CNN, ViTDet-L, COCO, 100 epochs; begins with weights of MAE (arXiv:2111.06377).
# tools/lazyconfig_train_net.py --config-file projects/ViTDet/configs/COCO/mask_rcnn_vitdet_l_100ep.py --num-gpus 64
from functools import partial

from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate

from .mask_rcnn_vitdet_b_100ep import dataloader, lr_multiplier, model, optimizer, train

_DEPTH = 24
_GLOBAL = (5, 11, 17, 23)  # the blocks that attend to the whole image

model.backbone.net.embed_dim = 1024
model.backbone.net.depth = _DEPTH
model.backbone.net.num_heads = 16
model.backbone.net.drop_path_rate = 0.4
model.backbone.net.window_block_indexes = [i for i in range(_DEPTH) if i not in _GLOBAL]

train.init_checkpoint = "detectron2://ImageNetPretrained/MAE/mae_pretrain_vit_large.pth?matching_heuristics=True"
optimizer.params.lr_factor_func = partial(get_vit_lr_decay_rate, num_layers=_DEPTH, lr_decay_rate=0.8)
