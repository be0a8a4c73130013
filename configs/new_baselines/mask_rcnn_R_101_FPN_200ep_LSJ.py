# Mask R-CNN, ResNet-101 FPN, COCO, from scratch for 200 epochs with large-scale jitter.
# tools/lazyconfig_train_net.py --config-file configs/new_baselines/mask_rcnn_R_101_FPN_200ep_LSJ.py --num-gpus 64
from .mask_rcnn_R_101_FPN_100ep_LSJ import dataloader, lr_multiplier, model, optimizer, train

train.max_iter *= 2  # 100 epochs -> 200 epochs
lr_multiplier.scheduler.milestones = [step * 2 for step in lr_multiplier.scheduler.milestones]
lr_multiplier.scheduler.num_updates = train.max_iter
