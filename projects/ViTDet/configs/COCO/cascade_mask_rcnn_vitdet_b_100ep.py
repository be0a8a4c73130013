# Cascade Mask R-CNN, ViTDet-B, COCO, 100 epochs; begins with weights of MAE (arXiv:2111.06377).
# tools/lazyconfig_train_net.py --config-file projects/ViTDet/configs/COCO/cascade_mask_rcnn_vitdet_b_100ep.py --num-gpus 64
from detectron2 import model_zoo

from .mask_rcnn_vitdet_b_100ep import dataloader, lr_multiplier, model, optimizer, train

# Three box heads in place of one, each like it; the mask head stays.
_box_head, _mask_head = model.roi_heads.box_head, model.roi_heads.mask_head
model.roi_heads = model_zoo.get_config("common/models/cascade_rcnn.py").model.roi_heads
model.roi_heads.box_heads = [_box_head for _ in model.roi_heads.box_heads]
model.roi_heads.mask_head = _mask_head
