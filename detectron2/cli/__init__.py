"""The command line: `detectron2 train`, `detectron2 predict` and others.

Each command is a module with `run(args)`, which is imported only when it is called; their arguments are in `arguments`.
"""

import argparse
import atexit
import contextlib
import gc
import importlib
import os
import select
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.cli.arguments import parse
from detectron2.utils.collector import paused_gc
from detectron2.utils.terminal import PrintableStream

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; default: those of this process.

    Returns:
        The exit status, one of `detectron2.cli.arguments.EXIT_STATUSES`.
    """
    args = parse(list(sys.argv[1:] if argv is None else argv))
    if args.command is None and args.version:
        from detectron2 import __version__

        print(f"detectron2 {__version__}")
        return 0
    if args.command is None:
        args.parser.print_help()
        return 2
    with open(os.devnull, "w") as nowhere:  # in place of a stream that the caller has closed
        out: Any = PrintableStream(sys.stdout or nowhere)
        err: Any = PrintableStream(sys.stderr or nowhere)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            return _run(args, is_program=argv is None)


def _run(args: argparse.Namespace, is_program: bool) -> int:
    try:
        with paused_gc():
            command = importlib.import_module(f"detectron2.cli.{args.command}")
            if is_program:  # what is imported stays: the collector need not look at it in any of its passes
                gc.freeze()
                atexit.register(gc.unfreeze)
        status = command.run(args) or 0
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted.\n")
        return 130
    except Exception as e:
        if isinstance(e, BrokenPipeError) and _nobody_reads():
            return 141  # as the shell says of programs that this ends
        cause = _cause(e)
        if getattr(args, "traceback", False) or not _is_user_error(cause):
            raise
        said = f"{type(cause).__name__}: {_text(cause)}"
        sys.stderr.write(f"\ndetectron2 {args.command}: {said}\n(--traceback shows where)\n")
        return 1


def _nobody_reads() -> bool:
    """Whether the output goes into a closed pipe; what is left of it is thrown away then."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if not poll.poll(0):  # errors are told of without being asked for
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _cause(error: Exception) -> BaseException:
    """Return the error of a process that the command has started, otherwise the error as it is."""
    is_passed_on = type(error).__name__ == "ProcessRaisedException" and error.__cause__ is not None
    return error.__cause__ if is_passed_on else error  # pyright: ignore[reportReturnType]


def _is_user_error(error: BaseException) -> bool:
    """Whether the message says enough; of anything else the traceback is wanted."""
    known = (ValueError, KeyError, TypeError, OSError, ImportError, SyntaxError, FloatingPointError)
    is_killed = type(error).__name__ == "ProcessExitedException"  # a process that died has no traceback
    return isinstance(error, known) or is_killed or type(error).__module__.startswith("omegaconf.")


def _text(error: BaseException) -> str:
    if isinstance(error, SyntaxError):  # in a config in Python, or in a module that was imported
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    if isinstance(error, KeyError) and error.args:  # whose text would be in quotes
        return str(error.args[0])
    if isinstance(error, (FileExistsError, NotADirectoryError)) and error.filename:
        path = str(error.filename)
        in_the_way = next((p for p in (path, *map(str, Path(path).parents)) if os.path.isfile(p)), None)
        if in_the_way is not None:
            return f"{in_the_way} is a file, and a folder is needed in its place: name another, or move the file away."
    return str(error)
