"""How processes meet: they connect to one store, sign in, and create the process group.

They sign in first, with a short time limit, because the errors of `init_process_group` do not name the missing ranks.
"""

import contextlib
import json
import os
import socket
from datetime import timedelta
from urllib.parse import urlsplit

import torch
import torch.distributed as dist

from detectron2.distributed.layout import Layout, host_and_port
from detectron2.utils import comm

__all__ = ["MeetingError", "adopt", "host_store", "join", "leave", "meeting_timeout", "remove_meeting_file"]


class MeetingError(ConnectionError, RuntimeError):
    """Processes did not find each other; the message says what is missing and what to look at."""


def meeting_timeout() -> timedelta:
    """Return how long processes wait for each other at the start, from `DETECTRON2_MEETING_TIMEOUT`."""
    text = os.environ.get("DETECTRON2_MEETING_TIMEOUT", "60")
    try:
        return timedelta(seconds=float(text))
    except ValueError:
        raise ValueError(f"DETECTRON2_MEETING_TIMEOUT must be a number of seconds, got {text!r}.") from None


def host_store(dist_url: str) -> dist.TCPStore:
    """Open the store where processes meet, at `tcp://host:port`. It is open as long as the returned object exists.

    Port 0 takes a free port, which is the attribute `port` of the result. A `MeetingError` says that a port is in use.
    """
    host, port = host_and_port(dist_url)
    try:
        return dist.TCPStore(host, port, is_master=True, timeout=meeting_timeout(), wait_for_workers=False)
    except RuntimeError as e:
        raise MeetingError(
            f"Cannot listen at {dist_url} on {socket.gethostname()}: is another run using port {port}, or does the "
            f"address name another machine? Choose another port, or 'auto' on a single machine. ({e})"
        ) from e


def join(layout: Layout, timeout: timedelta) -> dist.Store:
    """Wait for the other processes, then create their process group and the group of this machine.

    `timeout` is the limit of collective operations. Returns where they met, for `remove_meeting_file`. A `MeetingError`
    names the ranks that did not come.
    """
    patience = meeting_timeout()
    store = dist.PrefixStore(f"detectron2/{layout.generation}", _open_store(layout, patience))
    local_sizes = _sign_in(store, layout, patience)
    has_gpu = torch.cuda.is_available()
    dist.init_process_group(
        backend="nccl" if has_gpu else "gloo",
        store=dist.PrefixStore("group", store),
        world_size=layout.world_size,
        rank=layout.rank if layout.rank is not None else -1,
        timeout=timeout,
    )
    if len(local_sizes) == 1:  # else comm reads the local rank from the environment
        comm.create_local_process_group(layout.local_size, timeout)
    comm.synchronize()  # no process runs ahead while others still start
    return store


def remove_meeting_file(layout: Layout, store: dist.Store) -> None:
    """Remove the file where processes met, if it was one, so that the next run can meet there; the last one does."""
    url = urlsplit(layout.dist_url)
    if url.scheme == "file" and store.add("left", 1) == layout.world_size:
        with contextlib.suppress(FileNotFoundError):
            os.remove(url.path)


def adopt() -> None:
    """Complete a process group that the program has made itself: make the group of this machine.

    All processes must call it. Nothing happens where there is such a group, or where the environment holds the local
    rank, as under Ray Train. A machine is recognized by its host name.
    """
    if comm._LOCAL_PROCESS_GROUP is not None or ("LOCAL_RANK" in os.environ and "LOCAL_WORLD_SIZE" in os.environ):
        return
    hosts = comm.all_gather(socket.gethostname())
    machines = list(dict.fromkeys(hosts))
    local_size = len(hosts) // len(machines)
    if hosts == [host for host in machines for _ in range(local_size)]:  # else comm says what is missing, when needed
        comm.create_local_process_group(local_size)


def leave() -> None:
    """Undo `join`."""
    comm._LOCAL_PROCESS_GROUP = None
    dist.destroy_process_group()


def _open_store(layout: Layout, patience: timedelta) -> dist.Store:
    url = urlsplit(layout.dist_url)
    if url.scheme == "file":
        return dist.FileStore(url.path, layout.world_size)
    if layout.rank == 0 and not layout.store_is_up:
        return host_store(layout.dist_url)
    host, port = host_and_port(layout.dist_url)
    try:
        return dist.TCPStore(host, port, is_master=False, timeout=patience, wait_for_workers=False)
    except RuntimeError as e:
        raise MeetingError(
            f"Process {layout.rank} of {layout.world_size} on {socket.gethostname()} waited "
            f"{patience.total_seconds():g} seconds for rank 0 at host {host}, port {port}, and got no answer. "
            f"{_unknown(host)}Rank 0 is missing: check that machine 0 was started, that the address is its own, and "
            "that no firewall closes the port. "
            f"(DETECTRON2_MEETING_TIMEOUT sets another number of seconds.) ({e})"
        ) from e


def _unknown(host: str) -> str:
    """Return a sentence for the message if this machine cannot resolve the name of the host."""
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return f"The name {host} is not known on this machine. "
    return ""


def _sign_in(store: dist.Store, layout: Layout, patience: timedelta) -> set[int]:
    """Sign in, wait for all ranks, and return the distinct numbers of processes per machine."""
    own = {"host": socket.gethostname(), "world_size": layout.world_size, "local_size": layout.local_size}
    if store.add(f"count/{layout.rank}", 1) > 1:
        other = _read(store, layout.rank or 0)
        path = urlsplit(layout.dist_url).path if layout.dist_url.startswith("file://") else ""
        cure = (
            f"If the other run has ended without removing {path}, remove it" if path else "every run a port of its own"
        )
        raise MeetingError(
            f"Two processes claim to be rank {layout.rank} of {layout.world_size}, at {layout.dist_url}: this "
            f"one on {own['host']} and one on {other.get('host', 'another machine')}. Give every machine a "
            f"--machine-rank of its own, from 0{'. ' if path else ', and '}{cure}."
        )
    store.set(f"rank/{layout.rank}", json.dumps(own))
    ranks = range(layout.world_size)
    try:
        store.wait([f"rank/{rank}" for rank in ranks], patience)
    except RuntimeError as e:
        raise MeetingError(_missing_ranks_message(store, layout, patience)) from e
    entries = [_read(store, rank) for rank in ranks]
    for rank, entry in enumerate(entries):
        if entry["world_size"] != layout.world_size:
            raise MeetingError(
                f"Rank {layout.rank} on {own['host']} was told that there are {layout.world_size} processes, rank "
                f"{rank} on {entry['host']} that there are {entry['world_size']}. Start all machines with the same "
                "numbers."
            )
    return {entry["local_size"] for entry in entries}


def _read(store: dist.Store, rank: int) -> dict:
    return json.loads(store.get(f"rank/{rank}")) if store.check([f"rank/{rank}"]) else {}


def _missing_ranks_message(store: dist.Store, layout: Layout, patience: timedelta) -> str:
    start = (
        f"Process {layout.rank} of {layout.world_size} on {socket.gethostname()} waited "
        f"{patience.total_seconds():g} seconds at {layout.dist_url} for the others."
    )
    try:
        missing = [rank for rank in range(layout.world_size) if not store.check([f"rank/{rank}"])]
    except RuntimeError:  # the process that holds the store has given up
        return f"{start} Not all came; the error of rank 0 says which are missing."
    machines = sorted({rank // layout.local_size for rank in missing})
    named = ", ".join(map(str, missing[:16])) + (" ..." if len(missing) > 16 else "")
    return (
        f"{start} Missing: rank {named} (machine {', '.join(map(str, machines))}). Look at their output for an earlier "
        "error, and check that every machine was started, with its own --machine-rank and the same --dist-url. "
        "(DETECTRON2_MEETING_TIMEOUT sets another number of seconds.)"
    )
