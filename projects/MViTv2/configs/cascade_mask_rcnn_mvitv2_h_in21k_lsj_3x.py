# Cascade Mask R-CNN, MViTv2-H FPN, COCO, 36 epochs of large-scale jitter; begins with weights trained on ImageNet-21k.
# tools/lazyconfig_train_net.py --config-file projects/MViTv2/configs/cascade_mask_rcnn_mvitv2_h_in21k_lsj_3x.py --num-gpus 64
from .cascade_mask_rcnn_mvitv2_b_3x import lr_multiplier, model, optimizer, train
from .common.coco_loader_lsj import dataloader

model.backbone.bottom_up.embed_dim = 192
model.backbone.bottom_up.depth = 80
model.backbone.bottom_up.num_heads = 3
model.backbone.bottom_up.last_block_indexes = (3, 11, 71, 79)
model.backbone.bottom_up.drop_path_rate = 0.6
model.backbone.bottom_up.use_act_checkpoint = True  # 80 wide blocks do not fit otherwise

train.init_checkpoint = "detectron2://ImageNetPretrained/mvitv2/MViTv2_H_in21k.pyth"
