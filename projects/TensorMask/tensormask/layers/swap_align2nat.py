"""From aligned masks to windows: swap_align2nat (https://arxiv.org/abs/1903.12174, sections 3.3 to 3.6).

Letters: `N` images, `V` side of a mask in cells, `H` and `W` size of the map, `λ` the scale, an integer, `P` windows.

In the *aligned* representation the `V * V` channels at a pixel say what the pixel is in each of the masks it lies in.
In the *natural* one they are the mask of the window around the pixel. With `λ` 1 the two differ by a shift:
`natural[v, u, y, x] = aligned[v, u, y + v - c, x + u - c]`, where `c` is the middle of the mask. With a larger `λ`
windows are `λ` times as large and lie on every `λ`-th pixel, and a mask has `λ * V` cells along its side. All masks
keep the resolution of the map, and the whole tensor its size. Cell `v` of the window in row `y` then lies

* in the map at `λ y + (v + 1/2) - λ V / 2`;
* in the aligned mask at `(v + 1/2) / λ - 1/2`;

and the value is interpolated linearly between the neighbours, in the map and in the mask. What lies outside of either
counts as a given value. Columns are treated like rows, independently of them, so that the two follow one another.
"""

from typing import NamedTuple

import torch
from torch import nn

__all__ = ["SwapAlign2Nat", "swap_align2nat", "swap_align2nat_at"]

_OUTSIDE = -6.0  # a logit: a probability of 0.0025


class _Tap(NamedTuple):
    """One neighbour of each output cell: where it is, and how much it counts; 0 outside. All of shape `[P, λ V]`."""

    in_mask: torch.Tensor
    in_map: torch.Tensor
    weight: torch.Tensor


def _taps(positions: torch.Tensor, side: int, scale: int, size: int, dtype: torch.dtype) -> list[_Tap]:
    """The neighbours along one axis of all cells of the windows at some positions.

    Args:
        positions: int64 `Tensor[P]`, rows (or columns) of windows.
        side: `V`.
        scale: `λ`.
        size: `H` (or `W`).
        dtype: of the weights.

    Returns:
        As many taps as are needed: one without interpolation, up to four.
    """
    cell = torch.arange(scale * side, device=positions.device)
    # Twice the coordinate in the map is an integer; the parity is the same for all cells.
    twice = 2 * (scale * positions[:, None] + cell) + 1 - scale * side
    in_map = [(twice.div(2, rounding_mode="floor"), 1.0)]
    if scale * side % 2 == 0:
        in_map = [(in_map[0][0], 0.5), (in_map[0][0] + 1, 0.5)]
    in_mask = [(cell, torch.ones_like(cell, dtype=dtype))]
    if scale > 1:
        numerator, denominator = 2 * cell + 1 - scale, 2 * scale  # in integers, so that no rounding picks the neighbour
        below = numerator.div(denominator, rounding_mode="floor")
        share = (numerator - below * denominator).to(dtype) / denominator
        in_mask = [(below, 1 - share), (below + 1, share)]
    taps = []
    for v, mask_weight in in_mask:
        for y, map_weight in in_map:
            inside = (v >= 0) & (v < side) & (y >= 0) & (y < size)
            weight = torch.where(inside, mask_weight * map_weight, 0)
            taps.append(_Tap(v.clamp(0, side - 1).expand_as(y), y.clamp(0, size - 1), weight))
    return taps


def _swap_axis(x: torch.Tensor, scale: int) -> torch.Tensor:
    """Turn `Tensor[V, H, ...]` into `Tensor[λ V, ceil(H / λ), ...]`: the transform of one axis, 0 outside."""
    side, size = x.shape[:2]
    positions = torch.arange((size + scale - 1) // scale, device=x.device)
    flat, total = x.flatten(0, 1), None
    for tap in _taps(positions, side, scale, size, x.dtype):
        index = (tap.in_mask * size + tap.in_map).t()
        part = flat.index_select(0, index.flatten()) * tap.weight.t().reshape(-1, *[1] * (flat.dim() - 1))
        total = part if total is None else total + part
    assert total is not None, "there is at least one neighbour"
    return total.unflatten(0, (scale * side, len(positions)))


def _mask_side(channels: int) -> int:
    side = round(channels**0.5)
    if side * side != channels:
        raise ValueError(f"the channels must be the cells of a square mask, V * V; got {channels}")
    return side


def _integer_scale(scale: float) -> int:
    if scale < 1 or int(scale) != scale:
        raise ValueError(f"swap_align2nat: the scale lambda must be a positive integer, got {scale}")
    return int(scale)


def swap_align2nat(x: torch.Tensor, lambda_val: float, pad_val: float = _OUTSIDE) -> torch.Tensor:
    """Compute the masks of all windows.

    Args:
        x: the aligned masks, `Tensor[N, V * V, H, W]`; channels are rows of the mask, then columns.
        lambda_val: `λ`.
        pad_val: what counts as the value outside of the map and of a mask.

    Returns:
        `Tensor[N, λ V * λ V, ceil(H / λ), ceil(W / λ)]`.

    Raises:
        ValueError: the number of channels is not a square, or `λ` is not a positive integer.
    """
    if x.dim() != 4:
        raise ValueError(f"swap_align2nat takes maps (N, V * V, H, W); got shape {tuple(x.shape)}")
    scale, side = _integer_scale(lambda_val), _mask_side(x.shape[1])
    # With the outside at 0 the weights of neighbours there do not matter.
    x = (x - pad_val).unflatten(1, (side, side))  # N V U H W
    x = _swap_axis(x.permute(1, 3, 0, 2, 4), scale)  # V' H' N U W
    x = _swap_axis(x.permute(3, 4, 0, 1, 2), scale)  # U' W' V' H' N
    return (x.permute(4, 2, 0, 3, 1) + pad_val).flatten(1, 2)


def swap_align2nat_at(
    x: torch.Tensor,
    lambda_val: float,
    images: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
    pad_val: float = _OUTSIDE,
) -> torch.Tensor:
    """Compute the masks of some windows only.

    Args:
        x: the aligned masks, `Tensor[N, V * V, H, W]`.
        lambda_val: `λ`.
        images: int64 `Tensor[P]`, the image of each window.
        rows: int64 `Tensor[P]`, its row in the grid of windows, that is in units of `λ` rows of the map.
        columns: int64 `Tensor[P]`, likewise.
        pad_val: what counts as the value outside of the map and of a mask.

    Returns:
        `Tensor[P, λ V, λ V]`.
    """
    scale, side = _integer_scale(lambda_val), _mask_side(x.shape[1])
    height, width = x.shape[-2:]
    masks = x.unflatten(1, (side, side))
    image = images[:, None, None]
    vertical = _taps(rows, side, scale, height, x.dtype)
    horizontal = _taps(columns, side, scale, width, x.dtype)
    total = x.new_zeros(len(rows), scale * side, scale * side)
    for v in vertical:
        for u in horizontal:
            value = masks[image, v.in_mask[:, :, None], u.in_mask[:, None], v.in_map[:, :, None], u.in_map[:, None]]
            total = total + (value - pad_val) * v.weight[:, :, None] * u.weight[:, None]
    return total + pad_val


class SwapAlign2Nat(nn.Module):
    """`swap_align2nat` as a layer.

    Args:
        lambda_val: `λ`.
        pad_val: what counts as the value outside of the map and of a mask.
    """

    def __init__(self, lambda_val: float, pad_val: float = _OUTSIDE):
        super().__init__()
        self.lambda_val = lambda_val
        self.pad_val = pad_val

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `Tensor[N, V * V, H, W]` to `Tensor[N, λ V * λ V, ceil(H / λ), ceil(W / λ)]`."""
        return swap_align2nat(x, self.lambda_val, self.pad_val)

    def extra_repr(self) -> str:
        """Scale and padding."""
        return f"lambda_val={self.lambda_val}, pad_val={self.pad_val}"
