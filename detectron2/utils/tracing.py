"""The one place that asks whether a model runs eagerly, is being traced, scripted, compiled or exported.

Models do not ask. Code around them (checks that would freeze a data-dependent answer into a graph) does, through here.
"""

import torch

__all__ = ["assert_fx_safe", "check_if_dynamo_compiling", "is_compiling", "is_fx_tracing", "is_tracing"]


def is_fx_tracing() -> bool:
    """Whether a ``torch.fx`` symbolic trace is going on."""
    from torch.fx import _symbolic_trace

    probe = getattr(_symbolic_trace, "is_fx_symbolic_tracing", None) or _symbolic_trace.is_fx_tracing
    return bool(probe())


def is_compiling() -> bool:
    """Whether ``torch.compile`` or ``torch.export`` is capturing the caller."""
    return torch.compiler.is_compiling()


check_if_dynamo_compiling = is_compiling  # its published name, in detectron2.layers


def is_tracing() -> bool:
    """Whether any capture is going on: ``torch.jit`` tracing or scripting, ``torch.fx``, ``compile`` or ``export``."""
    return torch.jit.is_scripting() or torch.jit.is_tracing() or is_compiling() or is_fx_tracing()


def assert_fx_safe(condition: bool, message: str) -> None:
    """Assert a condition that depends on tensors, except where a symbolic trace could not decide it."""
    if is_fx_tracing():
        return
    assert condition, message
