"""The transformer decoder: queries look at the part of the image that they took for their object (section 3.2).

Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", https://arxiv.org/abs/2112.01527.

Letters: `N` images, `Q` queries, `K` classes, `C` channels, `D` channels of the map for masks, `L` feature maps
(levels), `S` cells of one of them, `H` and `W` height and width of a map in cells.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import SinePositionEmbedding
from detectron2.layers.weight_init import c2_xavier_fill
from detectron2.utils.registry import Registry, build_part

__all__ = ["TRANSFORMER_DECODER_REGISTRY", "MultiScaleMaskedTransformerDecoder", "build_transformer_decoder"]

TRANSFORMER_DECODER_REGISTRY = Registry("TRANSFORMER_MODULE")
"""Entries are called as `decoder(cfg, in_channels, mask_classification=True)`."""


def build_transformer_decoder(cfg: CfgNode, in_channels: int, mask_classification: bool = True) -> nn.Module:
    """The decoder that `cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME` names, for maps of this many channels."""
    arguments = {"in_channels": in_channels, "mask_classification": mask_classification}
    return build_part(TRANSFORMER_DECODER_REGISTRY, "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", cfg, **arguments)


def _attend(
    attention: nn.MultiheadAttention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of `Tensor[N, Q, C]` to `Tensor[N, S, C]` where the mask, bool `Tensor[N, 1, Q, S]`, is True.

    The module's own `forward` wants a mask for each head, and exported it fails for one image.
    """
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    query, key, value = (
        F.linear(x, weight, bias).unflatten(2, (attention.num_heads, -1)).transpose(1, 2)
        for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
    )
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
    return attention.out_proj(out.transpose(1, 2).flatten(2))


class _Residual(nn.Module):
    """A function of the queries as a residual, with its norm behind it or, with `pre_norm`, before it."""

    def __init__(self, dim: int, pre_norm: bool):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.pre_norm = pre_norm

    def add(self, queries: torch.Tensor, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Add what `function` makes of the queries, `Tensor[N, Q, C]`."""
        if self.pre_norm:
            return queries + function(self.norm(queries))
        return self.norm(queries + function(queries))

    def _reset_matrices(self) -> None:
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)


class _SelfAttentionLayer(_Residual):
    """Queries look at each other."""

    def __init__(self, dim: int, num_heads: int, pre_norm: bool):
        super().__init__(dim, pre_norm)
        self.self_attn = nn.MultiheadAttention(dim, num_heads)
        self._reset_matrices()

    def forward(self, queries: torch.Tensor, query_pos: torch.Tensor) -> torch.Tensor:
        return self.add(queries, lambda x: _attend(self.self_attn, x + query_pos, x + query_pos, x))


class _CrossAttentionLayer(_Residual):
    """Queries look at the cells of a map that are visible to them, see `_attend`."""

    def __init__(self, dim: int, num_heads: int, pre_norm: bool):
        super().__init__(dim, pre_norm)
        self.multihead_attn = nn.MultiheadAttention(dim, num_heads)
        self._reset_matrices()

    def forward(
        self,
        queries: torch.Tensor,
        cells: torch.Tensor,
        visible: torch.Tensor,
        cell_pos: torch.Tensor,
        query_pos: torch.Tensor,
    ) -> torch.Tensor:
        return self.add(
            queries, lambda x: _attend(self.multihead_attn, x + query_pos, cells + cell_pos, cells, visible)
        )


class _FFNLayer(_Residual):
    """Two linear layers for each query by itself."""

    def __init__(self, dim: int, dim_feedforward: int, pre_norm: bool):
        super().__init__(dim, pre_norm)
        self.linear1 = nn.Linear(dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, dim)
        self._reset_matrices()

    def forward(self, queries: torch.Tensor) -> torch.Tensor:
        return self.add(queries, lambda x: self.linear2(self.linear1(x).relu()))


class _MLP(nn.Module):
    """Linear layers with rectifiers between them."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int):
        super().__init__()
        widths = [in_dim] + [hidden_dim] * (num_layers - 1) + [out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x) if i == 0 else layer(x.relu())
        return x


@TRANSFORMER_DECODER_REGISTRY.register()
class MultiScaleMaskedTransformerDecoder(nn.Module):
    """Learned queries, each of which becomes a class and a mask.

    A layer is attention to one of three feature maps in turn, coarse to fine, masked by the prediction before it
    (equation 2); attention among queries; and two linear layers. A prediction is made before the first layer and after
    each.

    Args:
        in_channels: channels of the feature maps.
        mask_classification: must be True: without classes for queries there is no such model.
        num_classes: K.
        hidden_dim: channels `C` of queries.
        num_queries: Q.
        nheads: heads of attention.
        dim_feedforward: channels between the two linear layers.
        dec_layers: how many layers.
        pre_norm: whether norms come before what they belong to.
        mask_dim: channels `D`.
        enforce_input_project: whether maps pass a convolution even if they have `C` channels.

    Raises:
        ValueError: `mask_classification` is False.

    Example:
        >>> from detectron2.projects.mask2former import MultiScaleMaskedTransformerDecoder
        >>> decoder = MultiScaleMaskedTransformerDecoder(
        ...     32,
        ...     num_classes=3,
        ...     hidden_dim=32,
        ...     num_queries=5,
        ...     nheads=4,
        ...     dim_feedforward=64,
        ...     dec_layers=3,
        ...     pre_norm=False,
        ...     mask_dim=16,
        ...     enforce_input_project=False,
        ... )
        >>> levels = [torch.rand(1, 32, side, side) for side in (2, 4, 8)]
        >>> found = decoder(levels, torch.rand(1, 16, 16, 16))
        >>> found["pred_logits"].shape, found["pred_masks"].shape, len(found["aux_outputs"])
        (torch.Size([1, 5, 4]), torch.Size([1, 5, 16, 16]), 3)
    """

    _version = 2

    @configurable
    def __init__(
        self,
        in_channels: int,
        mask_classification: bool = True,
        *,
        num_classes: int,
        hidden_dim: int,
        num_queries: int,
        nheads: int,
        dim_feedforward: int,
        dec_layers: int,
        pre_norm: bool,
        mask_dim: int,
        enforce_input_project: bool,
    ):
        super().__init__()
        if not mask_classification:
            raise ValueError("MultiScaleMaskedTransformerDecoder predicts a class for each query; it cannot do without")
        self.pe_layer = SinePositionEmbedding(hidden_dim // 2)
        self.num_layers = dec_layers
        self.num_queries = num_queries
        layers = range(dec_layers)
        self.transformer_self_attention_layers = nn.ModuleList(
            _SelfAttentionLayer(hidden_dim, nheads, pre_norm) for _ in layers
        )
        self.transformer_cross_attention_layers = nn.ModuleList(
            _CrossAttentionLayer(hidden_dim, nheads, pre_norm) for _ in layers
        )
        self.transformer_ffn_layers = nn.ModuleList(_FFNLayer(hidden_dim, dim_feedforward, pre_norm) for _ in layers)
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.query_feat = nn.Embedding(num_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.num_feature_levels = 3
        self.level_embed = nn.Embedding(self.num_feature_levels, hidden_dim)
        self.input_proj = nn.ModuleList()
        for _ in range(self.num_feature_levels):
            if in_channels == hidden_dim and not enforce_input_project:
                self.input_proj.append(nn.Sequential())
            else:
                projection = nn.Conv2d(in_channels, hidden_dim, 1)
                c2_xavier_fill(projection)
                self.input_proj.append(projection)
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = _MLP(hidden_dim, hidden_dim, mask_dim, 3)

    def forward(self, x: Sequence[torch.Tensor], mask_features: torch.Tensor) -> dict[str, Any]:
        """Predict classes and masks.

        Args:
            x: three maps `Tensor[N, in_channels, Hi, Wi]`, the coarsest first.
            mask_features: `Tensor[N, D, H, W]`.

        Returns:
            `pred_logits`, `Tensor[N, Q, K + 1]`, class logits of which the last is "no object"; `pred_masks`,
            `Tensor[N, Q, H, W]`, mask logits; and `aux_outputs`, a list of such dictionaries, those of the predictions
            before the last one.
        """
        levels = []
        for i, (projection, level) in enumerate(zip(self.input_proj, x, strict=True)):
            padding = torch.zeros(1, *level.shape[2:], dtype=torch.bool, device=level.device)
            position = self.pe_layer(padding).to(level.dtype).flatten(2).transpose(1, 2)  # (1, S, C)
            cells = projection(level).flatten(2).transpose(1, 2) + self.level_embed.weight[i]  # (N, S, C)
            levels.append((cells, position, level.shape[2:]))
        images = mask_features.shape[0]
        queries = self.query_feat.weight[None].expand(images, -1, -1)
        query_pos = self.query_embed.weight[None]
        predictions = [self._predict(queries, mask_features)]
        for i in range(self.num_layers):
            cells, position, size = levels[i % self.num_feature_levels]
            visible = self._visible_cells(predictions[-1]["pred_masks"], size)
            queries = self.transformer_cross_attention_layers[i](queries, cells, visible, position, query_pos)
            queries = self.transformer_self_attention_layers[i](queries, query_pos)
            queries = self.transformer_ffn_layers[i](queries)
            predictions.append(self._predict(queries, mask_features))
        return {**predictions[-1], "aux_outputs": predictions[:-1]}

    def _predict(self, queries: torch.Tensor, mask_features: torch.Tensor) -> dict[str, torch.Tensor]:
        """Class and mask logits from queries `Tensor[N, Q, C]`."""
        queries = self.decoder_norm(queries)
        masks = torch.einsum("nqd,ndhw->nqhw", self.mask_embed(queries), mask_features)
        return {"pred_logits": self.class_embed(queries), "pred_masks": masks}

    def _visible_cells(self, masks: torch.Tensor, size_hw: Sequence[int]) -> torch.Tensor:
        """Cells of a map that queries look at, from their masks `Tensor[N, Q, H, W]`: bool `Tensor[N, 1, Q, S]`."""
        resized = F.interpolate(masks.detach(), size=tuple(size_hw), mode="bilinear", align_corners=False)
        visible = resized.sigmoid().flatten(2) >= 0.5
        return (visible | ~visible.any(2, keepdim=True))[:, None]  # a query with an empty mask looks everywhere

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        if local_metadata.get("version") is None or local_metadata["version"] < 2:
            old, new = (f"{prefix}{name}.weight" for name in ("static_query", "query_feat"))
            if old in state_dict:
                state_dict.setdefault(new, state_dict.pop(old))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    @classmethod
    def from_config(cls, cfg: CfgNode, in_channels: int, mask_classification: bool = True) -> Mapping[str, Any]:
        """Arguments of the constructor from `cfg.MODEL.MASK_FORMER` and `cfg.MODEL.SEM_SEG_HEAD`."""
        model = cfg.MODEL.MASK_FORMER
        if model.DEC_LAYERS < 1:
            raise ValueError(f"MODEL.MASK_FORMER.DEC_LAYERS must be at least 1, got {model.DEC_LAYERS}")
        return {
            "in_channels": in_channels,
            "mask_classification": mask_classification,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "hidden_dim": model.HIDDEN_DIM,
            "num_queries": model.NUM_OBJECT_QUERIES,
            "nheads": model.NHEADS,
            "dim_feedforward": model.DIM_FEEDFORWARD,
            "dec_layers": model.DEC_LAYERS - 1,
            "pre_norm": model.PRE_NORM,
            "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
            "enforce_input_project": model.ENFORCE_INPUT_PROJ,
        }
