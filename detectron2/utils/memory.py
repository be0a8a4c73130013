"""Retry when accelerator memory is full: free the cache, then use the CPU."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import torch

__all__ = ["retry_if_cuda_oom"]

_R = TypeVar("_R")


def _is_out_of_memory(error: RuntimeError) -> bool:
    is_named = "out of memory" in str(error) and any(word in str(error) for word in ("CUDA", "MPS", "HIP", "XPU"))
    return is_named or isinstance(error, torch.OutOfMemoryError)


@contextmanager
def _ignore_torch_cuda_oom() -> Iterator[None]:
    """Ignore out-of-memory errors of the accelerator, and no other errors."""
    try:
        yield
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise


def _to_cpu(value: Any) -> Any:
    """Move a tensor-like argument from an accelerator to the CPU; return anything else unchanged."""
    device = getattr(value, "device", None)
    on_accelerator = device is not None and getattr(device, "type", "cpu") != "cpu"
    return value.to(device="cpu") if on_accelerator and hasattr(value, "to") else value


def retry_if_cuda_oom(func: Callable[..., _R]) -> Callable[..., _R]:
    """Make a function without side effects retry, up to two times, when the accelerator runs out of memory.

    The second try follows `torch.cuda.empty_cache()`; the third converts the arguments to CPU tensors, so the result
    may be on the CPU, and the caller must move it back if necessary. Only direct arguments with `.device` and
    `.to` are converted, not tensors inside containers.
    """

    @wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> _R:
        with _ignore_torch_cuda_oom():
            return func(*args, **kwargs)

        # Outside the `except` block, so that the failed call's frames (and their tensors) are gone by now.
        torch.cuda.empty_cache()
        with _ignore_torch_cuda_oom():
            return func(*args, **kwargs)

        logging.getLogger(__name__).info(
            "%s ran out of accelerator memory twice; running it on the CPU.", getattr(func, "__qualname__", func)
        )
        return func(*(_to_cpu(a) for a in args), **{k: _to_cpu(v) for k, v in kwargs.items()})

    return wrapped
