"""Compile the parts of a model with `torch.compile`, and run it without that for a while."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

__all__ = ["compile_parts", "uncompiled"]

logger = logging.getLogger(__name__)

# Each is compiled to one graph. The code between them (sampling, matching, selection) has other sizes in each step and
# would be compiled again and again.
_DENSE_PARTS = ("backbone", "proposal_generator.rpn_head", "head")
_PARTS = (*_DENSE_PARTS, "roi_heads.box_head")  # the number of regions varies


def compile_parts(model: nn.Module, *, few_shapes: bool = False, cuda_graphs: bool = False) -> None:
    """Compile the backbone and the heads in place, or a model without these parts as a whole.

    Classes, attributes and names of weights stay the same.

    Args:
        model: the model.
        few_shapes: compile what works on whole images once for each shape, and for training only, because images of
            an evaluation have more shapes. Otherwise PyTorch makes a second graph for all shapes but the first.
        cuda_graphs: on a GPU, record what works on whole images as CUDA graphs, and replay these.
    """
    modules = dict(model.named_modules())
    on_gpu = any(p.is_cuda for p in model.parameters())
    if cuda_graphs and not on_gpu:
        logger.warning("TRAIN.CUDA_GRAPHS (train.cuda_graphs) has no effect: the model is not on a CUDA device.")
    options: dict[str, Any] = {"dynamic": False} if few_shapes else {}
    if cuda_graphs and on_gpu:
        options["mode"] = "reduce-overhead"
        model.register_forward_pre_hook(_begin_step)
    parts = [name for name in _PARTS if name in modules]
    for name in parts or [""]:
        part: Any = modules[name]
        for module in part if isinstance(part, nn.ModuleList) else [part]:
            if not options or (parts and name not in _DENSE_PARTS):
                module.compile()
            else:
                module._compiled_call_impl = _in_training(module, torch.compile(module._call_impl, **options))


def _begin_step(*_: Any) -> None:
    """Let a CUDA graph write where the one before wrote: the results of the last step are read no more."""
    torch.compiler.cudagraph_mark_step_begin()


def _in_training(module: nn.Module, compiled: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return (compiled if module.training else module._call_impl)(*args, **kwargs)

    return call


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
