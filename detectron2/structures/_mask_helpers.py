"""Indexing and checks that the mask structures share.

Letters: `N` masks.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

__all__ = ["as_indices", "expect_all", "expect_one_box_each", "extent", "select"]


def select(masks: torch.Tensor, item: Any) -> torch.Tensor:
    """Index ``(N, h, w)`` along its first dimension; an integer gives ``(1, h, w)``."""
    picked = masks[item][None] if isinstance(item, (int, np.integer)) else masks[item]
    if picked.dim() != 3:
        raise IndexError(f"Masks are indexed along one dimension; {item!r} selects shape {tuple(picked.shape)}.")
    return picked


def as_indices(item: Any, n: int) -> list[int]:
    """Turn a vector of bools or integers into indices of a list of length `n`."""
    index = torch.as_tensor(item).cpu()
    if index.numel() == 0:
        return []
    if index.dtype in (torch.bool, torch.uint8):
        if index.shape != (n,):
            raise IndexError(f"A bool index of shape {tuple(index.shape)} does not fit {n} masks.")
        return index.nonzero()[:, 0].tolist()
    if index.dim() != 1 or index.is_floating_point():
        raise IndexError(f"Masks are indexed by a vector of bools or integers, got {index.dtype} {tuple(index.shape)}.")
    return index.tolist()


def extent(occupied: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First occupied position of each row of ``(N, L)``, and the one after the last; zeros where there is none."""
    length = occupied.shape[1]
    if length == 0:
        none = occupied.new_zeros(occupied.shape[0], dtype=torch.int64)
        return none, none
    flags = occupied.to(torch.uint8)
    first, behind = flags.argmax(dim=1), length - flags.flip(1).argmax(dim=1)
    return first, torch.where(occupied.any(dim=1), behind, 0)


def expect_one_box_each(boxes: torch.Tensor, n: int) -> None:
    """Refuse boxes that are not as many as the masks."""
    if len(boxes) != n:
        raise ValueError(f"crop_and_resize needs one box for each mask, got {len(boxes)} boxes and {n} masks.")


def expect_all(masks: Sequence[Any], kind: type, *others: type) -> Any:
    """Refuse a list that is empty, holds other things, or no ``kind``; -> the first ``kind`` in it."""
    if len(masks) == 0:
        raise ValueError(f"{kind.__name__}.cat needs at least one {kind.__name__}.")
    for entry in masks:
        if not isinstance(entry, (kind, *others)):
            raise TypeError(
                f"{kind.__name__}.cat expects a list of {kind.__name__}, found {type(entry).__name__} in it."
            )
    first = next((entry for entry in masks if isinstance(entry, kind)), None)
    if first is None:
        raise TypeError(f"{kind.__name__}.cat found no {kind.__name__} at all, only {type(masks[0]).__name__}.")
    return first
