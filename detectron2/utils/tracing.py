"""Ask whether a model runs eagerly or is being traced, scripted, compiled or exported.

Models do not ask. Code around them does, where a check would freeze a data-dependent answer into a graph.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

__all__ = [
    "assert_fx_safe",
    "check_if_dynamo_compiling",
    "is_compiling",
    "is_fx_tracing",
    "is_tracing",
    "when_compiled",
    "when_traced",
    "whole_in_trace",
]

_OPERATORS = torch.library.Library("detectron2", "FRAGMENT")


def whole_in_trace(schema: str) -> Callable[[Any], Any]:
    """Decorate a function whose steps depend on values: a traced graph calls it, and runs where we are imported."""

    def decorate(function: Any) -> Any:
        name = _OPERATORS.define(schema)
        _OPERATORS.impl(name, function, "CompositeExplicitAutograd")
        operator = getattr(torch.ops.detectron2, name)
        return functools.wraps(function)(
            lambda *args, **kwargs: (operator if torch.jit.is_tracing() else function)(*args, **kwargs)
        )

    return decorate


def when_compiled(form: Callable[..., Any]) -> Callable[[Any], Any]:
    """Decorate a function with a form of the same results, whose steps do not depend on values, for compiled graphs."""
    return _decorate_with(form, torch.compiler.is_compiling)


def when_traced(form: Callable[..., Any]) -> Callable[[Any], Any]:
    """Decorate a function with the form that a graph by `torch.jit.trace` records."""
    return _decorate_with(form, torch.jit.is_tracing)


def _decorate_with(form: Callable[..., Any], is_recording: Callable[[], bool]) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        return functools.wraps(function)(
            lambda *args, **kwargs: (form if is_recording() else function)(*args, **kwargs)
        )

    return decorate


def is_fx_tracing() -> bool:
    """Return whether a `torch.fx` symbolic trace is in progress."""
    from torch.fx import _symbolic_trace

    probe = getattr(_symbolic_trace, "is_fx_symbolic_tracing", None) or _symbolic_trace.is_fx_tracing
    return bool(probe())


def is_compiling() -> bool:
    """Return whether `torch.compile` or `torch.export` is capturing the caller."""
    return torch.compiler.is_compiling()


check_if_dynamo_compiling = is_compiling  # its published name, in detectron2.layers


def is_tracing() -> bool:
    """Return whether any capture is in progress: by `torch.jit`, `torch.fx`, `compile` or `export`."""
    return torch.jit.is_scripting() or torch.jit.is_tracing() or is_compiling() or is_fx_tracing()


def assert_fx_safe(condition: bool, message: str) -> None:
    """Assert a condition on tensors, except during a symbolic trace, which cannot decide it."""
    if is_fx_tracing():
        return
    assert condition, message
