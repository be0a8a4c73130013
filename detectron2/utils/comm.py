"""Talking between processes: ranks, barriers, gathering of objects, shared seeds.

Every function works without ``torch.distributed`` too, where one process (rank 0 of 1) is all there is.
A *machine* (or host) runs several *local* processes; the local group holds those of one machine.
"""

import functools
import os
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from detectron2.utils._object_exchange import all_gather_objects, gather_objects, tracked

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

# The group of the processes on this machine. Launchers of other projects assign it, so it is read at call time.
_LOCAL_PROCESS_GROUP: Any = None
# How long the groups made here wait; None is PyTorch's default. Given to create_local_process_group.
_timeout: timedelta | None = None


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Number of processes over all machines."""
    return dist.get_world_size() if _is_distributed() else 1


def get_rank() -> int:
    """Index of this process among all processes."""
    return dist.get_rank() if _is_distributed() else 0


def is_main_process() -> bool:
    """Whether this process is rank 0, the one that logs and writes files."""
    return get_rank() == 0


def create_local_process_group(num_workers_per_machine: int, timeout: timedelta | None = None) -> None:
    """Create the group of the processes on each machine. Ranks must be numbered machine by machine.

    Call it once in every process, after ``init_process_group``.

    Args:
        num_workers_per_machine: processes per machine; the world size must be a multiple of it.
        timeout: how long this group waits, and also the one that exchanges objects; default: PyTorch's 30 minutes.

    Raises:
        RuntimeError: the group exists already.
        ValueError: the world size is not a multiple.
    """
    global _LOCAL_PROCESS_GROUP, _timeout
    if _LOCAL_PROCESS_GROUP is not None:
        raise RuntimeError("The local process group exists already; create it once per process.")
    world_size = get_world_size()
    if num_workers_per_machine < 1 or world_size % num_workers_per_machine:
        raise ValueError(
            f"{world_size} processes cannot be split into machines of {num_workers_per_machine}: "
            "every machine must run the same number of processes."
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
    """The group of the processes on this machine.

    Returns:
        The group.

    Raises:
        RuntimeError: it was never created.
    """
    if _LOCAL_PROCESS_GROUP is None:
        raise RuntimeError(
            "There is no local process group. Start training with detectron2.engine.launch, or call "
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
    """Index of this process among those of its machine: also the index of its GPU."""
    return _local_value(dist.get_rank, "LOCAL_RANK", 0)


def get_local_size() -> int:
    """Number of processes on this machine."""
    return _local_value(dist.get_world_size, "LOCAL_WORLD_SIZE", 1)


def synchronize() -> None:
    """Wait until every process has come here.

    Raises:
        RuntimeError: some did not come in time; the message names them.
    """
    if get_world_size() == 1:
        return
    # On the CPU first: there, in contrast to NCCL, a process that is missing ends in an error that can name it.
    with tracked("synchronize"):
        dist.barrier(group=_get_global_gloo_group())
    if dist.get_backend() == dist.Backend.NCCL:
        # Without the device, NCCL guesses it from the rank and may create a context on a GPU of another process.
        dist.barrier(device_ids=[torch.cuda.current_device()])


@functools.lru_cache(maxsize=1)
def _gloo_group_beside(world: Any) -> Any:
    # `world` is the key: after destroy_process_group and a new init, a new group is made.
    return world if dist.get_backend(world) == dist.Backend.GLOO else dist.new_group(backend="gloo", timeout=_timeout)


def _get_global_gloo_group() -> Any:
    """A gloo group over all processes, for messages that live in CPU memory."""
    return _gloo_group_beside(dist.group.WORLD)


def all_gather(data: Any, group: Any = None) -> list[Any]:
    """Collect one object from every process, in all of them.

    Args:
        data: any picklable object; sizes may differ between processes.
        group: a process group; by default all processes, over gloo.

    Returns:
        The objects in the order of ranks; that of this process is ``data`` itself.

    Raises:
        RuntimeError: a process did not come in time; the message names it.
    """
    if get_world_size() == 1:
        return [data]
    group = group if group is not None else _get_global_gloo_group()
    size = dist.get_world_size(group)
    if size == 1:
        return [data]
    with tracked("all_gather", group):
        if dist.get_backend(group) == dist.Backend.GLOO:
            return all_gather_objects(data, group)
        collected: list[Any] = [None] * size
        dist.all_gather_object(collected, data, group=group)
        return collected


def gather(data: Any, dst: int = 0, group: Any = None) -> list[Any]:
    """Collect one object from every process, in one of them.

    The others send theirs and go on without waiting for one another.

    Args:
        data: any picklable object; sizes may differ between processes.
        dst: rank, among all processes, of the receiving one.
        group: a process group; by default all processes, over gloo.

    Returns:
        The objects in the order of ranks in process ``dst``; an empty list in the others.

    Raises:
        RuntimeError: a process did not come in time; the message names it.
        ValueError: ``dst`` is not in the group.
    """
    if get_world_size() == 1:
        return [data]
    group = group if group is not None else _get_global_gloo_group()
    size = dist.get_world_size(group)
    if size == 1:
        return [data]
    with tracked("gather", group):
        if dist.get_backend(group) == dist.Backend.GLOO:
            return gather_objects(data, dst, group)
        collected: list[Any] | None = [None] * size if dist.get_rank() == dst else None
        dist.gather_object(data, collected, dst=dst, group=group)
        return collected or []


def shared_random_seed() -> int:
    """A random number in [0, 2**31) on which all processes agree. All of them must call it, or it waits forever."""
    # NumPy's global generator, so that seed_all_rng() determines the seed.
    return int(all_gather(int(np.random.randint(2**31)))[0])  # noqa: NPY002  # the global generator is meant


def reduce_dict(input_dict: dict[str, torch.Tensor], average: bool = True) -> dict[str, torch.Tensor]:
    """Sum or average a dictionary of scalar tensors over all processes, onto rank 0.

    Args:
        input_dict: scalars; every process must hold the same keys.
        average: divide the sums by the number of processes.

    Returns:
        A dictionary with the same keys, in sorted order. Only that of rank 0 holds the result.
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
