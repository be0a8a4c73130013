"""Read, restore and protect the states of the global random number generators."""

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["random_states", "random_states_kept", "set_random_states", "torch_states"]


def random_states() -> dict[str, Any]:
    """Return the states of the global generators of Python, NumPy and PyTorch, as tensors and plain containers."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    states: dict[str, Any] = {
        "python": [version, torch.tensor(words, dtype=torch.int64), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), int(position), int(has_gauss), cached],
    }
    return states | torch_states()


def torch_states() -> dict[str, Any]:
    """Return the states of PyTorch's generators alone, which takes microseconds."""
    states: dict[str, Any] = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: Mapping[str, Any]) -> None:
    """Restore states that `random_states` or `torch_states` returned."""
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
    """Restore the generators after a `with` block, so that training continues as if nothing had been drawn."""
    states = random_states()
    try:
        yield
    finally:
        set_random_states(states)
