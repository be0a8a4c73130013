"""PyTorch's layers and functions with the few additions that detectors need.

The additions: a convolution that owns its normalization and activation, losses that are zero for empty batches, and
helpers for shapes and devices.  Names that need no addition (`Linear`, `interpolate` …) are PyTorch's own.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from detectron2.utils.tracing import check_if_dynamo_compiling

__all__ = [
    "BatchNorm2d",
    "Conv2d",
    "ConvTranspose2d",
    "Linear",
    "cat",
    "check_if_dynamo_compiling",
    "cross_entropy",
    "disable_torch_compiler",
    "empty_input_loss_func_wrapper",
    "interpolate",
    "move_device_like",
    "nonzero_tuple",
    "shapes_to_tensor",
]

BatchNorm2d = torch.nn.BatchNorm2d
ConvTranspose2d = torch.nn.ConvTranspose2d
Linear = torch.nn.Linear
interpolate = F.interpolate


class Conv2d(nn.Conv2d):
    """A 2D convolution followed, where given, by a normalization and an activation.

    Takes every argument of `torch.nn.Conv2d` and two keyword arguments: `norm`, a module that is applied to
    the result, and `activation`, a function that is applied last.  Their parameters appear in the state dict under
    `norm.` (and `activation.` when it is a module with parameters).

    Args:
        *args: positional arguments of `torch.nn.Conv2d`.
        **kwargs: keyword arguments of `torch.nn.Conv2d`, and `norm` and `activation`.
    """

    norm: Callable[[torch.Tensor], torch.Tensor] | None
    activation: Callable[[torch.Tensor], torch.Tensor] | None

    def __init__(self, *args: Any, **kwargs: Any):
        norm = kwargs.pop("norm", None)
        activation = kwargs.pop("activation", None)
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.activation = activation

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Convolve, normalise, activate: `(N, C, H, W)` to `(N, C', H', W')`; `N` may be 0."""
        x = self._conv_forward(input, self.weight, self.bias)
        if self.norm is not None:
            x = self.norm(x)
        if self.activation is not None:
            x = self.activation(x)
        return x


class _NewEmptyTensorOp(torch.autograd.Function):
    """An empty tensor of a given shape that keeps its input in the autograd graph.

    PyTorch's own layers take empty batches; this stays for projects that call it by name.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, new_shape: Sequence[int]) -> torch.Tensor:
        ctx.shape = x.shape
        return x.new_empty(new_shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad_outputs[0].new_zeros(ctx.shape), None


def cat(tensors: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor:
    """Concatenate like `torch.cat`, but return the only tensor of a one-element list itself, without a copy."""
    if not isinstance(tensors, (list, tuple)):
        raise TypeError(f"cat expects a list or tuple of tensors, got {type(tensors).__name__}.")
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def nonzero_tuple(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Indices of the nonzero elements, one tensor per dimension; a scalar counts as a vector of one element."""
    return (x.unsqueeze(0) if x.dim() == 0 else x).nonzero(as_tuple=True)


def empty_input_loss_func_wrapper(loss_func: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Make the mean of a loss over no elements 0 instead of NaN.

    Args:
        loss_func: a loss of signature `(input, target, *, reduction="mean", **kwargs)`.

    Returns:
        A function with the same signature.  Its zero is connected to `input`, so `backward()` works.
    """

    @functools.wraps(loss_func)
    def wrapped(input: torch.Tensor, target: torch.Tensor, *, reduction: str = "mean", **kwargs: Any) -> torch.Tensor:
        if target.numel() == 0 and reduction == "mean":
            return input.sum() * 0.0
        return loss_func(input, target, reduction=reduction, **kwargs)

    # functools.wraps points inspect at the wrapped function; what callers must obey is the signature above.
    del wrapped.__wrapped__
    return wrapped


cross_entropy = empty_input_loss_func_wrapper(F.cross_entropy)


def shapes_to_tensor(x: Sequence[Any], device: torch.device | str | None = None) -> torch.Tensor:
    """Turn sizes, which are integers or (in an exporter) scalar tensors, into one int64 vector.

    Args:
        x: the sizes.
        device: where the vector goes; by default where the scalar tensors are, else the CPU.

    Returns:
        int64 vector, as long as `x`.
    """
    if any(isinstance(v, torch.Tensor) for v in x):
        parts = [v if isinstance(v, torch.Tensor) else torch.as_tensor(v) for v in x]
        stacked = torch.stack([p.to(torch.int64) for p in parts])
        return stacked if device is None else stacked.to(device)
    return torch.as_tensor(list(x), dtype=torch.int64, device=device)


def move_device_like(src: torch.Tensor, dst: torch.Tensor) -> torch.Tensor:
    """Move `src` to the device of `dst`."""
    return src.to(dst.device)


def disable_torch_compiler(func: Callable[..., Any]) -> Callable[..., Any]:
    """Keep `torch.compile` out of a function; usable as a decorator."""
    return torch.compiler.disable(func)
