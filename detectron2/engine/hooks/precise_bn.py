"""Precise batch-norm statistics (Wu & Johnson, "Rethinking 'Batch' in BatchNorm", arXiv:2105.07576, section 3)."""

import itertools
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from detectron2.engine.random_states import random_states_kept
from detectron2.engine.train_loop import HookBase
from detectron2.utils.events import EventStorage

__all__ = ["PreciseBN"]

logger = logging.getLogger(__name__)


class PreciseBN(HookBase):
    """Replace the running averages of batch norm by averages over many batches of the current model.

    It runs every `period` iterations and after the last one. It advances `data_loader`: give it one of its own.

    Args:
        period: iterations between two updates; 0 updates only after the last iteration.
        model: its batch-norm layers that are in training mode are updated.
        data_loader: yields what `model` takes.
        num_iter: batches to average over.
    """

    def __init__(self, period: int, model: nn.Module, data_loader: Iterable, num_iter: int) -> None:
        from fvcore.nn.precise_bn import get_bn_modules

        self._model: Any = model
        self._data_loader: Any = data_loader
        self._num_iter = num_iter
        self._period = period
        self._data_iter: Any = None
        self._disabled = not get_bn_modules(model)
        if self._disabled:
            logger.info("PreciseBN does nothing: the model has no batch norm in training mode.")

    def after_step(self) -> None:
        """Update if it is time or if this was the last iteration."""
        next_iter = self.trainer.iter + 1
        is_final = next_iter == self.trainer.max_iter
        if is_final or (self._period > 0 and next_iter % self._period == 0):
            self.update_stats()

    def update_stats(self) -> None:
        """Average the statistics over the next batches of the data loader."""
        from fvcore.nn.precise_bn import update_bn_stats

        if self._disabled:
            return
        logger.info("Computing precise batch-norm statistics over %d iterations", self._num_iter)
        # The storage keeps the statistics of these forward passes out of the training log.
        with EventStorage(), random_states_kept():
            if self._data_iter is None:
                self._data_iter = iter(self._data_loader)
            update_bn_stats(self._model, itertools.islice(self._data_iter, self._num_iter), self._num_iter)

    def state_dict(self) -> dict[str, Any]:
        """How far the loader got, if it knows."""
        return {"data_loader": self._data_loader.state_dict()} if hasattr(self._data_loader, "state_dict") else {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Let the loader continue."""
        if hasattr(self._data_loader, "load_state_dict"):
            self._data_iter = None
            self._data_loader.load_state_dict(state_dict["data_loader"])

    def after_train(self) -> None:
        """Release the model and the loader's workers."""
        self._model = self._data_loader = self._data_iter = None
        self._disabled = True
