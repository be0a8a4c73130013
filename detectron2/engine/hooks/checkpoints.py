"""Hooks that save checkpoints, periodic, best and final, and that end training when the best no longer improves."""

import json
import logging
import math
import operator
import os
import re
from collections.abc import Mapping
from typing import Any

from fvcore.common.checkpoint import Checkpointer
from fvcore.common.checkpoint import PeriodicCheckpointer as _PeriodicCheckpointer

import detectron2.utils.comm as comm
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.parts import remove_checkpoint
from detectron2.checkpoint.training_state import remove_orphans
from detectron2.config.merge import nearest
from detectron2.engine.hooks.average import WeightAverage
from detectron2.engine.hooks.basic import EvalHook
from detectron2.engine.hooks.validation_loss import ValidationLoss
from detectron2.engine.sharding import ShardedCheckpointer
from detectron2.engine.train_loop import HookBase
from detectron2.utils.file_io import atomic_write

__all__ = [
    "AverageCheckpointer",
    "BestCheckpointer",
    "EarlyStopping",
    "FinalDescription",
    "OwedEvaluation",
    "PeriodicCheckpointer",
]

logger = logging.getLogger("detectron2.engine.hooks")


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """Save a checkpoint every `period` iterations and after the last one.

    The arguments are those of `detectron2.checkpoint.PeriodicCheckpointer`; `max_iter` comes from the trainer. With
    `max_to_keep`, checkpoints from before a resume count as well.
    """

    def before_train(self) -> None:
        """Take `max_iter` from the trainer, and find the checkpoints of a former run in the folder."""
        self.max_iter = self.trainer.max_iter
        if self.trainer.start_iter == 0:
            return
        self._take_over(self.checkpointer.save_dir)
        if self.trainer.start_iter >= self.max_iter:  # after leftovers are gone: what is being saved looks like one
            _complete(self.trainer, self.checkpointer, f"{self.file_prefix}_final")

    def _take_over(self, folder: str) -> None:
        """Find the checkpoints of the former run, and remove what it had no time to remove."""
        if not os.path.isdir(folder):
            return
        name = re.compile(re.escape(self.file_prefix) + r"_(\d{7,})\.(pth|safetensors|sharded)")
        start = self.trainer.start_iter
        found = [(int(m[1]), entry) for entry in os.listdir(folder) if (m := name.fullmatch(entry))]
        self.recent_checkpoints = [os.path.join(folder, entry) for at, entry in sorted(found) if at < start]
        if not self.checkpointer.save_to_disk:
            return
        self._remove_old()
        if isinstance(self.checkpointer, DetectionCheckpointer):
            self.checkpointer.remove_leftovers()

    def step(self, iteration: int, **kwargs: Any) -> None:
        """Save `kwargs` as well if the period has passed, and remove old checkpoints."""
        is_local = os.path.isdir(self.checkpointer.save_dir)
        is_ours = isinstance(self.checkpointer, DetectionCheckpointer)
        if is_ours and (is_local or getattr(self.checkpointer, "layout", "full") != "full"):
            self._step_on_disk(iteration, **kwargs)
        else:
            super().step(iteration, **kwargs)

    def _step_on_disk(self, iteration: int, **kwargs: Any) -> None:
        """Like `step`, for checkpoints that may be folders, and that may not be complete when `save` returns.

        One process removes what is old; fvcore's class has each process do it, and the second one fails.
        """
        keeper: Any = self.checkpointer
        if (iteration + 1) % self.period == 0:
            keeper.wait()
            self._remove_old()
            name = f"{self.file_prefix}_{iteration:07d}"
            keeper.save(name, iteration=iteration, **kwargs)
            self.recent_checkpoints.append(os.path.join(keeper.save_dir, keeper.file_name(name)))
            if getattr(keeper, "layout", "full") != "sharded_async":  # else the new one is not there yet
                self._remove_old()
        if self.max_iter is not None and iteration >= self.max_iter - 1:
            keeper.save(f"{self.file_prefix}_final", iteration=iteration, **kwargs)
            self._remove_old()  # save() has waited for the one before

    def _remove_old(self) -> None:
        """Remove the oldest checkpoints while there are more than `max_to_keep`."""
        while self.max_to_keep is not None and len(self.recent_checkpoints) > self.max_to_keep:
            path = self.recent_checkpoints.pop(0)
            if self.checkpointer.save_to_disk and os.path.exists(path):
                remove_checkpoint(path)  # before the training state of its own, so that what remains is complete
                remove_orphans(os.path.dirname(path), [os.path.splitext(os.path.basename(path))[0]])

    def after_step(self) -> None:
        """Save if the period has passed."""
        self.step(self.trainer.iter)


class BestCheckpointer(HookBase):
    """Keep the checkpoint with the best value of a metric.

    Register this hook after `EvalHook`, which records the metric. A resumed run continues from the newest checkpoint,
    not from the best one.

    Args:
        eval_period: the period of `EvalHook`; 0 compares only after the last iteration.
        checkpointer: saves the model.
        val_metric: the recorded name of the metric, for example `"bbox/AP50"`.
        mode: `"max"` or `"min"`, whichever is better.
        file_prefix: name of the checkpoint file without suffix.
        average: if given, its weights are evaluated and saved, without the training state.

    Raises:
        ValueError: `mode` is neither `"max"` nor `"min"`.
    """

    def __init__(
        self,
        eval_period: int,
        checkpointer: Checkpointer,
        val_metric: str,
        mode: str = "max",
        file_prefix: str = "model_best",
        *,
        average: WeightAverage | None = None,
    ) -> None:
        if mode not in ("max", "min"):
            raise ValueError(f'mode must be "max" or "min", got {mode!r}.')
        self._period = eval_period
        self._checkpointer = checkpointer
        self._val_metric = val_metric
        self._better = operator.gt if mode == "max" else operator.lt
        self._file_prefix = file_prefix
        self._average = average
        # If the model is sharded, all processes save together; the main one, which has the metrics, decides.
        self._is_joint = getattr(checkpointer, "needs_all_processes", False)
        self.best_metric: float | None = None
        self.best_iter: int | None = None
        self.history: list[tuple[int, float]] = []
        """Iteration and value of all evaluations of this training, including those before a resume."""

    @property
    def _history_file(self) -> str:
        return os.path.join(self._checkpointer.save_dir, f"{self._file_prefix}_history.json")

    def before_train(self) -> None:
        """Read the history from before a resume, up to the evaluation that precedes the checkpoint."""
        self.history = []
        if self.trainer.start_iter == 0 or not os.path.isfile(self._history_file):
            return
        with open(self._history_file, encoding="utf-8") as file:
            content = json.load(file)
        if content["metric"] != self._val_metric:
            return
        self.history = [(at, value) for at, value in content["values"] if at < self.trainer.start_iter]
        self.best_metric = self.best_iter = None
        for at, value in self.history:
            if self.best_metric is None or self._better(value, self.best_metric):
                self.best_metric, self.best_iter = value, at

    def compare(self) -> None:
        """Save if the newest value is better than the best one."""
        found = self._newest()
        if self._is_joint:
            found = comm.all_gather(found)[0]
        if found is None:
            return
        value, at = found
        if self.best_metric is None or self._better(value, self.best_metric):
            text = "%s = %.5g in iteration %d is the best so far; saving %s"
            logger.info(text, self._val_metric, value, at, self._file_prefix)
            self.best_metric, self.best_iter = value, at
            _save_aside(self._checkpointer, self._file_prefix, self._average, iteration=at, **{self._val_metric: value})
        # Last: a run killed before this evaluates once more; one killed after it has the checkpoint.
        self.history.append((at, value))
        if self._checkpointer.save_to_disk and self._checkpointer.save_dir:
            with atomic_write(self._history_file, "w") as file:
                json.dump({"metric": self._val_metric, "values": self.history}, file)

    def _newest(self) -> tuple[float, int] | None:
        """Return a value that was not compared yet, and its iteration; if there is none, log why and return `None`."""
        recorded = self.trainer.storage.latest()
        if self._val_metric not in recorded:
            known = sorted(k for k in recorded if "/" in k)
            near = nearest(self._val_metric, known)
            text = "The metric %r was not recorded, so no best checkpoint is kept.%s Recorded: %s"
            hint = f" Did you mean {near!r}?" if near else ""
            if comm.is_main_process():
                logger.warning(text, self._val_metric, hint, ", ".join(known) or "none")
            return None
        value, at = recorded[self._val_metric]
        if at in (known for known, _ in self.history):
            return None
        if math.isnan(value):
            logger.warning(
                f"{self._val_metric} is NaN in iteration {at}, so it is not compared: no {self._file_prefix} is saved "
                "for it, and it does not count for early stopping. A metric is NaN if the test data have no annotated "
                "objects, or none of this size or class."
            )
            return None
        return value, at

    def after_step(self) -> None:
        """Compare if the model was evaluated in this iteration."""
        next_iter = self.trainer.iter + 1
        if self._period > 0 and next_iter % self._period == 0 and next_iter != self.trainer.max_iter:
            self.compare()

    def after_train(self) -> None:
        """Compare the final evaluation if training is complete."""
        if self.trainer.iter >= self.trainer.max_iter:
            self.compare()

    def state_dict(self) -> dict[str, Any]:
        """Return the best value so far, so that a resumed run does not overwrite a better checkpoint."""
        return {} if self.best_metric is None else {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the best value."""
        self.best_metric, self.best_iter = state_dict["best_metric"], state_dict["best_iter"]


class AverageCheckpointer(HookBase):
    """Save the moving average of the weights as `model_final_ema` when training is complete.

    Register this hook after the evaluation, because its results become part of the description in the checkpoint.
    """

    def __init__(self, average: WeightAverage, checkpointer: DetectionCheckpointer) -> None:
        self._average = average
        self._checkpointer = checkpointer

    def after_train(self) -> None:
        """Save the average."""
        last = self.trainer.max_iter - 1
        if self.trainer.iter <= last:
            return
        _save_aside(self._checkpointer, "model_final_ema", self._average, iteration=last)
        if comm.is_main_process():
            name = self._checkpointer.file_name("model_final_ema")
            logger.info("The average of the weights is in %s", os.path.join(self._checkpointer.save_dir, name))


class FinalDescription(HookBase):
    """Write the results of the final evaluation into `model_final`, which `checkpointer` saved before it.

    Register this hook after the evaluation.
    """

    def __init__(self, checkpointer: DetectionCheckpointer) -> None:
        self._checkpointer = checkpointer

    def after_train(self) -> None:
        """Write the description again if training is complete and the model was evaluated.

        A checkpoint that is being saved gets its name before, also when training has failed.
        """
        trainer = self.trainer
        if isinstance(self._checkpointer, DetectionCheckpointer):
            self._checkpointer.wait()
        was_evaluated = any(getattr(hook, "latest_iter", None) == trainer.max_iter - 1 for hook in trainer._hooks)
        if trainer.iter < trainer.max_iter or not was_evaluated:
            return
        try:
            self._checkpointer.describe_again("model_final")
        except (OSError, ValueError):  # for example a full disk: training is complete nevertheless
            logger.exception("The results of the last evaluation could not be written into model_final:")


class OwedEvaluation(HookBase):
    """Repeat an evaluation that an interrupted run did not complete, before training is resumed.

    A checkpoint is written before the evaluation of the same iteration, which may then be interrupted. Every process
    registers this hook, after the hooks that evaluate and `BestCheckpointer`, which has the history of evaluations:
    `best` is `None` except on the main process, which decides for all. `evaluator` is the class of the hook to call.
    """

    def __init__(self, period: int, best: BestCheckpointer | None, evaluator: type[EvalHook | ValidationLoss]) -> None:
        self._period = period
        self._best = best
        self._evaluator = evaluator

    def before_train(self) -> None:
        """Evaluate as at the end of the last iteration, if that is missing."""
        start = self.trainer.start_iter
        if start == 0 or self._period <= 0 or start % self._period or start >= self.trainer.max_iter:
            return  # the final evaluation comes after training
        is_owed = self._best is not None and start - 1 not in (at for at, _ in self._best.history)
        if not any(comm.all_gather(is_owed)):
            return
        trainer = self.trainer
        trainer.iter = trainer.storage.iter = start - 1
        for hook in trainer._hooks:
            if isinstance(hook, self._evaluator):
                hook.evaluate()
        if self._best is not None:
            self._best.compare()
        trainer.iter = trainer.storage.iter = start


class EarlyStopping(HookBase):
    """End training after `patience` evaluations without a new best value.

    The last model is saved as `model_final`. Every process registers this hook, after `BestCheckpointer`: `best`, which
    has the values, is `None` except on the main process, which decides for all.
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
        """Stop at once if the resumed training was already over."""
        if self._is_over():
            _complete(self.trainer, self._checkpointer, "model_final")
            self.trainer.request_stop()

    def after_step(self) -> None:
        """Stop if the evaluation of this iteration is one too many without a new best value."""
        next_iter = self.trainer.iter + 1
        is_due = next_iter % self._period == 0 and next_iter != self.trainer.max_iter
        if is_due and not self.trainer.stop_requested and self._is_over():
            self._checkpointer.save("model_final", iteration=self.trainer.iter)
            self.trainer.request_stop()

    def _is_over(self) -> bool:
        since, best = 0, self._best
        if best is not None and best.best_iter is not None:
            since = sum(at > best.best_iter for at, _ in best.history)
        if best is not None and since >= self._patience:
            text = "Training ends: the best value, %.5g, was found in iteration %d, %d evaluations ago."
            logger.info(text, best.best_metric, best.best_iter, since)
        return any(comm.all_gather(since >= self._patience))


def _complete(trainer: Any, keeper: Checkpointer, name: str) -> None:
    """Save the final checkpoint of a training whose process ended after the last iteration without saving it."""
    is_missing = os.path.splitext(os.path.basename(keeper.get_checkpoint_file()))[0] != name
    if getattr(keeper, "needs_all_processes", False):
        is_missing = comm.all_gather(is_missing)[0]
    if is_missing:
        trainer.iter -= 1  # as after the last step
        keeper.save(name, iteration=trainer.iter)
        trainer.iter += 1


def _save_aside(keeper: Checkpointer, name: str, average: WeightAverage | None, **data: Any) -> None:
    """Save a checkpoint from which a resumed run does not continue; of an average, the weights alone."""
    if average is None:
        _save_untagged(keeper, name, can_be_resumed=True, **data)
        return
    state, describe = keeper.checkpointables, getattr(keeper, "describe", None)
    try:
        keeper.checkpointables = {}
        if describe is not None:
            keeper.describe = lambda: {**describe(), "is_average": True}  # type: ignore[attr-defined]
        with average.in_place():
            _save_untagged(keeper, name, can_be_resumed=False, **data)
    finally:
        keeper.checkpointables = state
        if describe is not None:
            keeper.describe = describe  # type: ignore[attr-defined]


def _save_untagged(keeper: Checkpointer, name: str, *, can_be_resumed: bool, **data: Any) -> None:
    if isinstance(keeper, DetectionCheckpointer):
        keeper.wait()  # it may become the last one
    last = os.path.basename(keeper.get_checkpoint_file()) if keeper.has_checkpoint() else ""
    if not isinstance(keeper, DetectionCheckpointer) or type(keeper).save not in _SAVES_ASIDE:
        keeper.save(name, **data)  # a class with a `save` of its own
        if last and keeper.save_to_disk:
            keeper.tag_last_checkpoint(last)
        return
    basename = keeper.save_aside(name, **data)
    if basename and not last and can_be_resumed:
        keeper.wait()
        keeper.tag_last_checkpoint(basename)


_SAVES_ASIDE = (DetectionCheckpointer.save, ShardedCheckpointer.save)
