"""The convolution that the branches share (section 3.2 of the paper).

Letters: `N` images, `B` branches. Where branches stand in one batch, branch `b` of image `i` is entry `b * N + i`.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from detectron2.layers import Conv2d

__all__ = ["TridentConv", "active_branches"]


def active_branches(num_branch: int, test_branch_idx: int, training: bool) -> list[int]:
    """Numbers of the branches that run: all in training; in inference one, or all when `test_branch_idx` is -1."""
    if not -1 <= test_branch_idx < num_branch:
        raise ValueError(
            f"MODEL.TRIDENT.TEST_BRANCH_IDX is {test_branch_idx}; it must be -1 (all branches) or one of 0 to "
            f"{num_branch - 1}"
        )
    return list(range(num_branch)) if training or test_branch_idx == -1 else [test_branch_idx]


class TridentConv(Conv2d):
    """One set of weights, applied with another dilation in each branch.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the kernel.
        stride: stride of all branches.
        paddings: padding of each branch, or one number for all.
        dilations: dilation of each branch, or one number for all.
        groups: groups of channels.
        num_branch: `B`.
        test_branch_idx: the branch that runs in inference; -1 for all.
        bias: add a bias.
        norm: a module applied to the result of each branch.
        activation: a function applied last.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        paddings: int | Sequence[int] = 0,
        dilations: int | Sequence[int] = 1,
        groups: int = 1,
        num_branch: int = 1,
        test_branch_idx: int = -1,
        bias: bool = False,
        norm: torch.nn.Module | None = None,
        activation: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            groups=groups,
            bias=bias,
            norm=norm,
            activation=activation,
        )
        self.num_branch = num_branch
        self.test_branch_idx = test_branch_idx
        self.paddings = _one_per_branch(paddings, num_branch, "paddings")
        self.dilations = _one_per_branch(dilations, num_branch, "dilations")

    def forward(self, input: torch.Tensor | list[torch.Tensor]) -> list[torch.Tensor]:
        """Convolve, normalise, activate.

        Args:
            input: `Tensor[N, C, H, W]` for each running branch, or one for all of them.

        Returns:
            `Tensor[N, C', H', W']` for each running branch.
        """
        branches = active_branches(self.num_branch, self.test_branch_idx, self.training)
        inputs = [input] * len(branches) if isinstance(input, torch.Tensor) else input
        if len(inputs) != len(branches):
            raise ValueError(f"{len(branches)} branches run, but TridentConv got {len(inputs)} inputs")
        outputs = []
        for b, x in zip(branches, inputs, strict=True):
            x = F.conv2d(x, self.weight, self.bias, self.stride, self.paddings[b], self.dilations[b], self.groups)
            x = x if self.norm is None else self.norm(x)
            outputs.append(x if self.activation is None else self.activation(x))
        return outputs

    def extra_repr(self) -> str:
        """Summarise the arguments for `repr`."""
        return (
            f"{super().extra_repr()}, num_branch={self.num_branch}, test_branch_idx={self.test_branch_idx}, "
            f"paddings={self.paddings}, dilations={self.dilations}"
        )


def _one_per_branch(value: int | Sequence[int], num_branch: int, name: str) -> list[int]:
    values = [value] * num_branch if isinstance(value, int) else list(value)
    if len(values) != num_branch:
        raise ValueError(f"TridentConv of {num_branch} branches needs as many {name}; got {values}")
    return values
