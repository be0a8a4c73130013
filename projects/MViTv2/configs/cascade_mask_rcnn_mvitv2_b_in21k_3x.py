# Cascade Mask R-CNN, MViTv2-B FPN, COCO, 36 epochs; begins with weights trained on ImageNet-21k.
# tools/lazyconfig_train_net.py --config-file projects/MViTv2/configs/cascade_mask_rcnn_mvitv2_b_in21k_3x.py --num-gpus 8
from .cascade_mask_rcnn_mvitv2_b_3x import dataloader, lr_multiplier, model, optimizer, train

train.init_checkpoint = "detectron2://ImageNetPretrained/mvitv2/MViTv2_B_in21k.pyth"
