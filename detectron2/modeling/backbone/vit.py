"""Plain vision transformers as detection backbones (ViTDet).

Li, Mao, Girshick, He, "Exploring Plain Vision Transformer Backbones for Object Detection", arXiv:2203.16527: a
`ViT` with one map at one stride, in most blocks attention within windows, and a `SimpleFeaturePyramid`
that makes all levels from its last map.

Maps of tokens have their channels last inside the transformer, `Tensor[N, H, W, C]`, and first outside of it.

Letters: `N` images, `C` channels; `H`, `W` height and width in tokens.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from detectron2.layers import CNNBlockBase, Conv2d, get_norm
from detectron2.layers.blocks import conv_norm
from detectron2.layers.weight_init import c2_msra_fill

from .backbone import Backbone
from .fpn import PyramidBase, _assert_strides_are_log2_contiguous
from .utils import (
    Mlp,
    PatchEmbed,
    decomposed_attention,
    drop_path,
    get_abs_pos,
    init_linear_and_norm,
    window_partition,
    window_unpartition,
)

__all__ = ["Attention", "Block", "ResBottleneckBlock", "SimpleFeaturePyramid", "ViT", "get_vit_lr_decay_rate"]


class Attention(nn.Module):
    """Attention of every token of a map to all others, with several heads.

    Args:
        dim: channels `C` of the input and the output.
        num_heads: attention heads, each of `dim / num_heads` channels.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        use_rel_pos: whether logits depend on the distance between query and key, by learned tables for rows and
            columns (`detectron2.modeling.backbone.utils.add_decomposed_rel_pos`).
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
        norm: after every convolution, as `detectron2.layers.get_norm` takes it.
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

    Arguments are those of `Attention`, and: `mlp_ratio`, channels between the two linear layers as a multiple of `dim`;
    `drop_path_rate`, probability of leaving out a residual for an image, in training; `norm_layer`, which makes a norm
    over the last of `C` channels; `act_layer`, which makes the activation between the linear layers; `window_size`,
    side in tokens of the windows within which attention works, 0 for the whole map; and `use_residual_block`, whether
    a `ResBottleneckBlock` follows.
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


class ViT(Backbone):
    """A plain vision transformer that returns its last map of tokens.

    Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv:2010.11929, without class token and last norm, and with
    what ViTDet adds: windows, relative positions, convolutional blocks.

    Sizes need not be those of pretraining: the absolute positions of `pretrain_img_size` are resized to the image at
    hand whenever it differs, and the tables of relative positions, made for `img_size`, likewise. The parameters keep
    their shapes, so build the model with the `img_size` it was trained with, then give it images of any size.

    Args:
        img_size: side of the images to expect, in pixels; decides the length of the tables of relative positions.
        patch_size: side of a patch, in pixels: the stride of the output.
        in_chans: channels of the images.
        embed_dim: channels `C` of a token.
        depth: number of blocks.
        num_heads: attention heads of a block.
        mlp_ratio: channels between the two linear layers of a block, as a multiple of `embed_dim`.
        qkv_bias: whether the projections to queries, keys and values have a bias.
        drop_path_rate: probability of leaving out a residual branch in the last block; it rises linearly from 0 in
            the first.
        norm_layer: makes a norm over the last of `C` channels.
        act_layer: makes the activations.
        use_abs_pos: whether learned embeddings of absolute positions are added to the patches.
        use_rel_pos: whether attention uses relative positions.
        rel_pos_zero_init: whether their tables start at zero.
        window_size: side of the windows, in tokens, of the blocks that attend within windows.
        window_block_indexes: the numbers of these blocks.
        residual_block_indexes: the numbers of the blocks that end with convolutions.
        use_act_checkpoint: whether activations within blocks are computed again in the backward pass, which saves
            memory and costs time.
        pretrain_img_size: side of the images of pretraining, in pixels; decides how many absolute positions there are.
        pretrain_use_cls_token: whether pretrained absolute positions begin with one for the class token, which is
            left out here.
        out_feature: name of the output.
    """

    def __init__(
        self,
        img_size: int = 1024,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        use_abs_pos: bool = True,
        use_rel_pos: bool = False,
        rel_pos_zero_init: bool = True,
        window_size: int = 0,
        window_block_indexes: Sequence[int] = (),
        residual_block_indexes: Sequence[int] = (),
        use_act_checkpoint: bool = False,
        pretrain_img_size: int = 224,
        pretrain_use_cls_token: bool = True,
        out_feature: str = "last_feat",
    ):
        super().__init__()
        self.pretrain_use_cls_token = pretrain_use_cls_token
        self.use_act_checkpoint = use_act_checkpoint
        self.patch_embed = PatchEmbed((patch_size, patch_size), (patch_size, patch_size), (0, 0), in_chans, embed_dim)
        self.pos_embed: nn.Parameter | None = None
        if use_abs_pos:
            positions = (pretrain_img_size // patch_size) ** 2 + int(pretrain_use_cls_token)
            self.pos_embed = nn.Parameter(torch.zeros(1, positions, embed_dim))
            nn.init.trunc_normal_(self.pos_embed, std=0.02)

        side = img_size // patch_size
        self.blocks = nn.ModuleList(
            Block(
                dim=embed_dim,
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                drop_path_rate=drop_path_rate * i / max(depth - 1, 1),
                norm_layer=norm_layer,
                act_layer=act_layer,
                use_rel_pos=use_rel_pos,
                rel_pos_zero_init=rel_pos_zero_init,
                window_size=window_size if i in window_block_indexes else 0,
                use_residual_block=i in residual_block_indexes,
                input_size=(side, side),
            )
            for i in range(depth)
        )
        self.apply(init_linear_and_norm)
        self._out_features = [out_feature]
        self._out_feature_channels = {out_feature: embed_dim}
        self._out_feature_strides = {out_feature: patch_size}

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map images `Tensor[N, in_chans, height, width]` to `Tensor[N, embed_dim, H, W]`, named `out_feature`.

        Pixels beyond the last whole patch are ignored.
        """
        x = self.patch_embed(x)
        if self.pos_embed is not None:
            x = x + get_abs_pos(self.pos_embed, self.pretrain_use_cls_token, (x.shape[1], x.shape[2]))
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.use_act_checkpoint else block(x)
        return {self._out_features[0]: x.permute(0, 3, 1, 2)}


class SimpleFeaturePyramid(PyramidBase):
    """All levels of a pyramid from one map, each by itself (section 3 of the paper).

    A level of stride `s` is called `p<log2(s)>`, and its layers `simfp_<log2(s)>`.

    Args:
        net: the backbone below.
        in_feature: name of its map from which the pyramid is made.
        out_channels: channels of every level.
        scale_factors: the resolution of the levels relative to that map, of 4.0, 2.0, 1.0 and 0.5, from high to low,
            each half of the one before.
        top_block: makes further, coarser levels. It has the attributes `num_levels` (how many it adds) and
            `in_feature` (the map it starts from, of the backbone or of the pyramid).
        norm: norm of all layers, as `detectron2.layers.get_norm` takes it.
        square_pad: when positive, inputs are padded to squares of this side, in pixels.

    Raises:
        ValueError: a name, a factor or a stride does not fit.
    """

    def __init__(
        self,
        net: Backbone,
        in_feature: str,
        out_channels: int,
        scale_factors: Sequence[float],
        top_block: nn.Module | None = None,
        norm: str | Callable[[int], nn.Module] | None = "LN",
        square_pad: int = 0,
    ):
        super().__init__()
        shapes = net.output_shape()
        if in_feature not in shapes:
            raise ValueError(f"SimpleFeaturePyramid in_feature {in_feature!r}: the backbone offers {list(shapes)}")
        self.scale_factors = scale_factors
        channels, stride = shapes[in_feature].channels, shapes[in_feature].stride
        assert channels is not None and stride is not None, "a backbone knows its channels and strides"
        strides = [int(stride / scale) for scale in scale_factors]
        _assert_strides_are_log2_contiguous(strides)
        levels = [int(math.log2(s)) for s in strides]
        for level, scale in zip(levels, scale_factors, strict=True):
            self.add_module(f"simfp_{level}", _pyramid_level(scale, channels, out_channels, norm))
        self._levels = tuple(levels)
        self.net = net
        self.in_feature = in_feature
        self._set_levels(levels, out_channels, list(shapes), top_block, square_pad)

    @property
    def padding_constraints(self) -> dict[str, int]:
        """The stride of the coarsest map made from the backbone, and the side of squares (0: no squares)."""
        return {"size_divisibility": self._size_divisibility, "square_size": self._square_pad}

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the levels `Tensor[N, out_channels, height / stride, width / stride]`, the finest first.

        The input is images `Tensor[N, C, height, width]`; `size_divisibility` must divide their height and width.
        """
        below = self.net(x)
        source = below[self.in_feature]
        pyramid = {f"p{level}": getattr(self, f"simfp_{level}")(source) for level in self._levels}
        if self.top_block is not None:
            start = self.top_block.in_feature
            top = self.top_block(below[start] if start in below else pyramid[start])
            pyramid.update(zip(self._out_features[len(self._levels) :], top, strict=True))
        return pyramid


def _pyramid_level(scale: float, channels: int, out_channels: int, norm) -> nn.Sequential:
    """Resample by `scale`, then a 1 x 1 and a 3 x 3 convolution; the positions of layers are part of their names."""
    if scale == 4.0:
        resample = [
            nn.ConvTranspose2d(channels, channels // 2, kernel_size=2, stride=2),
            get_norm(norm, channels // 2) or nn.Identity(),
            nn.GELU(),
            nn.ConvTranspose2d(channels // 2, channels // 4, kernel_size=2, stride=2),
        ]
        channels = channels // 4
    elif scale == 2.0:
        resample = [nn.ConvTranspose2d(channels, channels // 2, kernel_size=2, stride=2)]
        channels = channels // 2
    elif scale == 1.0:
        resample = []
    elif scale == 0.5:
        resample = [nn.MaxPool2d(kernel_size=2, stride=2)]
    else:
        raise ValueError(f"SimpleFeaturePyramid scale_factors may be 4.0, 2.0, 1.0 and 0.5; got {scale}")
    lateral, output = conv_norm(channels, out_channels, 1, norm), conv_norm(out_channels, out_channels, 3, norm)
    return nn.Sequential(*resample, lateral, output)


def get_vit_lr_decay_rate(name: str, lr_decay_rate: float = 1.0, num_layers: int = 12) -> float:
    """Tell by which factor to reduce the learning rate of a parameter, the more the nearer it is to the image.

    Clark et al., "ELECTRA", arXiv:2003.10555: layer-wise decay. Meant as `lr_factor_func` of
    `detectron2.solver.get_default_optimizer_params`, for a model whose attribute `backbone` holds a ViT.

    Args:
        name: of the parameter, in the whole model.
        lr_decay_rate: factor from one block to the block below it.
        num_layers: blocks of the ViT.

    Returns:
        `lr_decay_rate ** (num_layers - i)` for block `i`, one factor more for patches and positions, and 1.0 for all
        that comes after the blocks, for convolutions after attention, and for all outside of the backbone.
    """
    steps = 0
    if name.startswith("backbone"):
        if ".pos_embed" in name or ".patch_embed" in name:
            steps = num_layers + 1
        elif ".blocks." in name and ".residual." not in name:
            steps = num_layers - int(name.partition(".blocks.")[2].partition(".")[0])
    return lr_decay_rate**steps
