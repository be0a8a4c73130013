"""The output folder of a training: used by one at a time, and the metrics of an earlier one never mix with its own.

Under torchrun the folder also holds a file that names the torchrun whose training it is, so that a training which that
one restarts goes on from its last checkpoint, and never from one of an earlier training.
"""

import contextlib
import itertools
import logging
import os
import socket
import weakref
from collections.abc import Iterator
from typing import Any

import detectron2.utils.comm as comm
from detectron2.distributed.layout import torchrun_attempt
from detectron2.engine.train_loop import HookBase
from detectron2.utils.file_io import atomic_write

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "RunFolder",
    "RunFolderRelease",
    "earlier_results",
    "is_restarted",
    "other_training",
    "resumes_after_restart",
    "training_in",
]

logger = logging.getLogger("detectron2.engine.hooks")

# By process and path. A trainer that is gone without after_train() has taken its lock with it.
_held: weakref.WeakValueDictionary[tuple[int, str], "RunFolder"] = weakref.WeakValueDictionary()


def _lock(folder: str) -> tuple[Any, str | None]:
    """Return the locked file and its holder, one of them `None`; both where the file system has no locks.

    The kernel releases the lock when the process dies; processes that it forked do not hold it.
    """
    path = os.path.join(os.path.realpath(folder), ".training.lock")
    if (os.getpid(), path) in _held:  # to open the file and close it would release the lock
        return None, f"this process ({os.getpid()}), in another trainer"
    file = None
    try:
        file = open(path, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115  # stays open
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # type: ignore[union-attr]
        if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            return file, None
        holder = "a process that is just ending"
    except (OSError, AttributeError) as error:
        holder = None
        if file is not None and isinstance(error, (BlockingIOError, PermissionError)):
            file.seek(0)
            holder = file.read().strip() or "another process"
    if file is not None:
        file.close()
    return None, holder


def other_training(folder: str) -> str | None:
    """Return a text that says which process trains in a folder, or `None` if none does that can be known."""
    file, holder = _lock(folder) if os.path.isfile(os.path.join(folder, ".training.lock")) else (None, None)
    if file is not None:
        file.close()
    return holder and _busy(folder, holder)


def _busy(folder: str, holder: str) -> str:
    return (
        f"Another training runs in {folder}: {holder}. Two would overwrite each other's checkpoints and metrics. "
        "Use another folder (OUTPUT_DIR, train.output_dir, --output), or end that process first."
    )


_OWNER = ".torchrun"


def _torchrun() -> str:
    """Return a name of the torchrun that has started this process, "" without one."""
    run_id, _ = torchrun_attempt() or ("", 0)
    # Older versions call it "none", unless they are told otherwise; the process that starts this one is then that.
    return f"process {os.getppid()} on {socket.gethostname()}" if run_id == "none" else run_id


def is_restarted(folder: str) -> bool:
    """Return whether torchrun has restarted a training that it had begun in a folder before.

    Such a training goes on from its last checkpoint, as with `--resume`. All processes must call it; the main one looks
    into the folder.

    Args:
        folder: the output folder; one that is not on a file system holds no trace of a former start.

    Returns:
        The same in all processes.

    Example:
        >>> is_restarted("output")
        False
    """
    attempt, owner = torchrun_attempt(), ""
    if attempt is None or attempt[1] == 0:
        return False
    with contextlib.suppress(OSError), open(os.path.join(folder, _OWNER), encoding="utf-8") as file:
        owner = file.read()
    return comm.all_gather(owner == _torchrun())[0]


def resumes_after_restart(folder: str) -> bool:
    """Return `is_restarted` of a folder, and log what becomes of a training that torchrun has restarted."""
    count = (torchrun_attempt() or ("", 0))[1]
    if not is_restarted(folder):
        if count:
            logger.warning(
                f"torchrun has restarted this training (restart {count}), which had not begun in {folder}: it starts "
                "as for the first time."
            )
        return False
    has_checkpoint = os.path.isfile(os.path.join(folder, "last_checkpoint"))
    how = "it goes on from its last checkpoint" if has_checkpoint else "it has no checkpoint yet and begins again"
    logger.warning(f"torchrun has restarted this training (restart {count}): {how}.")
    return True


def earlier_results(folder: str) -> list[str]:
    """Return the names of the files of an earlier training in a folder."""
    names = ("metrics.json", "metrics.csv", "last_checkpoint", "model_final.pth", "model_final.safetensors")
    files = [n for n in names if os.path.isfile(p := os.path.join(folder, n)) and os.path.getsize(p)]
    return files + [n for n in ("model_final.sharded",) if os.path.isdir(os.path.join(folder, n))]


class RunFolder(HookBase):
    """Lock a folder while a training runs, and set aside the metrics of an earlier one that is not continued.

    Register it in every process, before all other hooks; the main process locks the folder.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._file: Any = None

    def before_train(self) -> None:
        """Lock the folder, or raise a `RuntimeError` that names the process which trains in it."""
        self.lock(self.trainer.start_iter)

    def lock(self, start_iter: int) -> None:
        """Lock the folder for a training that begins at `start_iter`; see `before_train`."""
        holder, is_ours = None, comm.is_main_process() and self._folder and "://" not in self._folder
        if is_ours:
            os.makedirs(self._folder, exist_ok=True)
            self._file, holder = _lock(self._folder)
        if holder := comm.all_gather(holder)[0]:
            raise RuntimeError(_busy(self._folder, holder))
        if self._file is not None:
            _held[os.getpid(), os.path.realpath(self._file.name)] = self
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            self._file.flush()
        if is_ours and start_iter == 0 and (found := earlier_results(self._folder)):
            self._set_aside(found)
        if is_ours and (owner := _torchrun()):
            with atomic_write(os.path.join(self._folder, _OWNER), "w") as file:
                file.write(owner)

    def _set_aside(self, found: list[str]) -> None:
        moved = ""
        for name in found:
            # If torchrun restarts this training before its first checkpoint, it must not go on from that of another.
            is_last = name == "last_checkpoint" and _torchrun()
            if name.startswith("metrics") or is_last:
                stem, dot, ending = name.partition(".")
                news = (f"{stem}.earlier_{i}{dot}{ending}" for i in itertools.count(1))
                new = next(x for x in news if not os.path.exists(os.path.join(self._folder, x)))
                os.rename(os.path.join(self._folder, name), os.path.join(self._folder, new))
                moved += f" {name} of that training is now {new}."
        logger.warning(
            f"{self._folder} holds the results of an earlier training ({', '.join(found)}), which is not continued: "
            f"this one begins with iteration 0 and overwrites checkpoints of the same names.{moved} To continue that "
            "training, resume it (--resume, resume_or_load(resume=True)); to keep all of it, use another folder "
            "(OUTPUT_DIR, train.output_dir)."
        )

    def release(self) -> None:
        """Release the folder."""
        file, self._file = self._file, None
        if file is not None:
            _held.pop((os.getpid(), os.path.realpath(file.name)), None)
            os.remove(file.name)
            file.close()


@contextlib.contextmanager
def training_in(folder: str, start_iter: int) -> Iterator[None]:
    """Hold the lock of a folder within a `with` block, in all processes, for a training loop without hooks."""
    own = RunFolder(folder)
    try:
        own.lock(start_iter)
        yield
    finally:
        own.release()


class RunFolderRelease(HookBase):
    """Release a folder after training; register it after all other hooks, which write there when training ends."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def after_train(self) -> None:
        """Release the folder."""
        self._folder.release()
