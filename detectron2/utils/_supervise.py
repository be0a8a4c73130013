"""Start the processes of one machine, and watch over them: when one fails, the others end and its error is shown."""

import contextlib
import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import connection, parent_process
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn

import torch.multiprocessing as mp

logger = logging.getLogger(__name__)

_GRACE = 10.0  # seconds between asking a process to end and killing it
_SAVING = 120.0  # seconds that processes have to save what they have, after an interruption or when one left


def run_processes(target: Callable[..., None], count: int, first_rank: int, args: tuple) -> None:
    """Call ``target(local_rank, *args)`` in ``count`` new processes and wait until all have ended.

    Args:
        target: importable by name, since processes are spawned.
        count: the number of processes.
        first_rank: rank of the first one, for messages.
        args: the same for all.

    Raises:
        ProcessRaisedException: a process raised; the message has its rank and its traceback.
        ProcessExitedException: a process ended in another way, for example killed by the system.
        SystemExit: a process left with ``sys.exit`` and a code other than 0.
        KeyboardInterrupt: the run was interrupted.
    """
    context = mp.get_context("spawn")
    crew = _Crew(first_rank)
    try:
        with _forwarded_signals(crew):
            for local_rank in range(count):
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_body, args=(target, sender, local_rank, args))
                process.start()
                sender.close()
                crew.add(process, receiver)
            crew.watch()
    finally:
        crew.kill()
    crew.raise_failure()


class _Crew:
    """The processes that were started, what they reported, and how they are brought to an end."""

    def __init__(self, first_rank: int) -> None:
        self.first_rank = first_rank
        self.processes: list[BaseProcess] = []
        self.receivers: list[Any] = []
        self.failure: tuple[int, str, Any] | None = None  # (index, kind, detail) of the first one to fail
        self.interrupted = False
        self.steps: list[tuple[float, Callable[[], None]]] = []  # what to do to those that do not end, and when

    def add(self, process: BaseProcess, receiver: Any) -> None:
        self.processes.append(process)
        self.receivers.append(receiver)

    def watch(self) -> None:
        """Wait for all; end the others once one has failed."""
        while any(p.is_alive() for p in self.processes):
            try:
                self._wait()
            except KeyboardInterrupt:  # the processes of a terminal get it as well, and may save what they have
                if self.interrupted:
                    raise
                self.interrupted = True
                logger.warning("Interrupted: waiting for the processes to stop. Interrupt again to stop at once.")
                self._end_others(_SAVING)
        for index in range(len(self.processes)):
            self._take_report(index)

    def _wait(self) -> None:
        alive = [i for i, p in enumerate(self.processes) if p.is_alive()]
        objects = [self.processes[i].sentinel for i in alive] + [r for r in self.receivers if r is not None]
        if not objects:  # the last one has ended since its life was asked for: there would be nothing to wake us up
            return
        now = time.monotonic()
        ready = connection.wait(objects, max(0.0, self.steps[0][0] - now) if self.steps else None)
        for index in range(len(self.processes)):
            if self.receivers[index] in ready or (index in alive and self.processes[index].sentinel in ready):
                self._take_report(index)
        while self.steps and self.steps[0][0] <= time.monotonic():
            self.steps.pop(0)[1]()

    def _take_report(self, index: int) -> None:
        """Read what a process sent, if it did; a silent death counts as a failure, too."""
        receiver, process = self.receivers[index], self.processes[index]
        if receiver is not None and receiver.poll():
            try:
                self._note_failure(index, *receiver.recv())
            except (EOFError, OSError):  # it has closed its end, to exit
                receiver.close()
                self.receivers[index] = None
        if process.exitcode:
            self._note_failure(index, "died", process.exitcode)

    def _note_failure(self, index: int, kind: str, detail: Any) -> None:
        if self.failure is not None:
            return  # a consequence of the first
        self.failure = (index, kind, detail)
        # After an exception the others can only wait in vain. When one left on purpose, another may still be saving.
        self._end_others(0.0 if kind in ("error", "died") else _SAVING)

    def _end_others(self, delay: float) -> None:
        start = time.monotonic() + delay
        self.steps = sorted([*self.steps, (start, self._terminate), (start + _GRACE, self.kill)], key=lambda x: x[0])

    def _terminate(self) -> None:
        failed = self.failure[0] if self.failure is not None else None
        for index, process in enumerate(self.processes):
            if index != failed and process.is_alive():
                process.terminate()

    def kill(self) -> None:
        """End, without mercy, what still lives."""
        for process in self.processes:
            if process.is_alive():
                process.kill()
        for process in self.processes:
            process.join()

    def send_signal(self, number: int) -> None:
        """Pass a signal on to all."""
        for process in self.processes:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, number)

    def raise_failure(self) -> None:
        """Raise what the first process that failed has said."""
        if self.failure is not None:
            _raise(self.failure, self.first_rank, self.processes[self.failure[0]])
        if self.interrupted:
            raise KeyboardInterrupt


def _raise(failure: tuple[int, str, Any], first_rank: int, process: BaseProcess) -> NoReturn:
    index, kind, detail = failure
    pid = process.pid or 0
    who = f"Process of rank {first_rank + index} (local rank {index}, pid {pid})"
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "exit":
        raise SystemExit(detail)
    if kind == "error":
        raise mp.ProcessRaisedException(f"{who} failed; the others were ended.\n\n{detail}", index, pid)
    name = None
    if detail < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-detail).name
        hint = " The system does this to processes when memory runs out." if name == "SIGKILL" else ""
        how = f"was killed by {name or f'signal {-detail}'}; the others were ended.{hint}"
    else:
        how = f"ended with exit code {detail} and no error message; the others were ended."
    raise mp.ProcessExitedException(f"{who} {how}", index, pid, detail, name)


@contextlib.contextmanager
def _forwarded_signals(crew: _Crew) -> Iterator[None]:
    """Pass on what cluster managers send before they end a job: only the processes know what to save."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    before = {number: signal.signal(number, lambda n, _: crew.send_signal(n)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _body(target: Callable[..., None], sender: Any, local_rank: int, args: tuple) -> None:
    """What runs in the new process: the target, and a report if it fails."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        target(local_rank, *args)
    except KeyboardInterrupt:
        _report(sender, "interrupt", None)
        raise SystemExit(130) from None
    except SystemExit as e:
        if e.code not in (None, 0):
            _report(sender, "exit", e.code)
        raise
    except BaseException:
        _report(sender, "error", traceback.format_exc())
        raise SystemExit(1) from None
    finally:
        sender.close()


def _report(sender: Any, kind: str, detail: Any) -> None:
    with contextlib.suppress(OSError):  # the parent is gone
        sender.send((kind, detail))


def _end_with_parent() -> None:
    """End this process when its parent was killed: nobody would ever end it."""
    parent = parent_process()
    if parent is None:
        return
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_SAVING)
    os._exit(1)
