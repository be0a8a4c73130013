# Mask R-CNN, ResNet-101 FPN, COCO, from scratch for 100 epochs with large-scale jitter.
# tools/lazyconfig_train_net.py --config-file configs/new_baselines/mask_rcnn_R_101_FPN_100ep_LSJ.py --num-gpus 64
from .mask_rcnn_R_50_FPN_100ep_LSJ import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.depth = 101
