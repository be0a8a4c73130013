"""Parts that vision transformers share: windows, patches, positions, attention that knows distances, linear layers.

Images and maps of tokens have their channels last here, `Tensor[N, H, W, C]`. Sizes are `(height, width)` in tokens.

Letters: `N` images, `B` images times heads (or times windows), `C` channels, `D` channels of one head, `S` side of a
window in tokens, `L` entries of a table of relative positions.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import StochasticDepth

__all__ = [
    "Mlp",
    "PatchEmbed",
    "add_decomposed_rel_pos",
    "decomposed_attention",
    "drop_path",
    "get_abs_pos",
    "get_rel_pos",
    "init_linear_and_norm",
    "window_partition",
    "window_unpartition",
]


def window_partition(x: torch.Tensor, window_size: int) -> tuple[torch.Tensor, tuple[int, int]]:
    """Cut maps into windows that do not overlap; zeros fill up at the bottom and at the right.

    Args:
        x: maps `Tensor[N, H, W, C]`.
        window_size: side `S` of a window, in tokens.

    Returns:
        The windows `Tensor[N * windows, S, S, C]`, image after image and row after row, and `(height, width)` of the
        maps with their padding.
    """
    n, height, width, channels = x.shape
    rows, columns = -(-height // window_size), -(-width // window_size)
    padded_hw = (rows * window_size, columns * window_size)
    if padded_hw != (height, width):
        x = F.pad(x, (0, 0, 0, padded_hw[1] - width, 0, padded_hw[0] - height))
    x = x.view(n, rows, window_size, columns, window_size, channels).transpose(2, 3)
    return x.reshape(n * rows * columns, window_size, window_size, channels), padded_hw


def window_unpartition(
    windows: torch.Tensor, window_size: int, pad_hw: tuple[int, int], hw: tuple[int, int]
) -> torch.Tensor:
    """Put windows `Tensor[N * windows, S, S, C]` together again, and take the padding away: `Tensor[N, H, W, C]`.

    This is the inverse of `window_partition`. `pad_hw` is the size of the maps with padding, `hw` without it.
    """
    rows, columns = pad_hw[0] // window_size, pad_hw[1] // window_size
    n, channels = windows.shape[0] // (rows * columns), windows.shape[-1]
    x = windows.view(n, rows, columns, window_size, window_size, channels).transpose(2, 3)
    x = x.reshape(n, *pad_hw, channels)
    return x if tuple(pad_hw) == tuple(hw) else x[:, : hw[0], : hw[1]].contiguous()


def get_rel_pos(q_size: int, k_size: int, rel_pos: torch.Tensor) -> torch.Tensor:
    """Look up the embedding of the distance between every query and every key, along one axis.

    Where queries and keys have different resolutions, positions count in steps of the finer one (Li et al.,
    "MViTv2", arXiv:2112.01526, section 4.1).

    Args:
        q_size: queries along the axis.
        k_size: keys along the axis.
        rel_pos: a table `Tensor[L, D]`, from the key farthest ahead of the query to the one farthest behind. A table
            of another length than `2 * max(q_size, k_size) - 1` is resized to it linearly: this is how weights trained
            at one resolution serve at another.

    Returns:
        `Tensor[q_size, k_size, D]`.
    """
    length = 2 * max(q_size, k_size) - 1
    if rel_pos.shape[0] != length:
        rel_pos = F.interpolate(rel_pos.t()[None], size=length, mode="linear")[0].t()
    q_step, k_step = max(k_size / q_size, 1.0), max(q_size / k_size, 1.0)
    queries = torch.arange(q_size, device=rel_pos.device)[:, None] * q_step
    keys = torch.arange(k_size, device=rel_pos.device)[None, :] * k_step
    index = (queries - keys + (k_size - 1) * k_step).long()
    # index_select: its backward adds rows, while that of indexing sorts first.
    return rel_pos.index_select(0, index.flatten()).view(q_size, k_size, -1)


def _decomposed_rel_pos(
    q: torch.Tensor, rel_pos_h: torch.Tensor, rel_pos_w: torch.Tensor, q_size: tuple[int, int], k_size: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a query adds for each row and for each column of keys: `[B, q_h, q_w, k_h]`, `[B, q_h, q_w, k_w]`."""
    q = q.reshape(q.shape[0], *q_size, q.shape[-1])
    by_row = torch.einsum("bhwc,hkc->bhwk", q, get_rel_pos(q_size[0], k_size[0], rel_pos_h))
    by_column = torch.einsum("bhwc,wkc->bhwk", q, get_rel_pos(q_size[1], k_size[1], rel_pos_w))
    return by_row, by_column


def add_decomposed_rel_pos(
    attn: torch.Tensor,
    q: torch.Tensor,
    rel_pos_h: torch.Tensor,
    rel_pos_w: torch.Tensor,
    q_size: tuple[int, int],
    k_size: tuple[int, int],
) -> torch.Tensor:
    """Add relative positions, one term for the rows and one for the columns, to the logits of attention.

    Li et al., "MViTv2: Improved Multiscale Vision Transformers for Classification and Detection", arXiv:2112.01526,
    equation 4.

    Args:
        attn: logits `Tensor[B, q_h * q_w, k_h * k_w]`.
        q: queries `Tensor[B, q_h * q_w, D]`, not scaled.
        rel_pos_h: table for vertical distances, `Tensor[L_h, D]`, as `get_rel_pos` takes it.
        rel_pos_w: table for horizontal distances, `Tensor[L_w, D]`.
        q_size: `(q_h, q_w)`.
        k_size: `(k_h, k_w)`.

    Returns:
        New logits, of the same shape.
    """
    by_row, by_column = _decomposed_rel_pos(q, rel_pos_h, rel_pos_w, q_size, k_size)
    logits = attn.view(-1, *q_size, *k_size) + by_row[..., :, None] + by_column[..., None, :]
    return logits.view(attn.shape)


def decomposed_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    rel_pos_h: torch.Tensor,
    rel_pos_w: torch.Tensor,
    q_size: tuple[int, int],
    k_size: tuple[int, int],
) -> torch.Tensor:
    """Attend to values by content and by distance.

    The same as `softmax(add_decomposed_rel_pos(scale * q @ k.T, q, ...)) @ v` (see `add_decomposed_rel_pos`) but
    for rounding, in less time and memory; `benchmarks/bench_attention.py` measures both.

    Args:
        q: queries `Tensor[B, q_h * q_w, D]`.
        k: keys `Tensor[B, k_h * k_w, D]`.
        v: values `Tensor[B, k_h * k_w, D]`.
        scale: factor of the products of queries and keys; the terms for distances are not scaled.
        rel_pos_h: as `add_decomposed_rel_pos` takes it.
        rel_pos_w: as `add_decomposed_rel_pos` takes it.
        q_size: `(q_h, q_w)`.
        k_size: `(k_h, k_w)`.

    Returns:
        `Tensor[B, q_h * q_w, D]`.
    """
    by_row, by_column = _decomposed_rel_pos(q, rel_pos_h, rel_pos_w, q_size, k_size)
    return _implementation(q, by_row)(q * scale, k, v, by_row, by_column)


def _implementation(q: torch.Tensor, by_row: torch.Tensor) -> Callable[..., torch.Tensor]:
    """The faster one for these queries and their terms for rows (measured by `benchmarks/bench_attention.py`)."""
    if q.device.type == "cpu" and (q.requires_grad or by_row.dtype in (torch.bfloat16, torch.float16)):
        return _attend_explicitly  # the fused kernel is slow there: backward by a third, in half precision by a half
    return _attend_fused


def _attend_explicitly(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, by_row: torch.Tensor, by_column: torch.Tensor
) -> torch.Tensor:
    """Attention with all logits in memory, once: the products are added to the terms for distances in place."""
    logits = (by_row[..., :, None] + by_column[..., None, :]).reshape(q.shape[0], q.shape[1], k.shape[1])
    # Autocast casts the arguments of functions, but not those of methods that work in place.
    logits.baddbmm_(q.to(logits.dtype), k.to(logits.dtype).transpose(1, 2))
    return logits.softmax(-1) @ v


def _attend_fused(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, by_row: torch.Tensor, by_column: torch.Tensor
) -> torch.Tensor:
    """Attention that never holds all logits, which take 800 MB for 64 x 64 tokens and 12 heads.

    A fused kernel has no place for a term that is a sum over rows and columns, but the term is itself a product: of
    the query's numbers for all rows and columns with a key's indicator of its own row and column. So these are
    appended to queries and keys.
    """
    channels, (rows, columns) = v.shape[-1], (by_row.shape[-1], by_column.shape[-1])
    width = -(-(channels + rows + columns) // 8) * 8  # kernels want multiples of 8 elements
    key_row = torch.eye(rows, device=k.device, dtype=k.dtype).repeat_interleave(columns, 0)
    key_column = torch.eye(columns, device=k.device, dtype=k.dtype).repeat(rows, 1)
    key_position = F.pad(torch.cat([key_row, key_column], 1), (0, width - channels - rows - columns))
    zeros = q.new_zeros(()).expand(*q.shape[:2], width - channels - rows - columns)
    q = torch.cat([q, by_row.flatten(1, 2), by_column.flatten(1, 2), zeros], -1)
    k = torch.cat([k, key_position.expand(k.shape[0], -1, -1)], -1)
    v = F.pad(v, (0, width - channels))  # the fastest kernels want values as wide as keys
    return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], scale=1.0)[:, 0, :, :channels]


def get_abs_pos(abs_pos: torch.Tensor, has_cls_token: bool, hw: tuple[int, int]) -> torch.Tensor:
    """Fit absolute position embeddings to a map.

    Args:
        abs_pos: `Tensor[1, positions, C]` for a square map, row after row.
        has_cls_token: whether the first position is that of a class token; it is left out.
        hw: `(height, width)` of the map. Embeddings of another size are resized bicubically.

    Returns:
        `Tensor[1, H, W, C]`.

    Raises:
        ValueError: the positions do not form a square.
    """
    if has_cls_token:
        abs_pos = abs_pos[:, 1:]
    side = math.isqrt(abs_pos.shape[1])
    if side * side != abs_pos.shape[1]:
        raise ValueError(
            f"get_abs_pos: {abs_pos.shape[1]} positions do not form a square; is has_cls_token={has_cls_token} right?"
        )
    abs_pos = abs_pos.reshape(1, side, side, -1)
    if (side, side) == tuple(hw):
        return abs_pos
    resized = F.interpolate(abs_pos.permute(0, 3, 1, 2), size=tuple(hw), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1)


def drop_path(rate: float) -> nn.Module:
    """Make the layer that leaves out a residual branch, at this rate, for a random part of the images of a batch.

    Huang et al., "Deep Networks with Stochastic Depth", arXiv:1603.09382. The branches that stay are scaled up, and
    nothing happens in evaluation.
    """
    return StochasticDepth(rate, "row") if rate > 0 else nn.Identity()


class PatchEmbed(nn.Module):
    """Images to tokens: every patch of the image becomes a vector, by one convolution.

    Args:
        kernel_size: `(height, width)` of a patch, in pixels.
        stride: between patches, in pixels.
        padding: of the image, in pixels.
        in_chans: channels of the image.
        embed_dim: length of the vectors.
    """

    def __init__(
        self,
        kernel_size: tuple[int, int] = (16, 16),
        stride: tuple[int, int] = (16, 16),
        padding: tuple[int, int] = (0, 0),
        in_chans: int = 3,
        embed_dim: int = 768,
    ):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=kernel_size, stride=stride, padding=padding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images `Tensor[N, in_chans, H, W]` to tokens `Tensor[N, H', W', embed_dim]`."""
        return self.proj(x).permute(0, 2, 3, 1)


class Mlp(nn.Module):
    """Two linear layers with an activation between, for each token by itself; `drop_rate` counts after either layer."""

    def __init__(
        self, channels: int, hidden_channels: int, act_layer: Callable[[], nn.Module] = nn.GELU, drop_rate: float = 0.0
    ):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden_channels)
        self.act = act_layer()
        self.fc2 = nn.Linear(hidden_channels, channels)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `Tensor[..., channels]` to the same shape."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


def init_linear_and_norm(module: nn.Module) -> None:
    """Draw the weights of a linear layer from a narrow normal distribution; make a layer norm the identity."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
        nn.init.ones_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
