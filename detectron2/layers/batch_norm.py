"""Normalization layers, and `get_norm`, which makes one from its name in a config.

Letters: `N` images, `C` channels; features are `(N, C, H, W)`.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from detectron2.utils import comm

__all__ = ["CycleBatchNormList", "FrozenBatchNorm2d", "LayerNorm", "NaiveSyncBatchNorm", "get_norm"]


class FrozenBatchNorm2d(nn.Module):
    """Batch normalization with statistics and affine parameters that never change.

    Computes `(x - running_mean) / sqrt(running_var + eps) * weight + bias`. All four are buffers and start as the
    identity. Checkpoints that hold only `weight` and `bias` (with the statistics already folded in) load as well:
    the statistics then stay the identity.

    Args:
        num_features: number of channels.
        eps: added to the variance.

    Example:
        >>> from detectron2.layers import FrozenBatchNorm2d
        >>> norm = FrozenBatchNorm2d(3)
        >>> list(norm.parameters()), sorted(norm.state_dict())
        ([], ['bias', 'running_mean', 'running_var', 'weight'])
    """

    # Version of the state dict: 1 had no statistics, 2 normalised without eps, 3 is described above.
    _version = 3

    weight: torch.Tensor
    bias: torch.Tensor
    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor

    def __init__(self, num_features: int, eps: float = 1e-5):
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features) - eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise `(N, C, H, W)`; `N` may be 0."""
        if x.requires_grad:
            # The backward pass of an affine map is cheaper than that of batch norm.
            scale, shift = (v.to(x.dtype)[:, None, None] for v in self.scale_and_shift())
            return torch.addcmul(shift, x, scale)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def scale_and_shift(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The same normalization as `x * scale + shift`, each of shape `(C,)`, in float32 or better."""
        dtype = torch.promote_types(self.running_var.dtype, torch.float32)
        scale = self.weight.to(dtype) * (self.running_var.to(dtype) + self.eps).rsqrt()
        return scale, self.bias.to(dtype) - self.running_mean.to(dtype) * scale

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        version = local_metadata.get("version")
        mean, var = prefix + "running_mean", prefix + "running_var"
        if version is not None and version < 3 and var in state_dict:
            state_dict[var] = state_dict[var] - self.eps
        if version is None or version < 2:
            state_dict.setdefault(mean, torch.zeros_like(self.running_mean))
            state_dict.setdefault(var, torch.ones_like(self.running_var) - self.eps)
        # Counts batches of a BatchNorm2d in training: without meaning here, kept where the layer was made from one.
        tracked = prefix + "num_batches_tracked"
        if "num_batches_tracked" in self._buffers:
            state_dict.setdefault(tracked, self.num_batches_tracked)
        else:
            state_dict.pop(tracked, None)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args, **kwargs)

    def extra_repr(self) -> str:
        """Summarise the arguments for `repr`."""
        return f"num_features={self.num_features}, eps={self.eps}"

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        """Replace every batch norm within a module, synchronised ones too, by a frozen one with the same values.

        Args:
            module: changed in place, unless it is a batch norm itself.

        Returns:
            A new module when `module` is a batch norm, else `module`.

        Example:
            >>> from detectron2.layers import FrozenBatchNorm2d
            >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
            >>> FrozenBatchNorm2d.convert_frozen_batchnorm(model)[1]
            FrozenBatchNorm2d(num_features=8, eps=1e-05)
        """
        if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            return cls._from_batch_norm(module)
        for name, child in module.named_children():
            converted = cls.convert_frozen_batchnorm(child)
            if converted is not child:
                module.add_module(name, converted)
        return module

    @classmethod
    def _from_batch_norm(cls, norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> "FrozenBatchNorm2d":
        if norm.running_mean is None or norm.running_var is None:
            raise ValueError(f"Cannot freeze {norm}: it keeps no running statistics (track_running_stats=False).")
        frozen = cls(norm.num_features, norm.eps).to(norm.running_mean.device)
        frozen.train(norm.training)
        if norm.affine:
            frozen.weight = norm.weight.detach().clone()
            frozen.bias = norm.bias.detach().clone()
        frozen.running_mean = norm.running_mean.detach()
        frozen.running_var = norm.running_var.detach()
        if norm.num_batches_tracked is not None:
            frozen.register_buffer("num_batches_tracked", norm.num_batches_tracked.detach())
        return frozen


class _SumOverWorkers(torch.autograd.Function):
    """All-reduce whose backward is an all-reduce too."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        total = x.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> torch.Tensor:
        return _SumOverWorkers.forward(ctx, grad_outputs[0])


class NaiveSyncBatchNorm(nn.BatchNorm2d):
    """Batch normalization over all workers, by averaging their means and mean squares.

    With `stats_mode=""` every worker weighs the same, which equals the statistics of all samples only when every
    worker has the same `(N, H, W)`; no worker may have an empty batch. With `stats_mode="N"` a worker weighs by
    its `N`; empty batches are allowed.

    Args:
        *args: positional arguments of `torch.nn.BatchNorm2d`.
        stats_mode: `""` or `"N"`.
        **kwargs: keyword arguments of `torch.nn.BatchNorm2d`.

    Raises:
        ValueError: `stats_mode` is neither.

    Example:
        >>> from detectron2.layers import NaiveSyncBatchNorm
        >>> norm = NaiveSyncBatchNorm(8, stats_mode="N")  # without other processes an ordinary BatchNorm2d
        >>> norm(torch.rand(2, 8, 5, 7)).shape
        torch.Size([2, 8, 5, 7])
    """

    def __init__(self, *args: Any, stats_mode: str = "", **kwargs: Any):
        super().__init__(*args, **kwargs)
        if stats_mode not in ("", "N"):
            raise ValueError(f"stats_mode must be '' or 'N', got {stats_mode!r}.")
        self._stats_mode = stats_mode

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise `(N, C, H, W)`."""
        if not self.training or comm.get_world_size() == 1:
            return super().forward(input)
        by_samples = self._stats_mode == "N"
        if input.shape[0] == 0 and not by_samples:
            raise ValueError("NaiveSyncBatchNorm(stats_mode='') got an empty batch; use the norm 'naiveSyncBN_N'.")
        x = input.float()
        mean, mean_square, total = self._stats_of_all_workers(x, by_samples)
        var = (mean_square - mean * mean).clamp(min=0)  # rounding can take it below
        scale = (var + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        shift = -mean * scale if self.bias is None else self.bias - mean * scale
        if self.running_mean is not None and self.running_var is not None:
            # No sample anywhere, no update; without a branch, which would wait for the device.
            momentum = (total.detach().clamp(max=1) if by_samples else 1.0) * (self.momentum or 0.0)
            self.running_mean += momentum * (mean.detach() - self.running_mean)
            self.running_var += momentum * (var.detach() - self.running_var)
        return torch.addcmul(shift[:, None, None], x, scale[:, None, None]).to(input.dtype)

    def _stats_of_all_workers(
        self, x: torch.Tensor, by_samples: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mean and mean square of each channel, and the total weight of the workers."""
        n, channels = x.shape[:2]
        if n:
            mean, mean_square = x.mean(dim=(0, 2, 3)), x.square().mean(dim=(0, 2, 3))
        else:  # zeros that stay connected to the input, so that this worker takes part in backward
            mean = mean_square = x.new_zeros(channels) + x.sum()
        weight = x.new_full((1,), float(n) if by_samples else 1.0)
        packed = _SumOverWorkers.apply(torch.cat([mean * weight, mean_square * weight, weight]))
        sum_mean, sum_square, total = packed.split([channels, channels, 1])
        safe_total = total.clamp(min=1)
        return sum_mean / safe_total, sum_square / safe_total, total


class CycleBatchNormList(nn.ModuleList):
    """Batch norms with separate statistics and one shared affine transform, used in turn.

    For a head that runs on several pyramid levels: call number `i` uses the statistics `i % length` (RetinaNet with
    per-level statistics, https://arxiv.org/abs/2105.07576, section 6.1). It has to be called the same number of
    times, in the same order, in every forward pass.

    Args:
        length: number of inputs in a cycle.
        bn_class: the batch norm; it is built with `affine=False`.
        **kwargs: arguments of `bn_class`; `affine` decides about the shared transform.

    Example:
        >>> from detectron2.layers import CycleBatchNormList
        >>> norm = CycleBatchNormList(2, num_features=8)  # one for each of two feature levels
        >>> [norm(level).shape for level in (torch.rand(1, 8, 32, 32), torch.rand(1, 8, 16, 16))]
        [torch.Size([1, 8, 32, 32]), torch.Size([1, 8, 16, 16])]
    """

    def __init__(self, length: int, bn_class: Callable[..., Any] = nn.BatchNorm2d, **kwargs: Any):
        affine = kwargs.pop("affine", True)
        norms = [bn_class(**kwargs, affine=False) for _ in range(length)]
        super().__init__(norms)
        if affine:
            channels = norms[0].num_features
            self.weight = nn.Parameter(torch.ones(channels))
            self.bias = nn.Parameter(torch.zeros(channels))
        self._pos = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise `(N, C, H, W)` with the next of the layers, in turn."""
        out = self[self._pos](x)
        self._pos = (self._pos + 1) % len(self)
        if hasattr(self, "weight"):
            out = torch.addcmul(self.bias[:, None, None], out, self.weight[:, None, None])
        return out

    def extra_repr(self) -> str:
        """Say whether there is a shared affine transform."""
        return f"affine={hasattr(self, 'weight')}"


class LayerNorm(nn.Module):
    """Layer normalization over the channels of `(N, C, H, W)`, at each position separately.

    Args:
        normalized_shape: number of channels.
        eps: added to the variance.

    Example:
        >>> from detectron2.layers import LayerNorm
        >>> LayerNorm(8)(torch.rand(2, 8, 5, 7)).shape
        torch.Size([2, 8, 5, 7])
    """

    def __init__(self, normalized_shape: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(normalized_shape))
        self.bias = nn.Parameter(torch.zeros(normalized_shape))
        self.eps = eps
        self.normalized_shape = (normalized_shape,)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise over dimension 1; the result has the shape of `x`."""
        out = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return out.permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        """Summarise the arguments for `repr`."""
        return f"{self.normalized_shape[0]}, eps={self.eps}"


def _synchronized(channels: int) -> nn.SyncBatchNorm:
    norm = nn.SyncBatchNorm(channels)
    norm.register_forward_pre_hook(_check_device)
    return norm


def _check_device(norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    if inputs[0].device.type == "cpu" and norm.training and comm.get_world_size() > 1:
        raise ValueError(
            "SyncBN synchronizes on GPUs only, and this model is trained on the CPU in several processes. Use the norm "
            "'naiveSyncBN' (each process has as many images as the others) or 'naiveSyncBN_N', or one that needs no "
            "synchronization: 'BN', 'GN', 'FrozenBN'."
        )


def _group_norm(num_channels: int) -> nn.Module:
    if num_channels % _GROUPS:
        raise ValueError(
            f"The norm 'GN' shares channels among {_GROUPS} groups, and {num_channels} channels are not a multiple of "
            f"{_GROUPS}. Change the number of channels of that part of the model, or its norm."
        )
    return nn.GroupNorm(_GROUPS, num_channels)


_GROUPS = 32
_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "SyncBN": _synchronized,
    "FrozenBN": FrozenBatchNorm2d,
    "GN": _group_norm,
    "LN": LayerNorm,
    # To compare implementations of synchronised batch norm with one another:
    "nnSyncBN": _synchronized,
    "naiveSyncBN": NaiveSyncBatchNorm,
    "naiveSyncBN_N": functools.partial(NaiveSyncBatchNorm, stats_mode="N"),
}


def get_norm(norm: str | Callable[[int], nn.Module] | None, out_channels: int) -> nn.Module | None:
    """Make a normalization layer.

    Args:
        norm: one of `BN`, `SyncBN`, `FrozenBN`, `GN` (32 groups), `LN`, `nnSyncBN`, `naiveSyncBN`,
            `naiveSyncBN_N`; or a function from the number of channels to a layer; or `""` or `None` for none.
        out_channels: number of channels.

    Returns:
        The layer, or `None` for no normalization.

    Raises:
        ValueError: no normalization has that name, or `GN` cannot divide the channels.

    Example:
        >>> from detectron2.layers import get_norm
        >>> get_norm("GN", 256).num_groups
        32
        >>> get_norm("", 256) is None
        True
    """
    if norm is None or norm == "":
        return None
    if not isinstance(norm, str):
        return norm(out_channels)
    if norm not in _NORMS:
        raise ValueError(f"Unknown normalization (NORM) {norm!r}; choose one of {', '.join(_NORMS)}, or '' for none.")
    return _NORMS[norm](out_channels)
