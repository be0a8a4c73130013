# Mask R-CNN, ViTDet-H, LVIS v1, 100 epochs; begins with weights of MAE (arXiv:2111.06377), patches resized to 16.
# tools/lazyconfig_train_net.py --config-file projects/ViTDet/configs/LVIS/mask_rcnn_vitdet_h_100ep.py --num-gpus 64
from ..COCO.mask_rcnn_vitdet_h_75ep import model as _coco_model
from ..COCO.mask_rcnn_vitdet_h_75ep import optimizer
from ..COCO.mask_rcnn_vitdet_h_75ep import train as _coco_train
from .mask_rcnn_vitdet_b_100ep import dataloader, lr_multiplier, model, train

model.backbone = _coco_model.backbone
model.backbone.net.drop_path_rate = 0.4

train.init_checkpoint = _coco_train.init_checkpoint
