# Learning rate schedules for COCO: "1x" is 90k iterations of 16 images, about 12 epochs.
from fvcore.common.param_scheduler import MultiStepParamScheduler

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler


def _coco_schedule(times):
    """Two drops by ten: after 2/3 and 8/9 up to 2x, and 60k and 20k iterations before the end of longer ones."""
    total = times * 90000
    milestones = [60000, 80000, 90000] if times <= 2 else [total - 60000, total - 20000, total]
    return L(WarmupParamScheduler)(
        scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=milestones),
        warmup_length=1000 / total,
        warmup_method="linear",
        warmup_factor=0.001,
    )


lr_multiplier_1x = _coco_schedule(1)
lr_multiplier_2x = _coco_schedule(2)
lr_multiplier_3x = _coco_schedule(3)
lr_multiplier_6x = _coco_schedule(6)
lr_multiplier_9x = _coco_schedule(9)
