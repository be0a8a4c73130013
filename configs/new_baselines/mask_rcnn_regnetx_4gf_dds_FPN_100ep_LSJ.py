# Mask R-CNN, RegNetX-4GF FPN, COCO, from scratch for 100 epochs with large-scale jitter.
# tools/lazyconfig_train_net.py --config-file configs/new_baselines/mask_rcnn_regnetx_4gf_dds_FPN_100ep_LSJ.py --num-gpus 64
from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import RegNet
from detectron2.modeling.backbone.regnet import ResBottleneckBlock, SimpleStem

from .mask_rcnn_R_50_FPN_100ep_LSJ import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up = L(RegNet)(
    stem_class=SimpleStem,
    stem_width=32,
    block_class=ResBottleneckBlock,
    depth=23,
    w_a=38.65,
    w_0=96,
    w_m=2.43,
    group_width=40,
    norm="SyncBN",
    out_features=["s1", "s2", "s3", "s4"],
)
model.pixel_std = [57.375, 57.12, 58.395]

train.cudnn_benchmark = True  # grouped convolutions gain from it
