# Cascade Mask R-CNN, Swin-B FPN, COCO, 50 epochs; begins with weights trained on ImageNet-21k.
# tools/lazyconfig_train_net.py --config-file projects/ViTDet/configs/COCO/cascade_mask_rcnn_swin_b_in21k_50ep.py --num-gpus 64
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.modeling import FPN, SwinTransformer
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from .cascade_mask_rcnn_vitdet_b_100ep import dataloader, lr_multiplier, model, train

model.backbone = L(FPN)(
    bottom_up=L(SwinTransformer)(
        embed_dim=128,
        depths=[2, 2, 18, 2],
        num_heads=[4, 8, 16, 32],
        drop_path_rate=0.4,
    ),
    in_features=("p0", "p1", "p2", "p3"),
    out_channels=256,
    top_block=L(LastLevelMaxPool)(),
    norm="LN",
    square_pad=1024,
)

train.init_checkpoint = "detectron2://ImageNetPretrained/swin/swin_base_patch4_window7_224_22k.pth"
train.max_iter = 92187  # 50 epochs
lr_multiplier.scheduler.milestones = [81944, 88773]
lr_multiplier.scheduler.num_updates = train.max_iter

optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.lr = 4e-5
optimizer.weight_decay = 0.05
optimizer.params.overrides = {"relative_position_bias_table": {"weight_decay": 0.0}}
