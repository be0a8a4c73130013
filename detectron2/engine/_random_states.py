"""Generators of random numbers: written down, restored, and left alone; an exact resume needs more than weights."""

import contextlib
import logging
import random
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn

import detectron2.utils.comm as comm
from detectron2.engine._trainer_base import HookBase
from detectron2.utils.wrappers import unwrap_model

logger = logging.getLogger(__name__)


def random_states() -> dict[str, Any]:
    """-> the states of the global generators of Python, NumPy and PyTorch, as tensors and plain containers."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002  # the global one is what is meant
    states: dict[str, Any] = {
        "python": [version, torch.tensor(words, dtype=torch.int64), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), int(position), int(has_gauss), cached],
    }
    return states | torch_states()


def torch_states() -> dict[str, Any]:
    """-> the states of PyTorch's generators alone, which takes microseconds."""
    states: dict[str, Any] = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: Mapping[str, Any]) -> None:
    """Restore what :func:`random_states` or :func:`torch_states` returned."""
    if "python" in states:
        version, words, gauss = states["python"]
        random.setstate((version, tuple(words.tolist()), gauss))
        name, keys, position, has_gauss, cached = states["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(states["torch"].cpu())
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())


@contextlib.contextmanager
def random_states_kept() -> Iterator[None]:
    """Whatever is drawn within a ``with`` block, training goes on with the numbers it would have had without it."""
    states = random_states()
    try:
        yield
    finally:
        set_random_states(states)


def start_iteration(loader: Iterable) -> Iterator:
    """-> ``iter(loader)``; a loader that can be positioned leaves the generators alone.

    Torch draws a number when it starts workers.  An uninterrupted run does so once, a resumed one once more.
    """
    iterator = iter(loader)
    if not hasattr(loader, "set_position"):
        return iterator
    with random_states_kept():  # generators start their workers with the first batch
        first = list(next_or_nothing(iterator))
    return chain(first, iterator)


def next_or_nothing(iterator: Iterator) -> Iterator:
    """Yield the next element, if there is one."""
    with contextlib.suppress(StopIteration):
        yield next(iterator)


class RandomStates(HookBase):
    """Put into checkpoints what training depends on and neither weights nor optimizer hold.

    These are the generators of every process, and those buffers that change in training but are not in the state dict
    of the model, such as running averages of numbers of objects.

    Register it before all others: what it restores is in place when the first iteration begins.

    Args:
        model: the model.
        period: iterations between two checkpoints; with several processes, which tell their states then.
    """

    def __init__(self, model: nn.Module, period: int) -> None:
        self._model = unwrap_model(model)
        self._period = period
        self._of_ranks: list[dict[str, Any]] | None = None
        self._to_restore: Mapping[str, Any] | None = None
        self._buffers_at_start: dict[str, tuple[torch.Tensor, int]] = {}

    def before_train(self) -> None:
        """Note which buffers there are, and restore those of the checkpoint."""
        self._buffers_at_start = {name: (b, b._version) for name, b in _hidden_buffers(self._model)}
        for name, value in (self._to_restore or {}).get("buffers", {}).items():
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
            logger.warning(
                "The checkpoint is of %d processes and there are %d: random numbers are not those of the former run.",
                *(len(ranks), comm.get_world_size()),
            )
            return
        set_random_states(ranks[comm.get_rank()])

    def after_step(self) -> None:
        """With several processes, tell the main one, which saves, the states of all."""
        if comm.get_world_size() == 1:
            return
        next_iter = self.trainer.iter + 1
        is_last = next_iter == self.trainer.max_iter
        if is_last or self.trainer.stop_requested or (self._period > 0 and next_iter % self._period == 0):
            self._of_ranks = comm.gather(random_states())

    def state_dict(self) -> dict[str, Any]:
        """The states of the generators of all processes and the changed buffers."""
        alone = comm.get_world_size() == 1
        ranks = [random_states()] if alone else [random_states(), *(self._of_ranks or [])[1:]]
        buffers = {
            name: value.detach().clone()
            for name, value in _hidden_buffers(self._model)
            if (old := self._buffers_at_start.get(name)) is None or old[0] is not value or old[1] != value._version
        }
        return {"ranks": ranks, "buffers": buffers}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore them when training starts."""
        self._to_restore = state_dict


def _hidden_buffers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Buffers that are not in the state dict."""
    for path, module in model.named_modules():
        for name in module._non_persistent_buffers_set:
            value = module._buffers.get(name)
            if value is not None:
                yield f"{path}.{name}" if path else name, value
