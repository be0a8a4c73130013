"""Starting functions in one and in several processes."""

import signal
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from detectron2.distributed import rendezvous
from detectron2.distributed.rendezvous import host_store
from detectron2.engine import launch
from detectron2.engine.launch import _find_free_port
from detectron2.utils import comm


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


@pytest.fixture
def group_of_program(monkeypatch):
    """A process group of one, as a program makes it."""
    for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(key, raising=False)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def where():
    return comm.get_rank(), comm.get_local_rank(), comm.get_local_size(), comm.get_world_size()


@pytest.mark.usefixtures("group_of_program")
def test_a_process_group_of_the_program_is_used_and_stays():
    assert launch(where, 1) == (0, 0, 1, 1)
    assert dist.is_initialized() and comm._LOCAL_PROCESS_GROUP is None


@pytest.mark.usefixtures("group_of_program")
def test_ray_train_makes_the_group_and_sets_the_local_rank(monkeypatch):
    monkeypatch.setattr(comm, "all_gather", None)  # nothing has to be found out
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert launch(where, 1) == (0, 3, 4, 1)


@pytest.mark.usefixtures("group_of_program")
@pytest.mark.parametrize(("hosts", "made"), [("aabb", [2]), ("abab", []), ("aab", [])])
def test_machines_of_a_group_of_the_program(monkeypatch, hosts, made):
    sizes = []
    monkeypatch.setattr(comm, "all_gather", lambda host: list(hosts))
    monkeypatch.setattr(comm, "create_local_process_group", sizes.append)
    launch(comm.get_rank, 1)
    assert sizes == made


@pytest.mark.usefixtures("group_of_program")
def test_other_numbers_than_those_of_the_group_of_the_program(monkeypatch):
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(rendezvous, "adopt", lambda: None)
    assert launch(add, 2, 2, args=(1, 1)) == 2
    with pytest.raises(ValueError, match="rank 0 of 4 in a process group that the program has made, and 3 processes"):
        launch(add, 3, args=(1, 1))


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
    assert "ArithmeticError: the reason" in message and isinstance(info.value.__cause__, ArithmeticError)
    assert "in wait_for_the_other" in message  # the traceback
    assert info.value.error_index == 1
    assert not mp.active_children()
    assert signal.getsignal(signal.SIGTERM) is handler
