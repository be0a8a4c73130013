"""Start a training function in one or many processes, on one or many machines."""

import logging
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from detectron2.utils import comm

__all__ = ["DEFAULT_TIMEOUT", "launch"]

logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT = timedelta(minutes=30)


def launch(
    main_func: Callable,
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> Any:
    """Call ``main_func(*args)`` in ``num_gpus_per_machine`` processes on each of ``num_machines`` machines.

    With one process in all, the function is called directly and its result returned.  Otherwise this call has to be
    made once on every machine; it spawns the processes, which talk over NCCL when they have a GPU each and over Gloo
    (CPU training) when the machine has no GPU.

    Args:
        main_func: must be importable by name, since new processes are spawned.
        num_gpus_per_machine: processes on this machine.
        num_machines: the number of machines.
        machine_rank: which of them this one is, from 0.
        dist_url: where the processes meet, for example ``tcp://10.0.0.1:8686`` (of machine 0, reachable by all), or
            ``"auto"`` for a free port of this machine, which is the default for a single machine.
        args: passed to ``main_func``.
        timeout: how long a process waits for the others.

    Returns:
        The result of ``main_func`` when it runs in this process, else ``None``.

    Raises:
        ValueError: the arguments contradict each other, or ask for more GPUs than there are.
    """
    world_size = num_machines * num_gpus_per_machine
    if world_size < 1:
        raise ValueError(f"At least one process is needed, got {num_machines} machine(s) x {num_gpus_per_machine}.")
    if world_size == 1:
        return main_func(*args)
    if not 0 <= machine_rank < num_machines:
        raise ValueError(f"machine_rank must be in [0, {num_machines}), got {machine_rank}.")
    _check_device_count(num_gpus_per_machine)
    dist_url = _resolve_url(dist_url, num_machines)
    mp.start_processes(
        _worker,
        nprocs=num_gpus_per_machine,
        args=(main_func, world_size, num_gpus_per_machine, machine_rank, dist_url, args, timeout),
        daemon=False,
        start_method="spawn",
    )
    return None


def _check_device_count(wanted: int) -> None:
    available = torch.cuda.device_count()
    if 0 < available < wanted:
        raise ValueError(f"{wanted} processes with a GPU each were asked for, but this machine has {available} GPU(s).")


def _resolve_url(dist_url: str | None, num_machines: int) -> str:
    """-> where to meet; chooses a free local port for ``"auto"``."""
    if dist_url in (None, "auto"):
        if num_machines != 1:
            raise ValueError(
                f"With {num_machines} machines, dist_url must name machine 0, as tcp://10.0.0.1:8686 does; "
                f"got {dist_url!r}."
            )
        return f"tcp://127.0.0.1:{_find_free_port()}"
    if num_machines > 1 and dist_url.startswith("file://"):
        logger.warning("file:// as a meeting place needs a file system with locks on all machines; prefer tcp://.")
    return dist_url


def _find_free_port() -> int:
    """-> a port that is free now (another program may take it before it is used)."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _worker(
    local_rank: int,
    main_func: Callable,
    world_size: int,
    num_processes: int,
    machine_rank: int,
    dist_url: str,
    args: tuple,
    timeout: timedelta,
) -> None:
    """Body of one spawned process: join the group, take a GPU, run."""
    has_gpu = torch.cuda.is_available()
    rank = machine_rank * num_processes + local_rank
    if not has_gpu:  # each process would otherwise use every core and they would slow each other down
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_processes))
    else:
        torch.cuda.set_device(local_rank)
    try:
        dist.init_process_group(
            backend="nccl" if has_gpu else "gloo",
            init_method=dist_url,
            world_size=world_size,
            rank=rank,
            timeout=timeout,
        )
    except Exception as e:
        raise RuntimeError(
            f"Process {rank} of {world_size} could not meet the others at {dist_url} within {timeout}. Check that the "
            "address is that of machine 0, that the port is open, and that every machine was started with its own rank."
        ) from e
    try:
        comm.create_local_process_group(num_processes)
        comm.synchronize()  # so that nobody runs ahead while others still start
        main_func(*args)
    finally:
        dist.destroy_process_group()
