# Mask R-CNN with batch norm in its heads that takes the statistics of all GPUs.
# tools/lazyconfig_train_net.py --config-file projects/Rethinking-BatchNorm/configs/mask_rcnn_SyncBNhead.py --num-gpus 8
from .mask_rcnn_BNhead import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.box_head.conv_norm = "SyncBN"
model.roi_heads.mask_head.conv_norm = "SyncBN"
