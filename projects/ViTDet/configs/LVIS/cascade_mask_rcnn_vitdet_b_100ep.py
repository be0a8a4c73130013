# Cascade Mask R-CNN, ViTDet-B, LVIS v1, 100 epochs; begins with weights of MAE (arXiv:2111.06377).
# tools/lazyconfig_train_net.py --config-file projects/ViTDet/configs/LVIS/cascade_mask_rcnn_vitdet_b_100ep.py --num-gpus 64
from ..COCO.cascade_mask_rcnn_vitdet_b_100ep import model as _cascade
from .mask_rcnn_vitdet_b_100ep import dataloader, lr_multiplier, model, optimizer, train

# Three box heads in place of one, with the losses and thresholds of the one.
_box_predictor = model.roi_heads.box_predictor
model.roi_heads = _cascade.roi_heads
model.roi_heads.num_classes = 1203
for _stage in model.roi_heads.box_predictors:
    for _key in (
        "test_score_thresh",
        "test_topk_per_image",
        "use_sigmoid_ce",
        "use_fed_loss",
        "get_fed_loss_cls_weights",
    ):
        _stage[_key] = _box_predictor[_key]
