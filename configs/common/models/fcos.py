# FCOS, ResNet-50 FPN: RetinaNet's network without anchors.
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead

from .retinanet import model

model._target_ = FCOS
for key in ["anchor_generator", "box2box_transform", "anchor_matcher", "input_format"]:
    del model[key]

# p6 is computed from p5, not from res5.
model.backbone.top_block.update(in_channels=256, in_feature="p5")

# FCOSHead takes what RetinaNetHead takes, but predicts once per location.
model.head._target_ = FCOSHead
del model.head.num_anchors
model.head.norm = "GN"

model.test_score_thresh = 0.2
model.test_nms_thresh = 0.6
