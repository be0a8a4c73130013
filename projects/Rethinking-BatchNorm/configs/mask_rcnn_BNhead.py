# Mask R-CNN, ResNet-50 FPN, with batch norm in the box and mask heads, COCO, 3x schedule.
# tools/lazyconfig_train_net.py --config-file projects/Rethinking-BatchNorm/configs/mask_rcnn_BNhead.py --num-gpus 8
from detectron2.model_zoo import get_config

model = get_config("common/models/mask_rcnn_fpn.py").model
model.backbone.bottom_up.freeze_at = 2

# A box head with convolutions, so that there is something to normalize. Each GPU normalizes over its own regions.
model.roi_heads.box_head.conv_dims = [256, 256, 256, 256]
model.roi_heads.box_head.fc_dims = [1024]
model.roi_heads.box_head.conv_norm = "BN"
model.roi_heads.mask_head.conv_norm = "BN"

dataloader = get_config("common/data/coco.py").dataloader
lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_3x
optimizer = get_config("common/optim.py").SGD

train = get_config("common/train.py").train
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
train.max_iter = 270000
