# Cascade Mask R-CNN, Swin-B FPN, LVIS v1, 50 epochs; begins with weights trained on ImageNet-21k.
# tools/lazyconfig_train_net.py --config-file projects/ViTDet/configs/LVIS/cascade_mask_rcnn_swin_b_in21k_50ep.py --num-gpus 64
from ..COCO.cascade_mask_rcnn_swin_b_in21k_50ep import model, optimizer
from ..COCO.cascade_mask_rcnn_swin_b_in21k_50ep import train as _coco_train
from .cascade_mask_rcnn_vitdet_b_100ep import dataloader, lr_multiplier, train
from .cascade_mask_rcnn_vitdet_b_100ep import model as _lvis_model

model.backbone.bottom_up.drop_path_rate = 0.3
model.roi_heads = _lvis_model.roi_heads

train.init_checkpoint = _coco_train.init_checkpoint
train.max_iter = 78125  # 50 epochs
lr_multiplier.scheduler.milestones = [69444, 75231]
lr_multiplier.scheduler.num_updates = train.max_iter
lr_multiplier.warmup_length = 250 / train.max_iter
optimizer.lr = 1e-4
