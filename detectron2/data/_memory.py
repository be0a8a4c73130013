"""How much memory processes use, as Linux counts it.

Sizes are in bytes: `rss`, all pages of a process that are in memory; `pss`, the same with each shared page divided
by the number of processes that share it, so that a sum over processes counts every page once; `uss`, the pages that
no other process shares, which is what another worker costs.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ProcessMemory:
    """Memory of one process, in bytes; None where the system does not tell."""

    rss: int
    pss: int | None = None
    uss: int | None = None


def process_memory(pid: int | str = "self") -> ProcessMemory | None:
    """Read how much memory a process uses.

    Args:
        pid: the process; this one by default.

    Returns:
        its memory; None if it has ended, or if this is not Linux.
    """
    try:
        sizes = _read_sizes(f"/proc/{pid}/smaps_rollup")
        if {"Rss", "Pss", "Private_Clean", "Private_Dirty"} <= sizes.keys():
            return ProcessMemory(sizes["Rss"], sizes["Pss"], sizes["Private_Clean"] + sizes["Private_Dirty"])
    except OSError:  # not allowed, or a system without this file
        pass
    try:
        sizes = _read_sizes(f"/proc/{pid}/status")
    except OSError:
        return None
    return ProcessMemory(sizes["VmRSS"]) if "VmRSS" in sizes else None


def system_memory() -> tuple[int, int] | None:
    """Return memory that programs can still have, and all memory of the machine; None if this is not Linux."""
    try:
        sizes = _read_sizes("/proc/meminfo")
        return sizes["MemAvailable"], sizes["MemTotal"]
    except (OSError, KeyError):
        return None


def describe_workers(pids: Sequence[int]) -> str | None:
    """Say in one line how much memory data loading workers use, each on average, and this process.

    Args:
        pids: the workers.

    Returns:
        the text; None if nothing is known.
    """
    own = process_memory()
    workers = [m for m in map(process_memory, pids) if m is not None]
    if own is None or not workers:
        return None
    parts = []
    for name in ("uss", "pss", "rss"):
        values = [value for m in workers if (value := getattr(m, name)) is not None]
        if values:
            parts.append(f"{name.upper()} {mib(sum(values) / len(values))}")
    return f"{len(workers)} workers, each {', '.join(parts)} on average; main process RSS {mib(own.rss)}"


def mib(size: float) -> str:
    """Return a size in bytes as text."""
    return f"{size / 2**20:.0f} MiB"


def _read_sizes(path: str) -> dict[str, int]:
    """Read the lines "Name:  123 kB" of a file of the kernel."""
    sizes = {}
    with open(path, encoding="ascii", errors="replace") as f:
        for line in f:
            name, _, value = line.partition(":")
            if value.endswith("kB\n"):
                sizes[name] = 1024 * int(value.split()[0])
    return sizes
