# Panoptic FPN, ResNet-50, COCO panoptic, 1x schedule.
# tools/lazyconfig_train_net.py --config-file configs/COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.py --num-gpus 8
from ..common.coco_schedule import lr_multiplier_1x as lr_multiplier
from ..common.data.coco_panoptic_separated import dataloader
from ..common.models.panoptic_fpn import model
from ..common.optim import SGD as optimizer
from ..common.train import train

model.backbone.bottom_up.freeze_at = 2
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
