"""Compile the parts of a model with `torch.compile`, and run it without that for a while."""

import contextlib
from collections.abc import Iterator

from torch import nn

__all__ = ["compile_parts", "uncompiled"]

# Each is compiled to one graph. The code between them (sampling, matching, selection) has other sizes in each step and
# would be compiled again and again.
_PARTS = ("backbone", "proposal_generator.rpn_head", "roi_heads.box_head", "head")


def compile_parts(model: nn.Module) -> None:
    """Compile the backbone and the heads in place, or a model without these parts as a whole.

    Classes, attributes and names of weights stay the same.
    """
    modules = dict(model.named_modules())
    for part in [modules[name] for name in _PARTS if name in modules] or [model]:
        for module in part if isinstance(part, nn.ModuleList) else [part]:
            module.compile()


@contextlib.contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Run a model without compilation within a `with` block, for example with hooks or in another mode."""
    compiled = [(m, m._compiled_call_impl) for m in model.modules() if m._compiled_call_impl is not None]
    for module, _ in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in compiled:
            module._compiled_call_impl = call
