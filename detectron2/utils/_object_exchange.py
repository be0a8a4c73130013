"""Python objects between processes: as bytes in tensors over gloo; and who is missing when an exchange fails.

A process notes in the store of the process group how many exchanges it has begun in each group, and where in the
program the last one was.  When an exchange times out, the notes tell which processes never came to it.
"""

import contextlib
import functools
import io
import os
import pickle
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

_TAG = 0xD2  # keeps our messages apart from point-to-point messages of others in the same group
_CHUNK = 1 << 30  # bytes in one message
_PADDED_AT_MOST = 1 << 20  # objects up to this size are padded to a common size and exchanged in one collective


def gather_objects(data: Any, dst: int, group: Any) -> list[Any]:
    """Collect one object from every process of a gloo group in the process of global rank ``dst``.

    The others only send, each as many bytes as its object has, and do not wait for one another.
    """
    ranks = dist.get_process_group_ranks(group)
    if dst not in ranks:
        raise ValueError(f"gather(dst={dst}): the group has only the ranks {ranks}.")
    own = dist.get_rank()
    if own != dst:
        payload = _to_tensor(data)
        dist.send(torch.tensor([payload.numel()]), dst, group=group, tag=_TAG)
        for part in payload.split(_CHUNK):
            dist.send(part, dst, group=group, tag=_TAG)
        return []
    return [data if rank == own else _receive(rank, group) for rank in ranks]


def _receive(rank: int, group: Any) -> Any:
    size = torch.zeros(1, dtype=torch.int64)
    dist.recv(size, rank, group=group, tag=_TAG)
    payload = torch.empty(int(size), dtype=torch.uint8)
    for part in payload.split(_CHUNK):
        dist.recv(part, rank, group=group, tag=_TAG)
    return _from_tensor(payload)


def all_gather_objects(data: Any, group: Any) -> list[Any]:
    """Collect one object from every process of a gloo group in all of them."""
    ranks = dist.get_process_group_ranks(group)
    payload = _to_tensor(data)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in ranks]
    dist.all_gather(sizes, torch.tensor([payload.numel()]), group=group)
    lengths = [int(size) for size in sizes]
    largest = max(lengths)
    if largest <= _PADDED_AT_MOST:
        padded = torch.zeros(largest, dtype=torch.uint8)
        padded[: payload.numel()] = payload
        parts = [torch.empty_like(padded) for _ in ranks]
        dist.all_gather(parts, padded, group=group)
        received = [part[:length] for part, length in zip(parts, lengths, strict=True)]
    else:  # without padding: one large object among small ones would cost its size once per process
        own = dist.get_rank()
        received = []
        for rank, length in zip(ranks, lengths, strict=True):
            part = payload if rank == own else torch.empty(length, dtype=torch.uint8)
            for chunk in part.split(_CHUNK):
                dist.broadcast(chunk, src=rank, group=group)
            received.append(part)
    own_index = ranks.index(dist.get_rank())
    return [data if i == own_index else _from_tensor(part) for i, part in enumerate(received)]


def _to_tensor(data: Any) -> torch.Tensor:
    buffer = io.BytesIO()
    pickle.dump(data, buffer, protocol=pickle.HIGHEST_PROTOCOL)
    return torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)  # shares the memory


def _from_tensor(payload: torch.Tensor) -> Any:
    # From a process of the same run, never from a file.
    return pickle.loads(payload.numpy().data)


@contextlib.contextmanager
def tracked(what: str, group: Any = None) -> Iterator[None]:
    """Note that this process begins an exchange, and explain its failure by who has not come.

    Args:
        what: name of the exchange.
        group: the processes that take part; all when None.

    Raises:
        RuntimeError: the exchange failed; names this process and those that are missing.
    """
    group = group if group is not None else dist.group.WORLD
    progress = _progress_in(dist.group.WORLD)
    number = progress.begin(group, what)
    try:
        yield
    except RuntimeError as e:
        raise RuntimeError(f"{progress.explain(group, number, what)} ({e})") from e


class _Progress:
    """How far each process came, in the store that all can read."""

    def __init__(self) -> None:
        default_store = getattr(dist.distributed_c10d, "_get_default_store", None)
        # Without the store there is only less to say when something fails.
        self._store = dist.PrefixStore("detectron2/progress", default_store()) if default_store else None
        self._begun: Counter[str] = Counter()
        self._host = socket.gethostname()

    def begin(self, group: Any, what: str) -> int:
        name = group.group_name
        self._begun[name] += 1
        number = self._begun[name]
        if self._store is not None:
            own = dist.get_rank()
            self._store.set(f"{name}/{own}", str(number))
            self._store.set(f"last/{own}", f"its last exchange, on {self._host}, was {what} at {_caller()}")
        return number

    def explain(self, group: Any, number: int, what: str) -> str:
        own = dist.get_rank()
        start = f"Process {own} of {dist.get_world_size()} ({self._host}) failed in {what}() at {_caller()}."
        try:
            missing = [
                rank for rank in dist.get_process_group_ranks(group) if self._begun_by(rank, group.group_name) < number
            ]
            if not missing:
                return f"{start} All processes came here, so that one must have ended or lost its connection since."
            last_seen = self._read(f"last/{missing[0]}") or "it has not exchanged anything yet"
        except RuntimeError:  # the store is gone with the process that held it
            return f"{start} The process that keeps the meeting place has ended; look at the errors of the others."
        others = f" The ranks {missing} are missing." if len(missing) > 1 else ""
        return (
            f"{start} Rank {missing[0]} never came here: {last_seen}.{others} Either it ended or it is slow (then pass "
            "a longer timeout to launch), or the program calls this function on some ranks only."
        )

    def _begun_by(self, rank: int, group_name: str) -> float:
        return int(self._read(f"{group_name}/{rank}") or 0) if self._store is not None else float("inf")

    def _read(self, key: str) -> str | None:
        if self._store is None or not self._store.check([key]):
            return None
        return self._store.get(key).decode()


@functools.lru_cache(maxsize=1)
def _progress_in(world: Any) -> _Progress:
    # `world` is the key: after destroy_process_group and a new init, the count begins anew.
    return _Progress()


_OWN_FILES = (__file__, os.path.join(os.path.dirname(__file__), "comm.py"), contextlib.__file__)


def _caller() -> str:
    """File and line of the nearest frame outside of these modules."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename in _OWN_FILES:
        frame = frame.f_back
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
