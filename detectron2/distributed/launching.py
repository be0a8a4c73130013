"""Start the processes of one machine. When one fails, end the others and raise its error."""

import builtins
import contextlib
import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch.multiprocessing as mp

__all__ = ["run_processes"]

logger = logging.getLogger(__name__)

_SAVING = 120.0  # seconds that processes have to save their state after an interruption or when one has left
_LONGEST_REPORT = 20_000  # characters; a report must fit into the buffer of a pipe
_LONGEST_MESSAGE = 4_000


def run_processes(target: Callable[..., None], count: int, first_rank: int, args: tuple) -> None:
    """Call `target(local_rank, *args)` in `count` new processes and wait until all have ended.

    Args:
        target: function that can be imported by name, since processes are spawned.
        count: number of processes.
        first_rank: rank of the first process, for messages.
        args: further arguments, the same for all processes.

    Raises:
        ProcessRaisedException: a process raised an exception; the message has its rank and its traceback. The cause
            (`__cause__`) is an exception with the same message, of the nearest class of Python's own.
        ProcessExitedException: a process ended in another way, for example killed by the system.
        SystemExit: a process called `sys.exit` with a code other than 0.
        KeyboardInterrupt: the run was interrupted.
    """
    reports = mp.get_context("spawn").SimpleQueue()
    context = mp.start_processes(_body, (target, reports, args), count, join=False, start_method="spawn")
    assert context is not None, "start_processes returns a context unless it joins"
    processes: list[Any] = context.processes
    try:
        with _forwarded_signals(processes):
            interrupted, died = _wait(context, reports)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
    # The first report is the cause: the failure of one process breaks the connections of the others.
    first = None if reports.empty() else reports.get()
    _raise_failure(first, died, interrupted, first_rank)


def _raise_failure(
    first: tuple[int, int, str, Any] | None, died: mp.ProcessExitedException | None, interrupted: bool, first_rank: int
) -> None:
    """Raise the cause of a failure: `first` is the first report as (local rank, pid, kind, detail)."""
    index, pid, kind, detail = first or (None, None, None, None)
    if kind == "exit":
        raise SystemExit(detail)
    if kind == "interrupt" or interrupted:
        raise KeyboardInterrupt
    if died is None:
        return
    code, name = died.exit_code, died.signal_name
    if code < 0 or index is None or pid is None:  # reports after a death by a signal are its consequences
        index, detail = died.error_index, None
        pid = died.error_pid if hasattr(died, "error_pid") else vars(died)["pid"]  # the latter in PyTorch 2.6
    who = f"Process of rank {first_rank + index} (local rank {index}, pid {pid})"
    if detail is not None:
        text, cause = detail
        message = f"{who} failed; the others were ended.\n\n{text}"
        raise mp.ProcessRaisedException(message, index, pid) from _rebuilt(*cause)
    if code < 0:
        hint = " The system does this to processes when memory runs out." if name == "SIGKILL" else ""
        end = f"was killed by {name}; the others were ended.{hint}"
    else:
        end = f"ended with exit code {code} and no error message; the others were ended."
    raise mp.ProcessExitedException(f"{who} {end}", index, pid, code, name)


def _body(local_rank: int, target: Callable[..., None], reports: Any, args: tuple) -> None:
    """Call the target in a new process and report how it fails."""
    try:
        target(local_rank, *args)
    except KeyboardInterrupt:
        reports.put((local_rank, os.getpid(), "interrupt", None))
    except SystemExit as e:
        # The process then ends with code 0, so that the others have time to save their state.
        if e.code not in (None, 0):
            reports.put((local_rank, os.getpid(), "exit", e.code))
    except BaseException as e:
        detail = traceback.format_exc()[-_LONGEST_REPORT:], _described(e)
        reports.put((local_rank, os.getpid(), "error", detail))
        raise SystemExit(1) from None


def _described(error: BaseException) -> tuple[str, str]:
    """Return the nearest class of Python's own, by its name, and the message; errors of omegaconf are of values."""
    builtin = next(c.__name__ for c in type(error).__mro__ if c.__module__ == "builtins")
    kind = "ValueError" if type(error).__module__.startswith("omegaconf.") else builtin
    message = error.args[0] if isinstance(error, KeyError) and error.args else error  # whose text would be in quotes
    return kind, str(message)[:_LONGEST_MESSAGE]


def _rebuilt(kind: str, message: str) -> BaseException:
    """Return an exception of a class of Python's own; a few cannot be made of a message."""
    try:
        return getattr(builtins, kind)(message)
    except TypeError:
        return Exception(message)


def _wait(context: Any, reports: Any) -> tuple[bool, mp.ProcessExitedException | None]:
    """Wait for all processes. Return whether the user interrupted them, and the error of one that died."""
    interrupted, deadline = False, float("inf")
    while True:
        try:
            patience = None if deadline == float("inf") else max(deadline - time.monotonic(), 1.0)
            if context.join(patience):
                return interrupted, None
        except mp.ProcessExitedException as e:
            return interrupted, e
        except KeyboardInterrupt:  # the processes of a terminal receive it as well and may save their state
            if interrupted:
                raise
            interrupted = True
            logger.warning("Interrupted: waiting for the processes to stop. Interrupt again to stop at once.")
        if interrupted or not reports.empty():
            deadline = min(deadline, time.monotonic() + _SAVING)
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()


@contextlib.contextmanager
def _forwarded_signals(processes: list[Any]) -> Iterator[None]:
    """Forward the signals that cluster managers send before they end a job, so that the processes can save."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def forward(number: int, frame: Any) -> None:
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    previous = {number: signal.signal(number, forward) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
