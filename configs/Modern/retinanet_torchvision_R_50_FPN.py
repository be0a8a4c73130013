# RetinaNet as torchvision has it (retinanet_resnet50_fpn, COCO), with its weights: box AP 36.4 as published there.
# detectron2 eval --config-file configs/Modern/retinanet_torchvision_R_50_FPN.py
from detectron2.modeling.anchor_generator import TorchvisionAnchorGenerator

from ..common.coco_schedule import lr_multiplier_1x as lr_multiplier
from ..common.data.coco import dataloader
from ..common.data.constants import constants
from ..common.models.retinanet import model
from ..common.optim import SGD as optimizer
from ..common.train import train

dataloader.train.mapper.use_instance_mask = False
dataloader.train.mapper.image_format = "RGB"
dataloader.test.mapper.image_format = "RGB"
model.input_format = "RGB"
model.pixel_mean = constants.imagenet_rgb256_mean
model.pixel_std = constants.imagenet_rgb256_std
model.backbone.bottom_up.freeze_at = 2
model.backbone.bottom_up.stages.stride_in_1x1 = False
model.backbone.top_block.in_channels = 256
model.backbone.top_block.in_feature = "p5"
model.anchor_generator._target_ = TorchvisionAnchorGenerator  # corners on whole pixels
model.anchor_generator.sizes = [[x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))] for x in [32, 64, 128, 256, 512]]
model.max_detections_per_image = 300
optimizer.lr = 0.01
train.init_checkpoint = "torchvision://retinanet_resnet50_fpn"
