# Cascade Mask R-CNN, MViTv2-B FPN, LVIS v1, 100 epochs; begins with weights trained on ImageNet-21k.
# tools/lazyconfig_train_net.py --config-file projects/ViTDet/configs/LVIS/cascade_mask_rcnn_mvitv2_b_in21k_100ep.py --num-gpus 64
from ..COCO.cascade_mask_rcnn_mvitv2_b_in21k_100ep import model, optimizer
from ..COCO.cascade_mask_rcnn_mvitv2_b_in21k_100ep import train as _coco_train
from .cascade_mask_rcnn_vitdet_b_100ep import dataloader, lr_multiplier, train
from .cascade_mask_rcnn_vitdet_b_100ep import model as _lvis_model

model.roi_heads = _lvis_model.roi_heads

train.init_checkpoint = _coco_train.init_checkpoint
optimizer.lr = 1e-4
