"""Explain which process is missing when a collective operation fails.

Each process notes in the store of the process group how many operations it has entered in each group, and where in the
program the last one was. When an operation times out, the notes tell which processes never reached it.
"""

import contextlib
import functools
import json
import os
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist

__all__ = ["tracked"]

# Frames of these files are not the caller of an operation.
_COMM = os.path.join(os.path.dirname(os.path.dirname(__file__)), "utils", "comm.py")
_OWN_FILES = (__file__, _COMM, contextlib.__file__)


@contextlib.contextmanager
def tracked(what: str, group: Any = None) -> Iterator[None]:
    """Note that this process enters a collective operation of this name in a group (default: all processes).

    If it fails, a `RuntimeError` names this process and the missing ones.
    """
    group = group if group is not None else dist.group.WORLD
    progress = _progress_of(dist.group.WORLD)
    number = progress.enter(group.group_name, what)
    try:
        yield
    except RuntimeError as e:
        raise RuntimeError(f"{progress.explain(group, number, what)} ({e})") from e


class _Progress:
    """The operations that each process has entered, in the store of the process group."""

    def __init__(self) -> None:
        self._store = dist.PrefixStore("detectron2/progress", dist.distributed_c10d._get_default_store())
        self._entered: Counter[str] = Counter()
        self._host = socket.gethostname()

    def enter(self, group_name: str, what: str) -> int:
        """Note one more operation in a group and return its number."""
        self._entered[group_name] += 1
        last = f"its last exchange, on {self._host}, was {what} at {_caller()}"
        self._store.set(str(dist.get_rank()), json.dumps({"entered": self._entered, "last": last}))
        return self._entered[group_name]

    def explain(self, group: Any, number: int, what: str) -> str:
        """Describe the failure of an operation in a group."""
        start = (
            f"Process {dist.get_rank()} of {dist.get_world_size()} ({self._host}) failed in {what}() at {_caller()}."
        )
        try:
            notes = {rank: self._read(rank) for rank in dist.get_process_group_ranks(group)}
        except RuntimeError:  # the store ended with the process that held it
            return f"{start} The process that holds the store of the group has ended; see the errors of the others."
        missing = [rank for rank, note in notes.items() if note["entered"].get(group.group_name, 0) < number]
        if not missing:
            return (
                f"{start} All processes reached this call, so one of them has ended, stands still or lost its "
                "connection since."
            )
        others = f" The ranks {missing} are missing." if len(missing) > 1 else ""
        return (
            f"{start} Rank {missing[0]} never came here: {notes[missing[0]]['last']}.{others} Either it ended, or it "
            "is slow (then pass a longer timeout to launch), or the program calls this function on some ranks only."
        )

    def _read(self, rank: int) -> dict[str, Any]:
        if not self._store.check([str(rank)]):
            return {"entered": {}, "last": "it has not exchanged anything yet"}
        return json.loads(self._store.get(str(rank)))


@functools.lru_cache(maxsize=1)
def _progress_of(world: Any) -> _Progress:
    # `world` is the key: after destroy_process_group and a new init_process_group, the count starts again.
    return _Progress()


def _caller() -> str:
    """Return file and line of the nearest frame outside `_OWN_FILES`."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename in _OWN_FILES:
        frame = frame.f_back
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
