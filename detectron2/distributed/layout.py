"""The processes of a run, found from arguments, or from the environment variables of the program that starts them.

A *machine* runs several processes, and ranks are numbered machine by machine. `_STARTERS` is the table of the programs
that are known.
"""

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

__all__ = ["Layout", "find_free_port", "find_layout", "first_host", "host_and_port", "torchrun_attempt"]


@dataclass(frozen=True)
class _Starter:
    """Environment variables by which a program tells its processes where they are.

    `rank` has the names of which one is enough. A starter whose processes do not know about their machine leaves out
    the last three; what it calls a process is then one, or a machine that starts several.
    """

    name: str
    world_size: str
    rank: tuple[str, ...]
    local_size: str = ""
    local_rank: str = ""
    machine_rank: str = ""

    @property
    def keys(self) -> list[str]:
        """The variables that all have to be there."""
        return [key for key in (self.world_size, self.rank[0], self.local_size, self.local_rank) if key]


# In the order in which they are looked for: torchrun may run under each of the others, and Open MPI under SLURM. The
# processes meet at MASTER_ADDR and MASTER_PORT, for which SLURM has a default. SLURM_STEP_... exist only in a step
# (srun): in a batch script, which is one process, the number of tasks is a plan.
_STARTERS = (
    _Starter("torchrun", "WORLD_SIZE", ("RANK",), "LOCAL_WORLD_SIZE", "LOCAL_RANK", "GROUP_RANK"),
    _Starter(
        "Open MPI",
        "OMPI_COMM_WORLD_SIZE",
        ("OMPI_COMM_WORLD_RANK",),
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
    ),
    _Starter(
        "SLURM",
        "SLURM_STEP_NUM_TASKS",
        ("SLURM_PROCID",),
        "SLURM_STEP_TASKS_PER_NODE",
        "SLURM_LOCALID",
        "SLURM_NODEID",
    ),
    # A PyTorchJob of Kubernetes sets RANK; an Indexed Job sets JOB_COMPLETION_INDEX, and its manifest the others.
    _Starter("environment", "WORLD_SIZE", ("RANK", "JOB_COMPLETION_INDEX")),
)
_TORCHRUN, _OPEN_MPI, _SLURM, _PLAIN = _STARTERS
_ADDRESS_KEYS = ("MASTER_ADDR", "MASTER_PORT")


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
        started_by: source of these values: `"arguments"`, `"torchrun"`, `"SLURM"`, `"Open MPI"`, or `"environment"` for
            the variables `RANK` and `WORLD_SIZE` alone, which Kubernetes sets.
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

    Under torchrun, Open MPI, Kubernetes with one GPU for each pod, and `srun` with one task per GPU, the processes
    exist already and the environment holds the rank. Under `srun` with one task per machine, and Kubernetes with pods
    of several GPUs, it holds the machine. Otherwise the arguments decide. Arguments that are left at 1 never contradict
    the environment.

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
        ValueError: the arguments contradict each other or the environment, the address is missing, or a variable of the
            environment, which the message names.
    """
    asked = (num_gpus_per_machine, num_machines, machine_rank)
    if num_machines * num_gpus_per_machine < 1:
        raise ValueError(
            f"At least one process is needed, got {num_machines} machine(s) x {num_gpus_per_machine}. "
            "One process trains on the CPU as well: leave the numbers at 1, and choose the device cpu."
        )
    if not 0 <= machine_rank < num_machines:
        raise ValueError(f"machine_rank must be in [0, {num_machines}), got {machine_rank}.")
    url = None if dist_url == "auto" else dist_url
    if url == "env://":
        url = _tcp_url(environ.get("MASTER_ADDR", ""), _integer(environ, "MASTER_PORT"))
    if url is not None and url.startswith("file://"):
        _check_meeting_file(url)
    elif url is not None:
        host_and_port(url)
    found = (
        _from_torchrun(environ)
        or _from_open_mpi(environ, url)
        or _from_slurm(environ, num_gpus_per_machine, url)
        or (_from_plain(environ, num_gpus_per_machine, url) if num_machines == 1 else None)
    )
    if found is not None and found.world_size > 1:
        _check_agreement(found, *asked)
        return found
    if url is None and num_machines > 1:
        raise ValueError(
            f"With {num_machines} machines, dist_url must name machine 0, for example tcp://10.0.0.1:8686; "
            f"got {dist_url!r}."
        )
    return Layout(
        num_machines * num_gpus_per_machine, num_gpus_per_machine, num_machines, machine_rank, dist_url=url or "auto"
    )


def _from_torchrun(environ: Mapping[str, str]) -> Layout | None:
    if not all(key in environ for key in (*_TORCHRUN.keys, *_ADDRESS_KEYS)):
        return None
    world_size, rank, local_size, local_rank = _position(environ, _TORCHRUN)
    group_rank = environ.get(_TORCHRUN.machine_rank, "")
    run_id, attempt = torchrun_attempt(environ) or ("", 0)
    return Layout(
        world_size,
        local_size,
        max(1, world_size // local_size),
        int(group_rank) if group_rank.isdigit() else rank // local_size,
        rank,
        local_rank,
        _master_url(environ, _TORCHRUN),
        _TORCHRUN.name,
        f"{run_id}.{attempt}",
        environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def torchrun_attempt(environ: Mapping[str, str] = os.environ) -> tuple[str, int] | None:
    """Return the id of the torchrun that has started this process, and how often it has restarted its processes.

    Args:
        environ: the environment variables.

    Returns:
        The id, `"none"` where torchrun was given none, and the number of restarts; None without torchrun.

    Raises:
        ValueError: a variable of torchrun is not a number.

    Example:
        >>> torchrun_attempt({"TORCHELASTIC_RUN_ID": "job7", "TORCHELASTIC_RESTART_COUNT": "2"})
        ('job7', 2)
    """
    if "TORCHELASTIC_RUN_ID" not in environ:
        return None
    has_count = "TORCHELASTIC_RESTART_COUNT" in environ
    return environ["TORCHELASTIC_RUN_ID"], _integer(environ, "TORCHELASTIC_RESTART_COUNT") if has_count else 0


def _from_open_mpi(environ: Mapping[str, str], url: str | None) -> Layout | None:
    if _OPEN_MPI.world_size not in environ or environ[_OPEN_MPI.world_size] == "1":
        return None
    world_size, rank, local_size, local_rank = _position(environ, _OPEN_MPI)
    if world_size % local_size or rank % local_size != local_rank:
        raise ValueError(
            f"Open MPI gave rank {rank} to process {local_rank} of the {local_size} on its machine. Ranks must be "
            "numbered machine by machine, with the same number on each: start with mpirun --map-by slot."
        )
    where = url or _master_url(environ, _OPEN_MPI)
    machines = world_size // local_size
    return Layout(world_size, local_size, machines, rank // local_size, rank, local_rank, where, _OPEN_MPI.name)


def _from_slurm(environ: Mapping[str, str], num_gpus_per_machine: int, url: str | None) -> Layout | None:
    if _SLURM.world_size not in environ or _SLURM.rank[0] not in environ:
        return None
    tasks = _integer(environ, _SLURM.world_size)
    machines = _integer(environ, "SLURM_STEP_NUM_NODES")
    machine_rank = _integer(environ, _SLURM.machine_rank)
    if tasks == 1:
        return None
    where = url or _slurm_url(environ)
    if tasks == machines and num_gpus_per_machine > 1:  # one task on each machine, which starts the processes
        size = machines * num_gpus_per_machine
        return Layout(size, num_gpus_per_machine, machines, machine_rank, dist_url=where, started_by=_SLURM.name)
    sizes = _tasks_per_node(environ.get(_SLURM.local_size, f"{tasks // machines}(x{machines})"))
    return Layout(
        tasks,
        sizes[machine_rank],
        machines,
        machine_rank,
        _integer(environ, _SLURM.rank[0]),
        _integer(environ, _SLURM.local_rank),
        where,
        _SLURM.name,
        environ.get("SLURM_RESTART_COUNT", "0"),
    )


def _from_plain(environ: Mapping[str, str], num_gpus_per_machine: int, url: str | None) -> Layout | None:
    """Read a rank and a number of processes alone; without an address or a number they are left over from something."""
    rank_key = next((key for key in _PLAIN.rank if key in environ), None)
    if _PLAIN.world_size not in environ:
        if rank_key is not None and "MASTER_ADDR" in environ:
            raise _missing(_PLAIN.world_size, rank_key)
        return None
    machines = _integer(environ, _PLAIN.world_size)
    if machines <= 1:
        return None
    if rank_key is None:
        raise _missing(" or ".join(_PLAIN.rank), _PLAIN.world_size)
    if _TORCHRUN.local_rank in environ:  # then there may be several on a machine, and all of it is needed
        for key in (*_TORCHRUN.keys, *_ADDRESS_KEYS):
            if key not in environ:
                raise _missing(key, _TORCHRUN.local_rank)
    rank = _integer(environ, rank_key)
    if not 0 <= rank < machines:
        raise _contradiction(f"{rank_key}={rank} of {_PLAIN.world_size}={machines}")
    where = url or _master_url(environ, _PLAIN)
    if num_gpus_per_machine > 1:
        size = machines * num_gpus_per_machine
        return Layout(size, num_gpus_per_machine, machines, rank, dist_url=where, started_by=_PLAIN.name)
    return Layout(machines, 1, machines, rank, rank, 0, where, _PLAIN.name)


def _position(environ: Mapping[str, str], starter: _Starter) -> tuple[int, int, int, int]:
    """Return number of processes, rank, number on this machine, and rank there."""
    for key in starter.keys:
        if key not in environ:
            raise _missing(key, starter.world_size)
    world_size, rank, local_size, local_rank = (_integer(environ, key) for key in starter.keys)
    if not (0 <= rank < world_size and 0 <= local_rank < local_size <= world_size):
        raise _contradiction(
            f"{starter.rank[0]}={rank} of {starter.world_size}={world_size}, {starter.local_rank}={local_rank} of "
            f"{starter.local_size}={local_size}"
        )
    return world_size, rank, local_size, local_rank


def _master_url(environ: Mapping[str, str], starter: _Starter) -> str:
    for key in _ADDRESS_KEYS:
        if key not in environ:
            raise _missing(key, starter.world_size)
    return _tcp_url(environ["MASTER_ADDR"], _integer(environ, "MASTER_PORT"))


def _missing(key: str, present: str) -> ValueError:
    place = " (the address of rank 0) or --dist-url" if key in _ADDRESS_KEYS else ""
    return ValueError(
        f"The environment variable {present} is set, as for one of several processes, but {key} is missing. Set "
        f"{key}{place}, start the processes with torchrun, or unset {present} if it is left over from something else."
    )


def _contradiction(values: str) -> ValueError:
    return ValueError(f"The environment contradicts itself: {values}. Start with torchrun, or unset these variables.")


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


def _check_meeting_file(dist_url: str) -> None:
    """Raise a `ValueError` where an address `file:///folder/file` names no file in a folder that is there."""
    url = urlsplit(dist_url)
    if url.netloc or os.path.isdir(url.path) or not os.path.isdir(os.path.dirname(url.path)):
        raise ValueError(
            f"dist_url is {dist_url!r}; with file:// the processes meet at a file, given by its whole path "
            "(file:///shared/folder/file), in a folder that is there and that all machines see."
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
