"""Ending training when it no longer improves."""

import logging
from typing import Any

import detectron2.utils.comm as comm
from detectron2.engine._checkpoint_hooks import BestCheckpointer
from detectron2.engine._trainer_base import HookBase

logger = logging.getLogger("detectron2.engine.hooks")


class EarlyStopping(HookBase):
    """End training when the best value of a metric is so many evaluations ago.

    The last model is saved as ``model_final``.  Every process registers it, behind :class:`BestCheckpointer`.

    Args:
        eval_period: the period of the evaluation.
        patience: evaluations without a new best.
        best: knows the values; only on the main process, which decides for all.
        checkpointer: saves the last model.
    """

    def __init__(self, eval_period: int, patience: int, best: BestCheckpointer | None, checkpointer: Any) -> None:
        if patience < 1:
            raise ValueError(f"The patience must be at least one evaluation, got {patience}.")
        if eval_period < 1:
            raise ValueError(
                "Early stopping needs evaluations during training: set TEST.EVAL_PERIOD (train.eval_period)."
            )
        self._period = eval_period
        self._patience = patience
        self._best = best
        self._checkpointer = checkpointer

    def before_train(self) -> None:
        """Ask for the end at once where a resumed training had ended already."""
        if self._is_over():
            self.trainer.request_stop()

    def after_step(self) -> None:
        """Ask for the end in iterations with an evaluation, if it has been too long."""
        next_iter = self.trainer.iter + 1
        is_due = next_iter % self._period == 0 and next_iter != self.trainer.max_iter
        if is_due and not self.trainer.stop_requested and self._is_over():
            self._checkpointer.save("model_final", iteration=self.trainer.iter)
            self.trainer.request_stop()

    def _is_over(self) -> bool:
        is_over = False
        if self._best is not None and self._best.best_iter is not None:
            best_at = self._best.best_iter
            since = sum(at > best_at for at, _ in self._best.history)
            is_over = since >= self._patience
            if is_over:
                logger.info(
                    "Training ends: the best value, %.5g, was found in iteration %d, %d evaluations ago.",
                    *(self._best.best_metric, best_at, since),
                )
        return any(comm.all_gather(is_over))
