"""The blocks that :class:`detectron2.modeling.backbone.vit.ViT` is made of.

Maps of tokens have their channels last, `Tensor[N, H, W, C]`.

Letters: `N` images (or windows), `C` channels; `H`, `W` height and width in tokens.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from detectron2.layers import CNNBlockBase, Conv2d, get_norm
from detectron2.layers.weight_init import c2_msra_fill

from ._mlp import Mlp
from .utils import decomposed_attention, drop_path, window_partition, window_unpartition


class Attention(nn.Module):
    """Attention of every token of a map to all others, with several heads.

    Args:
        dim: channels `C` of the input and the output.
        num_heads: attention heads, each of `dim / num_heads` channels.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        use_rel_pos: whether logits depend on the distance between query and key, by learned tables for rows and
            columns (:func:`detectron2.modeling.backbone.utils.add_decomposed_rel_pos`).
        rel_pos_zero_init: whether these tables start at zero, as fits pretrained weights that come without them, or
            at random.
        input_size: `(H, W)` of the map for which the tables are made. Maps of other sizes resize them.

    Raises:
        ValueError: `dim` cannot be divided by `num_heads`, or `input_size` is missing.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = True,
        use_rel_pos: bool = False,
        rel_pos_zero_init: bool = True,
        input_size: tuple[int, int] | None = None,
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"attention of {dim} channels cannot be split into {num_heads} heads of the same width")
        head_dim = dim // num_heads
        self.num_heads = num_heads
        self.scale = head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.use_rel_pos = use_rel_pos
        if use_rel_pos:
            if input_size is None:
                raise ValueError("relative positions (use_rel_pos) need input_size, (height, width) in tokens")
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * input_size[0] - 1, head_dim))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * input_size[1] - 1, head_dim))
            if not rel_pos_zero_init:
                nn.init.trunc_normal_(self.rel_pos_h, std=0.02)
                nn.init.trunc_normal_(self.rel_pos_w, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `Tensor[N, H, W, dim]` to the same shape; windows count as images."""
        n, height, width, dim = x.shape
        head_dim = dim // self.num_heads
        qkv = self.qkv(x).view(n, height * width, 3, self.num_heads, head_dim).permute(2, 0, 3, 1, 4)
        if self.use_rel_pos:
            q, k, v = qkv.flatten(1, 2).unbind(0)
            size = (height, width)
            x = decomposed_attention(q, k, v, self.scale, self.rel_pos_h, self.rel_pos_w, size, size)
            x = x.view(n, self.num_heads, height * width, head_dim)
        else:
            q, k, v = qkv.unbind(0)
            x = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.proj(x.transpose(1, 2).reshape(n, height, width, dim))


class ResBottleneckBlock(CNNBlockBase):
    """Three convolutions around which the input passes unchanged; a way for windows to exchange information.

    Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection", arXiv:2203.16527, section 3
    ("convolutional propagation"). The last norm starts at zero, hence the block as the identity.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, as many as `in_channels`.
        bottleneck_channels: channels of the 3 x 3 convolution in the middle.
        norm: after every convolution, as :func:`detectron2.layers.get_norm` takes it.
        act_layer: makes the activations, after the first two.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bottleneck_channels: int,
        norm: str | Callable[[int], nn.Module] = "LN",
        act_layer: Callable[[], nn.Module] = nn.GELU,
    ):
        super().__init__(in_channels, out_channels, 1)
        self.conv1 = Conv2d(in_channels, bottleneck_channels, 1, bias=False)
        self.norm1: nn.Module = _required_norm(norm, bottleneck_channels)
        self.act1 = act_layer()
        self.conv2 = Conv2d(bottleneck_channels, bottleneck_channels, 3, padding=1, bias=False)
        self.norm2: nn.Module = _required_norm(norm, bottleneck_channels)
        self.act2 = act_layer()
        self.conv3 = Conv2d(bottleneck_channels, out_channels, 1, bias=False)
        self.norm3: nn.Module = _required_norm(norm, out_channels)
        for conv in (self.conv1, self.conv2, self.conv3):
            c2_msra_fill(conv)
        for p in self.norm3.parameters():
            nn.init.zeros_(p)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `Tensor[N, in_channels, H, W]` to `Tensor[N, out_channels, H, W]`."""
        out = self.act1(self.norm1(self.conv1(x)))
        out = self.act2(self.norm2(self.conv2(out)))
        return x + self.norm3(self.conv3(out))


def _required_norm(norm: str | Callable[[int], nn.Module], channels: int) -> nn.Module:
    layer = get_norm(norm, channels)
    if layer is None:
        raise ValueError("ResBottleneckBlock needs a norm: the last one makes it start as the identity")
    return layer


class Block(nn.Module):
    """A transformer block: attention, then two linear layers, both as residuals after a norm.

    Args:
        dim: channels `C`.
        num_heads: attention heads.
        mlp_ratio: channels between the two linear layers, as a multiple of `dim`.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        drop_path_rate: probability of leaving out a residual branch for an image, in training.
        norm_layer: makes a norm over the last of `C` channels.
        act_layer: makes the activation between the two linear layers.
        use_rel_pos: whether attention uses relative positions.
        rel_pos_zero_init: whether their tables start at zero.
        window_size: side of the windows within which attention works, in tokens; 0 for the whole map.
        use_residual_block: whether a :class:`ResBottleneckBlock` follows.
        input_size: `(H, W)` of the maps for which the tables of relative positions are made.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        use_rel_pos: bool = False,
        rel_pos_zero_init: bool = True,
        window_size: int = 0,
        use_residual_block: bool = False,
        input_size: tuple[int, int] | None = None,
    ):
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = Attention(
            dim,
            num_heads=num_heads,
            qkv_bias=qkv_bias,
            use_rel_pos=use_rel_pos,
            rel_pos_zero_init=rel_pos_zero_init,
            input_size=(window_size, window_size) if window_size else input_size,
        )
        self.drop_path = drop_path(drop_path_rate)
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer)
        self.window_size = window_size
        self.use_residual_block = use_residual_block
        if use_residual_block:
            self.residual = ResBottleneckBlock(dim, dim, dim // 2, norm="LN", act_layer=act_layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `Tensor[N, H, W, C]` to the same shape."""
        x = x + self.drop_path(self._attend(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        if self.use_residual_block:
            x = self.residual(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        if not self.window_size:
            return self.attn(x)
        hw = (x.shape[1], x.shape[2])
        windows, padded_hw = window_partition(x, self.window_size)
        return window_unpartition(self.attn(windows), self.window_size, padded_hw, hw)
