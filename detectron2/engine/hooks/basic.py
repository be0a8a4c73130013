"""The basic hooks: functions, timing, the learning-rate schedule, evaluation and writing."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import torch
from fvcore.common.param_scheduler import ParamScheduler

import detectron2.utils.comm as comm
from detectron2.engine.random_states import random_states_kept
from detectron2.engine.train_loop import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.solver import LRMultiplier
from detectron2.utils.events import CommonMetricPrinter, EventWriter

__all__ = ["CallbackHook", "EvalHook", "IterationTimer", "LRScheduler", "PeriodicWriter"]

logger = logging.getLogger("detectron2.engine.hooks")


class CallbackHook(HookBase):
    """Call functions, each with the trainer as its argument.

    Args:
        before_train: called before the first iteration.
        after_train: called after the last iteration; then all functions are released, since they may refer to the
            trainer.
        before_step: called before each iteration.
        after_step: called after each iteration.
    """

    def __init__(
        self,
        *,
        before_train: Callable | None = None,
        after_train: Callable | None = None,
        before_step: Callable | None = None,
        after_step: Callable | None = None,
    ) -> None:
        self._before_train = before_train
        self._after_train = after_train
        self._before_step = before_step
        self._after_step = after_step

    def before_train(self) -> None:
        """Call the function, if there is one."""
        if self._before_train:
            self._before_train(self.trainer)

    def after_train(self) -> None:
        """Call the function, if there is one, and release all functions."""
        if self._after_train:
            self._after_train(self.trainer)
        self._before_train = self._after_train = self._before_step = self._after_step = None

    def before_step(self) -> None:
        """Call the function, if there is one."""
        if self._before_step:
            self._before_step(self.trainer)

    def after_step(self) -> None:
        """Call the function, if there is one."""
        if self._after_step:
            self._after_step(self.trainer)


class IterationTimer(HookBase):
    """Record the seconds of each iteration as `time`, and log a summary at the end.

    The time of hooks between two iterations counts in the summary only, so register this hook first.

    Args:
        warmup_iter: the first iteration, from 1, that counts: in those before, memory and kernels are being set up.
    """

    def __init__(self, warmup_iter: int = 3) -> None:
        self._warmup_iter = warmup_iter
        self._step_start = 0.0
        self._start: float | None = None  # of the first iteration after the warm-up
        self._step_seconds = 0.0
        self._steps = 0

    def before_train(self) -> None:
        """Reset the measurements."""
        self._start, self._step_seconds, self._steps = None, 0.0, 0

    def before_step(self) -> None:
        """Start the clock."""
        self._step_start = time.perf_counter()

    def after_step(self) -> None:
        """Stop the clock and, after the warm-up, record the time."""
        now = time.perf_counter()
        if self.trainer.iter - self.trainer.start_iter + 1 < self._warmup_iter:
            self._start = now
            return
        if self._start is None:
            self._start = self._step_start
        self._steps += 1
        self._step_seconds += now - self._step_start
        self.trainer.storage.put_scalars(time=now - self._step_start)

    def after_train(self) -> None:
        """Log the mean speed and the time spent in hooks."""
        if not self._steps or self._start is None:
            return
        total = time.perf_counter() - self._start
        steps, whole, in_hooks = (
            timedelta(seconds=round(s)) for s in (self._step_seconds, total, total - self._step_seconds)
        )
        logger.info(
            "Speed: %.4f s an iteration (%d iterations after a warm-up, in %s); %s in all, of which %s in hooks",
            *(self._step_seconds / self._steps, self._steps, steps, whole, in_hooks),
        )


class PeriodicWriter(HookBase):
    """Call the writers periodically and after the last iteration.

    Args:
        writers: the writers.
        period: iterations between two writes; it does not affect the smoothing of a writer.

    Raises:
        TypeError: an entry of `writers` is not an `EventWriter`.
    """

    def __init__(self, writers: list[EventWriter], period: int = 20) -> None:
        for w in writers:
            if not isinstance(w, EventWriter):
                raise TypeError(f"Expected an EventWriter, got {type(w).__name__}: {w!r}")
        self._writers = writers
        self._period = period

    def after_step(self) -> None:
        """Write if the period has passed; what shows progress does so at once, and in between, too."""
        is_due = (self.trainer.iter + 1) % self._period == 0 or self.trainer.iter == self.trainer.max_iter - 1
        for writer in self._writers:
            if is_due or (isinstance(writer, CommonMetricPrinter) and writer.is_stale):
                writer.write()

    def after_train(self) -> None:
        """Write what other hooks recorded at the end, and close the writers."""
        for writer in self._writers:
            writer.write()
            writer.close()


class LRScheduler(HookBase):
    """Record the learning rate as `lr`, and step the schedule after every iteration.

    Args:
        optimizer: the optimizer; default: that of the trainer.
        scheduler: a torch scheduler, or a `fvcore.common.param_scheduler.ParamScheduler`, which multiplies the learning
            rate of the optimizer; default: the scheduler of the trainer.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: "torch.optim.lr_scheduler.LRScheduler | ParamScheduler | None" = None,
    ) -> None:
        self._optimizer = optimizer
        self._scheduler = scheduler

    def before_train(self) -> None:
        """Take the optimizer and the schedule from the trainer, unless they are given."""
        self._optimizer = self._optimizer or self.trainer.optimizer  # type: ignore[attr-defined]
        if isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise TypeError(
                "LRScheduler steps a schedule after every iteration, and ReduceLROnPlateau steps on a metric: call its "
                "step(metric) in a hook of your own, and leave LRScheduler out of the hooks."
            )
        if not hasattr(self.scheduler, "step") and not isinstance(self.scheduler, ParamScheduler):
            raise TypeError(
                f"LRScheduler needs a torch scheduler or a ParamScheduler, got {self.scheduler!r}. It comes from "
                "build_lr_scheduler, where a return may be missing, or from lr_multiplier of a LazyConfig. Without a "
                "schedule, leave this hook out."
            )
        if isinstance(self.scheduler, ParamScheduler):
            self._scheduler = LRMultiplier(
                self._optimizer, self.scheduler, self.trainer.max_iter, last_iter=self.trainer.iter - 1
            )
        self._best_group = self.get_best_param_group_id(self._optimizer)

    @staticmethod
    def get_best_param_group_id(optimizer: torch.optim.Optimizer) -> int:
        """Return the index of the parameter group that represents the learning rate of all groups.

        That is the largest group or, if every group has one parameter, a group with the most common rate. Special
        groups (norms, biases) are few or small.
        """
        groups = optimizer.param_groups
        largest = max(len(g["params"]) for g in groups)
        if largest > 1:
            return next(i for i, g in enumerate(groups) if len(g["params"]) == largest)
        rates = [g["lr"] for g in groups]
        return rates.index(Counter(rates).most_common(1)[0][0])  # finds NaN, too

    def after_step(self) -> None:
        """Record the rate of this iteration, then step the schedule."""
        rate = self._optimizer.param_groups[self._best_group]["lr"]  # type: ignore[union-attr]
        self.trainer.storage.put_scalar("lr", rate, smoothing_hint=False)
        self.scheduler.step()

    @property
    def scheduler(self) -> Any:
        """The schedule."""
        return self._scheduler or getattr(self.trainer, "scheduler", None)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of a torch scheduler; another one has none."""
        if isinstance(self.scheduler, torch.optim.lr_scheduler.LRScheduler):
            return self.scheduler.state_dict()
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a torch scheduler."""
        if isinstance(self.scheduler, torch.optim.lr_scheduler.LRScheduler):
            logger.info("Restoring the learning-rate schedule from the checkpoint")
            self.scheduler.load_state_dict(dict(state_dict))


class EvalHook(HookBase):
    """Evaluate periodically and after the last iteration, and record the metrics.

    Every process must register this hook, because all processes evaluate together. A process that should not evaluate
    passes `lambda: None`.

    Args:
        eval_period: iterations between two evaluations; 0 evaluates only after the last one.
        eval_function: a function without arguments that returns a nested dict of numbers, or `None`.
        eval_after_train: whether to evaluate after the last iteration.

    Attributes:
        latest_results: flat names and numbers of the last evaluation, on processes that get results.
        latest_iter: the iteration before the last evaluation; `None` before the first one.
    """

    def __init__(self, eval_period: int, eval_function: Callable[[], Any], eval_after_train: bool = True) -> None:
        self._period = eval_period
        self._func: Callable[[], Any] | None = eval_function
        self._eval_after_train = eval_after_train
        self._done_at = -1
        self.latest_results: dict[str, float] = {}
        self.latest_iter: int | None = None

    def evaluate(self) -> None:
        """Evaluate now, and record the metrics."""
        self._do_eval()

    def _do_eval(self) -> None:
        self._done_at = self.trainer.iter
        self.trainer.is_evaluating = True
        try:
            with random_states_kept():  # evaluation does not change training
                results = self._func() if self._func else None
        finally:
            self.trainer.is_evaluating = False
        if results:
            numbers = _numbers_in(results)
            for name, number in numbers.items():
                self.trainer.storage.put_scalar(name, number, smoothing_hint=False)
            # After training, the iteration of the trainer is one more than the last.
            self.latest_results, self.latest_iter = numbers, min(self._done_at, max(self.trainer.max_iter - 1, 0))
        comm.synchronize()  # evaluation takes longer in some processes

    def after_step(self) -> None:
        """Evaluate if the period has passed; `after_train` evaluates after the last iteration."""
        next_iter = self.trainer.iter + 1
        is_due = self._period > 0 and next_iter % self._period == 0 and next_iter != self.trainer.max_iter
        if is_due and not self.trainer.stop_requested:
            self._do_eval()

    def after_train(self) -> None:
        """Evaluate if training is complete, and release the function, which often refers to the trainer."""
        is_done = self._done_at == self.trainer.iter - 1  # the evaluation ended training
        if self._eval_after_train and self.trainer.iter >= self.trainer.max_iter and not is_done:
            self._do_eval()
        self._func = None


def _numbers_in(results: Any) -> dict[str, float]:
    """Return the numbers of nested results by flat names."""
    if not isinstance(results, Mapping):
        raise TypeError(f"The evaluation function must return a dict, got {type(results).__name__}: {results!r}")
    numbers: dict[str, float] = {}
    for name, value in flatten_results_dict(results).items():
        try:
            numbers[name] = float(value)
        except (TypeError, ValueError) as e:
            raise ValueError(
                f"The evaluation function must return a nested dict of numbers; {name!r} is {value!r} "
                f"({type(value).__name__})."
            ) from e
    return numbers
