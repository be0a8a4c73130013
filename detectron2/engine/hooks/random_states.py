"""A hook that saves what an exact resume needs beside weights, optimizer and data: random numbers, recent losses."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

import detectron2.utils.comm as comm
from detectron2.engine.random_states import random_states, set_random_states
from detectron2.engine.train_loop import HookBase
from detectron2.utils.wrappers import unwrap_model

__all__ = ["RandomStates"]

logger = logging.getLogger(__name__)

_TIMES = ("time", "data_time")  # of a machine, rather than of the training


class RandomStates(HookBase):
    """Save and restore the random number generators of all processes, buffers outside the state dict, recent scalars.

    All are needed to resume exactly. Such a buffer is, for example, a running average of the number of objects; the
    scalars are those of which writers show the median, without times.

    Register this hook before all others: the restored state is then in place when the first iteration begins. The
    processes exchange their states when the period of checkpoints has passed.
    """

    def __init__(self, model: nn.Module, period: int) -> None:
        self._model = unwrap_model(model)
        self._period = period
        self._of_ranks: list[tuple[dict[str, Any], dict[str, torch.Tensor]]] = []
        self._to_restore: Mapping[str, Any] | None = None
        self._buffers_at_start: dict[str, tuple[torch.Tensor, int]] = {}

    def before_train(self) -> None:
        """Record the present buffers, and restore those of the checkpoint."""
        self._buffers_at_start = {name: (b, b._version) for name, b in _hidden_buffers(self._model)}
        former = self._to_restore or {}
        self.trainer.storage.add_earlier(former.get("scalars", {}))
        for name, value in _own_buffers(former).items():
            path, _, last = name.rpartition(".")
            module = self._model.get_submodule(path)
            device = next((p.device for p in self._model.parameters()), value.device)
            module.register_buffer(last, value.to(device), persistent=False)

    def before_step(self) -> None:
        """Restore the generators in the first iteration."""
        if self._to_restore is None:
            return
        ranks, self._to_restore = self._to_restore["ranks"], None
        if len(ranks) != comm.get_world_size():
            text = "The checkpoint is from %d processes, but %d are running: random numbers differ from the former run."
            logger.warning(text, len(ranks), comm.get_world_size())
            return
        set_random_states(ranks[comm.get_rank()])

    def after_step(self) -> None:
        """Send the states of all processes to the main one, which saves them."""
        if comm.get_world_size() == 1:
            return
        next_iter = self.trainer.iter + 1
        is_last = next_iter == self.trainer.max_iter
        if is_last or self.trainer.stop_requested or (self._period > 0 and next_iter % self._period == 0):
            self._of_ranks = comm.gather((random_states(), self._changed_buffers()))

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the generators of all processes, and the buffers that changed."""
        if self._to_restore is not None:  # nothing was trained since
            return dict(self._to_restore)
        others = self._of_ranks[1:]
        ranks = [random_states(), *(states for states, _ in others)]
        buffers = [self._changed_buffers(), *(changed for _, changed in others)]
        recent = self.trainer.storage.recent() if self.trainer.storage is not None else {}
        scalars = {name: [list(x) for x in values] for name, values in recent.items() if name not in _TIMES}
        return {"ranks": ranks, "buffers": buffers, "scalars": scalars}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Keep the states, to be restored when training starts."""
        self._to_restore = state_dict

    def _changed_buffers(self) -> dict[str, torch.Tensor]:
        """Copy the buffers that are others than at the start, to the CPU."""
        return {
            name: value.detach().to("cpu", copy=True)
            for name, value in _hidden_buffers(self._model)
            if (old := self._buffers_at_start.get(name)) is None or old[0] is not value or old[1] != value._version
        }


def _own_buffers(state: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
    """Return the buffers of this process; those of the main one for processes that the former run did not have."""
    buffers = state.get("buffers", {})
    if isinstance(buffers, Mapping):  # older checkpoints have those of the main process alone
        return buffers
    return buffers[comm.get_rank() if comm.get_rank() < len(buffers) else 0]


def _hidden_buffers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield name and value of the buffers that are not in the state dict."""
    for path, module in model.named_modules():
        for name in module._non_persistent_buffers_set:
            value = module._buffers.get(name)
            if value is not None:
                yield f"{path}.{name}" if path else name, value
