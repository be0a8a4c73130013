# Cascade Mask R-CNN, ViTDet-H, COCO, 75 epochs; begins with weights of MAE (arXiv:2111.06377), patches resized to 16.
# tools/lazyconfig_train_net.py --config-file projects/ViTDet/configs/COCO/cascade_mask_rcnn_vitdet_h_75ep.py --num-gpus 64
from .cascade_mask_rcnn_vitdet_b_100ep import model as _cascade
from .mask_rcnn_vitdet_h_75ep import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads = _cascade.roi_heads
