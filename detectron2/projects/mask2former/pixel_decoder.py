"""The pixel decoder: deformable attention over three feature maps, and a finer map for masks (section 3.2).

Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", https://arxiv.org/abs/2112.01527.

Letters: `N` images, `C` channels, `D` channels of the map for masks, `L` feature maps (levels), `S` cells of all of
them, `H` and `W` height and width of a map in cells. Coarse levels come before fine ones.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import DeformableEncoderLayer, MultiScaleDeformableAttention, ShapeSpec, SinePositionEmbedding
from detectron2.layers.blocks import conv_norm
from detectron2.layers.weight_init import c2_xavier_fill
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from detectron2.utils.registry import build_part

__all__ = ["MSDeformAttnPixelDecoder", "MSDeformAttnTransformerEncoderOnly", "build_pixel_decoder"]

_NUM_LEVELS = 3  # levels that the transformer decoder reads


def build_pixel_decoder(cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> Any:
    """The pixel decoder that `cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME` names, for a backbone of this shape."""
    return build_part(SEM_SEG_HEADS_REGISTRY, "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", cfg, input_shape=input_shape)


class _Encoder(nn.Module):
    """The layers one after another."""

    def __init__(self, layers: Sequence[DeformableEncoderLayer]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, cells: torch.Tensor, positions: torch.Tensor, sizes: list[tuple[int, int]]) -> torch.Tensor:
        references = _centres(sizes, cells)[None, :, None].expand(cells.shape[0], -1, len(sizes), -1)
        for layer in self.layers:
            cells = layer(cells, positions, references, sizes)
        return cells


def _centres(sizes: Sequence[tuple[int, int]], like: torch.Tensor) -> torch.Tensor:
    """Centres `(x, y)` of all cells as shares of their map: `Tensor[S, 2]`, of the device and type of `like`."""
    found = []
    for height, width in sizes:
        y = (torch.arange(height, dtype=like.dtype, device=like.device) + 0.5) / height
        x = (torch.arange(width, dtype=like.dtype, device=like.device) + 0.5) / width
        found.append(torch.stack([x.expand(height, width), y[:, None].expand(height, width)], 2).flatten(0, 1))
    return torch.cat(found)


class MSDeformAttnTransformerEncoderOnly(nn.Module):
    """The encoder of Deformable DETR (https://arxiv.org/abs/2010.04159): every cell attends to some of all maps.

    Args:
        d_model: channels `C`.
        nhead: heads of attention.
        num_encoder_layers: how many layers.
        dim_feedforward: channels between the two linear layers of a layer.
        dropout: probability of dropping an element of what a layer adds.
        num_feature_levels: maps `L`.
        enc_n_points: points that a head looks at on each map.
    """

    def __init__(
        self,
        d_model: int = 256,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        dim_feedforward: int = 1024,
        dropout: float = 0.1,
        num_feature_levels: int = 4,
        enc_n_points: int = 4,
    ):
        super().__init__()
        self.encoder = _Encoder(
            [
                DeformableEncoderLayer(d_model, nhead, num_feature_levels, enc_n_points, dim_feedforward, dropout)
                for _ in range(num_encoder_layers)
            ]
        )
        self.level_embed = nn.Parameter(torch.empty(num_feature_levels, d_model))
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, MultiScaleDeformableAttention):
                module.reset_parameters()
        nn.init.normal_(self.level_embed)

    def forward(self, maps: Sequence[torch.Tensor], positions: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Let the cells of maps, each `Tensor[N, C, H, W]`, look at each other; the result has the same shapes.

        `positions` are embeddings that are broadcast to the maps.
        """
        sizes = [(x.shape[2], x.shape[3]) for x in maps]
        cells = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1)  # (N, S, C)
        where = [x.flatten(2).transpose(1, 2) + level for x, level in zip(positions, self.level_embed, strict=True)]
        cells = self.encoder(cells, torch.cat(where, 1), sizes)
        parts = cells.split([height * width for height, width in sizes], dim=1)
        return [x.transpose(1, 2).unflatten(2, size) for x, size in zip(parts, sizes, strict=True)]


@SEM_SEG_HEADS_REGISTRY.register()
class MSDeformAttnPixelDecoder(nn.Module):
    """From feature maps of the backbone to three maps for the queries and a fine one for the masks.

    Coarse maps, usually of strides 32, 16 and 8, pass through `MSDeformAttnTransformerEncoderOnly`; finer ones are
    added as in a feature pyramid. All is computed in single precision, also under autocast.

    Args:
        input_shape: stride and channels of each feature map.
        transformer_dropout: dropout of the encoder.
        transformer_nheads: heads of its attention.
        transformer_dim_feedforward: channels between its linear layers.
        transformer_enc_layers: its layers.
        conv_dim: channels `C`.
        mask_dim: channels `D`.
        norm: norm of the convolutions of the pyramid, as `detectron2.layers.get_norm` takes it.
        transformer_in_features: names of the maps that pass through the encoder, at least three.
        common_stride: stride of the map for masks.
        num_points: points that a head of the encoder looks at on each map.

    Raises:
        ValueError: fewer than three maps are for the encoder, or one is not among the feature maps.

    Example:
        >>> from detectron2.projects.mask2former import MSDeformAttnPixelDecoder
        >>> shapes = {f"res{i}": ShapeSpec(channels=8, stride=2**i) for i in (2, 3, 4, 5)}
        >>> decoder = MSDeformAttnPixelDecoder(
        ...     shapes,
        ...     transformer_dropout=0.0,
        ...     transformer_nheads=4,
        ...     transformer_dim_feedforward=64,
        ...     transformer_enc_layers=1,
        ...     conv_dim=32,
        ...     mask_dim=16,
        ...     norm="GN",
        ...     transformer_in_features=["res3", "res4", "res5"],
        ...     common_stride=4,
        ... )
        >>> features = {name: torch.rand(1, 8, 64 // x.stride, 64 // x.stride) for name, x in shapes.items()}
        >>> masks, coarsest, levels = decoder.forward_features(features)
        >>> masks.shape, [tuple(x.shape[2:]) for x in levels]
        (torch.Size([1, 16, 16, 16]), [(2, 2), (4, 4), (8, 8)])
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        transformer_dropout: float,
        transformer_nheads: int,
        transformer_dim_feedforward: int,
        transformer_enc_layers: int,
        conv_dim: int,
        mask_dim: int,
        norm: Any = None,
        transformer_in_features: Sequence[str],
        common_stride: int,
        num_points: int = 4,
    ):
        super().__init__()
        absent = sorted(set(transformer_in_features) - set(input_shape))
        if absent or len(transformer_in_features) < _NUM_LEVELS:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES must be at least {_NUM_LEVELS} of "
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES, {sorted(input_shape)}; got {list(transformer_in_features)}"
            )
        stride_of: dict[str, int] = {name: shape.stride or 1 for name, shape in input_shape.items()}
        self.in_features = sorted(input_shape, key=stride_of.__getitem__)
        self.transformer_in_features = sorted(transformer_in_features, key=stride_of.__getitem__)
        levels = len(self.transformer_in_features)
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(input_shape[name].channels or 0, conv_dim, 1), nn.GroupNorm(32, conv_dim))
            for name in self.transformer_in_features[::-1]
        )
        for projection in self.input_proj:
            nn.init.xavier_uniform_(projection[0].weight)  # type: ignore[index]
            nn.init.zeros_(projection[0].bias)  # type: ignore[index]
        self.transformer = MSDeformAttnTransformerEncoderOnly(
            conv_dim,
            transformer_nheads,
            transformer_enc_layers,
            transformer_dim_feedforward,
            transformer_dropout,
            levels,
            num_points,
        )
        self.pe_layer = SinePositionEmbedding(conv_dim // 2)
        self.mask_dim = mask_dim
        self.mask_features = nn.Conv2d(conv_dim, mask_dim, 1)
        c2_xavier_fill(self.mask_features)
        self.common_stride = common_stride
        self.maskformer_num_feature_levels = _NUM_LEVELS

        finest = stride_of[self.transformer_in_features[0]]
        self.num_fpn_levels = int(math.log2(finest) - math.log2(common_stride))
        for number, name in enumerate(self.in_features[: self.num_fpn_levels], start=1):
            lateral = conv_norm(input_shape[name].channels, conv_dim, 1, norm)
            output = conv_norm(conv_dim, conv_dim, 3, norm, activation=F.relu)
            c2_xavier_fill(lateral)
            c2_xavier_fill(output)
            self.add_module(f"adapter_{number}", lateral)
            self.add_module(f"layer_{number}", output)

    def forward_features(
        self, features: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Decode feature maps by name.

        The result is the map for masks, `Tensor[N, D, H, W]` at the common stride; the coarsest map; and three maps
        `Tensor[N, C, Hi, Wi]`, the coarsest first.
        """
        device = next(iter(features.values())).device.type
        with torch.autocast(device, enabled=False):
            inputs = [features[name].float() for name in self.transformer_in_features[::-1]]
            maps = [projection(x) for projection, x in zip(self.input_proj, inputs, strict=True)]
            out = self.transformer(maps, [self.pe_layer(_no_padding(x)) for x in maps])
            for number in range(self.num_fpn_levels, 0, -1):
                lateral = self.get_submodule(f"adapter_{number}")(features[self.in_features[number - 1]].float())
                x = lateral + F.interpolate(out[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False)
                out.append(self.get_submodule(f"layer_{number}")(x))
            return self.mask_features(out[-1]), out[0], out[:_NUM_LEVELS]

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        """Arguments of the constructor from `cfg.MODEL.SEM_SEG_HEAD`."""
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": {name: shape for name, shape in input_shape.items() if name in head.IN_FEATURES},
            "transformer_dropout": cfg.MODEL.MASK_FORMER.DROPOUT,
            "transformer_nheads": head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS,
            "transformer_dim_feedforward": 1024,  # that of Deformable DETR; DIM_FEEDFORWARD is of the other decoder
            "transformer_enc_layers": head.TRANSFORMER_ENC_LAYERS,
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
            "transformer_in_features": head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES,
            "common_stride": head.COMMON_STRIDE,
            "num_points": head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS,
        }


def _no_padding(x: torch.Tensor) -> torch.Tensor:
    """Mark no cell of a map `Tensor[N, C, H, W]`: padding of images counts as image here."""
    return torch.zeros(1, *x.shape[2:], dtype=torch.bool, device=x.device)
