"""The transformer of Deformable DETR: an encoder of feature maps and a decoder of object queries.

Zhu et al., "Deformable DETR" (https://arxiv.org/abs/2010.04159), section 4 and appendix A; what DINO changes is in
`dino`. Parameters have the names of the published implementations.

Letters: `N` images, `L` feature maps (levels), `S` cells of all maps, `Q` queries, `K` classes, `C` channels. Boxes are
`(centre x, centre y, width, height)` and points `(x, y)`, both in parts of the image without its padding.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from detectron2.layers import DeformableEncoderLayer, MultiScaleDeformableAttention, sine_embedding

__all__ = [
    "MLP",
    "Decoder",
    "DecoderLayer",
    "DeformableTransformer",
    "Encoder",
    "EncoderDecoder",
    "Levels",
    "Prediction",
    "best_rows",
    "box_embedding",
    "inverse_sigmoid",
    "refine_boxes",
    "take_rows",
]


class Prediction(NamedTuple):
    """What is predicted for each query, or for each cell."""

    logits: torch.Tensor
    """`Tensor[N, Q, K]`; the sigmoid of each is a score."""
    boxes: torch.Tensor
    """`Tensor[N, Q, 4]`."""


def inverse_sigmoid(x: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """The number whose sigmoid is `x`, from 0 to 1; `x` and `1 - x` count as at least `eps`."""
    return (x.clamp(eps, 1.0) / (1 - x).clamp(eps, 1.0)).log()


def refine_boxes(deltas: torch.Tensor, references: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """Boxes `Tensor[..., 4]`: references, points or boxes, moved by deltas `Tensor[..., 4]` before the sigmoid."""
    known = references.shape[-1]
    moved = deltas[..., :known] + inverse_sigmoid(references, eps)
    return torch.cat([moved, deltas[..., known:]], dim=-1).sigmoid()


def box_embedding(boxes: torch.Tensor, num_channels: int) -> torch.Tensor:
    """Sines and cosines of each coordinate: `Tensor[..., D]` to `Tensor[..., D * num_channels]`."""
    return sine_embedding(boxes * (2 * math.pi), num_channels).flatten(-2)


def take_rows(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The rows `index`, int64 `Tensor[N, Q]`, of each image of `Tensor[N, S, D]`: `Tensor[N, Q, D]`."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def best_rows(scores: torch.Tensor, number: int) -> torch.Tensor:
    """The rows with the highest of scores `Tensor[N, S]`, int64 `Tensor[N, number]`; a ValueError if they are fewer."""
    if scores.shape[1] < number:
        raise ValueError(
            f"{number} queries (NUM_OBJECT_QUERIES) are made of the cells of feature maps, but these have "
            f"only {scores.shape[1]}; take larger images (INPUT.MIN_SIZE_TRAIN, INPUT.MIN_SIZE_TEST) or fewer queries"
        )
    return scores.topk(number, dim=1).indices


class MLP(nn.Module):
    """Linear layers with rectifiers between them.

    Args:
        *channels: the input's and those after each layer.
    """

    def __init__(self, *channels: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply all layers to the last dimension."""
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


@dataclass(frozen=True)
class Levels:
    """The feature maps of a batch as one sequence of cells: one map after the other, each row by row."""

    cells: torch.Tensor
    """`Tensor[N, S, C]`."""
    positions: torch.Tensor
    """`Tensor[N, S, C]`: embedded positions, with those of the levels."""
    padding: torch.Tensor
    """bool `Tensor[N, S]`, True for cells outside of the image."""
    shapes: tuple[tuple[int, int], ...]
    """`(height, width)` of each map, in cells."""
    image_wh: torch.Tensor
    """`Tensor[N, L, 2]`: how many cells of each map the image covers, across and down."""

    @classmethod
    def of_maps(
        cls,
        maps: Sequence[torch.Tensor],
        positions: Sequence[torch.Tensor],
        paddings: Sequence[torch.Tensor],
        level_embed: torch.Tensor,
    ) -> "Levels":
        """Join maps and positions `Tensor[N, C, H, W]` and paddings `Tensor[N, H, W]`; see `EncoderDecoder.encode`."""
        flat = [p.flatten(2).transpose(1, 2) + level for p, level in zip(positions, level_embed, strict=True)]
        image_wh = [torch.stack([(~p)[:, 0].sum(1), (~p)[:, :, 0].sum(1)], dim=1) for p in paddings]
        return cls(
            cells=torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1),
            positions=torch.cat(flat, dim=1),
            padding=torch.cat([p.flatten(1) for p in paddings], dim=1),
            shapes=tuple((x.shape[2], x.shape[3]) for x in maps),
            image_wh=torch.stack(image_wh, dim=1).to(maps[0].dtype),
        )

    def on_maps(self, references: torch.Tensor) -> torch.Tensor:
        """Points or boxes `Tensor[N, Q, D]` in parts of each padded map, `Tensor[N, Q, L, D]`."""
        size_wh = [torch.tensor([w, h], dtype=self.image_wh.dtype, device=self.image_wh.device) for h, w in self.shapes]
        ratios = self.image_wh / torch.stack(size_wh)
        return references[:, :, None] * ratios.repeat(1, 1, references.shape[2] // 2)[:, None]

    def centers(self) -> torch.Tensor:
        """The middle of each cell, `Tensor[N, S, 2]`; beyond 1 in padding."""
        points, options = [], {"dtype": self.image_wh.dtype, "device": self.image_wh.device}
        for (height, width), image_wh in zip(self.shapes, self.image_wh.unbind(1), strict=True):
            y, x = torch.meshgrid(torch.arange(height, **options), torch.arange(width, **options), indexing="ij")
            cells = torch.stack([x, y], dim=2).flatten(0, 1) + 0.5
            points.append(cells / image_wh[:, None])
        return torch.cat(points, dim=1)

    def anchors(self) -> torch.Tensor:
        """A box around the middle of each cell, `Tensor[N, S, 4]`: of 0.05 on the finest map, doubled on each next."""
        centers = self.centers()
        sides = [0.05 * 2.0**level for level in range(len(self.shapes))]
        columns = [centers.new_full((h * w, 2), side) for (h, w), side in zip(self.shapes, sides, strict=True)]
        return torch.cat([centers, torch.cat(columns).expand(centers.shape[0], -1, -1)], dim=2)


class Encoder(nn.Module):
    """Layers that let each cell look at all maps around its own place."""

    def __init__(self, layers: Sequence[DeformableEncoderLayer]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, levels: Levels) -> torch.Tensor:
        """The encoded cells, `Tensor[N, S, C]`."""
        cells, references = levels.cells, levels.on_maps(levels.centers())
        for layer in self.layers:
            cells = layer(cells, levels.positions, references, levels.shapes, levels.padding)
        return cells


class DecoderLayer(nn.Module):
    """Self-attention of queries, deformable attention to the encoded cells, and a feed-forward network."""

    def __init__(
        self, embed_dim: int, num_heads: int, num_levels: int, num_points: int, feedforward_dim: int, dropout: float
    ):
        super().__init__()
        self.cross_attn = MultiScaleDeformableAttention(embed_dim, num_heads, num_levels, num_points)
        self.dropout1 = nn.Dropout(dropout)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.self_attn = nn.MultiheadAttention(embed_dim, num_heads, dropout=dropout, batch_first=True)
        self.dropout2 = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.linear1 = nn.Linear(embed_dim, feedforward_dim)
        self.dropout3 = nn.Dropout(dropout)
        self.linear2 = nn.Linear(feedforward_dim, embed_dim)
        self.dropout4 = nn.Dropout(dropout)
        self.norm3 = nn.LayerNorm(embed_dim)

    def forward(
        self,
        queries: torch.Tensor,
        positions: torch.Tensor,
        references: torch.Tensor,
        memory: torch.Tensor,
        levels: Levels,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Update queries; see `Decoder.forward`. `references` are those on each map, `Tensor[N, Q, L, 2 or 4]`."""
        keys = queries + positions
        found = self.self_attn(keys, keys, queries, attn_mask=attention_mask, need_weights=False)[0]
        queries = self.norm2(queries + self.dropout2(found))
        found = self.cross_attn(queries + positions, references, memory, levels.shapes, levels.padding)
        queries = self.norm1(queries + self.dropout1(found))
        hidden = self.linear2(self.dropout3(self.linear1(queries).relu()))
        return self.norm3(queries + self.dropout4(hidden))


class Decoder(nn.Module):
    """Layers that let each query look at the encoded cells around its reference.

    Args:
        layers: the layers.
        embed_dim: channels `C`.
        positions_from_boxes: whether positions of queries are computed anew in each layer, from the boxes that they
            refer to (DAB-DETR, https://arxiv.org/abs/2201.12329, section 4.2), and what is returned is normalised.
        look_forward_twice: whether the box of a layer is also improved by the loss of the next one (DINO, section 3.5).
        eps: see `inverse_sigmoid`.

    Attributes:
        bbox_embed: predicts deltas of boxes in each layer, which become the references of the next one; None where
            references stay. Detectors set it, and `class_embed`, to their own heads, as published.
    """

    bbox_embed: nn.ModuleList | None
    class_embed: nn.ModuleList | None

    def __init__(
        self,
        layers: Sequence[DecoderLayer],
        embed_dim: int,
        *,
        positions_from_boxes: bool = False,
        look_forward_twice: bool = False,
        eps: float = 1e-5,
    ):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.bbox_embed = self.class_embed = None
        self.look_forward_twice = look_forward_twice
        self.eps = eps
        self.norm = nn.LayerNorm(embed_dim) if positions_from_boxes else nn.Identity()
        self.ref_point_head = MLP(2 * embed_dim, embed_dim, embed_dim) if positions_from_boxes else None

    def forward(
        self,
        queries: torch.Tensor,
        positions: torch.Tensor | None,
        references: torch.Tensor,
        memory: torch.Tensor,
        levels: Levels,
        attention_mask: torch.Tensor | None = None,
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Decode.

        Args:
            queries: `Tensor[N, Q, C]`.
            positions: `Tensor[N, Q, C]`; None where they are computed from boxes.
            references: points `Tensor[N, Q, 2]` or boxes `Tensor[N, Q, 4]`.
            memory: the encoded cells, `Tensor[N, S, C]`.
            levels: where they lie.
            attention_mask: bool `Tensor[Q, Q]`, True where the query of a row does not see that of a column.

        Returns:
            For each layer the queries after it, and the references that its boxes are relative to.
        """
        states, befores = [], [references]
        for i, layer in enumerate(self.layers):
            on_maps = levels.on_maps(references)
            if self.ref_point_head is not None:
                # As published, in parts of the padded first map; rows come before columns.
                y_first = on_maps[:, :, 0][..., [1, 0, 2, 3]]
                positions = self.ref_point_head(box_embedding(y_first, queries.shape[2] // 2))
            queries = layer(queries, positions, on_maps, memory, levels, attention_mask)
            states.append(self.norm(queries))
            if i + 1 == len(self.layers):
                break
            before = references
            if self.bbox_embed is not None:
                before = refine_boxes(self.bbox_embed[i](queries), references, self.eps)
                references = before.detach()
            befores.append(before if self.look_forward_twice else references)
        return states, befores


class EncoderDecoder(nn.Module):
    """What the transformers of Deformable DETR and DINO share.

    Args:
        embed_dim: channels `C`, a multiple of 4 and of `num_heads`.
        num_heads: attention heads.
        num_levels: feature maps `L`.
        num_points: points that a head looks at on each map.
        encoder_layers: number of layers of the encoder.
        decoder_layers: number of layers of the decoder.
        feedforward_dim: channels within the feed-forward networks.
        dropout: share of values that training sets to zero.
        has_proposals: whether queries begin with boxes that the encoder proposes.
        positions_from_boxes: see `Decoder`.
        look_forward_twice: see `Decoder`.
        eps: see `inverse_sigmoid`.
    """

    def __init__(
        self,
        embed_dim: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        feedforward_dim: int = 1024,
        dropout: float = 0.1,
        *,
        has_proposals: bool,
        positions_from_boxes: bool = False,
        look_forward_twice: bool = False,
        eps: float = 1e-5,
    ):
        super().__init__()
        self.embed_dim = embed_dim
        self.num_levels = num_levels
        sizes = (embed_dim, num_heads, num_levels, num_points, feedforward_dim, dropout)
        self.encoder = Encoder([DeformableEncoderLayer(*sizes) for _ in range(encoder_layers)])
        self.decoder = Decoder(
            [DecoderLayer(*sizes) for _ in range(decoder_layers)],
            embed_dim,
            positions_from_boxes=positions_from_boxes,
            look_forward_twice=look_forward_twice,
            eps=eps,
        )
        self.level_embed = nn.Parameter(torch.empty(num_levels, embed_dim))
        if has_proposals:
            self.enc_output = nn.Linear(embed_dim, embed_dim)
            self.enc_output_norm = nn.LayerNorm(embed_dim)

    def reset_parameters(self) -> None:
        """Set the weights with which training begins."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, MultiScaleDeformableAttention):
                module.reset_parameters()
        nn.init.normal_(self.level_embed)

    def encode(
        self, maps: Sequence[torch.Tensor], positions: Sequence[torch.Tensor], paddings: Sequence[torch.Tensor]
    ) -> tuple[Levels, torch.Tensor]:
        """Encode feature maps.

        Args:
            maps: of each level `Tensor[N, C, H, W]`.
            positions: of each level `Tensor[N, C, H, W]`.
            paddings: of each level bool `Tensor[N, H, W]`, True for padding.

        Returns:
            The cells of all maps, and the same encoded, `Tensor[N, S, C]`.
        """
        levels = Levels.of_maps(maps, positions, paddings, self.level_embed)
        return levels, self.encoder(levels)

    def propose(self, memory: torch.Tensor, levels: Levels) -> tuple[torch.Tensor, torch.Tensor]:
        """What proposals are predicted from (appendix A.4).

        Args:
            memory: the encoded cells, `Tensor[N, S, C]`.
            levels: where they lie.

        Returns:
            Features `Tensor[N, S, C]` and the box of each cell before the sigmoid, `Tensor[N, S, 4]`. Of cells in
            padding and next to the border of the image, the features are constant and the box is infinite.
        """
        anchors = levels.anchors()
        usable = ((anchors > 0.01) & (anchors < 0.99)).all(2, keepdim=True) & ~levels.padding[..., None]
        features = self.enc_output_norm(self.enc_output(memory.masked_fill(~usable, 0.0)))
        return features, anchors.logit().masked_fill(~usable, float("inf"))


class DeformableTransformer(EncoderDecoder):
    """The transformer of Deformable DETR.

    Args:
        two_stage: whether queries are made of boxes that the encoder proposes; else they are learned.
        **sizes: of `EncoderDecoder`: `embed_dim`, `num_heads`, `num_levels`, `num_points`, `encoder_layers`,
            `decoder_layers`, `feedforward_dim` and `dropout`.

    Example:
        >>> from detectron2.projects.deformable_detr import DeformableTransformer
        >>> transformer = DeformableTransformer(embed_dim=32, num_levels=1, encoder_layers=1, decoder_layers=2)
        >>> maps, padding = torch.rand(1, 32, 4, 6), torch.zeros(1, 4, 6, dtype=torch.bool)
        >>> states, references, _ = transformer([maps], [torch.zeros_like(maps)], [padding], 5, torch.rand(5, 64))
        >>> len(states), states[0].shape, references[0].shape
        (2, torch.Size([1, 5, 32]), torch.Size([1, 5, 2]))
    """

    def __init__(self, two_stage: bool = False, **sizes: Any):
        super().__init__(has_proposals=two_stage, **sizes)
        self.two_stage = two_stage
        if two_stage:
            self.pos_trans = nn.Linear(2 * self.embed_dim, 2 * self.embed_dim)
            self.pos_trans_norm = nn.LayerNorm(2 * self.embed_dim)
        else:
            self.reference_points = nn.Linear(self.embed_dim, 2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the weights with which training begins."""
        super().reset_parameters()
        if not self.two_stage:
            nn.init.zeros_(self.reference_points.bias)

    def forward(
        self,
        maps: Sequence[torch.Tensor],
        positions: Sequence[torch.Tensor],
        paddings: Sequence[torch.Tensor],
        num_queries: int,
        query_embed: torch.Tensor | None = None,
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], Prediction | None]:
        """Encode feature maps and decode queries.

        Args:
            maps: see `EncoderDecoder.encode`.
            positions: see `EncoderDecoder.encode`.
            paddings: see `EncoderDecoder.encode`.
            num_queries: `Q`.
            query_embed: positions and contents of learned queries, `Tensor[Q, 2 * C]`; None for proposed ones.

        Returns:
            As `Decoder.forward`; and what the encoder proposes, of which class 0 means any object, or None.
        """
        levels, memory = self.encode(maps, positions, paddings)
        proposals = None
        if query_embed is None:
            proposals, references = self._best_proposals(memory, levels, num_queries)
            embedded = self.pos_trans_norm(self.pos_trans(box_embedding(references, self.embed_dim // 2)))
            query_positions, queries = embedded.chunk(2, dim=2)
        else:
            query_positions, queries = query_embed.expand(memory.shape[0], -1, -1).chunk(2, dim=2)
            references = self.reference_points(query_positions).sigmoid()
        states, references = self.decoder(queries, query_positions, references, memory, levels)
        return states, references, proposals

    def _best_proposals(
        self, memory: torch.Tensor, levels: Levels, num_queries: int
    ) -> tuple[Prediction, torch.Tensor]:
        """The proposals of all cells, and the boxes of the best."""
        heads = self.decoder
        assert heads.class_embed is not None and heads.bbox_embed is not None, "the detector sets them"
        features, anchors = self.propose(memory, levels)
        logits, boxes = heads.class_embed[-1](features), (heads.bbox_embed[-1](features) + anchors).sigmoid()
        return Prediction(logits, boxes), take_rows(boxes, best_rows(logits[..., 0], num_queries)).detach()
