# Mask R-CNN, ViTDet-B, LVIS v1, 100 epochs; begins with weights of MAE (arXiv:2111.06377).
# tools/lazyconfig_train_net.py --config-file projects/ViTDet/configs/LVIS/mask_rcnn_vitdet_b_100ep.py --num-gpus 64
from functools import partial

from detectron2.config import LazyCall as L
from detectron2.data.detection_utils import get_fed_loss_cls_weights
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.evaluation import LVISEvaluator

from ..COCO.mask_rcnn_vitdet_b_100ep import dataloader, lr_multiplier, model, optimizer, train

# ------------------------------------------------------------------------------------------------ data
dataloader.train.dataset.names = "lvis_v1_train"
dataloader.train.sampler = L(RepeatFactorTrainingSampler)(
    repeat_factors=L(RepeatFactorTrainingSampler.repeat_factors_from_category_frequency)(
        dataset_dicts="${dataloader.train.dataset}", repeat_thresh=0.001
    )
)
dataloader.test.dataset.names = "lvis_v1_val"
dataloader.evaluator = L(LVISEvaluator)(dataset_name="${..test.dataset.names}", max_dets_per_image=300)

# ----------------------------------------------------------------------------------------------- model
model.roi_heads.num_classes = 1203
model.roi_heads.box_predictor.update(
    test_score_thresh=0.02,
    test_topk_per_image=300,
    # Images are not labelled with all classes: each counts with itself, not against all others, and few of those
    # that an image does not show are drawn, frequent ones more often.
    use_sigmoid_ce=True,
    use_fed_loss=True,
    get_fed_loss_cls_weights=partial(
        get_fed_loss_cls_weights, dataset_names=dataloader.train.dataset.names, freq_weight_power=0.5
    ),
)

# -------------------------------------------------------------------------------------------- training
train.max_iter = 156250  # 100 epochs: 156250 iterations * 64 images / 100k images
train.eval_period = 30000
lr_multiplier.scheduler.milestones = [138889, 150463]
lr_multiplier.scheduler.num_updates = train.max_iter
lr_multiplier.warmup_length = 250 / train.max_iter
optimizer.lr = 2e-4
