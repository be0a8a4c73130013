"""Attention that looks at a few points of several feature maps.

Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection"
(https://arxiv.org/abs/2010.04159), section 4.1.

Letters: `N` images, `L` feature maps (levels), `S` cells of all maps, `Q` queries, `M` heads, `P` points that a head
looks at on each map, `D` channels of a head, `C = M * D` channels.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["DeformableEncoderLayer", "MultiScaleDeformableAttention", "multi_scale_deformable_attention"]


def multi_scale_deformable_attention(
    value: torch.Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
) -> torch.Tensor:
    """Weighted sum of bilinear samples of several feature maps (equation 3 of the paper, without its projections).

    Points outside a map count as zero; those less than one cell outside count in part.

    Args:
        value: `Tensor[N, S, M, D]`, the cells of all maps, one map after the other, each row by row.
        spatial_shapes: `(height, width)` of each of the `L` maps.
        sampling_locations: `Tensor[N, Q, M, L, P, 2]` as `(x, y)` in parts of the map: `(0, 0)` is the upper left
            corner of its first cell, `(1, 1)` the lower right corner of its last one.
        attention_weights: `Tensor[N, Q, M, L, P]`.

    Returns:
        `Tensor[N, Q, M * D]`.

    Raises:
        ValueError: `value` has another number of cells than the maps.

    Example:
        >>> from detectron2.layers import multi_scale_deformable_attention
        >>> value = torch.arange(5.0).view(1, 5, 1, 1)  # a map of 2 x 2 cells and one of 1 x 1
        >>> middle = torch.full((1, 1, 1, 2, 1, 2), 0.5)
        >>> multi_scale_deformable_attention(value, [(2, 2), (1, 1)], middle, torch.ones(1, 1, 1, 2, 1))
        tensor([[[5.5000]]])
    """
    sizes = [h * w for h, w in spatial_shapes]
    if value.shape[1] != sum(sizes):
        raise ValueError(
            f"value has {value.shape[1]} cells, but maps of {list(spatial_shapes)} (height, width) have {sum(sizes)}"
        )
    images, queries, heads = sampling_locations.shape[:3]
    maps = value.permute(0, 2, 3, 1).flatten(0, 1).split(sizes, dim=2)  # of each level (N M, D, H W)
    grids = (2 * sampling_locations - 1).transpose(1, 2).flatten(0, 1)  # (N M, Q, L, P, 2)
    weights = attention_weights.transpose(1, 2).flatten(0, 1)[:, None]  # (N M, 1, Q, L, P)
    out = value.new_zeros(())
    for level, (cells, shape) in enumerate(zip(maps, spatial_shapes, strict=True)):
        samples = F.grid_sample(
            cells.unflatten(2, tuple(shape)), grids[:, :, level], padding_mode="zeros", align_corners=False
        )  # (N M, D, Q, P)
        out = out + (samples * weights[:, :, :, level]).sum(3)
    return out.view(images, heads * value.shape[3], queries).transpose(1, 2)


class MultiScaleDeformableAttention(nn.Module):
    """Attention of each query to a few points around its reference on every feature map.

    Offsets of the points and weights are linear functions of the query. At the start the points of a head lie in one
    of `num_heads` directions, 1 to `num_points` cells away, all with the same weight. Parameters have the names of the
    published implementation, `MSDeformAttn`.

    Args:
        embed_dim: channels `C` of queries, values and results.
        num_heads: heads `M`.
        num_levels: feature maps `L`.
        num_points: points `P` of each head on each map.

    Raises:
        ValueError: `embed_dim` is not a multiple of `num_heads`.

    Example:
        >>> from detectron2.layers import MultiScaleDeformableAttention
        >>> attention = MultiScaleDeformableAttention(embed_dim=64, num_heads=4, num_levels=2, num_points=3)
        >>> cells = torch.rand(1, 8 * 10 + 4 * 5, 64)  # two maps
        >>> references = torch.rand(1, 7, 2, 2)  # of 7 queries, (x, y) on each map
        >>> attention(torch.rand(1, 7, 64), references, cells, [(8, 10), (4, 5)]).shape
        torch.Size([1, 7, 64])
    """

    def __init__(self, embed_dim: int = 256, num_heads: int = 8, num_levels: int = 4, num_points: int = 4):
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim must be a multiple of num_heads, got {embed_dim} and {num_heads}")
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        points = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(embed_dim, points * 2)
        self.attention_weights = nn.Linear(embed_dim, points)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the weights with which training begins."""
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=1)
        direction = direction / direction.abs().amax(1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1)
        offsets = direction[:, None, None] * steps[:, None]  # (M, 1, P, 2)
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.num_levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: torch.Tensor,
        reference_points: torch.Tensor,
        value: torch.Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        padding_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend.

        Args:
            query: `Tensor[N, Q, C]`, with positions if they are to count.
            reference_points: `Tensor[N, Q, L, 2]`, `(x, y)` in parts of each map, offsets are then in cells; or
                `Tensor[N, Q, L, 4]`, boxes `(centre x, centre y, width, height)`, offsets are then in parts of half a
                box, times `1 / P`.
            value: `Tensor[N, S, C]`, the cells of all maps, one map after the other, each row by row.
            spatial_shapes: `(height, width)` of each map.
            padding_mask: `Tensor[N, S]`, True for cells that count as zero.

        Returns:
            `Tensor[N, Q, C]`.

        Raises:
            ValueError: the references have neither two nor four numbers.
        """
        heads = (self.num_heads, self.num_levels, self.num_points)
        value = self.value_proj(value)
        if padding_mask is not None:
            value = value.masked_fill(padding_mask[..., None], 0.0)
        offsets = self.sampling_offsets(query).unflatten(2, (*heads, 2))
        weights = self.attention_weights(query).unflatten(2, (self.num_heads, -1)).softmax(3).unflatten(3, heads[1:])
        references = reference_points[:, :, None, :, None]  # (N, Q, 1, L, 1, 2 or 4)
        if reference_points.shape[-1] == 2:
            sizes = torch.tensor([(w, h) for h, w in spatial_shapes], dtype=offsets.dtype, device=offsets.device)
            locations = references + offsets / sizes[:, None]
        elif reference_points.shape[-1] == 4:
            locations = references[..., :2] + offsets / self.num_points * references[..., 2:] * 0.5
        else:
            raise ValueError(f"reference points have 2 or 4 numbers, got shape {tuple(reference_points.shape)}")
        out = multi_scale_deformable_attention(
            value.unflatten(2, (self.num_heads, -1)), spatial_shapes, locations, weights
        )
        return self.output_proj(out)


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward network, each with a residual connection and a norm after it.

    A layer of Deformable DETR's encoder, which other models use too; its parameters have the published names.

    Args:
        embed_dim: channels `C`.
        num_heads: heads `M`.
        num_levels: feature maps `L`.
        num_points: points `P` of each head on each map.
        feedforward_dim: channels within the feed-forward network.
        dropout: share of values that training sets to zero.

    Example:
        >>> from detectron2.layers import DeformableEncoderLayer
        >>> layer = DeformableEncoderLayer(64, 4, num_levels=1, num_points=4, feedforward_dim=128, dropout=0.0)
        >>> cells, places = torch.rand(2, 6, 64), torch.rand(1, 6, 1, 2)
        >>> layer(cells, torch.zeros_like(cells), places, [(2, 3)]).shape
        torch.Size([2, 6, 64])
    """

    def __init__(
        self, embed_dim: int, num_heads: int, num_levels: int, num_points: int, feedforward_dim: int, dropout: float
    ):
        super().__init__()
        self.self_attn = MultiScaleDeformableAttention(embed_dim, num_heads, num_levels, num_points)
        self.dropout1 = nn.Dropout(dropout)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.linear1 = nn.Linear(embed_dim, feedforward_dim)
        self.dropout2 = nn.Dropout(dropout)
        self.linear2 = nn.Linear(feedforward_dim, embed_dim)
        self.dropout3 = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(embed_dim)

    def forward(
        self,
        cells: torch.Tensor,
        positions: torch.Tensor,
        reference_points: torch.Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        padding_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Let the cells of all maps look at each other.

        Args:
            cells: `Tensor[N, S, C]`.
            positions: `Tensor[N, S, C]`, added to the cells where they ask.
            reference_points: `Tensor[N, S, L, 2]`, the middle of each cell in parts of each map.
            spatial_shapes: `(height, width)` of each map.
            padding_mask: `Tensor[N, S]`, True for cells that count as zero.

        Returns:
            `Tensor[N, S, C]`.
        """
        found = self.self_attn(cells + positions, reference_points, cells, spatial_shapes, padding_mask)
        cells = self.norm1(cells + self.dropout1(found))
        hidden = self.linear2(self.dropout2(self.linear1(cells).relu()))
        return self.norm2(cells + self.dropout3(hidden))
