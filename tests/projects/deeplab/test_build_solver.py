"""The schedules that a config names."""

import pytest
import torch

from detectron2.config import get_cfg
from detectron2.projects.deeplab import WarmupPolyLR, add_deeplab_config, build_lr_scheduler
from detectron2.solver import LRMultiplier


def _build(*changes, keys=True):
    cfg = get_cfg()
    if keys:
        add_deeplab_config(cfg)
    cfg.merge_from_list(list(changes))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    return build_lr_scheduler(cfg, optimizer)


def test_poly_takes_its_settings_from_the_config():
    scheduler = _build(
        *("SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR", "SOLVER.MAX_ITER", 70, "SOLVER.WARMUP_ITERS", 7),
        *("SOLVER.WARMUP_FACTOR", 0.25, "SOLVER.WARMUP_METHOD", "constant"),
        *("SOLVER.POLY_LR_POWER", 0.5, "SOLVER.POLY_LR_CONSTANT_ENDING", 0.125),
    )
    assert isinstance(scheduler, WarmupPolyLR)
    assert (scheduler.max_iters, scheduler.warmup_iters, scheduler.warmup_factor) == (70, 7, 0.25)
    assert (scheduler.warmup_method, scheduler.power, scheduler.constant_ending) == ("constant", 0.5, 0.125)
    assert scheduler.get_last_lr() == [0.25]


@pytest.mark.parametrize("name", ["WarmupMultiStepLR", "WarmupCosineLR"])
def test_other_names_mean_the_standard_schedules(name):
    assert isinstance(_build("SOLVER.LR_SCHEDULER_NAME", name, keys=False), LRMultiplier)


def test_unknown_names():
    with pytest.raises(ValueError, match="LR_SCHEDULER_NAME"):
        _build("SOLVER.LR_SCHEDULER_NAME", "Nothing")
