"""Communication between processes: ranks, barriers, gathering of objects, shared seeds.

Every function also works without `torch.distributed`; then there is one process, rank 0 of 1. A *machine* (or host)
runs several *local* processes; the local group holds those of one machine.
"""

import functools
import os
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from detectron2.distributed.exchange import tracked

__all__ = [
    "all_gather",
    "create_local_process_group",
    "gather",
    "get_local_process_group",
    "get_local_rank",
    "get_local_size",
    "get_rank",
    "get_world_size",
    "is_main_process",
    "reduce_dict",
    "shared_random_seed",
    "synchronize",
]

# The processes of this machine. Launchers of other projects assign this variable, so it is read at call time.
_LOCAL_PROCESS_GROUP: Any = None
# Time limit of the groups made here, set by create_local_process_group; None is the default of PyTorch.
_timeout: timedelta | None = None


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Return the number of processes on all machines."""
    return dist.get_world_size() if _is_distributed() else 1


def get_rank() -> int:
    """Return the index of this process among all processes."""
    return dist.get_rank() if _is_distributed() else 0


def is_main_process() -> bool:
    """Return whether this process is rank 0, which logs and writes files."""
    return get_rank() == 0


def create_local_process_group(num_workers_per_machine: int, timeout: timedelta | None = None) -> None:
    """Create the group of the processes on each machine. Ranks must be numbered machine by machine.

    Call it once in every process, after `init_process_group`; a second call is a `RuntimeError`. The world size must be
    a multiple of `num_workers_per_machine`, else it is a `ValueError`. `timeout` is the limit of this group and of the
    group that exchanges objects; the default is that of PyTorch.
    """
    global _LOCAL_PROCESS_GROUP, _timeout
    if _LOCAL_PROCESS_GROUP is not None:
        raise RuntimeError("The local process group exists already. Create it once per process.")
    world_size = get_world_size()
    if num_workers_per_machine < 1 or world_size % num_workers_per_machine:
        raise ValueError(
            f"{world_size} processes cannot be split into machines with {num_workers_per_machine} processes each. "
            "Every machine must run the same number of processes."
        )
    _timeout = timeout
    own_machine = get_rank() // num_workers_per_machine
    for machine in range(world_size // num_workers_per_machine):
        first = machine * num_workers_per_machine
        # Every process must take part in the creation of every group.
        group = dist.new_group(list(range(first, first + num_workers_per_machine)), timeout=timeout)
        if machine == own_machine:
            _LOCAL_PROCESS_GROUP = group


def get_local_process_group() -> Any:
    """Return the group of the processes on this machine; raise a `RuntimeError` if it was not created."""
    if _LOCAL_PROCESS_GROUP is None:
        raise RuntimeError(
            "The local process group was not created. Start training with detectron2.engine.launch, or call "
            "detectron2.utils.comm.create_local_process_group(processes_per_machine) after init_process_group."
        )
    return _LOCAL_PROCESS_GROUP


def _local_value(from_group: Any, environment_key: str, alone: int) -> int:
    if not _is_distributed():
        return alone
    if _LOCAL_PROCESS_GROUP is None and environment_key in os.environ:  # started by torchrun, not by our launcher
        return int(os.environ[environment_key])
    return from_group(group=get_local_process_group())


def get_local_rank() -> int:
    """Return the index of this process among those of its machine, which is also the index of its GPU."""
    return _local_value(dist.get_rank, "LOCAL_RANK", 0)


def get_local_size() -> int:
    """Return the number of processes on this machine."""
    return _local_value(dist.get_world_size, "LOCAL_WORLD_SIZE", 1)


def synchronize() -> None:
    """Wait until every process has reached this call; a `RuntimeError` names those that do not come in time."""
    if get_world_size() == 1:
        return
    # On the CPU first: in contrast to NCCL, gloo raises an error when a process is missing.
    with tracked("synchronize"):
        dist.barrier(group=_get_global_gloo_group())
    if dist.get_backend() == dist.Backend.NCCL:
        # Without the device, NCCL guesses it from the rank and may create a context on the GPU of another process.
        dist.barrier(device_ids=[torch.cuda.current_device()])


@functools.lru_cache(maxsize=1)
def _gloo_group_for(world: Any) -> Any:
    # `world` is the key: after destroy_process_group and a new init, a new group is made.
    return world if dist.get_backend(world) == dist.Backend.GLOO else dist.new_group(backend="gloo", timeout=_timeout)


def _get_global_gloo_group() -> Any:
    """Return a gloo group of all processes, for data in CPU memory."""
    return _gloo_group_for(dist.group.WORLD)


def all_gather(data: Any, group: Any = None) -> list[Any]:
    """Collect one object from every process, in all of them.

    Args:
        data: any picklable object; sizes may differ between processes.
        group: a process group; by default all processes, over gloo.

    Returns:
        The objects in the order of ranks. The object of this process is `data` itself, not a copy.

    Raises:
        RuntimeError: a process did not come in time; the message names it.
    """
    if get_world_size() == 1:
        return [data]
    group = group if group is not None else _get_global_gloo_group()
    collected: list[Any] = [None] * dist.get_world_size(group)
    if len(collected) > 1:
        with tracked("all_gather", group):
            dist.all_gather_object(collected, data, group=group)
    collected[dist.get_rank(group)] = data
    return collected


def gather(data: Any, dst: int = 0, group: Any = None) -> list[Any]:
    """Collect one object from every process in the process of rank `dst`; the others get an empty list.

    The rest is as in `all_gather`; a `dst` that is not in the group is a `ValueError`.
    """
    if get_world_size() == 1:
        return [data]
    group = group if group is not None else _get_global_gloo_group()
    ranks = dist.get_process_group_ranks(group)
    if dst not in ranks:
        raise ValueError(f"gather(dst={dst}): the group has only the ranks {ranks}.")
    collected: list[Any] | None = [None] * len(ranks) if dist.get_rank() == dst else None
    if len(ranks) > 1:
        with tracked("gather", group):
            dist.gather_object(data, collected, dst=dst, group=group)
    if collected is None:
        return []
    collected[ranks.index(dst)] = data
    return collected


def shared_random_seed() -> int:
    """Return a random number in [0, 2**31), the same in all processes. All of them must call this function."""
    # NumPy's global generator, so that seed_all_rng() determines the seed.
    return int(all_gather(int(np.random.randint(2**31)))[0])  # noqa: NPY002  # the global generator is meant


def reduce_dict(input_dict: dict[str, torch.Tensor], average: bool = True) -> dict[str, torch.Tensor]:
    """Sum or average scalar tensors over all processes; every process must pass the same keys.

    The result, a dictionary with the keys in sorted order, is right on rank 0 only.
    """
    world_size = get_world_size()
    if world_size < 2 or not input_dict:
        return input_dict
    with torch.no_grad():
        names = sorted(input_dict)
        values = torch.stack([input_dict[name] for name in names])
        with tracked("reduce_dict"):
            dist.reduce(values, dst=0)
        if average and is_main_process():
            values = values / world_size
        return dict(zip(names, values.unbind(0), strict=True))
