"""Run cases in a process of their own, and say how each ended.

A case is `clear` when it raises an exception of a kind that users are shown, from this library's own code, whose
message names the file or the value; `accepted` when it returns; `raw` when another exception comes out; `hang` when it
takes more than a few seconds or gigabytes; and `wrong` when it is accepted although it must not be.
"""

import contextlib
import io
import multiprocessing
import os
import resource
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import detectron2

SECONDS = 10
GIGABYTES = 4
SHOWN = (ValueError, KeyError, TypeError, OSError, ImportError, FloatingPointError)
_HOME = os.path.dirname(detectron2.__file__)
OUTCOMES = ("clear", "accepted", "raw", "hang", "wrong")


class Case(NamedTuple):
    """One input: a name to find it again, what to run, and words of which the message must have one."""

    name: str
    run: Callable[[], Any]
    names: tuple[str, ...] = ()


class WrongAcceptError(Exception):
    """Raised by a case that was accepted and must not be."""


class CommandError(Exception):
    """A command ended with status 1 and this message."""


def run_command(*words: Any) -> None:
    """Run a command of the command line in this process."""
    from detectron2.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(word) for word in words])
    printed = out.getvalue() + err.getvalue()
    for character in printed:
        if ord(character) < 32 and character not in "\n\t\r":
            raise WrongAcceptError(f"control character {character!r} printed")
    if status:
        raise CommandError(printed)


def judge(case: Case) -> tuple[str, str]:
    """Run a case; return its outcome and the message."""
    try:
        case.run()
    except WrongAcceptError as error:
        return "wrong", str(error)
    except CommandError as error:
        return ("clear", "") if str(error).strip() else ("raw", "no message")
    except SHOWN as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = frames[-1].filename.startswith(_HOME) or error.__cause__ is not None
        text = str(error)
        named = not case.names or any(name in text for name in case.names)
        if ours and named and len(text) > 20:
            return "clear", ""
        return "raw", f"{type(error).__name__}: {text[:300]} ({frames[-1].filename}:{frames[-1].lineno})"
    except MemoryError as error:
        return "hang", f"MemoryError {error}"
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return "raw", f"{type(error).__name__}: {str(error)[:300]} ({last.filename}:{last.lineno})"
    return "accepted", ""


def _work(make: Callable[[int, Path], Case], folder: Path, numbers: list[int], pipe: Any) -> None:
    import logging

    import torch

    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + GIGABYTES * 2**30,) * 2)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for number in numbers:
        case = make(number, folder)
        pipe.send((number, case.name, "started", ""))
        pipe.send((number, case.name, *judge(case)))
    pipe.send(None)


def run_cases(make: Callable[[int, Path], Case], folder: Path, numbers: list[int]) -> tuple[Counter, list[str]]:
    """Run numbered cases one after the other in a process that is replaced when a case hangs or kills it.

    Returns:
        How many ended how, and a line about each that ended badly.
    """
    counts: Counter = Counter(dict.fromkeys(OUTCOMES, 0))
    bad = []
    context = multiprocessing.get_context("fork")
    left = list(numbers)
    while left:
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(make, folder, left, there), daemon=True)
        process.start()
        there.close()
        current: tuple[int, str] | None = None
        try:
            while True:
                if not here.poll(SECONDS if current else 120):
                    raise TimeoutError
                message = here.recv()
                if message is None:
                    left = []
                    break
                number, name, outcome, text = message
                if outcome == "started":
                    current = (number, name)
                    continue
                counts[outcome] += 1
                if outcome not in ("clear", "accepted"):
                    bad.append(f"{outcome}: {number} {name}: {text}")
                left, current = left[left.index(number) + 1 :], None
        except (TimeoutError, EOFError) as error:
            number, name = current or (left[0], "?")
            outcome = "hang" if isinstance(error, TimeoutError) else "raw"
            counts[outcome] += 1
            bad.append(f"{outcome}: {number} {name}: {'took too long' if outcome == 'hang' else 'the process died'}")
            left = left[left.index(number) + 1 :]
        finally:
            if process.is_alive():
                os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
            here.close()
    return counts, bad
