"""A ResNet of which one stage runs in branches with different receptive fields."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, ShapeSpec, get_norm
from detectron2.layers.weight_init import c2_msra_fill
from detectron2.modeling import BACKBONE_REGISTRY, ResNet, build_resnet_backbone
from detectron2.modeling.backbone import BottleneckBlock

from .trident_conv import TridentConv

__all__ = ["TridentBottleneckBlock", "build_trident_resnet_backbone", "make_trident_stage"]


class TridentBottleneckBlock(BottleneckBlock):
    """A bottleneck in branches that share all weights and differ in the dilation of the 3x3 convolution.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        bottleneck_channels: channels of the 3x3 convolution, over all groups.
        stride: stride of the block.
        num_groups: groups of the 3x3 convolution.
        norm: a norm as `detectron2.layers.get_norm` takes it.
        stride_in_1x1: stride in the first 1x1 convolution and not in the 3x3 one.
        num_branch: number of branches.
        dilations: dilation of each branch.
        concat_output: return one tensor, with the branches one after the other along the batch; otherwise a list.
        test_branch_idx: the branch that runs in inference; -1 for all.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm: Any = "BN",
        stride_in_1x1: bool = False,
        num_branch: int = 3,
        dilations: tuple[int, ...] | list[int] = (1, 2, 3),
        concat_output: bool = False,
        test_branch_idx: int = -1,
    ):
        if len(dilations) != num_branch:
            raise ValueError(
                f"MODEL.TRIDENT: {num_branch} branches (NUM_BRANCH) need as many dilations (BRANCH_DILATIONS); got "
                f"{list(dilations)}"
            )
        super().__init__(
            in_channels,
            out_channels,
            bottleneck_channels=bottleneck_channels,
            stride=stride,
            num_groups=num_groups,
            norm=norm,
            stride_in_1x1=stride_in_1x1,
        )
        self.concat_output = concat_output
        self.conv2 = TridentConv(
            bottleneck_channels,
            bottleneck_channels,
            kernel_size=3,
            stride=1 if stride_in_1x1 else stride,
            paddings=dilations,
            dilations=dilations,
            groups=num_groups,
            num_branch=num_branch,
            test_branch_idx=test_branch_idx,
            norm=get_norm(norm, bottleneck_channels),
        )
        c2_msra_fill(self.conv2)

    def forward(self, x: torch.Tensor | list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        """Run the branches.

        Args:
            x: `Tensor[N, C, H, W]` for each branch, or one for all of them: then what the branches have in common, up
                to the 3x3 convolution and in the shortcut, is computed once.

        Returns:
            `Tensor[N, C', H', W']` for each branch, or their concatenation along the batch.
        """
        if isinstance(x, torch.Tensor):
            branches = self.conv2(F.relu_(self.conv1(x)))
            shortcuts = [self._shortcut(x)] * len(branches)
        else:
            branches = self.conv2([F.relu_(self.conv1(branch)) for branch in x])
            shortcuts = [self._shortcut(branch) for branch in x]
        outputs = []
        for branch, shortcut in zip(branches, shortcuts, strict=True):
            out = self.conv3(F.relu_(branch))
            out += shortcut
            outputs.append(F.relu_(out))
        return torch.cat(outputs) if self.concat_output else outputs

    def _shortcut(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.shortcut is None else self.shortcut(x)


def make_trident_stage(block_class: type[CNNBlockBase], num_blocks: int, **kwargs) -> list[CNNBlockBase]:
    """Make the blocks of a stage, the last of which concatenates the branches along the batch.

    Args:
        block_class: `TridentBottleneckBlock` or a class like it.
        num_blocks: how many.
        **kwargs: further arguments of `ResNet.make_stage`.

    Returns:
        The blocks, in order.
    """
    concat = [False] * (num_blocks - 1) + [True]
    return ResNet.make_stage(block_class, num_blocks, concat_output_per_block=concat, **kwargs)


@BACKBONE_REGISTRY.register()
def build_trident_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build the ResNet of `cfg.MODEL.RESNETS`, with branches in the stage `cfg.MODEL.TRIDENT.TRIDENT_STAGE`.

    From that stage on the batch holds every image once for each running branch, so all outputs must come from there.
    """
    trident = cfg.MODEL.TRIDENT
    network = build_resnet_backbone(cfg, input_shape)
    names = list(network.stage_names)
    if trident.TRIDENT_STAGE not in names:
        raise ValueError(
            f"MODEL.TRIDENT.TRIDENT_STAGE {trident.TRIDENT_STAGE!r} is not among the stages {names}; deeper ones exist "
            f"only when MODEL.RESNETS.OUT_FEATURES, now {cfg.MODEL.RESNETS.OUT_FEATURES}, asks for them"
        )
    position = names.index(trident.TRIDENT_STAGE)
    early = [name for name in cfg.MODEL.RESNETS.OUT_FEATURES if name not in names[position:]]
    if early:
        raise ValueError(
            f"MODEL.RESNETS.OUT_FEATURES {early} come before the branches of {trident.TRIDENT_STAGE}, with another "
            "batch size; move MODEL.TRIDENT.TRIDENT_STAGE before them or leave them out"
        )
    network.stages[position] = _with_branches(network.stages[position], cfg)
    network.add_module(trident.TRIDENT_STAGE, network.stages[position])
    network.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)
    return network


def _with_branches(stage: nn.Sequential, cfg: CfgNode) -> nn.Sequential:
    """A stage of the same shape as `stage`, in branches."""
    if any(type(block) is not BottleneckBlock for block in stage):
        raise ValueError(
            f"MODEL.TRIDENT.TRIDENT_STAGE {cfg.MODEL.TRIDENT.TRIDENT_STAGE} must be made of plain bottlenecks: a "
            f"ResNet of depth 50 or more (MODEL.RESNETS.DEPTH is {cfg.MODEL.RESNETS.DEPTH}), without deformable "
            "convolutions there"
        )
    first: Any = stage[0]
    blocks = make_trident_stage(
        TridentBottleneckBlock,
        len(stage),
        stride_per_block=[block.stride for block in stage],
        in_channels=first.in_channels,
        out_channels=first.out_channels,
        bottleneck_channels=first.conv2.out_channels,
        num_groups=first.conv2.groups,
        norm=cfg.MODEL.RESNETS.NORM,
        stride_in_1x1=cfg.MODEL.RESNETS.STRIDE_IN_1X1,
        num_branch=cfg.MODEL.TRIDENT.NUM_BRANCH,
        dilations=cfg.MODEL.TRIDENT.BRANCH_DILATIONS,
        test_branch_idx=cfg.MODEL.TRIDENT.TEST_BRANCH_IDX,
    )
    return nn.Sequential(*blocks)
