"""From a config to a learning-rate schedule, DeepLab's included."""

from torch.optim import Optimizer

from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler as build_standard_lr_scheduler
from detectron2.solver.lr_scheduler import LRScheduler

from .lr_scheduler import WarmupPolyLR

__all__ = ["build_lr_scheduler"]


def build_lr_scheduler(cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
    """The schedule that `SOLVER.LR_SCHEDULER_NAME` names: `WarmupPolyLR` or one of the standard ones.

    Step it once per iteration. `WarmupPolyLR` needs the keys of `add_deeplab_config`.
    """
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME != "WarmupPolyLR":
        return build_standard_lr_scheduler(cfg, optimizer)
    return WarmupPolyLR(
        optimizer,
        solver.MAX_ITER,
        warmup_factor=solver.WARMUP_FACTOR,
        warmup_iters=solver.WARMUP_ITERS,
        warmup_method=solver.WARMUP_METHOD,
        power=solver.POLY_LR_POWER,
        constant_ending=solver.POLY_LR_CONSTANT_ENDING,
    )
