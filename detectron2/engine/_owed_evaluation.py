"""The evaluation that an interrupted run did not come to, and on which the best checkpoint depends."""

import detectron2.utils.comm as comm
from detectron2.engine._checkpoint_hooks import BestCheckpointer
from detectron2.engine._trainer_base import HookBase


class OwedEvaluation(HookBase):
    """When training is resumed behind an iteration with an evaluation that was not done, do it first.

    Checkpoints are written before the evaluation of the same iteration, which may then be interrupted.  Every process
    registers it, behind the hooks that evaluate and :class:`BestCheckpointer`.

    Args:
        period: of the evaluation.
        best: knows what was done; only on the main process, which decides for all.
        evaluators: classes of hooks that have a method ``evaluate()``.
    """

    def __init__(self, period: int, best: BestCheckpointer | None, evaluators: tuple[type, ...]) -> None:
        self._period = period
        self._best = best
        self._evaluators = evaluators

    def before_train(self) -> None:
        """Evaluate, as at the end of the last iteration."""
        start = self.trainer.start_iter
        if start == 0 or self._period <= 0 or start % self._period:
            return
        is_owed = self._best is not None and start - 1 not in (at for at, _ in self._best.history)
        if not any(comm.all_gather(is_owed)):
            return
        trainer = self.trainer
        trainer.iter = trainer.storage.iter = start - 1
        for hook in trainer._hooks:
            if isinstance(hook, self._evaluators):
                hook.evaluate()  # type: ignore[attr-defined]  # the argument says that they can
        if self._best is not None:
            self._best.compare()
        trainer.iter = trainer.storage.iter = start
