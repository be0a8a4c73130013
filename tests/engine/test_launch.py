"""Starting functions in one and in several processes."""

import signal
import socket

import pytest
import torch
import torch.multiprocessing as mp

from detectron2.distributed.rendezvous import host_store
from detectron2.engine import launch
from detectron2.engine.launch import _find_free_port


def add(a, b):
    return a + b


def test_one_process_returns_the_result():
    assert launch(add, 1, args=(2, 3)) == 5


def test_no_process():
    with pytest.raises(ValueError, match="At least one process"):
        launch(add, 0)


def test_rank_must_exist():
    with pytest.raises(ValueError, match=r"machine_rank must be in \[0, 2\), got 2"):
        launch(add, 1, num_machines=2, machine_rank=2, dist_url="tcp://127.0.0.1:1")


def test_an_argument_of_the_wrong_kind_is_the_functions_own_error():
    with pytest.raises(TypeError, match="unsupported operand"):
        launch(add, 1, args=(2, "3"))


def test_auto_is_a_free_local_port():
    with socket.socket() as s:
        port = _find_free_port()
        s.bind(("127.0.0.1", port))
        assert s.getsockname()[1] == port > 0


def test_a_port_in_use(monkeypatch):
    monkeypatch.setenv("DETECTRON2_MEETING_TIMEOUT", "0.3")
    first = host_store("tcp://127.0.0.1:0")
    with pytest.raises(RuntimeError, match=f"another run using port {first.port}"):
        launch(add, 1, num_machines=2, dist_url=f"tcp://127.0.0.1:{first.port}")


@pytest.mark.parametrize("url", ["127.0.0.1:80", "tcp://host", "tcp://host:port", "udp://host:1"])
def test_an_address_of_another_form(url):
    with pytest.raises(ValueError, match=r"must be like tcp://10\.0\.0\.1:8686"):
        launch(add, 1, num_machines=2, dist_url=url, args=(1, 2))


# Processes: each of them imports for seconds, which is why there are few


def wait_for_the_other(rank_that_fails):
    from detectron2.utils import comm

    if comm.get_rank() == rank_that_fails:
        raise ArithmeticError("the reason")
    comm.gather("waits for ever")


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests the start without GPUs")
def test_one_fails_and_all_end():
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(mp.ProcessRaisedException) as info:
        launch(wait_for_the_other, 2, args=(1,))
    message = str(info.value)
    assert "rank 1 (local rank 1" in message
    assert "ArithmeticError: the reason" in message
    assert "in wait_for_the_other" in message  # the traceback
    assert info.value.error_index == 1
    assert not mp.active_children()
    assert signal.getsignal(signal.SIGTERM) is handler
