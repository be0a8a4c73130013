# RetinaNet, ResNet-50 FPN, with batch norm in the head: statistics of all GPUs, for each level its own, COCO, 3x schedule.
# tools/lazyconfig_train_net.py --config-file projects/Rethinking-BatchNorm/configs/retinanet_SyncBNhead.py --num-gpus 8
from detectron2.model_zoo import get_config

model = get_config("common/models/retinanet.py").model
model.backbone.bottom_up.freeze_at = 2
# The convolutions and the affine part of the norm are shared between the levels; the head sees to that.
model.head.norm = "SyncBN"

dataloader = get_config("common/data/coco.py").dataloader
dataloader.train.mapper.use_instance_mask = False
lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_3x
optimizer = get_config("common/optim.py").SGD
optimizer.lr = 0.01

train = get_config("common/train.py").train
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
train.max_iter = 270000
