"""Models too large for one GPU: parameters, gradients and optimizer state split over all processes.

This is PyTorch's `fully_shard` (Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel",
arXiv:2304.11277) with the choices that transformer backbones need, and checkpoints that do not show it: they are whole,
and a single process can load them.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.layers import CNNBlockBase
from detectron2.utils import comm

__all__ = ["ShardedCheckpointer", "is_sharded", "local_part", "shard_model", "split_like", "whole_weights"]

# What detectors are called by, other than forward: the parameters have to be gathered there as well.
_OTHER_ENTRIES = ("inference",)
_RESHARDS = "_reshards_after_forward"  # attribute of a sharded model: how it was made


def shard_model(
    model: nn.Module,
    *,
    block_types: tuple[type[nn.Module], ...] = (),
    param_dtype: torch.dtype | None = None,
    reduce_dtype: torch.dtype | None = None,
    reshard_after_forward: bool = True,
    cpu_offload: bool = False,
) -> nn.Module:
    """Split a model over all processes, in place; it is then trained like one that is not wrapped.

    Call it in every process, before the optimizer is built. Each transformer block, or block of a ResNet, is a unit
    whose parameters are gathered when it runs and dropped afterwards; everything else is one more unit. With one
    process nothing happens.

    `TRAIN.SHARD_MODEL True`, and `train.shard_model=True` in a LazyConfig, do it; so does
    `model = L(shard_model)(model=model)`, which takes options. Elsewhere write checkpoints with
    `ShardedCheckpointer`, in all processes.

    Args:
        model: equal in all processes, or not: the values of rank 0 are taken.
        block_types: classes of the units; default: the members of every `nn.ModuleList` called `blocks`, and every
            `CNNBlockBase`.
        param_dtype: type of the gathered parameters and of the computation, for example `torch.bfloat16`; default:
            that of the parameters. The optimizer steps the original ones.
        reduce_dtype: type in which gradients are averaged; default: `param_dtype`.
        reshard_after_forward: drop the gathered parameters after the forward pass and gather them again in the backward
            pass: less memory, more traffic.
        cpu_offload: keep parameters and optimizer state in CPU memory.

    Returns:
        `model`.

    Raises:
        ValueError: no block was found: the whole model would be gathered at once, which saves little.
    """
    if comm.get_world_size() == 1:
        return model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    blocks = list(_blocks(model, block_types))
    if not blocks:
        wanted = ", ".join(t.__name__ for t in block_types) or "an nn.ModuleList called 'blocks', or CNNBlockBase"
        raise ValueError(
            f"{type(model).__name__} has no blocks to split ({wanted}). Name their classes in block_types, or use "
            "create_ddp_model for other models."
        )
    _copy_from_rank_zero(model)
    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (comm.get_world_size(),))
    for module in [*blocks, model]:
        fully_shard(
            module,
            mesh=mesh,
            reshard_after_forward=reshard_after_forward,
            mp_policy=MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=reduce_dtype),
            offload_policy=CPUOffloadPolicy() if cpu_offload else OffloadPolicy(),
        )
    for name in _OTHER_ENTRIES:
        if hasattr(model, name):
            _gather_for(model, name)
    model.register_load_state_dict_pre_hook(_split_weights)
    setattr(model, _RESHARDS, reshard_after_forward)
    return model


def _gather_for(model: nn.Module, name: str) -> None:
    """Gather the weights also for a method other than forward, unless forward calls it and has gathered them."""
    from torch.distributed.fsdp import register_fsdp_forward_method

    running: list[None] = []  # one entry for each call of forward that is running
    model.register_forward_pre_hook(lambda *_: running.append(None))
    model.register_forward_hook(lambda *_: running.pop(), always_call=True)
    plain = getattr(model, name)
    register_fsdp_forward_method(model, name)
    gathering = getattr(model, name)

    @functools.wraps(plain)
    def method(*args: Any, **kwargs: Any) -> Any:
        # One within the other would drop the weights twice, in whole_weights() as well.
        return (plain if running else gathering)(*args, **kwargs)

    setattr(model, name, method)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard_model` has split this model; also while `whole_weights` holds it together."""
    if hasattr(model, _RESHARDS):
        return True
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return any(isinstance(p, DTensor) for p in model.parameters())


@contextlib.contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """Within a `with` block, every process has all weights, so that each can run the model on as much as it likes.

    Otherwise a sharded model gathers its weights in every pass, and waits for processes that make fewer.
    """
    if not is_sharded(model):
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(bool(getattr(model, _RESHARDS, True)), recurse=False)
            unit.reshard()


class ShardedCheckpointer(DetectionCheckpointer):
    """A `DetectionCheckpointer` for models of `shard_model`; its files are those of any other.

    `save` gathers the parts, so every process has to call it, at the same time; rank 0 writes. A
    `PeriodicCheckpointer` therefore has to be registered in all processes.

    Args:
        model: a model; also one that is not sharded.
        save_dir: where checkpoints are saved and looked for.
        save_to_disk: whether this process writes; by default only rank 0 does.
        **checkpointables: as in `DetectionCheckpointer`. An optimizer, or a trainer that has one, gets back its
            part of the state.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, save_to_disk: bool | None = None, **checkpointables: Any
    ):
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self._is_distributed = self._is_distributed or is_sharded(model)
        self.needs_all_processes = is_sharded(model)

    def save(self, name: str, **kwargs: Any) -> None:
        """Save everything, whole; see `DetectionCheckpointer.save`."""
        super().save(name, **kwargs)
        comm.synchronize()  # it is marked as the last one when any process goes on

    def save_aside(self, name: str, **kwargs: Any) -> str | None:
        """Save everything, whole; see `DetectionCheckpointer.save_aside`. The name of the file is known on rank 0."""
        model, objects = self.model, self.checkpointables
        try:
            self.model = _Whole(model)
            self.checkpointables = {key: _Whole(value) for key, value in objects.items()}
            basename = super().save_aside(name, **kwargs)
        finally:
            self.model, self.checkpointables = model, objects
        comm.synchronize()  # the file is there when any process goes on
        return basename

    def load(self, path: str, checkpointables: Any = None) -> dict[str, Any]:
        """Load a file, of which each process keeps its part; see `DetectionCheckpointer.load`."""
        rest = super().load(path, checkpointables)
        for owner in self.checkpointables.values():
            optimizer = owner if isinstance(owner, torch.optim.Optimizer) else getattr(owner, "optimizer", None)
            if isinstance(optimizer, torch.optim.Optimizer):
                for parameter, state in optimizer.state.items():
                    state.update({key: split_like(value, parameter) for key, value in state.items()})
        return rest


class _Whole:
    """The state of a checkpointable, with whole tensors on the CPU in place of parts, which all processes gather."""

    def __init__(self, owner: Any) -> None:
        from torch.distributed.tensor import DTensor
        from torch.utils._pytree import tree_map_only

        state = owner.state_dict()
        self._state = tree_map_only(DTensor, lambda part: part.full_tensor().detach().cpu(), state)
        if hasattr(state, "_metadata"):  # versions of modules, which PyTorch keeps beside their weights
            self._state._metadata = state._metadata

    def state_dict(self) -> Any:
        return self._state


def _blocks(model: nn.Module, types: tuple[type[nn.Module], ...]) -> Iterator[nn.Module]:
    for name, module in model.named_modules():
        if isinstance(module, types or CNNBlockBase):
            yield module
        elif not types and isinstance(module, nn.ModuleList) and name.rpartition(".")[2] == "blocks":
            yield from module


@torch.no_grad()
def _copy_from_rank_zero(model: nn.Module) -> None:
    for tensor in [*model.parameters(), *model.buffers()]:
        value = tensor.detach().contiguous()
        if value.device.type == "cpu" and torch.cuda.is_available():  # NCCL knows only its GPU
            value = value.cuda()
        torch.distributed.broadcast(value, src=0)
        tensor.copy_(value)


def _split_weights(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before weights are loaded: whole tensors become the parts that the parameters are."""
    for name, parameter in module.named_parameters():
        if prefix + name in state_dict:
            state_dict[prefix + name] = split_like(state_dict[prefix + name], parameter)


def split_like(value: Any, parameter: torch.Tensor) -> Any:
    """Return the part of a whole tensor that corresponds to a parameter's; anything else as it is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor) or isinstance(value, DTensor) or not isinstance(value, torch.Tensor):
        return value
    if value.shape != parameter.shape:  # a count of steps, or weights of another model, which the caller reports
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a tensor that is split, which changes with it; any other as it is."""
    return getattr(tensor, "_local_tensor", tensor)
