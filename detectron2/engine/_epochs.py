"""Lengths of training in epochs: passes over the training data."""

import logging
import math
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine._options import TrainOptions

logger = logging.getLogger("detectron2.engine.defaults")


def iterations_per_epoch(loader: Any, accumulation_steps: int = 1) -> float:
    """Count how many iterations show as many images as there are in the data set.

    Args:
        loader: as :func:`detectron2.data.build_detection_train_loader` makes it.
        accumulation_steps: batches in one iteration.

    Returns:
        The number, which need not be whole.

    Raises:
        ValueError: the loader does not know the size of its data set.
    """
    state = loader.state_dict() if hasattr(loader, "state_dict") else {}
    if not {"size", "total_batch_size"} <= state.keys():
        raise ValueError(
            "SOLVER.MAX_EPOCHS (train.max_epochs) needs training data of a known size, from "
            "build_detection_train_loader with an indexed data set; use SOLVER.MAX_ITER (train.max_iter) instead."
        )
    return state["size"] / (state["total_batch_size"] * accumulation_steps)


def epochs_to_iterations(cfg: CfgNode, options: TrainOptions, loader: Any) -> CfgNode:
    """Give ``SOLVER.MAX_ITER`` and ``SOLVER.STEPS`` the values that the numbers of epochs mean.

    Args:
        cfg: is not changed.
        options: its ``max_epochs`` and ``step_epochs``.
        loader: the training data.

    Returns:
        ``cfg`` itself where nothing is given in epochs.  Steps that are not given in epochs keep their proportion to
        the length of training.
    """
    if not options.max_epochs:
        return cfg
    per_epoch = iterations_per_epoch(loader, options.accumulation_steps)
    was_frozen = cfg.is_frozen()
    cfg = cfg.clone()
    cfg.defrost()
    solver = cfg.SOLVER
    former = solver.MAX_ITER
    solver.MAX_ITER = max(1, math.ceil(options.max_epochs * per_epoch))
    if options.step_epochs:
        solver.STEPS = tuple(round(e * per_epoch) for e in options.step_epochs)
    else:
        solver.STEPS = tuple(round(step * solver.MAX_ITER / former) for step in solver.STEPS)
    logger.info(
        "%g epochs of %g iterations: MAX_ITER=%d, STEPS=%s",
        *(options.max_epochs, per_epoch, solver.MAX_ITER, solver.STEPS),
    )
    if was_frozen:
        cfg.freeze()
    return cfg
