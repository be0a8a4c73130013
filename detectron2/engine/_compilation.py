"""Compiling the parts of a model that consist of layers alone."""

import contextlib
from collections.abc import Iterator

from torch import nn

# One graph each. What lies between (sampling, matching, selection) has other sizes in each step and would be compiled
# over and over.
_PARTS = ("backbone", "proposal_generator.rpn_head", "roi_heads.box_head", "head")


def compile_parts(model: nn.Module) -> None:
    """Compile backbone and heads in place: classes, attributes and names of weights stay.

    Args:
        model: a model without these parts is compiled as a whole.
    """
    modules = dict(model.named_modules())
    parts: list[nn.Module] = []
    for name in _PARTS:
        part = modules.get(name)
        if part is not None:
            parts += list(part) if isinstance(part, nn.ModuleList) else [part]
    for part in parts or [model]:
        part.compile()


@contextlib.contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Within a ``with`` block, a model runs as it was written: with hooks, or in a mode it is not compiled for."""
    compiled = [(m, m._compiled_call_impl) for m in model.modules() if m._compiled_call_impl is not None]
    for module, _ in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in compiled:
            module._compiled_call_impl = call
