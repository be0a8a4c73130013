# Cascade Mask R-CNN, MViTv2-T FPN, COCO, 36 epochs; begins with weights trained on ImageNet-1k.
# tools/lazyconfig_train_net.py --config-file projects/MViTv2/configs/cascade_mask_rcnn_mvitv2_t_3x.py --num-gpus 8
from functools import partial

from detectron2 import model_zoo
from detectron2.layers.batch_norm import NaiveSyncBatchNorm

from .mask_rcnn_mvitv2_t_3x import dataloader, lr_multiplier, optimizer, train
from .mask_rcnn_mvitv2_t_3x import model as _mask_rcnn

model = model_zoo.get_config("common/models/cascade_rcnn.py").model
for _key in ("backbone", "pixel_mean", "pixel_std", "input_format"):
    model[_key] = _mask_rcnn[_key]

# Two convolutions in the RPN head, four in the box heads.
model.proposal_generator.head.conv_dims = [-1, -1]
for _head in model.roi_heads.box_heads:
    _head.conv_dims = [256, 256, 256, 256]
    _head.fc_dims = [1024]

# GPUs see different numbers of regions (masks only of objects, in some images none): weigh their statistics by that.
_region_norm = partial(NaiveSyncBatchNorm, stats_mode="N")
for _head in (*model.roi_heads.box_heads, model.roi_heads.mask_head):
    _head.conv_norm = _region_norm
