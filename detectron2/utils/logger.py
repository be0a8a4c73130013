"""Set up logs, limit how often a message is logged, and format small tables."""

import atexit
import errno
import functools
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from types import FrameType
from typing import IO, Any

import torch

from detectron2.utils._download import disk_full
from detectron2.utils.file_io import PathManager
from detectron2.utils.terminal import printable

__all__ = ["IN_FILE", "create_small_table", "log_every_n", "log_every_n_seconds", "log_first_n", "setup_logger"]

IN_FILE = {"in_file": True}
"""The `extra` of long records, such as the whole config, which runs with a log file do not show in the terminal."""

_DATE_FORMAT = "%m/%d %H:%M:%S"


class _Formatter(logging.Formatter):
    """Prefixes warnings and errors with their level, and shows `short_name` in place of `root_name`."""

    def __init__(self, color: bool, root_name: str, short_name: str):
        head = "[%(asctime)s %(short_name)s]: "
        super().__init__((_paint(head, "green") if color else head) + "%(message)s", _DATE_FORMAT)
        self._color, self._root_name, self._short_name = color, root_name, short_name

    def formatMessage(self, record: logging.LogRecord) -> str:
        name = record.name
        if name == self._root_name or name.startswith(self._root_name + "."):
            name = (self._short_name + name[len(self._root_name) :]).lstrip(".")
        record.short_name = name
        record.message = printable(record.message)
        text = super().formatMessage(record)
        if record.levelno < logging.WARNING:
            return text
        head, separator, message = text.partition("]: ")
        level = record.levelname
        if self._color:
            level = _paint(level, "yellow" if record.levelno == logging.WARNING else "red")
        return f"{head}{separator}{level} {message}"


class _Handler(logging.StreamHandler):
    """Names the log that cannot be written because the disk is full, without a traceback."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            name = getattr(self, "detectron2_target", "the log")
            sys.stderr.write(f"{name} cannot be written, {disk_full(name, cure='so that the log goes on')}\n")
        else:
            super().handleError(record)


def _shows_color(stream: Any) -> bool:
    """Return whether to use ANSI colours: in terminals and notebooks, or as NO_COLOR and FORCE_COLOR say."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return "ipykernel" in sys.modules or bool(getattr(stream, "isatty", lambda: False)())


def _paint(text: str, color: str) -> str:
    from termcolor import colored

    return colored(text, color, force_color=True)


@functools.cache
def _open_log(path: str) -> IO[Any]:
    """Open a log file once for all loggers that write to it, line buffered where that is cheap."""
    is_local = "://" not in path
    stream: Any = PathManager.open(path, "a", buffering=1 if is_local else -1)
    atexit.register(stream.close)
    return stream


def _log_file_name(output: str | os.PathLike, rank: int) -> str:
    output = os.fspath(output)
    path = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
    return path if rank == 0 else f"{path}.rank{rank}"


def _add_handler(logger: logging.Logger, target: str, stream: Any, formatter: logging.Formatter) -> None:
    """Attach a handler for `target`, or update the format of the existing one."""
    for handler in logger.handlers:
        if getattr(handler, "detectron2_target", None) == target:
            handler.setFormatter(formatter)
            return
    handler = _Handler(stream)
    handler.setLevel(logging.DEBUG)
    handler.setFormatter(formatter)
    handler.detectron2_target = target  # pyright: ignore[reportAttributeAccessIssue]  # marks it as ours
    logger.addHandler(handler)


def setup_logger(
    output: str | os.PathLike | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = "detectron2",
    abbrev_name: str | None = None,
    configure_stdout: bool = True,
) -> logging.Logger:
    """Let a logger write to the terminal (rank 0) and to a file (every rank). Repeated calls add no second handler.

    Args:
        output: a folder, for `log.txt` in it, or a file name that ends in `.txt` or `.log`; None for no file.
            Other ranks append `.rank<N>` to the name.
        distributed_rank: rank of this process.
        color: colour lines in terminals and notebooks (the variables NO_COLOR and FORCE_COLOR count); files and pipes
            are plain.
        name: name of the logger, usually that of a top-level package. Its level becomes DEBUG and it no longer
            propagates to the root logger.
        abbrev_name: shown in place of `name`; `""` shows only what follows it. By default `detectron2` is
            shortened to `d2`.
        configure_stdout: write to the terminal; False leaves it to the caller.

    Returns:
        The logger.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    if abbrev_name is None:
        abbrev_name = "d2" if name == "detectron2" else name
    if configure_stdout and distributed_rank == 0:
        stream = getattr(sys.stdout, "unfiltered", sys.stdout)  # the formatter escapes what it prints itself
        _add_handler(logger, "stdout", stream, _Formatter(color and _shows_color(stream), name, abbrev_name))
    if output is not None:
        path = _log_file_name(output, distributed_rank)
        if "://" not in path:
            path = os.path.abspath(path)
        PathManager.mkdirs(os.path.dirname(path))
        _add_handler(logger, path, _open_log(path), _Formatter(False, name, abbrev_name))
    return logger


def _caller() -> tuple[str, tuple[str, int, str]]:
    """Return (module, (file, line, function)) of the first frame outside this module."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") == __name__:
        frame = frame.f_back
    assert frame is not None, "a log helper was called from nowhere"
    module = frame.f_globals.get("__name__", "__main__")
    # A script that is run directly still gets a logger below ours, so that setup_logger() covers it.
    module = "detectron2" if module == "__main__" else module
    return module, (frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


_TIMES_SEEN: Counter[Any] = Counter()
_LAST_LOGGED: dict[Any, float] = {}


def log_first_n(
    lvl: int, msg: str, n: int = 1, *, name: str | None = None, key: str | tuple[str, ...] = "caller"
) -> None:
    """Log a message only the first `n` times, to the logger `name`, by default that of the caller's module.

    `key` tells what identifies a message: the calling line (`"caller"`), the text (`"message"`), or both as a tuple;
    another value is a `ValueError`.
    """
    module, place = _caller()
    parts = (key,) if isinstance(key, str) else tuple(key)
    if not parts or any(part not in ("caller", "message") for part in parts):
        raise ValueError(f"key must be 'caller', 'message' or a tuple of them, got {key!r}.")
    identity = ("first", *(place if part == "caller" else msg for part in parts))
    _TIMES_SEEN[identity] += 1
    if _TIMES_SEEN[identity] <= n:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Log a message at the first and then at every `n`-th call from the same line; the rest as in `log_first_n`."""
    module, place = _caller()
    identity = ("every", place)
    _TIMES_SEEN[identity] += 1
    if n == 1 or _TIMES_SEEN[identity] % n == 1:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n_seconds(lvl: int, msg: str, n: float = 1, *, name: str | None = None) -> None:
    """Log a message at most once in `n` seconds per calling line; the rest as in `log_first_n`."""
    module, place = _caller()
    now = time.monotonic()
    last = _LAST_LOGGED.get(place)
    if last is None or now - last >= n:
        logging.getLogger(name or module).log(lvl, msg)
        _LAST_LOGGED[place] = now


def create_small_table(small_dict: Mapping[str, Any]) -> str:
    """Format a few numbers as a Markdown table with one row, three lines of text; the keys are the header."""
    from tabulate import tabulate

    look: dict[str, Any] = {"tablefmt": "pipe", "floatfmt": ".3f", "stralign": "center", "numalign": "center"}
    return tabulate([list(small_dict.values())], headers=list(small_dict), **look)


def _log_api_usage(identifier: str) -> None:
    """Report the construction of a component to the usage logger of PyTorch, which is off by default."""
    torch._C._log_api_usage_once("detectron2." + identifier)
