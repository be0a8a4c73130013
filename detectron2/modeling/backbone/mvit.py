"""MViTv2: a multiscale vision transformer that pools queries, keys and values.

Li et al., "MViTv2: Improved Multiscale Vision Transformers for Classification and Detection", arXiv:2112.01526.

A stage begins with a block whose queries are pooled, which halves the map; keys and values are pooled everywhere. Most
blocks attend inside windows, the last ones of all stages but the first to the whole map (section 4.2 of the paper).
Between the parts of the network a map of tokens is `Tensor[N, H, W, C]`; sizes are `(height, width)` in tokens.

Letters: `N` images, `H` and `W` the size of a map, `C` channels, `K` heads, `D` channels of a head, `B` images times
heads times windows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .backbone import Backbone
from .utils import (
    Mlp,
    PatchEmbed,
    add_decomposed_rel_pos,
    decomposed_attention,
    drop_path,
    get_abs_pos,
    init_linear_and_norm,
    window_partition,
    window_unpartition,
)

__all__ = ["MViT", "MultiScaleAttention", "MultiScaleBlock", "attention_pool"]


def attention_pool(x: torch.Tensor, pool: nn.Module, norm: nn.Module | None = None) -> torch.Tensor:
    """Pool a map of tokens `Tensor[N, H, W, C]` by a layer on `Tensor[N, C, H, W]`; `norm` follows, channels last."""
    x = pool(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return x if norm is None else norm(x)


class MultiScaleAttention(nn.Module):
    """Attention between pooled queries and pooled keys and values (figure 2 of the paper).

    Args:
        dim: channels of the input.
        dim_out: channels of the output; a multiple of `num_heads`.
        num_heads: attention heads.
        qkv_bias: whether queries, keys and values have a bias.
        norm_layer: makes a norm from a number of channels.
        pool_kernel: `(height, width)` of the kernels that pool.
        stride_q: step of pooling queries.
        stride_kv: step of pooling keys and values.
        residual_pooling: whether to add the pooled queries to the result.
        window_size: side of the windows inside which tokens see each other, in tokens of the input; 0 for the whole
            map.
        use_rel_pos: whether to add learned embeddings of distances.
        rel_pos_zero_init: whether they begin as zeros.
        input_size: `(height, width)` of the input the embeddings are made for, a square. Others are interpolated.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        num_heads: int,
        qkv_bias: bool = True,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        pool_kernel: Sequence[int] = (3, 3),
        stride_q: int = 1,
        stride_kv: int = 1,
        residual_pooling: bool = True,
        window_size: int = 0,
        use_rel_pos: bool = False,
        rel_pos_zero_init: bool = True,
        input_size: Sequence[int] | None = None,
    ):
        super().__init__()
        if dim_out % num_heads:
            raise ValueError(
                f"attention of {dim_out} channels cannot be split into {num_heads} heads of the same width"
            )
        if window_size % stride_q or window_size % stride_kv:
            raise ValueError(f"windows of side {window_size} cannot be pooled by {stride_q} (q) and {stride_kv} (k, v)")
        head_dim = dim_out // num_heads
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.scale = head_dim**-0.5
        self.residual_pooling = residual_pooling
        self.window_size = window_size
        self.q_win_size = window_size // stride_q
        self.kv_win_size = window_size // stride_kv
        self.qkv = nn.Linear(dim, 3 * dim_out, bias=qkv_bias)
        self.proj = nn.Linear(dim_out, dim_out)
        self.pool_q, self.norm_q = _depthwise_conv(head_dim, pool_kernel, stride_q), norm_layer(head_dim)
        self.pool_k, self.norm_k = _depthwise_conv(head_dim, pool_kernel, stride_kv), norm_layer(head_dim)
        self.pool_v, self.norm_v = _depthwise_conv(head_dim, pool_kernel, stride_kv), norm_layer(head_dim)
        self.use_rel_pos = use_rel_pos
        if use_rel_pos:
            if input_size is None or input_size[0] != input_size[1]:
                raise ValueError(f"relative positions need the size of a square as input_size; got {input_size}")
            distances = 2 * max(input_size[0] // stride_q, input_size[0] // stride_kv) - 1
            self.rel_pos_h = nn.Parameter(torch.zeros(distances, head_dim))
            self.rel_pos_w = nn.Parameter(torch.zeros(distances, head_dim))
            if not rel_pos_zero_init:
                nn.init.trunc_normal_(self.rel_pos_h, std=0.02)
                nn.init.trunc_normal_(self.rel_pos_w, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `Tensor[N, H, W, dim]` to `Tensor[N, ceil(H / stride_q), ceil(W / stride_q), dim_out]`."""
        n, height, width, _ = x.shape
        # Heads count as images: they are pooled by the same kernels.
        q, k, v = self.qkv(x).view(n, height, width, 3, self.num_heads, self.head_dim).permute(3, 0, 4, 1, 2, 5)
        q = attention_pool(q.flatten(0, 1), self.pool_q, self.norm_q)
        k = attention_pool(k.flatten(0, 1), self.pool_k, self.norm_k)
        v = attention_pool(v.flatten(0, 1), self.pool_v, self.norm_v)

        pooled_hw = padded_hw = (q.shape[1], q.shape[2])
        if self.window_size:
            q, padded_hw = window_partition(q, self.q_win_size)
            k, _ = window_partition(k, self.kv_win_size)
            v, _ = window_partition(v, self.kv_win_size)
        x = self._attend(q, k, v)
        if self.residual_pooling:
            x = x + q
        if self.window_size:
            x = window_unpartition(x, self.q_win_size, padded_hw, pooled_hw)
        x = x.view(n, self.num_heads, *pooled_hw, self.head_dim).permute(0, 2, 3, 1, 4)
        return self.proj(x.flatten(3))

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """From maps or windows `Tensor[B, h_q, w_q, D]` and `Tensor[B, h_k, w_k, D]` to the shape of the queries."""
        q_size, k_size = (q.shape[1], q.shape[2]), (k.shape[1], k.shape[2])
        queries, keys, values = q.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2)
        if not self.use_rel_pos:
            x = nn.functional.scaled_dot_product_attention(queries, keys, values, scale=self.scale)
        elif q.device.type == "cpu" and q.requires_grad:
            # The formula as it stands: training on CPUs gains little by fusing (benchmarks/bench_attention.py), and
            # gradients that are zero but for rounding, such as those of biases of keys, stay comparable.
            logits = (queries * self.scale) @ keys.transpose(1, 2)
            logits = add_decomposed_rel_pos(logits, queries, self.rel_pos_h, self.rel_pos_w, q_size, k_size)
            x = logits.softmax(-1) @ values
        else:
            x = decomposed_attention(queries, keys, values, self.scale, self.rel_pos_h, self.rel_pos_w, q_size, k_size)
        return x.view(q.shape)


def _depthwise_conv(channels: int, kernel_size: Sequence[int], stride: int) -> nn.Conv2d:
    height, width = kernel_size
    return nn.Conv2d(
        channels,
        channels,
        kernel_size=(height, width),
        stride=stride,
        padding=(height // 2, width // 2),
        groups=channels,
        bias=False,
    )


class MultiScaleBlock(nn.Module):
    """Pooling attention, then two linear layers, both as residuals after a norm.

    Arguments are those of `MultiScaleAttention`, where `qkv_pool_kernel` is its `pool_kernel`, and three more:
    `mlp_ratio`, channels between the two linear layers as a multiple of `dim_out`; `act_layer`, which makes the
    activation between them; and `drop_path`, the probability of leaving out a residual, for one image.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        qkv_pool_kernel: Sequence[int] = (3, 3),
        stride_q: int = 1,
        stride_kv: int = 1,
        residual_pooling: bool = True,
        window_size: int = 0,
        use_rel_pos: bool = False,
        rel_pos_zero_init: bool = True,
        input_size: Sequence[int] | None = None,
    ):
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = MultiScaleAttention(
            dim=dim,
            dim_out=dim_out,
            num_heads=num_heads,
            qkv_bias=qkv_bias,
            norm_layer=norm_layer,
            pool_kernel=qkv_pool_kernel,
            stride_q=stride_q,
            stride_kv=stride_kv,
            residual_pooling=residual_pooling,
            window_size=window_size,
            use_rel_pos=use_rel_pos,
            rel_pos_zero_init=rel_pos_zero_init,
            input_size=input_size,
        )
        self.drop_path = _drop_path(drop_path)
        self.norm2 = norm_layer(dim_out)
        self.mlp = Mlp(dim_out, int(dim_out * mlp_ratio), act_layer)
        # The shortcut has to arrive at the same channels and the same size.
        self.proj = nn.Linear(dim, dim_out) if dim != dim_out else None
        self.pool_skip = None
        if stride_q > 1:
            self.pool_skip = nn.MaxPool2d(stride_q + 1, stride_q, (stride_q + 1) // 2, ceil_mode=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `Tensor[N, H, W, dim]` to `Tensor[N, ceil(H / stride_q), ceil(W / stride_q), dim_out]`."""
        normed = self.norm1(x)
        shortcut = x if self.proj is None else self.proj(normed)
        if self.pool_skip is not None:
            shortcut = attention_pool(shortcut, self.pool_skip)
        x = shortcut + self.drop_path(self.attn(normed))
        return x + self.drop_path(self.mlp(self.norm2(x)))


_drop_path = drop_path  # the block has an argument of this name


def _plan_blocks(
    depth: int,
    last_block_indexes: Sequence[int],
    embed_dim: int,
    num_heads: int,
    kv_stride: int,
    window_size: int,
    input_hw: tuple[int, int],
) -> list[dict[str, Any]]:
    """The arguments of each block: from stage to stage channels and heads double, sizes, windows and pooling halve."""
    plans = []
    for i in range(depth):
        stage = sum(last < i for last in last_block_indexes)
        first_of_stage = i - 1 in last_block_indexes
        stage_of_input = stage - first_of_stage
        stride_kv = max(kv_stride >> stage, 1)
        if i in last_block_indexes[1:3]:
            stride_kv *= 2  # attention to the whole of a large map: fewer keys keep it affordable
        plans.append(
            {
                "dim": embed_dim << stage_of_input,
                "dim_out": embed_dim << stage,
                "num_heads": num_heads << stage,
                "stride_q": 2 if first_of_stage else 1,
                "stride_kv": stride_kv,
                "window_size": 0 if i in last_block_indexes[1:] else window_size >> stage_of_input,
                "input_size": (input_hw[0] >> stage_of_input, input_hw[1] >> stage_of_input),
            }
        )
    return plans


class MViT(Backbone):
    """Multiscale vision transformer, version 2, with one feature map per stage.

    Its outputs are `scale2` to `scale5`, of stride 4 to 32 (with patches of stride 4), each after a norm of its own.
    Images of every size are accepted; sizes are rounded up.

    Args:
        img_size: side of the square images the relative positions are made for, in pixels. Others are interpolated.
        patch_kernel: `(height, width)` of a patch, in pixels.
        patch_stride: between patches, in pixels.
        patch_padding: of the image, in pixels.
        in_chans: channels of the image.
        embed_dim: channels of the first stage; they double from stage to stage.
        depth: number of blocks.
        num_heads: attention heads of the first stage; they double from stage to stage.
        last_block_indexes: the last block of each stage, counted from 0.
        qkv_pool_kernel: `(height, width)` of the kernels that pool.
        adaptive_kv_stride: step of pooling keys and values in the first stage; it halves from stage to stage.
        adaptive_window_size: side of a window in the first stage, in tokens; it halves from stage to stage.
        residual_pooling: see `MultiScaleAttention`.
        mlp_ratio: hidden channels of a block's linear layers, as a multiple of its channels.
        qkv_bias: whether queries, keys and values have a bias.
        drop_path_rate: probability of leaving out a residual of the last block; it grows linearly from 0 at the first.
        norm_layer: makes a norm from a number of channels.
        act_layer: makes an activation.
        use_abs_pos: whether to add learned absolute positions. They are resized to the image's size.
        use_rel_pos: whether attention adds learned embeddings of distances.
        rel_pos_zero_init: whether they begin as zeros.
        use_act_checkpoint: compute blocks again in the backward pass instead of keeping what they need.
        pretrain_img_size: side in pixels of the square images the absolute positions are made for.
        pretrain_use_cls_token: whether the absolute positions begin with that of a class token, which is not used.
        out_features: names of the maps to return.

    Raises:
        ValueError: `last_block_indexes` does not rise to the last block, or `out_features` has unknown names.
    """

    def __init__(
        self,
        img_size: int = 224,
        patch_kernel: tuple[int, int] = (7, 7),
        patch_stride: tuple[int, int] = (4, 4),
        patch_padding: tuple[int, int] = (3, 3),
        in_chans: int = 3,
        embed_dim: int = 96,
        depth: int = 16,
        num_heads: int = 1,
        last_block_indexes: Sequence[int] = (0, 2, 11, 15),
        qkv_pool_kernel: Sequence[int] = (3, 3),
        adaptive_kv_stride: int = 4,
        adaptive_window_size: int = 56,
        residual_pooling: bool = True,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        use_abs_pos: bool = False,
        use_rel_pos: bool = True,
        rel_pos_zero_init: bool = True,
        use_act_checkpoint: bool = False,
        pretrain_img_size: int = 224,
        pretrain_use_cls_token: bool = True,
        out_features: Sequence[str] = ("scale2", "scale3", "scale4", "scale5"),
    ):
        super().__init__()
        last_blocks = list(last_block_indexes)
        if not last_blocks or last_blocks != sorted(set(last_blocks)) or last_blocks[-1] != depth - 1:
            raise ValueError(f"last_block_indexes must rise to the last block, {depth - 1}; got {last_blocks}")
        scales = [f"scale{2 + stage}" for stage in range(len(last_blocks))]
        if not out_features or not set(out_features) <= set(scales):
            raise ValueError(f"out_features must be among {scales}; got {list(out_features)}")
        self.patch_embed = PatchEmbed(patch_kernel, patch_stride, patch_padding, in_chans, embed_dim)
        self.pretrain_use_cls_token = pretrain_use_cls_token
        self.pos_embed = None
        if use_abs_pos:
            positions = (pretrain_img_size // patch_stride[0]) * (pretrain_img_size // patch_stride[1])
            self.pos_embed = nn.Parameter(torch.zeros(1, positions + pretrain_use_cls_token, embed_dim))
            nn.init.trunc_normal_(self.pos_embed, std=0.02)

        self.use_act_checkpoint = use_act_checkpoint
        input_hw = (img_size // patch_stride[0], img_size // patch_stride[1])
        plans = _plan_blocks(
            depth, last_blocks, embed_dim, num_heads, adaptive_kv_stride, adaptive_window_size, input_hw
        )
        rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            MultiScaleBlock(
                **plan,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                drop_path=rate,
                norm_layer=norm_layer,
                act_layer=act_layer,
                qkv_pool_kernel=qkv_pool_kernel,
                residual_pooling=residual_pooling,
                use_rel_pos=use_rel_pos,
                rel_pos_zero_init=rel_pos_zero_init,
            )
            for plan, rate in zip(plans, rates, strict=True)
        )
        self._out_features = [name for name in scales if name in out_features]
        self._out_feature_channels, self._out_feature_strides = {}, {}
        self._name_of_block: dict[int, str] = {}
        for stage, (name, last) in enumerate(zip(scales, last_blocks, strict=True)):
            if name in out_features:
                self._name_of_block[last] = name
                self._out_feature_channels[name] = plans[last]["dim_out"]
                self._out_feature_strides[name] = patch_stride[0] << stage
                self.add_module(f"{name}_norm", norm_layer(plans[last]["dim_out"]))
        self.apply(init_linear_and_norm)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map images `Tensor[N, in_chans, H, W]` to `Tensor[N, C, ceil(H / stride), ceil(W / stride)]` by name."""
        x = self.patch_embed(x)
        if self.pos_embed is not None:
            x = x + get_abs_pos(self.pos_embed, self.pretrain_use_cls_token, (x.shape[1], x.shape[2]))
        outputs = {}
        for i, block in enumerate(self.blocks):
            if self.use_act_checkpoint and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
            if i in self._name_of_block:
                name = self._name_of_block[i]
                outputs[name] = self.get_submodule(f"{name}_norm")(x).permute(0, 3, 1, 2).contiguous()
                if len(outputs) == len(self._out_features):
                    break
        return outputs
