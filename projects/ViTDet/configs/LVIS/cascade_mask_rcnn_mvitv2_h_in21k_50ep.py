# Cascade Mask R-CNN, MViTv2-H FPN, LVIS v1, 50 epochs; begins with weights trained on ImageNet-21k.
# tools/lazyconfig_train_net.py --config-file projects/ViTDet/configs/LVIS/cascade_mask_rcnn_mvitv2_h_in21k_50ep.py --num-gpus 64
from ..COCO.cascade_mask_rcnn_mvitv2_h_in21k_36ep import model as _coco_model
from ..COCO.cascade_mask_rcnn_mvitv2_h_in21k_36ep import train as _coco_train
from .cascade_mask_rcnn_mvitv2_l_in21k_50ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone = _coco_model.backbone

train.init_checkpoint = _coco_train.init_checkpoint
optimizer.lr = 2e-5
