# Cascade Mask R-CNN, Swin-L FPN, LVIS v1, 50 epochs; begins with weights trained on ImageNet-21k.
# tools/lazyconfig_train_net.py --config-file projects/ViTDet/configs/LVIS/cascade_mask_rcnn_swin_l_in21k_50ep.py --num-gpus 64
from .cascade_mask_rcnn_swin_b_in21k_50ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.embed_dim = 192
model.backbone.bottom_up.num_heads = [6, 12, 24, 48]

train.init_checkpoint = "detectron2://ImageNetPretrained/swin/swin_large_patch4_window7_224_22k.pth"
