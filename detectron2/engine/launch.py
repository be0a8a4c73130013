"""Start a training function in one or more processes, on one or more machines."""

import os
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from detectron2.distributed import rendezvous
from detectron2.distributed.launching import run_processes
from detectron2.distributed.layout import Layout, find_layout
from detectron2.distributed.layout import find_free_port as _find_free_port  # noqa: F401  # projects import it from here
from detectron2.utils import comm

__all__ = ["DEFAULT_TIMEOUT", "launch"]

DEFAULT_TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others in a collective operation."""


def launch(
    main_func: Callable,
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> Any:
    """Call `main_func(*args)` in `num_gpus_per_machine` processes on each of `num_machines` machines.

    A single process calls the function directly and returns its result. Otherwise call `launch` once on every machine:
    it spawns the processes, which communicate over NCCL if the machine has GPUs and over gloo (CPU training) if it has
    none. When one process fails, the others are ended and its error is raised.

    If torchrun, or `srun` with one task per GPU, has started the processes already, this process joins them and calls
    the function directly; leave the numbers at 1 then. Under `srun` with one task per machine, only
    `num_gpus_per_machine` is needed. Open MPI and Kubernetes are known as well, see `detectron2.distributed.layout`. If
    the program, or Ray Train, has made a process group already, the function is called in it, and the group stays.

    At the start, processes wait 60 seconds for each other. The environment variable `DETECTRON2_MEETING_TIMEOUT` sets
    another number of seconds.

    Args:
        main_func: function to call; spawned processes must be able to import it by name.
        num_gpus_per_machine: number of processes on each machine.
        num_machines: number of machines.
        machine_rank: index of this machine, from 0.
        dist_url: address of machine 0 where the processes meet, for example `tcp://10.0.0.1:8686`, or `"auto"` for a
            free port of this machine, the default for a single machine.
        args: arguments of `main_func`.
        timeout: how long a process waits for the others in training and evaluation.

    Returns:
        The result of `main_func` if it runs in this process, else None.

    Raises:
        ValueError: the arguments contradict each other or the environment, or ask for more GPUs than there are.
        ProcessRaisedException: a process of this machine failed; the message has its rank and its traceback.
        ProcessExitedException: a process of this machine ended without an exception, for example killed by the system.
        RuntimeError: some processes did not come; the message names the missing ranks.
    """
    if dist.is_available() and dist.is_initialized():
        asked, there = num_machines * num_gpus_per_machine, dist.get_world_size()
        if asked == 1 or asked == there:
            return _run_in_group_of_program(main_func, args)
        if there > 1:
            raise ValueError(
                f"This process is rank {dist.get_rank()} of {there} in a process group that the program has made, and "
                f"{asked} processes are asked for. Leave the numbers of processes and machines at 1."
            )
    layout = find_layout(num_gpus_per_machine, num_machines, machine_rank, dist_url)
    if layout.world_size == 1:
        return main_func(*args)
    if layout.rank is not None:
        return _run_in_group(layout, main_func, args, timeout)
    wanted, available = layout.local_size, torch.cuda.device_count()
    if 0 < available < wanted:
        raise ValueError(f"Expected a GPU for each of {wanted} processes, but this machine has {available} GPU(s).")
    layout, store = _open_store(layout)
    try:
        first_rank = layout.machine_rank * layout.local_size
        run_processes(_spawned, layout.local_size, first_rank, (layout, main_func, args, timeout))
    finally:
        del store  # closes it
    return None


def _run_in_group_of_program(main_func: Callable, args: tuple) -> Any:
    """Call the function in the process group that is there, which is left as it was."""
    before = comm._LOCAL_PROCESS_GROUP
    rendezvous.adopt()
    try:
        return main_func(*args)
    finally:
        comm._LOCAL_PROCESS_GROUP = before


def _open_store(layout: Layout) -> tuple[Layout, Any]:
    """Open the store before any process starts if the processes meet on this machine, so that the port stays ours."""
    url = "tcp://127.0.0.1:0" if layout.dist_url == "auto" else layout.dist_url
    if layout.machine_rank != 0 or not url.startswith("tcp://"):
        return replace(layout, dist_url=url, store_is_up=True), None
    store = rendezvous.host_store(url)
    if layout.dist_url == "auto":
        url = f"tcp://127.0.0.1:{store.port}"
    return replace(layout, dist_url=url, store_is_up=True), store


def _spawned(local_rank: int, layout: Layout, main_func: Callable, args: tuple, timeout: timedelta) -> None:
    """Body of one spawned process."""
    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        # Otherwise each process uses every core, and they slow each other down.
        affinity = getattr(os, "sched_getaffinity", None)  # not on every system; batch systems and containers limit it
        cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // layout.local_size))
    _run_in_group(layout.of_child(local_rank), main_func, args, timeout)


def _run_in_group(layout: Layout, main_func: Callable, args: tuple, timeout: timedelta) -> Any:
    """Choose a GPU, join the other processes, and call the function."""
    if torch.cuda.is_available():
        # Under SLURM, a task may see only its own GPU.
        torch.cuda.set_device((layout.local_rank or 0) % torch.cuda.device_count())
    store = rendezvous.join(layout, timeout)
    try:
        result = main_func(*args)
    except BaseException as e:
        # The group is not destroyed, because that may wait for the other processes.
        add_note = getattr(e, "add_note", None)  # since Python 3.11
        if add_note is not None:
            add_note(f"This was rank {layout.rank} of {layout.world_size} (machine {layout.machine_rank}).")
        raise
    rendezvous.leave()
    rendezvous.remove_meeting_file(layout, store)
    return result
