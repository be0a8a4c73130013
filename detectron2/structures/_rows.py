"""How every structure is indexed, by an integer, a slice, or a vector of bools or integers, and put together."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

__all__ = ["cat_rows", "indices_of", "rows_of"]


def cat_rows(tensors: Sequence[torch.Tensor], what: str) -> torch.Tensor:
    """Concatenate tensors along the first dimension.

    Args:
        tensors: one or more.
        what: what is concatenated, for the message.

    Returns:
        One tensor.

    Raises:
        ValueError: one is not a tensor, or they differ in another dimension.

    Example:
        >>> cat_rows([torch.zeros(1, 4), torch.zeros(2, 4)], "boxes").shape
        torch.Size([3, 4])
    """
    try:
        return torch.cat(list(tensors))
    except (RuntimeError, TypeError) as e:  # asked first, this would cost time, and fix numbers in a graph
        kinds = [str(tuple(t.shape)) if isinstance(t, torch.Tensor) else type(t).__name__ for t in tensors]
        if all(isinstance(t, torch.Tensor) and t.shape[1:] == tensors[0].shape[1:] for t in tensors):
            raise
        raise ValueError(
            f"Cannot concatenate {what}: expected tensors whose shapes differ in the first dimension only, got "
            f"{', '.join(dict.fromkeys(kinds))}."
        ) from e


def rows_of(item: Any, count: Any, what: str) -> slice | torch.Tensor:
    """Turn an index into one that selects along the first dimension, and keeps it.

    Args:
        item: an integer, or a tensor or array that holds one; a slice; a vector of bools or integers as tensor, array,
            list, or as what `torch.where` gives.
        count: how many entries there are; symbolic while a graph is exported.
        what: what the entries are called.

    Returns:
        A slice with a positive step, or a vector of integers or bools. An integer becomes a slice.

    Raises:
        IndexError: it is something else, or an integer is out of range.

    Example:
        >>> rows_of(-1, 4, "boxes"), rows_of(torch.tensor(2), 4, "boxes")
        (slice(-1, None, 4), tensor([2]))
    """
    if isinstance(item, tuple) and len(item) == 1:
        item = item[0]
    if item is Ellipsis:
        return slice(None)
    if isinstance(item, slice):
        is_backward = item.step is not None and item.step < 0
        return torch.tensor(range(count)[item], dtype=torch.int64) if is_backward else item
    if isinstance(item, (int, np.integer)) and not isinstance(item, bool):
        if not -count <= item < count:
            raise IndexError(f"Index {item} is out of range: there are {count} {what}.")
        return slice(int(item), None, count)
    try:
        if isinstance(item, (tuple, bool, np.bool_)):
            raise TypeError
        index = torch.as_tensor(np.ascontiguousarray(item) if isinstance(item, np.ndarray) else item)
    except (TypeError, ValueError, RuntimeError):
        index = torch.empty(0, 0)
    if index.dim() == 1 and index.is_floating_point() and index.numel() == 0:
        return index.to(torch.int64)  # an empty list, as a tensor
    if index.dim() == 0 and index.dtype != torch.bool:
        index = index[None]
    if index.dim() != 1 or index.is_floating_point() or index.is_complex():
        got = f"{index.dtype} of shape {tuple(index.shape)}" if index.dim() != 2 or index.numel() else f"{item!r}"
        raise IndexError(
            f"{what.capitalize()} are indexed along one dimension, by an integer, a slice, or a vector of bools or "
            f"integers; got {got} for {count} {what}."
        )
    if index.dtype not in (torch.bool, torch.uint8):
        return index if index.dtype == torch.int64 else index.to(torch.int64)
    length = index.shape[0]
    if isinstance(count, int) and isinstance(length, int) and length != count:
        raise IndexError(f"A bool index of shape ({length},) does not fit {count} {what}.")
    return index.to(torch.bool)


def indices_of(item: Any, count: int, what: str) -> list[int]:
    """List the entries that an index selects, from 0.

    Args:
        item: as for `rows_of`.
        count: how many entries there are.
        what: what they are called.

    Returns:
        Their positions, in order.

    Raises:
        IndexError: the index is impossible, or out of range.

    Example:
        >>> indices_of([True, False, True], 3, "masks"), indices_of(slice(None, None, -1), 3, "masks")
        ([0, 2], [2, 1, 0])
    """
    rows = rows_of(item, count, what)
    return torch.arange(count)[rows if isinstance(rows, slice) else rows.cpu()].tolist()
