"""How processes wait for each other at the start."""

import socket
from dataclasses import replace
from datetime import timedelta

import pytest
import torch.distributed as dist

from detectron2.distributed.layout import Layout, find_free_port
from detectron2.distributed.rendezvous import (
    _sign_in,
    host_store,
    join,
    leave,
    meeting_timeout,
    remove_meeting_file,
)
from detectron2.utils import comm


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setenv("DETECTRON2_MEETING_TIMEOUT", "0.3")


def test_patience_at_the_start(monkeypatch):
    monkeypatch.delenv("DETECTRON2_MEETING_TIMEOUT", raising=False)
    assert meeting_timeout() == timedelta(seconds=60)
    monkeypatch.setenv("DETECTRON2_MEETING_TIMEOUT", "soon")
    with pytest.raises(ValueError, match="number of seconds, got 'soon'"):
        meeting_timeout()


def test_missing_ranks_are_named(impatient):
    here = Layout(6, 2, 3, 1, rank=2, local_rank=0, dist_url="tcp://127.0.0.1:1")
    store = dist.HashStore()
    for rank in (0, 1, 4):
        store.set(f"rank/{rank}", "{}")
    with pytest.raises(RuntimeError) as info:
        _sign_in(store, here, meeting_timeout())
    message = str(info.value)
    assert message.startswith(f"Process 2 of 6 on {socket.gethostname()} waited 0.3 seconds at tcp://127.0.0.1:1")
    assert "Missing: rank 3, 5 (machine 1, 2)." in message


def test_two_machines_with_one_rank(impatient):
    here = Layout(2, 1, 2, 0, rank=0, local_rank=0, dist_url="tcp://127.0.0.1:1")
    store = dist.HashStore()
    with pytest.raises(RuntimeError, match="Missing: rank 1"):
        _sign_in(store, here, meeting_timeout())
    with pytest.raises(
        RuntimeError, match=r"Two processes claim to be rank 0 of 2.* and every run a port of its own\."
    ):
        _sign_in(store, here, meeting_timeout())


def test_a_file_of_a_run_that_was_killed(impatient, tmp_path):
    here = Layout(2, 1, 2, 0, rank=0, local_rank=0, dist_url=f"file://{tmp_path}/x")
    for text in ("Missing: rank 1", rf"run has ended without removing {tmp_path}/x, remove it\."):
        with pytest.raises(RuntimeError, match=text):
            _sign_in(dist.FileStore(str(tmp_path / "x"), -1), here, meeting_timeout())


def test_the_last_process_removes_the_file(tmp_path):
    path = tmp_path / "x"
    here = Layout(2, 2, dist_url=f"file://{path}")
    stores = [dist.PrefixStore("run", dist.FileStore(str(path), 2)) for _ in range(2)]
    stores[0].set("key", "value")
    remove_meeting_file(here, stores[0])
    assert path.exists()
    remove_meeting_file(here, stores[1])
    assert not path.exists()
    remove_meeting_file(replace(here, dist_url="tcp://127.0.0.1:1"), stores[0])  # which is no file


def test_machines_that_were_told_different_numbers(impatient):
    store = dist.HashStore()
    store.set("rank/1", '{"host": "b", "world_size": 4, "local_size": 1}')
    here = Layout(2, 1, 2, 0, rank=0, local_rank=0)
    with pytest.raises(RuntimeError, match=r"told that there are 2 processes, rank 1 on b that there are 4\."):
        _sign_in(store, here, meeting_timeout())


def test_nobody_listens(impatient):
    port = find_free_port()
    here = Layout(2, 1, 2, 1, rank=1, local_rank=0, dist_url=f"tcp://127.0.0.1:{port}")
    with pytest.raises(RuntimeError, match=rf"Process 1 of 2 .* rank 0 at host 127\.0\.0\.1, port {port}"):
        join(here, timedelta(seconds=1))


def test_a_name_that_nobody_knows(impatient):
    here = Layout(2, 1, 2, 1, rank=1, local_rank=0, dist_url="tcp://no-such-machine.invalid:1234")
    with pytest.raises(RuntimeError, match=r"The name no-such-machine\.invalid is not known on this machine\."):
        join(here, timedelta(seconds=1))


def test_a_store_keeps_its_port():
    first = host_store("tcp://127.0.0.1:0")
    with pytest.raises(RuntimeError, match=f"another run using port {first.port}"):
        host_store(f"tcp://127.0.0.1:{first.port}")


def test_one_process_joins_and_leaves():
    join(Layout(1, 1, rank=0, local_rank=0, dist_url=f"tcp://127.0.0.1:{find_free_port()}"), timedelta(seconds=9))
    try:
        assert dist.is_initialized()
        assert comm.get_local_size() == 1
    finally:
        leave()
    assert not dist.is_initialized()
    assert comm._LOCAL_PROCESS_GROUP is None
