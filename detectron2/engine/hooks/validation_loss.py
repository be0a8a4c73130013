"""The loss on data that are not trained on, measured without leaving a trace in the training."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

import detectron2.utils.comm as comm
from detectron2.engine.random_states import random_states_kept
from detectron2.engine.sharding import whole_weights
from detectron2.engine.train_loop import HookBase
from detectron2.modeling.compilation import uncompiled
from detectron2.utils.events import EventStorage
from detectron2.utils.wrappers import unwrap_model

__all__ = ["ValidationLoss", "undisturbed"]

logger = logging.getLogger("detectron2.engine.hooks")

_SEED = 20151208  # any: the same anchors and regions are drawn each time, so that values can be compared
_KEEP_EVALUATING = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)


class ValidationLoss(HookBase):
    """Record the mean losses over a data set as `validation/<name>` and their sum as `validation/total_loss`.

    The model computes its losses as in training, but batch norm uses its statistics and nothing is dropped out.
    Afterwards weights, statistics, all other buffers and all generators of random numbers are as before.

    Args:
        period: iterations between two measurements; it is also done after the last one.
        model: the model in training.
        build_loader: returns an iterable of annotated batches, this process's share of the data set.
    """

    def __init__(self, period: int, model: nn.Module, build_loader: Callable[[], Iterable]) -> None:
        if period < 1:
            raise ValueError(f"The period of the validation loss must be at least 1, got {period}.")
        self._period = period
        self._model = unwrap_model(model)
        self._build_loader = build_loader
        self._loader: Any = None

    def after_step(self) -> None:
        """Measure if it is time."""
        next_iter = self.trainer.iter + 1
        is_due = next_iter % self._period == 0 or next_iter == self.trainer.max_iter
        if is_due and not self.trainer.stop_requested:
            self.evaluate()

    def before_train(self) -> None:
        """Measure after the last iteration, if this training is resumed behind it."""
        trainer = self.trainer
        if 0 < trainer.start_iter >= trainer.max_iter:
            trainer.storage.iter = trainer.start_iter - 1
            self.evaluate()
            trainer.storage.iter = trainer.start_iter

    def evaluate(self) -> None:
        """Measure now, and record the numbers."""
        self.trainer.is_evaluating = True
        try:
            losses = self.measure()
        finally:
            self.trainer.is_evaluating = False
        for name, value in losses.items():
            self.trainer.storage.put_scalar(f"validation/{name}", value, smoothing_hint=False)

    def measure(self) -> dict[str, float]:
        """Return the mean of each loss over the batches of all processes, and their sum; empty without data."""
        model = self._model
        with random_states_kept(), whole_weights(model), undisturbed(model), uncompiled(model), EventStorage():
            if self._loader is None:
                self._loader = self._build_loader()
            torch.manual_seed(_SEED)
            sums: dict[str, torch.Tensor] = {}
            count = 0
            for batch in self._loader:
                with torch.no_grad():
                    found = model(batch)
                found = {"total_loss": found} if isinstance(found, torch.Tensor) else found
                for name, value in found.items():
                    sums[name] = sums.get(name, 0.0) + torch.as_tensor(value).detach().float()
                count += 1
        # One transfer for all of them.
        values = torch.stack([value.reshape(()) for value in sums.values()]).tolist() if sums else []
        gathered = comm.all_gather((dict(zip(sums, values, strict=True)), count))
        total = sum(n for _, n in gathered)
        if total == 0:
            logger.warning("There are no data to measure the validation loss on.")
            return {}
        names = list(dict.fromkeys(name for part, _ in gathered for name in part))
        means = {name: sum(part.get(name, 0.0) for part, _ in gathered) / total for name in names}
        means.setdefault("total_loss", sum(means.values()))
        return means

    def after_train(self) -> None:
        """Release the loader."""
        self._loader = None


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Within a `with` block, a model computes losses as in training, but with batch norm and dropout as in evaluation.

    Afterwards its modes and buffers are as before.
    """
    modes = {module: module.training for module in model.modules()}
    places = [
        (m, name, b, b._version, b.clone()) for m in model.modules() for name, b in m._buffers.items() if b is not None
    ]
    names = {module: set(module._buffers) for module in modes}
    try:
        model.train()
        for module in modes:
            if isinstance(module, _KEEP_EVALUATING) or "Drop" in type(module).__name__:
                module.eval()
        yield
    finally:
        for module, was_training in modes.items():
            module.training = was_training
            for name in set(module._buffers) - names[module]:
                del module._buffers[name]
                module._non_persistent_buffers_set.discard(name)
        for module, name, buffer, version, value in places:
            module._buffers[name] = buffer
            if buffer._version != version:
                buffer.copy_(value)
