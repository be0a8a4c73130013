# Cascade Mask R-CNN, MViTv2-B FPN, COCO, 100 epochs; begins with weights trained on ImageNet-21k.
# tools/lazyconfig_train_net.py --config-file projects/ViTDet/configs/COCO/cascade_mask_rcnn_mvitv2_b_in21k_100ep.py --num-gpus 64
from functools import partial

import torch.nn as nn

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.modeling import MViT

from .cascade_mask_rcnn_vitdet_b_100ep import dataloader, lr_multiplier, train
from .cascade_mask_rcnn_vitdet_b_100ep import model as _vitdet

model = model_zoo.get_config("common/models/cascade_rcnn.py").model
constants = model_zoo.get_config("common/data/constants.py").constants

model.pixel_mean = constants.imagenet_rgb256_mean
model.pixel_std = constants.imagenet_rgb256_std
model.input_format = "RGB"
model.backbone.bottom_up = L(MViT)(
    embed_dim=96,
    depth=24,
    num_heads=1,
    last_block_indexes=(1, 4, 20, 23),
    residual_pooling=True,
    drop_path_rate=0.4,
    norm_layer=partial(nn.LayerNorm, eps=1e-6),
    out_features=("scale2", "scale3", "scale4", "scale5"),
)
model.backbone.in_features = "${.bottom_up.out_features}"
model.backbone.norm = "LN"
model.backbone.square_pad = 1024

# The heads of ViTDet.
model.proposal_generator = _vitdet.proposal_generator
model.roi_heads = _vitdet.roi_heads

train.init_checkpoint = "detectron2://ImageNetPretrained/mvitv2/MViTv2_B_in21k.pyth"

optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.lr = 8e-5
optimizer.params.overrides = {"pos_embed": {"weight_decay": 0.0}}
