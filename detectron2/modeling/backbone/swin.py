"""Swin: a transformer that attends inside windows, and shifts the windows from block to block.

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", arXiv:2103.14030.

Between the parts of the network a map of tokens is `Tensor[N, H, W, C]`; sizes are in tokens.

Letters: `N` images, `H` and `W` the size of a map, `C` channels, `S` side of a window, `T = S * S` tokens of a window,
`G` windows of one image, `B = N * G` windows of all images, `K` heads.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from .backbone import Backbone
from .utils import Mlp, PatchEmbed, drop_path, init_linear_and_norm, window_partition, window_unpartition

__all__ = ["PatchMerging", "SwinTransformer", "SwinTransformerBlock", "WindowAttention"]

# Added to the logit of two tokens that lie side by side only because the map was rolled.
_APART = -100.0


def _relative_position_index(side: int) -> torch.Tensor:
    """Number every offset between two tokens of a window: `int64[T, T]`, values below `(2 * side - 1) ** 2`."""
    row, column = torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)
    down = row[:, None] - row + side - 1
    right = column[:, None] - column + side - 1
    return down * (2 * side - 1) + right


def _shift_mask(windows_hw: tuple[int, int], side: int, shift: int, like: torch.Tensor) -> torch.Tensor:
    """What to add to the logits of a rolled map, so that tokens from opposite edges do not see each other.

    Rolling by `shift` brings the first rows below the last ones. Only windows of the last row (and likewise of the
    last column) mix the two, and all of these windows in the same way. Returns `Tensor[G, 1, T, T]` of 0 and `_APART`
    with dtype and device of `like`, for `windows_hw` windows `(down, across)`.
    """
    came_around = torch.arange(side, device=like.device) >= side - shift
    differ = (came_around[:, None] != came_around).to(like.dtype) * _APART
    tokens = side * side
    by_row = differ[:, None, :, None].expand(side, side, side, side).reshape(tokens, tokens)
    by_column = differ[None, :, None, :].expand(side, side, side, side).reshape(tokens, tokens)
    last_row = torch.arange(windows_hw[0], device=like.device) == windows_hw[0] - 1
    last_column = torch.arange(windows_hw[1], device=like.device) == windows_hw[1] - 1
    mask = last_row[:, None, None, None] * by_row + last_column[None, :, None, None] * by_column
    return mask.view(-1, 1, tokens, tokens)


class WindowAttention(nn.Module):
    """Attention among the tokens of a window, with a learned bias for every offset (equation 4 of the paper).

    Args:
        dim: channels of the tokens.
        window_size: side of a window.
        num_heads: attention heads.
        qkv_bias: whether queries, keys and values have a bias.
        qk_scale: factor of the logits; by default `head channels ** -0.5`.
        attn_drop_rate: probability of dropping a weight of attention.
        drop_rate: probability of dropping an element of the output.
    """

    relative_position_index: torch.Tensor

    def __init__(
        self,
        dim: int,
        window_size: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"attention of {dim} channels cannot be split into {num_heads} equal heads")
        self.num_heads = num_heads
        self.scale = qk_scale
        self.attn_drop_rate = attn_drop_rate
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        self.register_buffer("relative_position_index", _relative_position_index(window_size))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop_rate)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Mix the tokens of windows `Tensor[B, T, C]`, image after image.

        `mask`, `Tensor[G, 1, T, T]`, is added to the logits of each image's windows.
        """
        b, t, c = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        bias = self._position_bias().to(q.dtype)[None]
        if mask is not None:
            # One copy for each image: smaller than the copies of q, k and v that any way around it would take.
            bias = (bias + mask.to(q.dtype)).repeat(b // mask.shape[0], 1, 1, 1)
        dropout = self.attn_drop_rate if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=self.scale)
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(b, t, c)))

    def _position_bias(self) -> torch.Tensor:
        """Return the bias of the logits, `Tensor[K, T, T]`."""
        index = self.relative_position_index
        # index_select: its backward adds rows, while that of indexing sorts first.
        return self.relative_position_bias_table.index_select(0, index.flatten()).t().reshape(-1, *index.shape)


class SwinTransformerBlock(nn.Module):
    """Window attention, then two linear layers, both as residuals after a norm (figure 3b of the paper).

    Arguments are those of `WindowAttention`, and: `shift_size`, tokens by which the windows are shifted down and to the
    right; `mlp_ratio`, channels between the two linear layers as a multiple of `dim`; `drop_path_rate`, probability of
    leaving out a residual, for one image; and `norm_layer`, which makes a norm from a number of channels.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int = 7,
        shift_size: int = 0,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
    ):
        super().__init__()
        if not 0 <= shift_size < window_size:
            raise ValueError(f"shift_size must be at least 0 and less than window_size={window_size}; got {shift_size}")
        self.window_size = window_size
        self.shift_size = shift_size
        self.norm1 = norm_layer(dim)
        self.attn = WindowAttention(dim, window_size, num_heads, qkv_bias, qk_scale, attn_drop_rate, drop_rate)
        self.drop_path = drop_path(drop_path_rate)
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), nn.GELU, drop_rate)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Map `Tensor[N, H, W, C]` to the same shape; the mask is for shifted windows, see `WindowAttention`."""
        x = x + self.drop_path(self._attend(self.norm1(x), mask if self.shift_size else None))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        side, shift, (_, height, width, channels) = self.window_size, self.shift_size, x.shape
        padded_hw = _padded_hw((height, width), side)
        if shift:
            # The padding takes part in the roll.
            x = F.pad(x, (0, 0, 0, padded_hw[1] - width, 0, padded_hw[0] - height)).roll((-shift, -shift), (1, 2))
        windows, _ = window_partition(x, side)
        windows = self.attn(windows.flatten(1, 2), mask).view(-1, side, side, channels)
        if not shift:
            return window_unpartition(windows, side, padded_hw, (height, width))
        x = window_unpartition(windows, side, padded_hw, padded_hw)
        return x.roll((shift, shift), (1, 2))[:, :height, :width]


def _padded_hw(hw: tuple[int, int], side: int) -> tuple[int, int]:
    return -(-hw[0] // side) * side, -(-hw[1] // side) * side


class PatchMerging(nn.Module):
    """Halve a map: two by two tokens become one, of twice the channels.

    Args:
        dim: channels of the input.
        norm_layer: makes a norm from a number of channels.
    """

    def __init__(self, dim: int, norm_layer: Callable[[int], nn.Module] = nn.LayerNorm):
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = norm_layer(4 * dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `Tensor[N, H, W, C]` to `Tensor[N, ceil(H / 2), ceil(W / 2), 2 * C]`; zeros complete odd sizes."""
        n, height, width, channels = x.shape
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        x = x.view(n, (height + 1) // 2, 2, (width + 1) // 2, 2, channels)
        # Trained weights expect the four tokens column by column.
        return self.reduction(self.norm(x.permute(0, 1, 3, 4, 2, 5).flatten(3)))


class _Stage(nn.Module):
    """Blocks at one resolution, every second one with shifted windows, and the step to the next resolution."""

    def __init__(self, blocks: Sequence[SwinTransformerBlock], downsample: PatchMerging | None, use_checkpoint: bool):
        super().__init__()
        self.blocks: Any = nn.ModuleList(blocks)
        self.downsample = downsample
        self.use_checkpoint = use_checkpoint

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the blocks, without the step to the next resolution."""
        mask = None
        for block in self.blocks:
            if mask is None and block.shift_size:
                # One mask serves the stage. Kept from batch to batch it would cost memory, for little time.
                side = block.window_size
                height, width = _padded_hw((x.shape[1], x.shape[2]), side)
                mask = _shift_mask((height // side, width // side), side, block.shift_size, x)
            if self.use_checkpoint and self.training:
                x = checkpoint(block, x, mask, use_reentrant=False)
            else:
                x = block(x, mask)
        return x


class _SwinPatchEmbed(PatchEmbed):
    """Patches that do not overlap; images of other sizes get zeros at the bottom and at the right."""

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int, norm_layer: Callable[[int], nn.Module] | None):
        super().__init__((patch_size, patch_size), (patch_size, patch_size), (0, 0), in_chans, embed_dim)
        self.patch_size = patch_size
        self.norm = None if norm_layer is None else norm_layer(embed_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bottom, right = -x.shape[2] % self.patch_size, -x.shape[3] % self.patch_size
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom))
        x = super().forward(x)
        return x if self.norm is None else self.norm(x)


class SwinTransformer(Backbone):
    """Swin transformer with one feature map per stage, for dense prediction.

    Its outputs are `p<i>` for `i` in `out_indices`, of stride `patch_size * 2 ** i` and `embed_dim * 2 ** i` channels,
    each after a norm of its own. Images of every size are accepted; sizes are rounded up.

    Args:
        pretrain_img_size: side in pixels of the square images of pretraining; matters with `ape` only.
        patch_size: side of a patch, in pixels.
        in_chans: channels of the image.
        embed_dim: channels of the first stage.
        depths: number of blocks of each stage.
        num_heads: attention heads of each stage.
        window_size: side of a window, in tokens.
        mlp_ratio: hidden channels of a block's linear layers, as a multiple of its channels.
        qkv_bias: whether queries, keys and values have a bias.
        qk_scale: factor of the logits of attention; by default `head channels ** -0.5`.
        drop_rate: probability of dropping an element of an output, and of the tokens at the start.
        attn_drop_rate: probability of dropping a weight of attention.
        drop_path_rate: probability of leaving out a residual of the last block; it grows linearly from 0 at the first.
        norm_layer: makes a norm from a number of channels.
        ape: whether to add learned absolute positions. They are resized to the image's size.
        patch_norm: whether a norm follows the embedding of patches.
        out_indices: stages whose maps are returned, counted from 0.
        frozen_stages: what does not train: -1 nothing; 0 the embedding of patches; 1 also the absolute positions;
            `k >= 2` also the first `k - 1` stages.
        use_checkpoint: compute blocks again in the backward pass instead of keeping what they need.

    Raises:
        ValueError: `depths`, `num_heads` and `out_indices` do not fit together.
    """

    def __init__(
        self,
        pretrain_img_size: int = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.2,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        ape: bool = False,
        patch_norm: bool = True,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        use_checkpoint: bool = False,
    ):
        super().__init__()
        if len(depths) != len(num_heads) or not out_indices or not set(out_indices) <= set(range(len(depths))):
            raise ValueError(
                f"SwinTransformer needs num_heads for each of the stages of depths, and out_indices among them; got "
                f"depths={list(depths)}, num_heads={list(num_heads)}, out_indices={list(out_indices)}"
            )
        self.frozen_stages = frozen_stages
        self.patch_embed = _SwinPatchEmbed(patch_size, in_chans, embed_dim, norm_layer if patch_norm else None)
        self.absolute_pos_embed = None
        if ape:
            side = pretrain_img_size // patch_size
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, embed_dim, side, side))
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        self.pos_drop = nn.Dropout(drop_rate)

        widths = [embed_dim * 2**i for i in range(len(depths))]
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        stages = []
        for i, (width, depth, heads) in enumerate(zip(widths, depths, num_heads, strict=True)):
            blocks = [
                SwinTransformerBlock(
                    dim=width,
                    num_heads=heads,
                    window_size=window_size,
                    shift_size=window_size // 2 if number % 2 else 0,
                    mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias,
                    qk_scale=qk_scale,
                    drop_rate=drop_rate,
                    attn_drop_rate=attn_drop_rate,
                    drop_path_rate=next(rates),
                    norm_layer=norm_layer,
                )
                for number in range(depth)
            ]
            downsample = PatchMerging(width, norm_layer) if i < len(depths) - 1 else None
            stages.append(_Stage(blocks, downsample, use_checkpoint))
        self.layers: Any = nn.ModuleList(stages)
        self.num_features = widths
        self.out_indices = tuple(sorted(out_indices))
        for i in self.out_indices:
            self.add_module(f"norm{i}", norm_layer(widths[i]))
        self._out_features = [f"p{i}" for i in self.out_indices]
        self._out_feature_channels = {f"p{i}": widths[i] for i in self.out_indices}
        self._out_feature_strides = {f"p{i}": patch_size * 2**i for i in self.out_indices}
        self._size_divisibility = patch_size * 2 ** (len(depths) - 1)
        self.apply(init_linear_and_norm)
        self._freeze_stages()

    @property
    def size_divisibility(self) -> int:
        """The stride of the last stage. Other sizes work as well; their maps are rounded up."""
        return self._size_divisibility

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map images `Tensor[N, in_chans, H, W]` to `Tensor[N, embed_dim * 2 ** i, H / stride, W / stride]` by name."""
        x = self.patch_embed(x)
        if self.absolute_pos_embed is not None:
            position = F.interpolate(self.absolute_pos_embed, size=x.shape[1:3], mode="bicubic", align_corners=False)
            x = x + position.permute(0, 2, 3, 1)
        x = self.pos_drop(x)
        outputs = {}
        for i, stage in enumerate(self.layers):
            x = stage(x)
            if i in self.out_indices:
                outputs[f"p{i}"] = self.get_submodule(f"norm{i}")(x).permute(0, 3, 1, 2).contiguous()
            if len(outputs) == len(self.out_indices):
                break
            x = stage.downsample(x)
        return outputs

    def train(self, mode: bool = True) -> "SwinTransformer":
        """Set the mode of training, except for frozen stages: these stay in evaluation mode."""
        super().train(mode)
        self._freeze_stages()
        return self

    def _freeze_stages(self) -> None:
        frozen: list[nn.Module] = []
        if self.frozen_stages >= 0:
            frozen.append(self.patch_embed)
        if self.frozen_stages >= 1 and self.absolute_pos_embed is not None:
            self.absolute_pos_embed.requires_grad_(False)
        if self.frozen_stages >= 2:
            frozen += [self.pos_drop, *self.layers[: self.frozen_stages - 1]]
        for module in frozen:
            module.eval().requires_grad_(False)
