# Panoptic FPN, ResNet-50: Mask R-CNN and a semantic head on one feature pyramid.
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling import PanopticFPN
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead

from .mask_rcnn_fpn import model

model._target_ = PanopticFPN
model.sem_seg_head = L(SemSegFPNHead)(
    input_shape={
        f"p{level}": L(ShapeSpec)(stride=2**level, channels="${....backbone.out_channels}") for level in (2, 3, 4, 5)
    },
    ignore_value=255,
    num_classes=54,  # 53 of stuff, and one for all things
    conv_dims=128,
    common_stride=4,
    loss_weight=0.5,
    norm="GN",
)
