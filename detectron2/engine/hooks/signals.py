"""Ctrl-C and the signals of schedulers: finish the step, save, and say how to go on."""

import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

import detectron2.utils.comm as comm
from detectron2.engine.train_loop import HookBase

__all__ = ["StopOnSignal", "command_to_continue"]

logger = logging.getLogger("detectron2.engine.hooks")

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
_AGREE_PERIOD = 10  # iterations; several processes have to stop in the same one, and asking takes time


class StopOnSignal(HookBase):
    """End training in good order on SIGINT (Ctrl-C), SIGTERM and SIGUSR1 (sent by SLURM before it ends a job).

    The step is finished, the main process saves a checkpoint, and `TrainerBase.train` raises `SystemExit` with 128 plus
    the number of the signal, as shells do. A second Ctrl-C stops at once. An evaluation is not finished but left.
    With several processes all stop together, after at most ten steps.

    Signals for which the program has handlers of its own are left to these, and so are all outside of the main thread.
    """

    def __init__(self, checkpointer: Any, file_prefix: str = "model") -> None:
        self._checkpointer = checkpointer
        self._file_prefix = file_prefix
        self._previous: dict[int, Any] = {}
        self._received: int | None = None
        self._pid = 0
        self._left_evaluation = False

    def before_train(self) -> None:
        """Install the handlers."""
        self._received, self._pid, self._left_evaluation = None, os.getpid(), False
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                self._previous[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        if os.getpid() != self._pid:  # a process that was forked for data loading or evaluation
            if number != signal.SIGINT:  # which Ctrl-C sends to all; data workers leave the others alone, too
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        again = self._received is not None
        self._received = number
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.trainer.is_evaluating and comm.get_world_size() == 1:
            self._left_evaluation = True  # it comes after the step and its checkpoint
            raise SystemExit(128 + number)
        name = signal.Signals(number).name
        again_text = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
        # Not the log, in the middle of which the signal may have come.
        os.write(2, f"\n{name}: finishing the step, then saving{again_text}.\n".encode())

    def after_step(self) -> None:
        """Ask for the end if a signal came."""
        received = self._received
        if comm.get_world_size() > 1:
            if (self.trainer.iter + 1) % _AGREE_PERIOD:
                return
            received = max(number or 0 for number in comm.all_gather(received)) or None
        if received is not None:
            self._received = received
            self.trainer.request_stop(SystemExit(128 + received))

    def after_train(self) -> None:
        """Put the former handlers back; save if training was stopped by a signal and its last step is complete."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
        trainer = self.trainer
        is_whole = trainer.stop_requested or self._left_evaluation
        if self._received is None or not is_whole or trainer.iter >= trainer.max_iter:
            return
        name = f"{self._file_prefix}_{trainer.iter:07d}"
        keeper = self._checkpointer
        file_name = keeper.file_name(name) if hasattr(keeper, "file_name") else f"{name}.pth"
        wait = getattr(keeper, "wait", lambda: None)
        wait()
        if not keeper.has_checkpoint() or os.path.basename(keeper.get_checkpoint_file()) != file_name:
            keeper.save(name, iteration=trainer.iter)
            wait()
        if comm.is_main_process():
            text = "%s stopped training after iteration %d; %s is saved. To continue:\n%s"
            signal_name = signal.Signals(self._received).name
            logger.warning(text, signal_name, trainer.iter, file_name, command_to_continue())


def command_to_continue(argv: Sequence[str] | None = None, original: Sequence[str] | None = None) -> str:
    """Repeat the command line of this process, `sys.argv` and `sys.orig_argv`, with `--resume`, as text for a shell."""
    argv = sys.argv if argv is None else argv
    original = sys.orig_argv if original is None else original
    arguments = list(argv[1:])
    count = len(arguments)
    # A process that was started by multiprocessing has the arguments of its parent, and a command line of its own.
    is_own = len(original) > count and list(original[len(original) - count :]) == arguments
    command = list(original[: len(original) - count]) if is_own else ["python", *argv[:1]]
    if "--resume" not in arguments:
        # Behind a subcommand, and before everything else: what stands at the end is taken for changes to the config.
        is_ours = argv[0].endswith((f"{os.sep}detectron2", os.path.join("detectron2", "__main__.py")))
        at = 1 if arguments and is_ours else 0
        arguments.insert(at, "--resume")
    return shlex.join(command + arguments)
