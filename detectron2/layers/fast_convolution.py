"""Convolutions for inference on the CPU, with what follows them, in few passes over memory.

`winograd_conv2d` is a 3x3 convolution with a quarter of the multiplications: Winograd's minimal filtering (Lavin and
Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308), with tiles of 4 x 4 results.
`add_pointwise_conv2d_` is a 1x1 convolution that is added to a map in place. Both take the map part by part, so that
what is in between stays in the cache of a core, and bias and rectifier cost no pass of their own.

Letters: `N` images or regions, `C` and `K` channels before and after, `T` tiles, `P = 36` points of a tile.
"""

import functools
import itertools
from fractions import Fraction

import torch

__all__ = ["add_pointwise_conv2d_", "winograd_conv2d", "winograd_filters"]

_TILE = 4  # results along a side of a tile
_WINDOW = _TILE + 2  # cells along a side that they depend on
_POINTS = (Fraction(0), Fraction(3, 4), Fraction(-3, 4), Fraction(3, 2), Fraction(-3, 2))
# Numbers of one point of a tile that are worked on together, and the fewest tiles: 36 times as many make the products
# large, and fit into the cache of a core.
_NUMBERS_AT_ONCE = 1 << 15
_FEWEST_TILES_AT_ONCE = 32
_PIXELS_AT_ONCE = 1 << 10


def winograd_filters(weight: torch.Tensor) -> torch.Tensor:
    """Transform the filters of a 3x3 convolution for `winograd_conv2d`.

    Args:
        weight: filters `(K, C, 3, 3)`, float32.

    Returns:
        Filters `(36, C, K)`, four times as large.

    Example:
        >>> from detectron2.layers.fast_convolution import winograd_filters
        >>> winograd_filters(torch.rand(16, 8, 3, 3)).shape
        torch.Size([36, 8, 16])
    """
    k, c = weight.shape[:2]
    transform = _transforms()[0]
    return (transform @ weight.permute(2, 3, 1, 0).reshape(9, c * k)).view(-1, c, k)


def winograd_conv2d(
    x: torch.Tensor, filters: torch.Tensor, bias: torch.Tensor | None = None, *, rectify: bool = False
) -> torch.Tensor:
    """Convolve a map with 3x3 filters, with stride 1 and a border of zeros, in half the time of a direct convolution.

    Results differ from those of `torch.nn.functional.conv2d` by about 3e-6 of the largest value, where different orders
    of summation differ by 3e-7. No gradient is recorded.

    Args:
        x: map `(N, C, H, W)`, float32 on the CPU, best with channels last in memory.
        filters: what `winograd_filters` returns.
        bias: `(K,)`, added to the results.
        rectify: replace negative results by 0.

    Returns:
        `(N, K, H, W)` with channels last in memory.

    Example:
        >>> from detectron2.layers.fast_convolution import winograd_conv2d, winograd_filters
        >>> x, weight = torch.rand(1, 8, 10, 13), torch.rand(16, 8, 3, 3)
        >>> found = winograd_conv2d(x, winograd_filters(weight))
        >>> torch.allclose(found, torch.nn.functional.conv2d(x, weight, padding=1), rtol=1e-4)
        True
    """
    with torch.no_grad():
        return _winograd(x, filters, bias, rectify)


def _winograd(x: torch.Tensor, filters: torch.Tensor, bias: torch.Tensor | None, rectify: bool) -> torch.Tensor:
    n, c, height, width = x.shape
    k = filters.shape[2]
    x = x.permute(0, 2, 3, 1)
    out = x.new_empty((n, height, width, k))
    if out.numel() == 0:
        return out.permute(0, 3, 1, 2)
    _, of_window, of_tile = _transforms()
    down, across = -(-height // _TILE), -(-width // _TILE)
    tiles_at_once = max(_FEWEST_TILES_AT_ONCE, _NUMBERS_AT_ONCE // max(c, k))
    images_at_once = max(1, min(n, tiles_at_once // (down * across)))
    rows_at_once = down if images_at_once > 1 else max(1, min(down, tiles_at_once // across))
    padded = x.new_zeros((images_at_once, _TILE * rows_at_once + 2, _TILE * across + 2, c))
    for image, row in itertools.product(range(0, n, images_at_once), range(0, down, rows_at_once)):
        images, rows = min(images_at_once, n - image), min(rows_at_once, down - row)
        _fill(padded[:images], x[image : image + images], _TILE * row - 1)
        windows = _windows(padded, images, rows, across)
        products = torch.bmm((of_window @ windows.view(_WINDOW**2, -1)).view(_WINDOW**2, -1, c), filters)
        results = (of_tile @ products.view(_WINDOW**2, -1)).view(_TILE, _TILE, images, rows, across, k)
        part = out[image : image + images, _TILE * row : _TILE * (row + rows)]
        _put_together(part, results.permute(2, 3, 0, 4, 1, 5), bias)
        if rectify:
            part.relu_()
    return out.permute(0, 3, 1, 2)


def _fill(padded: torch.Tensor, x: torch.Tensor, first: int) -> None:
    """Copy rows of `x (N, H, W, C)` from number `first` on, with zeros for those that there are not."""
    top, bottom = max(first, 0), min(first + padded.shape[1], x.shape[1])
    padded[:, : top - first] = 0
    padded[:, top - first : bottom - first, 1 : x.shape[2] + 1] = x[:, top:bottom]
    padded[:, bottom - first :] = 0


def _windows(padded: torch.Tensor, images: int, rows: int, across: int) -> torch.Tensor:
    """The cells that each tile depends on, `(6, 6, images, rows, across, C)`."""
    of_image, of_row, of_cell, _ = padded.stride()
    size = (_WINDOW, _WINDOW, images, rows, across, padded.shape[3])
    return padded.as_strided(size, (of_row, of_cell, of_image, _TILE * of_row, _TILE * of_cell, 1)).contiguous()


def _put_together(out: torch.Tensor, results: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Write tiles `(images, rows, 4, across, 4, K)` side by side, as far as they lie in `out (images, H, W, K)`."""
    for (y, down, high), (x, across, wide) in itertools.product(_spans(out.shape[1]), _spans(out.shape[2])):
        part = (
            out[:, y : y + down * high, x : x + across * wide].unflatten(1, (down, high)).unflatten(3, (across, wide))
        )
        first, left = y // _TILE, x // _TILE
        tiles = results[:, first : first + down, :high, left : left + across, :wide]
        if bias is None:
            part.copy_(tiles)
        else:
            torch.add(tiles, bias, out=part)


def _spans(size: int) -> list[tuple[int, int, int]]:
    """Where whole tiles and the rest of one begin, how many they are, and how much of each counts."""
    whole, rest = divmod(size, _TILE)
    spans = (0, whole, _TILE), (_TILE * whole, 1, rest)
    return [span for span in spans if span[1] * span[2] > 0]


@functools.cache
def _transforms() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Matrices `(36, 9)`, `(36, 36)`, `(16, 36)` of filters, windows and results (Toom and Cook's algorithm).

    A filter of 3 and a window of 6 numbers are polynomials. Their values at five points and at infinity are multiplied,
    and the product is interpolated; of its coefficients, by transposition, the results are sums. These points round
    less than whole numbers do.
    """
    ends = [Fraction(0)] * (_WINDOW - 1)
    filters, windows, tiles = [], [], []
    for point in _POINTS:
        others = [p for p in _POINTS if p != point]
        scale = Fraction(1)
        for p in others:
            scale *= point - p
        filters.append([point**i / scale for i in range(3)])
        windows.append([*_with_roots(others), Fraction(0)])
        tiles.append([point**i for i in range(_TILE)])
    filters.append([*ends[:2], Fraction(1)])
    windows.append(_with_roots(_POINTS))
    tiles.append([*ends[: _TILE - 1], Fraction(1)])
    matrices = [
        torch.tensor([[float(v) for v in row] for row in m], dtype=torch.float64) for m in (filters, windows, tiles)
    ]
    of_filter, of_window, of_tile = (torch.kron(m, m).float() for m in (matrices[0], matrices[1], matrices[2].t()))
    return of_filter, of_window, of_tile


def _with_roots(roots: "tuple[Fraction, ...] | list[Fraction]") -> list[Fraction]:
    """Coefficients, the constant one first, of the polynomial with these roots."""
    polynomial = [Fraction(1)]
    for root in roots:
        shifted, scaled = [Fraction(0), *polynomial], [*(-root * v for v in polynomial), Fraction(0)]
        polynomial = [a + b for a, b in zip(shifted, scaled, strict=True)]
    return polynomial


def add_pointwise_conv2d_(
    out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, rectify: bool = False
) -> torch.Tensor:
    """Add a 1x1 convolution of `x` to `out` in place: no map is written that is read only once.

    Args:
        out: map `(N, K, H, W)` with channels last in memory; changed.
        x: map `(N, C, H, W)` with channels last in memory.
        weight: filters `(K, C, 1, 1)`.
        bias: `(K,)`, added too.
        rectify: replace negative sums by 0.

    Returns:
        `out`.

    Raises:
        ValueError: a map does not have channels last in memory.

    Example:
        >>> from detectron2.layers.fast_convolution import add_pointwise_conv2d_
        >>> x = torch.ones(1, 8, 4, 5).contiguous(memory_format=torch.channels_last)
        >>> out = torch.zeros(1, 2, 4, 5).contiguous(memory_format=torch.channels_last)
        >>> float(add_pointwise_conv2d_(out, x, torch.ones(2, 8, 1, 1), torch.ones(2))[0, 0, 0, 0])
        9.0
    """
    for name, t in (("out", out), ("x", x)):
        if not t.is_contiguous(memory_format=torch.channels_last):
            raise ValueError(
                f"add_pointwise_conv2d_ takes maps with channels last in memory; {name} has strides {t.stride()}. Make "
                "a copy with .contiguous(memory_format=torch.channels_last)."
            )
    k, c = weight.shape[:2]
    matrix = weight.view(k, c).t()
    with torch.no_grad():
        parts = (t.permute(0, 2, 3, 1).view(-1, t.shape[1]).split(_PIXELS_AT_ONCE) for t in (out, x))
        for sums, pixels in zip(*parts, strict=True):
            sums.addmm_(pixels, matrix)
            if bias is not None:
                sums += bias
            if rectify:
                sums.relu_()
    return out
