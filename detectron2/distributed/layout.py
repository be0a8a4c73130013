"""The processes of a run, found from arguments or from the environment that torchrun and SLURM provide.

A *machine* runs several processes, and ranks are numbered machine by machine.
"""

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

__all__ = ["Layout", "find_free_port", "find_layout", "first_host", "host_and_port"]

_TORCHRUN_KEYS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Layout:
    """The number of processes of a run and the position of this process.

    Attributes:
        world_size: processes over all machines.
        local_size: processes on this machine.
        num_machines: the number of machines.
        machine_rank: which machine this is, from 0.
        rank: index of this process among all; None if this process has yet to start those of its machine.
        local_rank: index of this process among those of its machine; None in the same case.
        dist_url: where the processes meet, for example `tcp://10.0.0.1:8686`; `"auto"` for a free local port.
        started_by: source of these values: `"arguments"`, `"torchrun"` or `"SLURM"`.
        generation: distinguishes the attempts of a run that torchrun restarts.
        store_is_up: whether the launcher holds the store where the processes meet, instead of rank 0.
    """

    world_size: int
    local_size: int
    num_machines: int = 1
    machine_rank: int = 0
    rank: int | None = None
    local_rank: int | None = None
    dist_url: str = "auto"
    started_by: str = "arguments"
    generation: str = "0"
    store_is_up: bool = False

    def of_child(self, local_rank: int) -> "Layout":
        """Return the layout of one process of this machine."""
        return replace(self, rank=self.machine_rank * self.local_size + local_rank, local_rank=local_rank)


def find_layout(
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Layout:
    """Find the number of processes and the position of this process.

    Under torchrun, and under `srun` with one task per GPU, the processes exist already and the environment holds the
    rank. Under `srun` with one task per machine, it holds the machine. Otherwise the arguments decide. Arguments that
    are left at 1 never contradict the environment.

    Args:
        num_gpus_per_machine: processes on each machine.
        num_machines: the number of machines.
        machine_rank: index of this machine.
        dist_url: address where the processes meet; None or `"auto"` takes it from the environment or, with one machine,
            a free local port.
        environ: the environment variables.

    Returns:
        The layout.

    Raises:
        ValueError: the arguments contradict each other or the environment, or the address is missing.
    """
    asked = (num_gpus_per_machine, num_machines, machine_rank)
    if num_machines * num_gpus_per_machine < 1:
        raise ValueError(f"At least one process is needed, got {num_machines} machine(s) x {num_gpus_per_machine}.")
    if not 0 <= machine_rank < num_machines:
        raise ValueError(f"machine_rank must be in [0, {num_machines}), got {machine_rank}.")
    url = None if dist_url == "auto" else dist_url
    if url == "env://":
        url = _tcp_url(environ.get("MASTER_ADDR", ""), _integer(environ, "MASTER_PORT"))
    if url is not None and not url.startswith("file://"):
        host_and_port(url)
    found = _from_torchrun(environ) or _from_slurm(environ, num_gpus_per_machine, url)
    if found is not None and found.world_size > 1:
        _check_agreement(found, *asked)
        return replace(found, dist_url=url) if url and found.started_by == "SLURM" else found
    if url is None and num_machines > 1:
        raise ValueError(
            f"With {num_machines} machines, dist_url must name machine 0, for example tcp://10.0.0.1:8686; "
            f"got {dist_url!r}."
        )
    return Layout(
        num_machines * num_gpus_per_machine, num_gpus_per_machine, num_machines, machine_rank, dist_url=url or "auto"
    )


def _from_torchrun(environ: Mapping[str, str]) -> Layout | None:
    if not all(key in environ for key in _TORCHRUN_KEYS):
        return None
    rank, world_size, local_rank, local_size = (_integer(environ, key) for key in _TORCHRUN_KEYS[:4])
    if not (0 <= rank < world_size and 0 <= local_rank < local_size <= world_size):
        raise ValueError(
            f"The environment contradicts itself: RANK={rank} of WORLD_SIZE={world_size}, LOCAL_RANK={local_rank} of "
            f"LOCAL_WORLD_SIZE={local_size}. Start with torchrun, or unset these variables."
        )
    group_rank = environ.get("GROUP_RANK", "")
    return Layout(
        world_size,
        local_size,
        max(1, world_size // local_size),
        int(group_rank) if group_rank.isdigit() else rank // local_size,
        rank,
        local_rank,
        _tcp_url(environ["MASTER_ADDR"], _integer(environ, "MASTER_PORT")),
        "torchrun",
        f"{environ.get('TORCHELASTIC_RUN_ID', '')}.{environ.get('TORCHELASTIC_RESTART_COUNT', '0')}",
        environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def _from_slurm(environ: Mapping[str, str], num_gpus_per_machine: int, url: str | None) -> Layout | None:
    # These exist only in a step (srun). In a batch script, which is one process, the number of tasks is a plan.
    if "SLURM_STEP_NUM_TASKS" not in environ or "SLURM_PROCID" not in environ:
        return None
    tasks = _integer(environ, "SLURM_STEP_NUM_TASKS")
    machines = _integer(environ, "SLURM_STEP_NUM_NODES")
    machine_rank = _integer(environ, "SLURM_NODEID")
    if tasks == 1:
        return None
    where = url or _slurm_url(environ)
    if tasks == machines and num_gpus_per_machine > 1:  # one task on each machine, which starts the processes
        size = machines * num_gpus_per_machine
        return Layout(size, num_gpus_per_machine, machines, machine_rank, dist_url=where, started_by="SLURM")
    sizes = _tasks_per_node(environ.get("SLURM_STEP_TASKS_PER_NODE", f"{tasks // machines}(x{machines})"))
    return Layout(
        tasks,
        sizes[machine_rank],
        machines,
        machine_rank,
        _integer(environ, "SLURM_PROCID"),
        _integer(environ, "SLURM_LOCALID"),
        where,
        "SLURM",
        environ.get("SLURM_RESTART_COUNT", "0"),
    )


def _integer(environ: Mapping[str, str], key: str) -> int:
    try:
        return int(environ[key])
    except (KeyError, ValueError):
        raise ValueError(f"The environment variable {key} must be an integer, got {environ.get(key)!r}.") from None


def _tasks_per_node(text: str) -> list[int]:
    """Parse the tasks of each node: `"4(x2),3"` gives `[4, 4, 3]`."""
    sizes: list[int] = []
    for number, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        sizes += [int(number)] * int(times or 1)
    return sizes


def _slurm_url(environ: Mapping[str, str]) -> str:
    """Return an address on the first machine, with a port that all tasks derive from the number of the job."""
    job = _integer(environ, "SLURM_JOB_ID")
    host = environ.get("MASTER_ADDR") or first_host(environ.get("SLURM_STEP_NODELIST") or environ["SLURM_JOB_NODELIST"])
    return _tcp_url(host, int(environ.get("MASTER_PORT") or 20000 + job % 10000))


def first_host(nodes: str) -> str:
    """Return the first host of a SLURM list: `"gpu[01-04,07],cpu3"` gives `"gpu01"`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first.group() if first else nodes)


def _tcp_url(host: str, port: int) -> str:
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def _check_agreement(found: Layout, num_gpus: int, num_machines: int, machine_rank: int) -> None:
    if (
        num_gpus in (1, found.local_size)
        and num_machines in (1, found.num_machines)
        and machine_rank in (0, found.machine_rank)
    ):
        return
    raise ValueError(
        f"{found.started_by} started {found.num_machines} machine(s) with {found.local_size} process(es), and this is "
        f"machine {found.machine_rank}; the arguments ask for {num_machines} x {num_gpus} and say "
        f"machine {machine_rank}. Leave out --num-gpus, --num-machines and --machine-rank under {found.started_by}."
    )


def host_and_port(dist_url: str) -> tuple[str, int]:
    """Split an address of the form `tcp://host:port`; raise a `ValueError` for any other."""
    url = urlsplit(dist_url)
    try:
        host, port = url.hostname, url.port
    except ValueError:
        host, port = None, None
    if url.scheme != "tcp" or not host or port is None:
        raise ValueError(f"dist_url must be like tcp://10.0.0.1:8686 or file:///shared/folder/file, got {dist_url!r}.")
    return host, port


def find_free_port() -> int:
    """Return a port that is free now. Another program may take it before it is used."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
