"""Parts of residual networks that :mod:`.resnet` shares between its blocks and its checks of configs."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from detectron2.layers import CNNBlockBase, Conv2d, get_norm
from detectron2.layers.weight_init import c2_msra_fill

Norm = str | Callable[[int], nn.Module] | None
"""A norm as :func:`detectron2.layers.get_norm` takes it."""

_BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
BASIC_BLOCK_DEPTHS = (18, 34)
STAGE_NAMES = ("res2", "res3", "res4", "res5")


def conv(in_channels: int, out_channels: int, kernel_size: int, norm: Norm, **kwargs) -> Conv2d:
    """Make a bias-free, size-preserving (up to stride) convolution with its norm, initialised for ReLU."""
    padding = kwargs.pop("padding", kernel_size // 2)
    layer = Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel_size,
        padding=padding,
        bias=False,
        norm=get_norm(norm, out_channels),
        **kwargs,
    )
    c2_msra_fill(layer)
    return layer


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


def stage_names(stages) -> list[str]:
    return [f"res{i}" for i in range(2, 2 + len(stages))]


def blocks_in_stages(depth: int) -> tuple[int, ...]:
    if depth not in _BLOCKS_PER_STAGE:
        raise ValueError(f"there is no standard ResNet of depth {depth}; choose one of {sorted(_BLOCKS_PER_STAGE)}")
    return _BLOCKS_PER_STAGE[depth]


def check_blocks(name: str, blocks) -> None:
    if len(blocks) == 0:
        raise ValueError(f"stage {name} has no blocks")
    for block in blocks:
        if not isinstance(block, CNNBlockBase):
            raise TypeError(f"stage {name} holds a {type(block).__name__}; blocks must derive from CNNBlockBase")


def check_basic_options(depth: int, options) -> None:
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
