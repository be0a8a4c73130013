"""Convolutions one after another, with a loss that reads few cells of their result.

The gradient of such a chain is zero at most cells: a region proposal network learns from 256 anchors of an image. The
backward pass here takes the cells that have a gradient, and what the convolutions read around them; PyTorch's goes
through the whole map.

Letters: `N` images, `C` channels, `S` cells that have a gradient, `T` cells that a kernel reads. Maps are
`(N, C, H, W)`, in memory with channels last, and so tables with one row of `C` numbers for each cell.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from detectron2.utils.tracing import when_compiled, when_traced

from .wrappers import Conv2d, is_plain, is_rectifier

__all__ = ["chain_of", "conv_chain"]

_LARGEST_SHARE = 0.25  # of all cells; with more, whole maps take less time


def _none(modules: Sequence[Any], maps: Sequence[torch.Tensor]) -> list[Any]:
    """A graph does not depend on values."""
    return []


@when_compiled(_none)
@when_traced(_none)
def chain_of(modules: Sequence[Any], maps: Sequence[torch.Tensor]) -> list[Any]:
    """The convolutions that modules are made of, if `conv_chain` can compute them, in training on the CPU.

    Args:
        modules: what is applied one after another; of an `nn.Sequential` what it contains.
        maps: the inputs.

    Returns:
        The convolutions, or an empty list: where no gradients are recorded; where a module is anything but a
        convolution that keeps height and width, or a ReLU between two; and where one has a norm, or hooks.

    Example:
        >>> from detectron2.layers.conv_chain import chain_of
        >>> image = torch.rand(1, 3, 10, 12)
        >>> tower = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        >>> len(chain_of([tower, nn.Conv2d(8, 4, 1)], [image])), len(chain_of([tower, nn.Conv2d(8, 4, 3)], [image]))
        (2, 0)
    """
    if not torch.is_grad_enabled() or any(x.device.type != "cpu" or x.dim() != 4 for x in maps):
        return []
    layers = [layer for module in modules for layer in (module if is_plain(module, nn.Sequential) else [module])]
    convolutions, needs_rectifier = [], False
    for layer in layers:
        if needs_rectifier and is_rectifier(layer):
            needs_rectifier = False
        elif not needs_rectifier and _keeps_size(layer):
            convolutions.append(layer)
            needs_rectifier = getattr(layer, "activation", None) is None
        else:
            return []
    return convolutions if needs_rectifier else []


def _keeps_size(conv: Any) -> bool:
    """Whether a module is a convolution that gives a map of the same size, and at most a ReLU after it."""
    if not is_plain(conv, nn.Conv2d, Conv2d) or getattr(conv, "norm", None) is not None or conv.bias is None:
        return False
    activation = getattr(conv, "activation", None)
    height, width = conv.kernel_size
    is_usual = conv.groups == 1 and conv.stride == conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    is_centred = height % 2 == width % 2 == 1 and conv.padding == (height // 2, width // 2)
    are_own = all(type(p) is nn.Parameter for p in (conv.weight, conv.bias))
    return is_usual and is_centred and are_own and (activation is None or is_rectifier(activation))


def conv_chain(
    maps: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Apply convolutions that keep height and width to each map, with a ReLU between every two.

    Results and gradients are those of `torch.nn.functional.conv2d`, up to rounding.

    Args:
        maps: each `(N, C, H, W)`.
        weights: of each convolution, `(C', C, kernel height, kernel width)`, with kernels of odd sizes.
        biases: of each convolution, `(C',)`.

    Returns:
        For each map the result of the last convolution.

    Example:
        >>> from detectron2.layers.conv_chain import conv_chain
        >>> first, last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
        >>> image = torch.rand(1, 3, 10, 12)
        >>> [result] = conv_chain([image], [first.weight, last.weight], [first.bias, last.bias])
        >>> torch.allclose(result, last(first(image).relu()), atol=1e-6)
        True
    """
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        maps, weights, biases = ([t.to(dtype) for t in tensors] for tensors in (maps, weights, biases))
    with torch.autocast("cpu", enabled=False):
        return [_Chain.apply(len(weights), x, *weights, *biases) for x in maps]


def _convolve(
    x: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The input of each convolution, and the result."""
    inputs = [x]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        inputs.append(F.conv2d(inputs[-1], weight, bias, padding=_padding(weight)).relu_())
    return inputs, F.conv2d(inputs[-1], weights[-1], biases[-1], padding=_padding(weights[-1]))


class _Chain(torch.autograd.Function):
    """Convolutions with a backward pass that takes only the cells that have a gradient, while these are few."""

    @staticmethod
    def forward(ctx, length: int, x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        inputs, out = _convolve(x, parameters[:length], parameters[length:])
        ctx.length = length
        ctx.save_for_backward(*inputs, *parameters)
        return out

    @staticmethod
    def backward(ctx, grad: torch.Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        length, needed = ctx.length, ctx.needs_input_grad[1:]
        inputs, weights, biases = (ctx.saved_tensors[i * length : (i + 1) * length] for i in range(3))
        with torch.autocast("cpu", enabled=False):
            if torch.is_grad_enabled():  # the gradient is to be differentiated
                return None, *_differentiable_backward(grad, inputs[0], weights, biases, needed)
            return None, *_backward(grad, inputs, weights, needed[0])


def _differentiable_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor],
    needed: Sequence[bool],
) -> list[torch.Tensor | None]:
    """What autograd makes of the plain convolutions."""
    wanted = [v for v, is_needed in zip((x, *weights, *biases), needed, strict=True) if is_needed]
    found = iter(torch.autograd.grad(_convolve(x, weights, biases)[1], wanted, grad, create_graph=True))
    return [next(found) if is_needed else None for is_needed in needed]


def _backward(
    grad: torch.Tensor, inputs: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], needs_input: bool
) -> list[torch.Tensor | None]:
    """Gradients of the first input, of all weights, and of all biases."""
    of_weights, of_biases = [], []
    few = _cells_with_gradient(grad)
    for i in reversed(range(len(inputs))):
        x, weight, is_read = inputs[i], weights[i], i > 0 or needs_input
        if few is not None and len(few[0]) > _LARGEST_SHARE * x[:, 0].numel():
            grad, few = _as_map(*few, grad if i + 1 == len(inputs) else inputs[i + 1]), None
        if few is None:
            grad, of_weight, of_bias = _backward_of_map(grad, x, weight, is_read)
            grad = torch.ops.aten.threshold_backward(grad, x, 0) if i else grad
        else:
            cells, rows, of_weight, of_bias = _backward_of_cells(*few, x, weight, is_read)
            few = cells, rows * (_table(x)[cells] > 0) if i else rows
        of_weights.insert(0, of_weight.to(weight.dtype))
        of_biases.insert(0, of_bias.to(weight.dtype))
    if few is not None and needs_input:
        grad = _as_map(*few, inputs[0])
    return [grad if needs_input else None, *of_weights, *of_biases]


def _padding(weight: torch.Tensor) -> tuple[int, int]:
    return weight.shape[2] // 2, weight.shape[3] // 2


def _table(x: torch.Tensor) -> torch.Tensor:
    """A map as a table with one row for each cell; a weight likewise."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _as_map(cells: torch.Tensor, rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A map with these rows, of the shape and type of another; rows of one cell are added."""
    num_images, channels, height, width = like.shape
    table = rows.new_zeros(num_images * height * width, channels).index_add_(0, cells, rows)
    return table.view(num_images, height, width, channels).permute(0, 3, 1, 2).to(like.dtype)


def _cells_with_gradient(grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of cells, `Tensor[S]`, and their rows, `Tensor[S, C]`, in float32 or better."""
    table = _table(grad)
    cells = (table != 0).any(dim=1).nonzero()[:, 0]  # NaN is not 0
    return cells, table[cells].to(torch.promote_types(grad.dtype, torch.float32))


def _backward_of_cells(
    cells: torch.Tensor, rows: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, needs_input: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cells of the input that have a gradient, and their rows; gradients of weight and bias."""
    around, is_inside = _cells_around(cells, x.shape, weight.shape)
    read = _table(x)[around].to(rows.dtype) * is_inside[:, :, None]
    of_weight = (rows.T @ read.flatten(1)).view(-1, *weight.shape[2:], weight.shape[1]).permute(0, 3, 1, 2)
    of_bias = rows.sum(dim=0)
    if not needs_input:
        return cells, rows, of_weight, of_bias
    spread = (rows @ _table(weight.to(rows.dtype)).view(len(weight), -1)).view_as(read)
    inner, slot = around[is_inside].unique(return_inverse=True)
    summed = rows.new_zeros(len(inner), x.shape[1]).index_add_(0, slot, spread[is_inside])
    return inner, summed, of_weight, of_bias


def _cells_around(
    cells: torch.Tensor, shape: Sequence[int], weight_shape: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells that a kernel reads around each cell, `Tensor[S, T]`, and whether they are in the map (else they are 0)."""
    height, width = shape[2:]
    dy, dx = (torch.arange(size) - size // 2 for size in weight_shape[2:])
    y, x = (cells // width % height)[:, None] + dy, (cells % width)[:, None] + dx
    is_inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None]
    around = cells[:, None, None] + dy[:, None] * width + dx
    return (around * is_inside).flatten(1), is_inside.flatten(1)


def _backward_of_map(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, needs_input: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of input, weight and bias of a convolution, through the whole map."""
    geometry = ([1, 1], list(_padding(weight)), [1, 1], False, [0, 0], 1)
    return torch.ops.aten.convolution_backward(grad, x, weight, [len(weight)], *geometry, [needs_input, True, True])
