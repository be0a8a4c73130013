"""Models too large for one GPU: parameters, gradients and optimizer state split over all processes.

This is PyTorch's `fully_shard` (Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel",
arXiv:2304.11277) with the choices that transformer backbones need, and checkpoints that a single process can load,
whether they are whole or in the parts that the processes had.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar

import torch
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.parts import ENDING, is_parts_folder, read_parts, separate_parts, write_parts
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
    """A `DetectionCheckpointer` for models of `shard_model`.

    Every process has to call `save`, at the same time, for a model that is split; a `PeriodicCheckpointer` therefore
    has to be registered in all processes. `load` reads files and folders of either layout, and each process keeps its
    part, whatever the number of processes that saved them.

    Args:
        model: a model; also one that is not sharded.
        save_dir: where checkpoints are saved and looked for.
        save_to_disk: whether this process writes; by default only rank 0 does.
        **checkpointables: as in `DetectionCheckpointer`. An optimizer, or a trainer that has one, gets back its
            part of the state.

    Attributes:
        layout: `"full"`: the parts are gathered, and rank 0 writes a file like that of any other model. `"sharded"`:
            each process writes its part, see `detectron2.checkpoint.parts`; a model that is not split goes to a file.
            `"sharded_async"`: the same in a thread, from a copy in CPU memory, while training goes on; `save` first
            waits for the one before. Call `wait` after the last one.

    Example:
        >>> model = shard_model(nn.Linear(2, 1))
        >>> checkpointer = ShardedCheckpointer(model, "output")
        >>> checkpointer.layout = "sharded_async"
        >>> checkpointer.save("model_0000999")
        >>> checkpointer.wait()
    """

    LAYOUTS: ClassVar[tuple[str, ...]] = ("full", "sharded", "sharded_async")
    layout: str = "full"

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, save_to_disk: bool | None = None, **checkpointables: Any
    ):
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self._is_distributed = self._is_distributed or is_sharded(model)
        self.needs_all_processes = is_sharded(model)

        self._group: Any = None  # of its own, so that a thread disturbs no other exchange
        self._threads: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None

    def save(self, name: str, **kwargs: Any) -> None:
        """Save everything; see `DetectionCheckpointer.save`. Asynchronous, it may return before."""
        if self.layout == "full":
            super().save(name, **kwargs)
            comm.synchronize()  # it is marked as the last one when any process goes on
        else:
            self._save_parts(name, kwargs, is_last=True)

    def save_aside(self, name: str, **kwargs: Any) -> str | None:
        """Save everything; see `DetectionCheckpointer.save_aside`. The name of the file is known on rank 0."""
        if self.layout != "full":
            return self._save_parts(name, kwargs, is_last=False)
        model, objects = self.model, self.checkpointables
        try:
            self.model = _Whole(model)
            self.checkpointables = {key: _Whole(value) for key, value in objects.items()}
            basename = super().save_aside(name, **kwargs)
        finally:
            self.model, self.checkpointables = model, objects
        comm.synchronize()  # the file is there when any process goes on
        return basename

    def _save_parts(self, name: str, more: dict[str, Any], *, is_last: bool) -> str | None:
        """Save in the layouts other than `"full"`, and mark the checkpoint as the last one if it is."""
        if not self.save_dir or not (self.save_to_disk or self.needs_all_processes):
            return None
        if os.path.basename(name) != name:
            raise ValueError(f"A checkpoint's name must not contain a folder, but is {name!r}; set save_dir instead.")
        if self.needs_all_processes and "://" in self.save_dir:
            raise ValueError(
                f"Checkpoints in parts need a folder of a file system, but the output folder is {self.save_dir}. Set "
                "SOLVER.CHECKPOINT_LAYOUT (train.checkpoint_layout) to 'full', or choose another folder."
            )
        self.wait()
        is_async, basename = self.layout == "sharded_async", self.file_name(name)
        parts, rest = separate_parts(self._content(name, more), copies=is_async)
        path = os.path.join(self.save_dir, basename)
        if self.save_to_disk:
            self.logger.info("Saving checkpoint to %s%s", path, " while training goes on" if is_async else "")
        finish = functools.partial(self.tag_last_checkpoint, basename) if is_last else None
        if self.needs_all_processes:
            self._group = self._group or torch.distributed.new_group(backend="gloo")
            write = functools.partial(write_parts, path, parts, rest, self._group, self.path_manager, finish)
        else:
            write = functools.partial(self._write_whole, name, rest, finish)
        if is_async:
            self._threads = self._threads or ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
            self._pending = self._threads.submit(write)
        else:
            write()
        return basename if self.save_to_disk else None

    def _write_whole(self, name: str, data: dict[str, Any], finish: Callable[[], None] | None) -> None:
        self._write(name, data)
        if finish is not None:
            finish()

    def wait(self) -> None:
        """Wait until what is being saved has its name; an error of it is raised here."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    @property
    def is_saving(self) -> bool:
        """Whether a checkpoint is being written while training goes on."""
        return self._pending is not None and not self._pending.done()

    def file_name(self, name: str) -> str:
        """Return the file or folder that a checkpoint of this name has."""
        if self.layout not in self.LAYOUTS:
            raise ValueError(f"The layout of a checkpoint is one of {self.LAYOUTS}, not {self.layout!r}.")
        if self.layout != "full" and self.needs_all_processes:
            return f"{name}{ENDING}"
        return super().file_name(name)

    def load(self, path: str, checkpointables: Any = None) -> dict[str, Any]:
        """Load a file, of which each process keeps its part; see `DetectionCheckpointer.load`."""
        rest = super().load(path, checkpointables)
        for owner in self.checkpointables.values():
            if (optimizer := self._optimizer_of(owner)) is not None:
                for parameter, state in optimizer.state.items():
                    state.update({key: split_like(value, parameter) for key, value in state.items()})
        return rest

    def _read_on_all_ranks(self, path: str) -> dict[str, Any]:
        if self.needs_all_processes:
            is_here = comm.all_gather(is_parts_folder(path))
            if any(is_here) and not all(is_here):
                raise FileNotFoundError(
                    f"{path} is there for the ranks {[r for r, x in enumerate(is_here) if x]} only. A checkpoint in "
                    "parts must be on a file system that all machines see."
                )
        return super()._read_on_all_ranks(path)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if not self.needs_all_processes or not is_parts_folder(filename):
            return super()._load_file(filename)
        return read_parts(filename, self._part_like, with_state=self._wants_state)

    def _part_like(self, path: tuple[Any, ...], size: torch.Size) -> torch.Tensor | None:
        """Return an empty tensor like the part of a parameter that this process has; it has the name, or the number."""
        model: nn.Module = self.model  # type: ignore[assignment]
        parameter = dict(model.named_parameters()).get(path[-1])
        if parameter is None and len(path) > 3 and path[-3] == "state" and isinstance(path[-2], int):
            optimizer = self._optimizer_of(self.checkpointables.get(path[0]))
            known = [p for group in optimizer.param_groups for p in group["params"]] if optimizer is not None else []
            parameter = known[path[-2]] if path[-2] < len(known) else None
        return torch.empty_like(parameter.detach()) if parameter is not None and parameter.shape == size else None

    @staticmethod
    def _optimizer_of(owner: Any) -> torch.optim.Optimizer | None:
        optimizer = owner if isinstance(owner, torch.optim.Optimizer) else getattr(owner, "optimizer", None)
        return optimizer if isinstance(optimizer, torch.optim.Optimizer) else None


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
