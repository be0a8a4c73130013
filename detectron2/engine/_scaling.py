"""A config made for one number of processes, adapted to another."""

import logging

from detectron2.config import CfgNode

__all__ = ["scaled_to"]

logger = logging.getLogger("detectron2.engine.defaults")


def scaled_to(cfg: CfgNode, num_workers: int) -> CfgNode:
    """Keep the images of each process; see :meth:`detectron2.engine.DefaultTrainer.auto_scale_workers`.

    Args:
        cfg: is not changed.
        num_workers: processes in use, over all machines.

    Returns:
        The adapted config; ``cfg`` itself where there is nothing to adapt.

    Raises:
        ValueError: ``IMS_PER_BATCH`` is not divisible by ``REFERENCE_WORLD_SIZE``.
    """
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference in (0, num_workers):
        return cfg
    if cfg.SOLVER.IMS_PER_BATCH % reference:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH ({cfg.SOLVER.IMS_PER_BATCH}) must be divisible by "
            f"SOLVER.REFERENCE_WORLD_SIZE ({reference})."
        )
    was_frozen = cfg.is_frozen()
    cfg = cfg.clone()
    cfg.defrost()
    ratio = num_workers / reference
    solver = cfg.SOLVER
    solver.IMS_PER_BATCH = round(solver.IMS_PER_BATCH * ratio)
    solver.BASE_LR *= ratio
    solver.MAX_ITER = round(solver.MAX_ITER / ratio)
    solver.WARMUP_ITERS = round(solver.WARMUP_ITERS / ratio)
    solver.STEPS = tuple(round(s / ratio) for s in solver.STEPS)
    solver.CHECKPOINT_PERIOD = round(solver.CHECKPOINT_PERIOD / ratio)
    cfg.TEST.EVAL_PERIOD = round(cfg.TEST.EVAL_PERIOD / ratio)
    solver.REFERENCE_WORLD_SIZE = num_workers  # so that scaling twice changes nothing
    logger.info(
        "Config scaled from %d to %d processes: IMS_PER_BATCH=%d, BASE_LR=%g, MAX_ITER=%d, WARMUP_ITERS=%d",
        reference,
        num_workers,
        solver.IMS_PER_BATCH,
        solver.BASE_LR,
        solver.MAX_ITER,
        solver.WARMUP_ITERS,
    )
    if was_frozen:
        cfg.freeze()
    return cfg
