"""How the failures of spawned processes are reported."""

import os
import signal
import sys
import time

import pytest
import torch.multiprocessing as mp
from omegaconf.errors import ConfigAttributeError

from detectron2.distributed.launching import _described, _raise_failure, run_processes
from detectron2.distributed.rendezvous import MeetingError


def test_all_end_well():
    handler = signal.getsignal(signal.SIGTERM)
    run_processes(time.sleep, 2, 0, ())  # their local ranks, 0 and 1, in seconds
    assert not mp.active_children()
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_silent_death_is_a_failure():
    with pytest.raises(mp.ProcessExitedException, match=r"rank 5 .* ended with exit code 1 and no error message"):
        run_processes(os._exit, 2, 4, ())  # with their local ranks, 0 and 1


def test_the_code_of_a_process_that_leaves_is_that_of_the_run():
    with pytest.raises(SystemExit, match="1"):
        run_processes(sys.exit, 2, 0, ())


def killed(name="SIGKILL"):
    return mp.ProcessExitedException("process 1 terminated", 1, 11, -signal.Signals[name], name)


def test_killed_by_the_system():
    with pytest.raises(mp.ProcessExitedException, match=r"rank 3 .* killed by SIGKILL.* when memory runs out"):
        _raise_failure(None, killed(), False, 2)
    with pytest.raises(mp.ProcessExitedException, match=r"rank 3 .* killed by SIGBUS") as info:
        _raise_failure((0, 12, "error", ("a lost connection", ("ValueError", "a"))), killed("SIGBUS"), False, 2)
    assert (info.value.error_index, info.value.exit_code, info.value.signal_name) == (1, -signal.SIGBUS, "SIGBUS")


def test_the_first_report_is_the_cause():
    died = mp.ProcessExitedException("process 1 terminated", 1, 11, 1)
    with pytest.raises(mp.ProcessRaisedException, match=r"rank 2 \(local rank 0, pid 12(?s:.*)the reason"):
        _raise_failure((0, 12, "error", ("the reason", ("ValueError", "a"))), died, False, 2)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ValueError(), ValueError, ""),
        (FileNotFoundError(2, "no file", "a.png"), FileNotFoundError, "[Errno 2] no file: 'a.png'"),
        (KeyError("x"), KeyError, "'x'"),
        (ConfigAttributeError("Missing key a"), ValueError, "Missing key a"),  # which the command line then shows alone
        (MeetingError("missing: rank 1"), ConnectionError, "missing: rank 1"),
        (UnicodeDecodeError("utf-8", b"\x80", 0, 1, "bad"), Exception, "'utf-8' codec can't decode byte 0x80"),
    ],
)
def test_the_cause_is_passed_on(error, kind, message):
    died = mp.ProcessExitedException("process 1 terminated", 1, 11, 1)
    with pytest.raises(mp.ProcessRaisedException, match="the reason") as info:
        _raise_failure((0, 12, "error", ("the reason", _described(error))), died, False, 2)
    assert type(info.value.__cause__) is kind and str(info.value.__cause__).startswith(message)


def test_exits_and_interrupts_are_raised_again():
    _raise_failure(None, None, False, 0)
    with pytest.raises(KeyboardInterrupt):
        _raise_failure((1, 12, "interrupt", None), None, False, 0)
    with pytest.raises(KeyboardInterrupt):
        _raise_failure(None, killed(), True, 0)
    with pytest.raises(SystemExit, match="3"):
        _raise_failure((1, 12, "exit", 3), killed(), True, 0)
