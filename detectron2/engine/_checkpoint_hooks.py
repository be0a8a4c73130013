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

from detectron2.engine._ema import WeightAverage
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
        name = re.compile(re.escape(self.file_prefix) + r"_(\d{7,})\.pth")
        start = self.trainer.start_iter
        earlier = sorted(e for e in os.listdir(folder) if (m := name.fullmatch(e)) and int(m[1]) < start)
        self.recent_checkpoints = [os.path.join(folder, entry) for entry in earlier]
        while self.max_to_keep is not None and len(self.recent_checkpoints) > self.max_to_keep:
            os.remove(self.recent_checkpoints.pop(0))  # the process was killed before it could
        for entry in os.listdir(folder):
            # Of a process that was killed while it saved.
            if re.fullmatch(r"(.*\.pth|last_checkpoint)\.\d+\.tmp", entry):
                os.remove(os.path.join(folder, entry))

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
        latest = self.trainer.storage.latest().get(self._val_metric)
        if latest is None:
            known = ", ".join(sorted(k for k in self.trainer.storage.latest() if "/" in k)) or "none"
            logger.warning(
                "The metric %r was not recorded, so no best checkpoint is kept. Recorded: %s", self._val_metric, known
            )
            return
        value, at = latest
        if math.isnan(value) or at in (known for known, _ in self.history):
            return
        self._remember(at, value)
        if self.best_metric is None or self._better(value, self.best_metric):
            logger.info(
                "%s = %.5g in iteration %d is the best so far; saving %s",
                self._val_metric,
                value,
                at,
                self._file_prefix,
            )
            self.best_metric, self.best_iter = value, at
            self._save(iteration=at, **{self._val_metric: value})

    def _save(self, **kwargs: Any) -> None:
        """Save, and leave it to the other checkpoints to say where a resumed run continues."""
        keeper = self._checkpointer
        last = os.path.basename(keeper.get_checkpoint_file()) if keeper.has_checkpoint() else ""
        if self._average is None:
            keeper.save(self._file_prefix, **kwargs)
        else:
            state, keeper.checkpointables = keeper.checkpointables, {}
            try:
                with self._average.in_place():
                    keeper.save(self._file_prefix, **kwargs)
            finally:
                keeper.checkpointables = state
        if last and keeper.save_to_disk:
            keeper.tag_last_checkpoint(last)

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
