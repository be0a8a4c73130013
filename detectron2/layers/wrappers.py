"""PyTorch's layers and functions with the few additions that detectors need.

The additions: a convolution that owns its normalization and activation, losses that are zero for empty batches, and
helpers for shapes and devices. Names that need no addition (`Linear`, `interpolate` …) are PyTorch's own.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from detectron2.utils.tracing import check_if_dynamo_compiling, when_compiled, when_traced

from .batch_norm import FrozenBatchNorm2d

__all__ = [
    "BatchNorm2d",
    "Conv2d",
    "ConvTranspose2d",
    "Linear",
    "any_along",
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

_RECTIFIERS = (F.relu, torch.relu)
_FORWARD_OF_FROZEN_NORM = FrozenBatchNorm2d.forward  # a program may replace it
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_HOOKS_OF_ALL_MODULES = tuple(f"_global{name}" for name in _HOOKS)


class Conv2d(nn.Conv2d):
    """A 2D convolution followed, where given, by a normalization and an activation.

    Takes every argument of `torch.nn.Conv2d` and two keyword arguments: `norm`, a module that is applied to
    the result, and `activation`, a function that is applied last. Their parameters appear in the state dict under
    `norm.` (and `activation.` when it is a module with parameters).

    While gradients are recorded, a `FrozenBatchNorm2d` is computed as part of the convolution, from weights that are
    scaled anew in each call, and a ReLU overwrites its input. A norm with hooks or of a subclass is called, and so is
    an activation.

    Args:
        *args: positional arguments of `torch.nn.Conv2d`.
        **kwargs: keyword arguments of `torch.nn.Conv2d`, and `norm` and `activation`.

    Example:
        >>> from detectron2.layers import Conv2d, get_norm
        >>> conv = Conv2d(3, 8, 3, padding=1, bias=False, norm=get_norm("BN", 8), activation=torch.relu)
        >>> conv(torch.rand(2, 3, 10, 12)).shape
        torch.Size([2, 8, 10, 12])
        >>> [name for name, _ in conv.named_parameters()]
        ['weight', 'norm.weight', 'norm.bias']
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
        if _can_fold(self):
            x = self._conv_forward(input, *_folded(self))
        else:
            x = self._conv_forward(input, self.weight, self.bias)
            if self.norm is not None:
                x = self.norm(x)
        if self.activation is None:
            return x
        return F.relu_(x) if _can_overwrite(self) else self.activation(x)


def _never(conv: Conv2d) -> bool:
    """A graph keeps norms and activations as they are."""
    return False


def is_plain(module: Any, *kinds: type) -> bool:
    """Whether a module is of one of these classes, not a subclass, and has no hooks and no methods of its own."""
    if type(module) not in kinds or "forward" in vars(module) or "_conv_forward" in vars(module):
        return False
    if any(getattr(module, name) for name in _HOOKS) or module._compiled_call_impl is not None:
        return False
    return not any(getattr(nn.modules.module, name) for name in _HOOKS_OF_ALL_MODULES)


def is_rectifier(activation: Any) -> bool:
    """Whether an activation is a ReLU, and nothing else happens when it is called."""
    return any(activation is known for known in _RECTIFIERS) or is_plain(activation, nn.ReLU)


@when_compiled(_never)
@when_traced(_never)
def _can_fold(conv: Conv2d) -> bool:
    """Whether gradients are recorded, and the norm is a frozen one that may become part of this convolution."""
    if not torch.is_grad_enabled() or not is_plain(conv.norm, FrozenBatchNorm2d) or not _convolves(conv):
        return False
    if FrozenBatchNorm2d.forward is not _FORWARD_OF_FROZEN_NORM:
        return False
    weight = conv.weight
    return type(weight) in (nn.Parameter, torch.Tensor) and weight.dtype in (torch.float32, torch.float64)


def _convolves(conv: Conv2d) -> bool:
    """Whether a subclass or a patch has left the convolution itself as it is."""
    return type(conv)._conv_forward is nn.Conv2d._conv_forward and "_conv_forward" not in vars(conv)


def _folded(conv: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias that make the norm superfluous; gradients reach the parameters through them."""
    scale, shift = (v.to(conv.weight.dtype) for v in conv.norm.scale_and_shift())
    bias = shift if conv.bias is None else torch.addcmul(shift, conv.bias, scale)
    return conv.weight * scale[:, None, None, None], bias


@when_compiled(_never)
@when_traced(_never)
def _can_overwrite(conv: Conv2d) -> bool:
    """Whether the activation is a ReLU, and its input is not read again, in the backward pass either."""
    norm = conv.norm
    if not torch.is_grad_enabled() or not is_rectifier(conv.activation) or not _convolves(conv):
        return False
    return norm is None or is_plain(norm, FrozenBatchNorm2d, nn.GroupNorm)


class _NewEmptyTensorOp(torch.autograd.Function):
    """An empty tensor that keeps its input in the autograd graph; projects call it by name, we do not need it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, new_shape: Sequence[int]) -> torch.Tensor:
        ctx.shape = x.shape
        return x.new_empty(new_shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad_outputs[0].new_zeros(ctx.shape), None


def cat(tensors: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor:
    """Concatenate like `torch.cat`, but return the only tensor of a one-element list itself, without a copy.

    Args:
        tensors: list or tuple of tensors.
        dim: dimension along which they are joined.

    Returns:
        The joined tensor.

    Example:
        >>> from detectron2.layers import cat
        >>> cat([torch.zeros(2, 4), torch.zeros(3, 4)]).shape
        torch.Size([5, 4])
        >>> only = torch.zeros(2, 4)
        >>> cat([only]) is only
        True
    """
    if not isinstance(tensors, (list, tuple)):
        raise TypeError(f"cat expects a list or tuple of tensors, got {type(tensors).__name__}.")
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def at_most(size: Any, limit: int) -> Any:
    """`min(size, limit)` of a length; lengths of a graph that is being traced are tensors, and so is this."""
    return size.clamp(max=limit) if isinstance(size, torch.Tensor) else min(size, limit)


def any_along(flags: torch.Tensor, dim: int) -> torch.Tensor:
    """Return `flags.any(dim)` of a large bool tensor, on the CPU in a tenth of the time or less.

    Args:
        flags: bool tensor.
        dim: the dimension that goes.

    Returns:
        bool tensor with one dimension less.

    Example:
        >>> from detectron2.layers.wrappers import any_along
        >>> any_along(torch.tensor([[False, False], [False, True]]), dim=1)
        tensor([False,  True])
    """
    if flags.device.type != "cpu" or flags.shape[dim] == 0:  # of nothing there is no largest
        return flags.any(dim)
    return flags.view(torch.uint8).amax(dim).view(torch.bool)


def nonzero_tuple(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Indices of the nonzero elements, one tensor per dimension; a scalar counts as a vector of one element.

    Args:
        x: tensor of any shape.

    Returns:
        One int64 vector for each dimension.

    Example:
        >>> from detectron2.layers import nonzero_tuple
        >>> rows, columns = nonzero_tuple(torch.tensor([[0, 1], [1, 0]]))
        >>> rows, columns
        (tensor([0, 1]), tensor([1, 0]))
    """
    return (x.unsqueeze(0) if x.dim() == 0 else x).nonzero(as_tuple=True)


def empty_input_loss_func_wrapper(loss_func: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Make the mean of a loss over no elements 0 instead of NaN.

    Args:
        loss_func: a loss of signature `(input, target, *, reduction="mean", **kwargs)`.

    Returns:
        A function with the same signature. Its zero is connected to `input`, so `backward()` works.

    Example:
        >>> from detectron2.layers import empty_input_loss_func_wrapper
        >>> smooth_l1 = empty_input_loss_func_wrapper(nn.functional.smooth_l1_loss)
        >>> smooth_l1(torch.zeros(0, 4), torch.zeros(0, 4))
        tensor(0.)
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

    Example:
        >>> from detectron2.layers import shapes_to_tensor
        >>> shapes_to_tensor([480, 640])
        tensor([480, 640])
    """
    if any(isinstance(v, torch.Tensor) for v in x):
        parts = [v if isinstance(v, torch.Tensor) else torch.as_tensor(v) for v in x]
        stacked = torch.stack([p.to(torch.int64) for p in parts])
        return stacked if device is None else stacked.to(device)
    return torch.as_tensor(list(x), dtype=torch.int64, device=device)


def move_device_like(src: torch.Tensor, dst: torch.Tensor) -> torch.Tensor:
    """Move `src` to the device of `dst`.

    Args:
        src: tensor to move.
        dst: tensor on the wanted device.

    Returns:
        `src` on the device of `dst`.

    Example:
        >>> from detectron2.layers import move_device_like
        >>> move_device_like(torch.zeros(2), torch.zeros(3)).device
        device(type='cpu')
    """
    return src.to(dst.device)


def disable_torch_compiler(func: Callable[..., Any]) -> Callable[..., Any]:
    """Keep `torch.compile` out of a function; usable as a decorator.

    Args:
        func: the function.

    Returns:
        The same function, which always runs eagerly.

    Example:
        >>> from detectron2.layers import disable_torch_compiler
        >>> @disable_torch_compiler
        ... def count(x):
        ...     return int((x > 0).sum())
        ...
        >>> count(torch.tensor([1, -1, 2]))
        2
    """
    return torch.compiler.disable(func)
