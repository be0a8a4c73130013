"""Residual networks: ResNet, ResNeXt and their deformable variants, built of a stem and four stages.

The stages are called `res2` to `res5` after the feature pyramid convention: `res<k>` has stride `2 ** k` unless its
stride was traded for dilation. All feature maps are `Tensor[N, C, H, W]`.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from detectron2.layers import CNNBlockBase, Conv2d, DeformConv, ModulatedDeformConv, ShapeSpec, get_norm
from detectron2.layers.weight_init import c2_msra_fill

from .backbone import Backbone, warn_of_freezing_all
from .build import BACKBONE_REGISTRY

__all__ = [
    "BASIC_BLOCK_DEPTHS",
    "STAGE_NAMES",
    "BasicBlock",
    "BasicStem",
    "BottleneckBlock",
    "DeformBottleneckBlock",
    "ResNet",
    "ResNetBlockBase",
    "blocks_in_stages",
    "build_resnet_backbone",
    "conv",
    "initialize",
    "make_stage",
]


Norm = str | Callable[[int], nn.Module] | None
"""A norm as `detectron2.layers.get_norm` takes it."""

_BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
BASIC_BLOCK_DEPTHS = (18, 34)
"""Depths of ResNets that are made of basic blocks; the others have bottlenecks."""
STAGE_NAMES = ("res2", "res3", "res4", "res5")
"""The stages of a ResNet, from stride 4 to stride 32."""


def conv(in_channels: int, out_channels: int, kernel_size: int, norm: Norm, **kwargs) -> Conv2d:
    """Make a bias-free, size-preserving (up to stride) convolution with its norm; see `initialize`."""
    kwargs = {"padding": kernel_size // 2, "bias": False, "norm": get_norm(norm, out_channels), **kwargs}
    return Conv2d(in_channels, out_channels, kernel_size=kernel_size, **kwargs)


def initialize(block: nn.Module) -> None:
    """Fill the convolutions of a block for ReLU, when all are made: one seed then gives the published weights."""
    for name in ("conv1", "conv2", "conv3", "shortcut"):
        layer = getattr(block, name, None)
        if layer is not None:
            c2_msra_fill(layer)


class ResidualBlock(CNNBlockBase):
    """A branch of convolutions added to its input, which is projected where the shapes differ."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: Norm):
        super().__init__(in_channels, out_channels, stride)
        fits = in_channels == out_channels and stride == 1
        self.shortcut = None if fits else conv(in_channels, out_channels, 1, norm, stride=stride)

    def _residual(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `relu(branch(x) + shortcut(x))`."""
        out = self._residual(x)
        # The branch ends in a fresh tensor that no backward formula needs, so the sum may overwrite it.
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(out)


def _stage_names(stages) -> list[str]:
    return [f"res{i}" for i in range(2, 2 + len(stages))]


def blocks_in_stages(depth: int) -> tuple[int, ...]:
    """Return the number of blocks in each stage of the standard network with `depth` layers."""
    if depth not in _BLOCKS_PER_STAGE:
        raise ValueError(
            f"unknown ResNet depth (MODEL.RESNETS.DEPTH) {depth}; choose one of {sorted(_BLOCKS_PER_STAGE)}"
        )
    return _BLOCKS_PER_STAGE[depth]


def _check_blocks(name: str, blocks) -> None:
    if len(blocks) == 0:
        raise ValueError(f"stage {name} has no blocks")
    for block in blocks:
        if not isinstance(block, CNNBlockBase):
            raise TypeError(f"stage {name} holds a {type(block).__name__}; blocks must derive from CNNBlockBase")


def _check_basic_options(depth: int, options) -> None:
    """Tell which options of `cfg.MODEL.RESNETS` a network of basic blocks cannot honour."""
    expected = {"NUM_GROUPS": 1, "RES5_DILATION": 1}
    wrong = [f"{key} {options[key]} (must be {value})" for key, value in expected.items() if options[key] != value]
    # The default, 256, is the width of bottleneck blocks; left as it is it makes a network sixteen times as large.
    if options.RES2_OUT_CHANNELS > 64:
        wrong.append(f"RES2_OUT_CHANNELS {options.RES2_OUT_CHANNELS} (must be 64, or less for a narrower network)")
    if any(options.DEFORM_ON_PER_STAGE):
        wrong.append(f"DEFORM_ON_PER_STAGE {options.DEFORM_ON_PER_STAGE} (must be all False)")
    if wrong:
        raise ValueError(f"MODEL.RESNETS: depth {depth} is built of basic blocks, which exclude " + ", ".join(wrong))


ResNetBlockBase = CNNBlockBase
"""Former name of `detectron2.layers.CNNBlockBase`."""


class BasicBlock(ResidualBlock):
    """The two-convolution block of ResNet-18 and ResNet-34 (He et al. 2016, figure 5 left).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: stride of the first 3x3 convolution and of the shortcut.
        norm: a norm as `detectron2.layers.get_norm` takes it.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, norm: Norm = "BN"):
        super().__init__(in_channels, out_channels, stride, norm)
        self.conv1 = conv(in_channels, out_channels, 3, norm, stride=stride)
        self.conv2 = conv(out_channels, out_channels, 3, norm)
        initialize(self)

    def _residual(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2(F.relu_(self.conv1(x)))


class BottleneckBlock(ResidualBlock):
    """The three-convolution block (1x1, 3x3, 1x1) of the deeper networks and of ResNeXt.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        bottleneck_channels: channels of the 3x3 convolution, over all groups.
        stride: stride of the block.
        num_groups: groups of the 3x3 convolution; more than 1 makes a ResNeXt block.
        norm: a norm as `detectron2.layers.get_norm` takes it.
        stride_in_1x1: stride in the first 1x1 convolution (the original MSRA networks) and not in the 3x3 one.
        dilation: dilation of the 3x3 convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm: Norm = "BN",
        stride_in_1x1: bool = False,
        dilation: int = 1,
    ):
        super().__init__(in_channels, out_channels, stride, norm)
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = conv(in_channels, bottleneck_channels, 1, norm, stride=stride_1x1)
        geometry: dict[str, int] = {"stride": stride_3x3, "padding": dilation, "dilation": dilation}
        self.conv2 = conv(bottleneck_channels, bottleneck_channels, 3, norm, groups=num_groups, **geometry)
        self.conv3 = conv(bottleneck_channels, out_channels, 1, norm)
        initialize(self)

    def _residual(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv3(F.relu_(self.conv2(F.relu_(self.conv1(x)))))


class DeformBottleneckBlock(ResidualBlock):
    """A bottleneck whose 3x3 convolution is deformable (Dai et al. 2017; modulated: Zhu et al. 2019).

    The offsets start at zero, so an untrained block is an ordinary bottleneck (a modulated one is half of it, since
    its mask starts at sigmoid(0)).

    Arguments are those of `BottleneckBlock`, and: `deform_modulated`, whether to predict a weight for every sampling
    point too; and `deform_num_groups`, channel groups that have offsets of their own.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm: Norm = "BN",
        stride_in_1x1: bool = False,
        dilation: int = 1,
        deform_modulated: bool = False,
        deform_num_groups: int = 1,
    ):
        super().__init__(in_channels, out_channels, stride, norm)
        self.deform_modulated = deform_modulated
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        geometry: dict[str, Any] = {"kernel_size": 3, "stride": stride_3x3, "padding": dilation, "dilation": dilation}
        # Per sampling point of the 3x3 kernel: a shift in y and in x, and a weight when modulated.
        numbers_per_point = 3 if deform_modulated else 2

        self.conv1 = conv(in_channels, bottleneck_channels, 1, norm, stride=stride_1x1)
        self.conv2_offset = Conv2d(bottleneck_channels, 9 * numbers_per_point * deform_num_groups, **geometry)
        for parameter in self.conv2_offset.parameters():
            nn.init.zeros_(parameter)
        self.conv2 = (ModulatedDeformConv if deform_modulated else DeformConv)(
            bottleneck_channels,
            bottleneck_channels,
            bias=False,
            groups=num_groups,
            deformable_groups=deform_num_groups,
            norm=get_norm(norm, bottleneck_channels),
            **geometry,
        )
        self.conv3 = conv(bottleneck_channels, out_channels, 1, norm)
        initialize(self)

    def _residual(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu_(self.conv1(x))
        offset = self.conv2_offset(x)
        if self.deform_modulated:
            # The channels hold two thirds of shifts, then one third of weights (in logits).
            num_shifts = offset.shape[1] // 3 * 2
            x = self.conv2(x, offset[:, :num_shifts], offset[:, num_shifts:].sigmoid())
        else:
            x = self.conv2(x, offset)
        return self.conv3(F.relu_(x))


class BasicStem(CNNBlockBase):
    """The first layers of a standard ResNet: a 7x7 convolution of stride 2 and a 3x3 max pooling of stride 2.

    Args:
        in_channels: channels of the image.
        out_channels: channels of the output.
        norm: a norm as `detectron2.layers.get_norm` takes it.
    """

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm: Norm = "BN"):
        super().__init__(in_channels, out_channels, 4)
        self.conv1 = conv(in_channels, out_channels, 7, norm, stride=2)
        initialize(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `Tensor[N, in_channels, H, W]` to `Tensor[N, out_channels, H/4, W/4]` (rounded up)."""
        return F.max_pool2d(F.relu_(self.conv1(x)), kernel_size=3, stride=2, padding=1)


class ResNet(Backbone):
    """Deep Residual Learning for Image Recognition (He et al. 2016) as a backbone.

    Stages behind the last one that `out_features` asks for are left out, so that no parameter goes unused.

    Args:
        stem: the first layers; has the attributes `out_channels`, `stride` and the method `freeze()`.
        stages: for each stage its blocks, in order; see `make_stage`.
        num_classes: when given, a linear classifier is put on the globally pooled last stage.
        out_features: names of the outputs to return, of "stem", "res2" …, "linear"; by default the last layer.
        freeze_at: how many stages to freeze, see `freeze`.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: list[list[CNNBlockBase]],
        num_classes: int | None = None,
        out_features: list[str] | None = None,
        freeze_at: int = 0,
    ):
        super().__init__()
        self.stem: Any = stem
        self.num_classes = num_classes
        if num_classes is None and out_features:
            # A linear layer would need every stage; otherwise build no further than the deepest output.
            depth = max((i for i, name in enumerate(_stage_names(stages), start=1) if name in out_features), default=0)
            stages = stages[:depth]

        stride, channels = self.stem.stride, self.stem.out_channels
        self._out_feature_strides, self._out_feature_channels = {"stem": stride}, {"stem": channels}
        self.stage_names, self.stages = tuple(_stage_names(stages)), []
        for name, blocks in zip(self.stage_names, stages, strict=True):
            _check_blocks(name, blocks)
            stage = nn.Sequential(*blocks)
            self.add_module(name, stage)
            self.stages.append(stage)
            for block in blocks:
                stride *= block.stride
            channels = blocks[-1].out_channels
            self._out_feature_strides[name], self._out_feature_channels[name] = stride, channels

        last = self.stage_names[-1] if self.stage_names else "stem"
        if num_classes is not None:
            self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
            self.linear = nn.Linear(channels, num_classes)
            # "the 1000-way fully-connected layer is initialized by ... std of 0.01" (Goyal et al. 2017, section 5.1)
            nn.init.normal_(self.linear.weight, std=0.01)
            last = "linear"

        self._out_features = list(out_features) if out_features else [last]
        known = ["stem", *self.stage_names] + (["linear"] if num_classes is not None else [])
        unknown = [name for name in self._out_features if name not in known]
        if unknown:
            raise ValueError(f"out_features {unknown} do not exist in this ResNet; available are {known}")
        self.freeze(freeze_at)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the outputs named by `out_features` for images `Tensor[N, C, H, W]`."""
        if x.dim() != 4:
            raise ValueError(f"ResNet takes images of shape (N, C, H, W); got shape {tuple(x.shape)}")
        outputs = {}
        x = self.stem(x)
        if "stem" in self._out_features:
            outputs["stem"] = x
        for name, stage in zip(self.stage_names, self.stages, strict=True):
            x = stage(x)
            if name in self._out_features:
                outputs[name] = x
        if self.num_classes is not None:
            x = self.linear(torch.flatten(self.avgpool(x), 1))
            if "linear" in self._out_features:
                outputs["linear"] = x
        return outputs

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every output; the classifier's output has `num_classes` channels and no stride."""
        return {
            name: ShapeSpec(channels=self.num_classes)
            if name == "linear"
            else ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }

    def freeze(self, freeze_at: int = 0) -> nn.Module:
        """Fix the parameters of the first stages and turn their batch norms into frozen ones, for fine-tuning.

        Args:
            freeze_at: 0 freezes nothing, 1 the stem, 2 the stem and `res2`, and so on.

        Returns:
            This network.
        """
        warn_of_freezing_all(freeze_at, 1 + len(self.stages))
        if freeze_at >= 1:
            self.stem.freeze()
        for blocks in self.stages[: max(freeze_at - 1, 0)]:
            for block in blocks:
                block.freeze()
        return self

    @staticmethod
    def make_stage(
        block_class: type[CNNBlockBase], num_blocks: int, *, in_channels: int, out_channels: int, **kwargs
    ) -> list[CNNBlockBase]:
        """Make the blocks of one stage: the first maps `in_channels` to `out_channels`, the others keep them.

        Args:
            block_class: the class of every block.
            num_blocks: how many.
            in_channels: channels that enter the stage.
            out_channels: channels that leave every block.
            **kwargs: further arguments of `block_class`. `name_per_block=[...]` gives each block its own value of
                `name`; any other argument goes to all of them. In a stage whose blocks share a resolution,
                `stride_per_block[1:]` is all ones.

        Returns:
            The blocks, in order.
        """
        shared = {k: v for k, v in kwargs.items() if not k.endswith("_per_block")}
        single = {k.removesuffix("_per_block"): v for k, v in kwargs.items() if k.endswith("_per_block")}
        for name, values in single.items():
            if len(values) != num_blocks:
                raise ValueError(f"{name}_per_block has {len(values)} values for a stage of {num_blocks} blocks")
            if name in shared:
                raise ValueError(f"give either {name} or {name}_per_block to make_stage, not both")
        return [
            block_class(
                in_channels=in_channels if i == 0 else out_channels,
                out_channels=out_channels,
                **shared,
                **{name: values[i] for name, values in single.items()},
            )
            for i in range(num_blocks)
        ]

    @staticmethod
    def make_default_stages(
        depth: int, block_class: type[CNNBlockBase] | None = None, **kwargs
    ) -> list[list[CNNBlockBase]]:
        """Make the four stages of a standard network.

        Args:
            depth: 18, 34, 50, 101 or 152.
            block_class: the class of the blocks; by default `BasicBlock` for 18 and 34, `BottleneckBlock`
                otherwise. For depths of 50 and more it must take `bottleneck_channels`.
            **kwargs: further arguments of `make_stage`, other than strides and channels.

        Returns:
            The blocks of `res2` to `res5`, ready for `ResNet`.
        """
        blocks_per_stage = blocks_in_stages(depth)
        basic = depth in BASIC_BLOCK_DEPTHS
        block_class = block_class or (BasicBlock if basic else BottleneckBlock)
        stages, in_channels = [], 64
        for i, num_blocks in enumerate(blocks_per_stage):
            out_channels = (64 if basic else 256) * 2**i
            extra = dict(kwargs) if basic else {"bottleneck_channels": out_channels // 4, **kwargs}
            extra.update(in_channels=in_channels, out_channels=out_channels)
            extra["stride_per_block"] = [1 if i == 0 else 2] + [1] * (num_blocks - 1)
            stages.append(ResNet.make_stage(block_class, num_blocks, **extra))
            in_channels = out_channels
        return stages


def make_stage(
    block_class: type[CNNBlockBase],
    num_blocks: int,
    first_stride: int | None = None,
    *,
    in_channels: int,
    out_channels: int,
    **kwargs,
) -> list[CNNBlockBase]:
    """Do what `ResNet.make_stage` does; `first_stride` is the old way to give the first block its stride."""
    if first_stride is not None:
        kwargs["stride_per_block"] = [first_stride] + [1] * (num_blocks - 1)
    return ResNet.make_stage(block_class, num_blocks, in_channels=in_channels, out_channels=out_channels, **kwargs)


@BACKBONE_REGISTRY.register()
def build_resnet_backbone(cfg, input_shape: ShapeSpec) -> ResNet:
    """Build the `ResNet` that `cfg.MODEL.RESNETS` and `cfg.MODEL.BACKBONE.FREEZE_AT` describe."""
    options = cfg.MODEL.RESNETS
    norm, depth, out_features = options.NORM, options.DEPTH, options.OUT_FEATURES
    blocks_per_stage = blocks_in_stages(depth)
    basic = depth in BASIC_BLOCK_DEPTHS
    if basic:
        _check_basic_options(depth, options)
    if options.RES5_DILATION not in (1, 2):
        raise ValueError(f"MODEL.RESNETS.RES5_DILATION must be 1 or 2; got {options.RES5_DILATION}")
    unknown = [name for name in out_features if name not in ("stem", *STAGE_NAMES)]
    if unknown:
        raise ValueError(f"MODEL.RESNETS.OUT_FEATURES: unknown {unknown}; choose of {['stem', *STAGE_NAMES]}")

    image_channels: Any = input_shape.channels
    stem = BasicStem(in_channels=image_channels, out_channels=options.STEM_OUT_CHANNELS, norm=norm)
    stages, in_channels = [], options.STEM_OUT_CHANNELS
    for i in range(4):  # also those that ResNet leaves out: with one seed what is built next is as published
        out_channels = options.RES2_OUT_CHANNELS * 2**i
        dilation = options.RES5_DILATION if i == 3 else 1
        first_stride = 1 if i == 0 or dilation == 2 else 2
        kwargs: dict[str, Any] = {"norm": norm, "stride_per_block": [first_stride] + [1] * (blocks_per_stage[i] - 1)}
        block_class = BasicBlock
        if not basic:
            block_class = BottleneckBlock
            kwargs.update(
                bottleneck_channels=options.NUM_GROUPS * options.WIDTH_PER_GROUP * 2**i,
                stride_in_1x1=options.STRIDE_IN_1X1,
                dilation=dilation,
                num_groups=options.NUM_GROUPS,
            )
        if options.DEFORM_ON_PER_STAGE[i]:
            block_class = DeformBottleneckBlock
            kwargs.update(deform_modulated=options.DEFORM_MODULATED, deform_num_groups=options.DEFORM_NUM_GROUPS)
        kwargs.update(in_channels=in_channels, out_channels=out_channels)
        stages.append(ResNet.make_stage(block_class, blocks_per_stage[i], **kwargs))
        in_channels = out_channels
    return ResNet(stem, stages, out_features=out_features, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)
