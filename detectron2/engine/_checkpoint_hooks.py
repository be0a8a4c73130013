"""Hooks that save checkpoints: every so many iterations, and the best one."""

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
from detectron2.checkpoint.training_state import remove_orphans
from detectron2.config.merge import nearest
from detectron2.engine._ema import WeightAverage
from detectron2.engine._sharding import ShardedCheckpointer
from detectron2.engine._trainer_base import HookBase
from detectron2.utils.file_io import atomic_write

logger = logging.getLogger("detectron2.engine.hooks")


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """Save a checkpoint every ``period`` iterations and after the last one.

    The constructor is that of :class:`detectron2.checkpoint.PeriodicCheckpointer`; ``max_iter`` is the trainer's.
    With ``max_to_keep``, checkpoints from before a resume count as well.
    """

    def before_train(self) -> None:
        """Learn from the trainer when training ends, and from the folder what a former process left there."""
        self.max_iter = self.trainer.max_iter
        folder = self.checkpointer.save_dir
        if self.trainer.start_iter == 0 or not os.path.isdir(folder):
            return
        name = re.compile(re.escape(self.file_prefix) + r"_(\d{7,})\.(pth|safetensors)")
        start = self.trainer.start_iter
        found = [(int(m[1]), entry) for entry in os.listdir(folder) if (m := name.fullmatch(entry))]
        self.recent_checkpoints = [os.path.join(folder, entry) for at, entry in sorted(found) if at < start]
        if not self.checkpointer.save_to_disk:
            return
        while self.max_to_keep is not None and len(self.recent_checkpoints) > self.max_to_keep:
            os.remove(self.recent_checkpoints.pop(0))  # the process was killed before it could
        if isinstance(self.checkpointer, DetectionCheckpointer):
            self.checkpointer.remove_leftovers()

    def step(self, iteration: int, **kwargs: Any) -> None:
        """Save if it is time, and remove what is not kept.

        Args:
            iteration: the current one, from 0.
            **kwargs: further data to save.
        """
        before = list(self.recent_checkpoints)
        super().step(iteration, **kwargs)
        # Weights first, then the training state that belonged to them: what is left is whole at any moment.
        for path in before:
            if path not in self.recent_checkpoints and self.checkpointer.save_to_disk:
                folder, name = os.path.split(path)
                remove_orphans(folder, [os.path.splitext(name)[0]])

    def after_step(self) -> None:
        """Save if it is time."""
        self.step(self.trainer.iter)


class BestCheckpointer(HookBase):
    """Keep the checkpoint with the best value of a metric.

    Register it after :class:`EvalHook`, which records the metric.  A resumed run still continues from the newest
    checkpoint, not from the best one, where there are both.

    Args:
        eval_period: the period of that :class:`EvalHook`; 0 compares only after the last iteration.
        checkpointer: saves the model.
        val_metric: the recorded name, for example ``"bbox/AP50"``.
        mode: ``"max"`` or ``"min"``: which is better.
        file_prefix: name of the checkpoint file without suffix.
        average: if given, what is evaluated and therefore saved are its weights, without the state of the training.

    Raises:
        ValueError: ``mode`` is neither of the two.
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
        # Where each process has a part of the weights, all of them save; the main one, which evaluates, decides.
        self._is_joint = getattr(checkpointer, "needs_all_processes", False)
        self.best_metric: float | None = None
        self.best_iter: int | None = None
        self.history: list[tuple[int, float]] = []
        """Iteration and value of all evaluations of this training, also from before a resume."""

    @property
    def _history_file(self) -> str:
        return os.path.join(self._checkpointer.save_dir, f"{self._file_prefix}_history.json")

    def before_train(self) -> None:
        """Read what was found before a resume; the checkpoint was written before the evaluation that follows it."""
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

    def _remember(self, at: int, value: float) -> None:
        self.history.append((at, value))
        if self._checkpointer.save_to_disk and self._checkpointer.save_dir:
            with atomic_write(self._history_file, "w") as file:
                json.dump({"metric": self._val_metric, "values": self.history}, file)

    def compare(self) -> None:
        """Save if the newest value beats the best one."""
        found = self._newest()
        if self._is_joint:
            found = comm.all_gather(found)[0]
        if found is None:
            return
        value, at = found
        if self.best_metric is None or self._better(value, self.best_metric):
            logger.info(
                "%s = %.5g in iteration %d is the best so far; saving %s",
                self._val_metric,
                value,
                at,
                self._file_prefix,
            )
            self.best_metric, self.best_iter = value, at
            _save_aside(self._checkpointer, self._file_prefix, self._average, iteration=at, **{self._val_metric: value})
        # Last: who is killed before evaluates once more, and who is killed behind has the checkpoint.
        self._remember(at, value)

    def _newest(self) -> tuple[float, int] | None:
        """-> a value that was not compared yet and its iteration; where there is none, the log says why."""
        recorded = self.trainer.storage.latest()
        if self._val_metric not in recorded:
            if comm.is_main_process():
                _warn_of_missing_metric(self._val_metric, recorded)
            return None
        value, at = recorded[self._val_metric]
        if at in (known for known, _ in self.history):
            return None
        if math.isnan(value):
            logger.warning(
                "%s is NaN in iteration %d, so it is not compared: no %s is saved for it, and it does not count for "
                "early stopping. That is so where the test data have nothing to find for it: no annotated objects, "
                "none of this size or class.",
                *(self._val_metric, at, self._file_prefix),
            )
            return None
        return value, at

    def after_step(self) -> None:
        """Compare in the iterations in which the model was evaluated."""
        next_iter = self.trainer.iter + 1
        if self._period > 0 and next_iter % self._period == 0 and next_iter != self.trainer.max_iter:
            self.compare()

    def after_train(self) -> None:
        """Compare the final evaluation, if training came to its end."""
        if self.trainer.iter >= self.trainer.max_iter:
            self.compare()

    def state_dict(self) -> dict[str, Any]:
        """The best value so far, so that a resumed run does not overwrite a better checkpoint."""
        return {} if self.best_metric is None else {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the best value."""
        self.best_metric, self.best_iter = state_dict["best_metric"], state_dict["best_iter"]


class AverageCheckpointer(HookBase):
    """Save the moving average of the weights when training came to its end, as ``model_final_ema``.

    Register it behind the evaluation, whose results become part of the checkpoint's description.

    Args:
        average: the average.
        checkpointer: saves it, without the state of the training.
    """

    def __init__(self, average: WeightAverage, checkpointer: DetectionCheckpointer) -> None:
        self._average = average
        self._checkpointer = checkpointer

    def after_train(self) -> None:
        """Save."""
        last = self.trainer.max_iter - 1
        if self.trainer.iter <= last:
            return
        _save_aside(self._checkpointer, "model_final_ema", self._average, iteration=last)
        if comm.is_main_process():
            name = self._checkpointer.file_name("model_final_ema")
            logger.info("The average of the weights is in %s", os.path.join(self._checkpointer.save_dir, name))


def _warn_of_missing_metric(name: str, recorded: Mapping[str, Any]) -> None:
    known = sorted(k for k in recorded if "/" in k)
    near = nearest(name, known)
    logger.warning(
        "The metric %r was not recorded, so no best checkpoint is kept.%s Recorded: %s",
        *(name, f" Did you mean {near!r}?" if near else "", ", ".join(known) or "none"),
    )


def _save_aside(keeper: Checkpointer, name: str, average: WeightAverage | None, **data: Any) -> None:
    """Save, and leave it to the other checkpoints to say where a resumed run continues.

    Args:
        keeper: saves.
        name: of the checkpoint.
        average: if given, its weights are saved, without the state of the training.
        **data: further data to save.
    """
    if average is None:
        _save_untagged(keeper, name, can_be_resumed=True, **data)
        return
    state, keeper.checkpointables = keeper.checkpointables, {}
    describe = getattr(keeper, "describe", None)
    try:
        if describe is not None:
            keeper.describe = lambda: {**describe(), "is_average": True}  # type: ignore[attr-defined]
        with average.in_place():
            _save_untagged(keeper, name, can_be_resumed=False, **data)
    finally:
        keeper.checkpointables = state
        if describe is not None:
            keeper.describe = describe  # type: ignore[attr-defined]


def _save_untagged(keeper: Checkpointer, name: str, *, can_be_resumed: bool, **data: Any) -> None:
    last = os.path.basename(keeper.get_checkpoint_file()) if keeper.has_checkpoint() else ""
    if not isinstance(keeper, DetectionCheckpointer) or type(keeper).save not in _SAVES_ASIDE:
        keeper.save(name, **data)  # another class, which has its own way to save
        if last and keeper.save_to_disk:
            keeper.tag_last_checkpoint(last)
        return
    basename = keeper.save_aside(name, **data)
    if basename and not last and can_be_resumed:
        keeper.tag_last_checkpoint(basename)


_SAVES_ASIDE = (DetectionCheckpointer.save, ShardedCheckpointer.save)
