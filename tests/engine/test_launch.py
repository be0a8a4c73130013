"""Starting functions in one and in several processes."""

import os
import signal
import socket
import types
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from detectron2.engine import launch
from detectron2.engine._layout import Layout, find_layout, first_host
from detectron2.engine._rendezvous import _call_the_roll, host_store, join, meeting_timeout
from detectron2.engine.launch import _find_free_port
from detectron2.utils._supervise import _raise, run_processes

TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1",
    "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_RUN_ID": "job", "TORCHELASTIC_RESTART_COUNT": "2",
}  # fmt: skip
SLURM = {
    "SLURM_JOB_ID": "123456", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
}  # fmt: skip
ONE_TASK_PER_NODE = {**SLURM, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}


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
        s.bind(("127.0.0.1", _find_free_port()))


# Where a process stands


def test_layout_of_arguments_alone():
    assert find_layout(1, environ={}) == Layout(1, 1)
    assert find_layout(4, environ={}, dist_url="auto") == Layout(4, 4, dist_url="auto")
    here = find_layout(4, 2, 1, "tcp://10.0.0.1:86", environ={})
    assert (here.world_size, here.rank, here.dist_url) == (8, None, "tcp://10.0.0.1:86")
    child = here.of_child(3)
    assert (child.rank, child.local_rank, child.machine_rank, child.local_size) == (7, 3, 1, 4)


def test_several_machines_need_a_meeting_place():
    with pytest.raises(ValueError, match="must name machine 0"):
        find_layout(1, 2, 0, "auto", environ={})


def test_meeting_place_from_the_environment():
    environ = {"MASTER_ADDR": "fe80::1", "MASTER_PORT": "77"}
    assert find_layout(2, dist_url="env://", environ=environ).dist_url == "tcp://[fe80::1]:77"
    with pytest.raises(ValueError, match="MASTER_PORT must be an integer, got None"):
        find_layout(2, dist_url="env://", environ={"MASTER_ADDR": "a"})


def test_layout_under_torchrun():
    here = find_layout(1, environ=TORCHRUN)
    assert (here.rank, here.world_size, here.local_rank, here.local_size) == (5, 8, 1, 4)
    assert (here.machine_rank, here.num_machines, here.dist_url) == (1, 2, "tcp://10.0.0.1:29500")
    assert (here.started_by, here.generation, here.store_is_up) == ("torchrun", "job.2", True)
    assert find_layout(4, 2, 1, "tcp://ignored:1", environ=TORCHRUN) == here


def test_left_over_variables_are_no_torchrun():
    assert find_layout(1, environ={"LOCAL_RANK": "3", "RANK": "3"}) == Layout(1, 1)
    alone = {**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    assert find_layout(2, environ=alone) == Layout(2, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((8,), "ask for 1 x 8"),
        ((4, 3), "ask for 3 x 4"),
        ((4, 3, 2), "say machine 2"),
        ((2, 4), "Leave out --num-gpus"),
    ],
)
@pytest.mark.parametrize("environ", [TORCHRUN, SLURM], ids=["torchrun", "SLURM"])
def test_arguments_that_contradict_the_environment(arguments, message, environ):
    with pytest.raises(ValueError, match=message):
        find_layout(*arguments, environ=environ)


def test_an_environment_that_contradicts_itself():
    with pytest.raises(ValueError, match="RANK=9 of WORLD_SIZE=8"):
        find_layout(1, environ={**TORCHRUN, "RANK": "9"})
    with pytest.raises(ValueError, match="WORLD_SIZE must be an integer, got 'many'"):
        find_layout(1, environ={**TORCHRUN, "WORLD_SIZE": "many"})


def test_layout_under_slurm_with_a_task_for_each_gpu():
    here = find_layout(1, environ=SLURM)
    assert (here.rank, here.world_size, here.local_rank, here.local_size) == (5, 8, 1, 4)
    assert (here.machine_rank, here.num_machines) == (1, 2)
    assert here.dist_url == "tcp://gpu03:23456"  # 20000 + 123456 % 10000
    assert (here.started_by, here.store_is_up) == ("SLURM", False)
    assert find_layout(4, environ=SLURM) == here
    assert find_layout(1, dist_url="tcp://a:1", environ=SLURM).dist_url == "tcp://a:1"
    chosen = {**SLURM, "MASTER_ADDR": "b", "MASTER_PORT": "2", "SLURM_STEP_TASKS_PER_NODE": "5,3"}
    assert find_layout(1, environ=chosen).dist_url == "tcp://b:2"
    assert find_layout(1, environ=chosen).local_size == 3


def test_layout_under_slurm_with_a_task_on_each_machine():
    here = find_layout(4, environ=ONE_TASK_PER_NODE)
    assert (here.rank, here.world_size, here.local_size, here.machine_rank) == (None, 8, 4, 1)
    assert here.of_child(3).rank == 7
    assert find_layout(1, environ=ONE_TASK_PER_NODE).rank == 1


def test_a_batch_script_is_one_process():
    script = {key: value for key, value in SLURM.items() if "STEP" not in key} | {"SLURM_NTASKS": "8"}
    assert find_layout(1, environ=script) == Layout(1, 1)
    assert find_layout(2, environ={**SLURM, "SLURM_STEP_NUM_TASKS": "1"}) == Layout(2, 2)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu1", "gpu1"), ("gpu1,gpu2", "gpu1"), ("gpu[01-04,07],cpu3", "gpu01"), ("r[2,5]n[10-11].x", "r2n10.x")],
)
def test_first_host(nodes, first):
    assert first_host(nodes) == first


# Meeting


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
        _call_the_roll(store, here, meeting_timeout())
    message = str(info.value)
    assert message.startswith(f"Process 2 of 6 on {socket.gethostname()} waited 0.3 seconds at tcp://127.0.0.1:1")
    assert "Missing: rank 3, 5 (machine 1, 2)." in message


def test_two_machines_with_one_rank(impatient):
    here = Layout(2, 1, 2, 0, rank=0, local_rank=0, dist_url="tcp://127.0.0.1:1")
    store = dist.HashStore()
    with pytest.raises(RuntimeError, match="Missing: rank 1"):
        _call_the_roll(store, here, meeting_timeout())
    with pytest.raises(RuntimeError, match="Two processes say that they are rank 0 of 2"):
        _call_the_roll(store, here, meeting_timeout())


def test_machines_that_were_told_different_numbers(impatient):
    store = dist.HashStore()
    store.set("rank/1", '{"host": "b", "world_size": 4, "local_size": 1}')
    here = Layout(2, 1, 2, 0, rank=0, local_rank=0)
    with pytest.raises(RuntimeError, match=r"told that there are 2 processes, rank 1 on b that there are 4\."):
        _call_the_roll(store, here, meeting_timeout())


def test_nobody_listens(impatient):
    port = _find_free_port()
    here = Layout(2, 1, 2, 1, rank=1, local_rank=0, dist_url=f"tcp://127.0.0.1:{port}")
    with pytest.raises(RuntimeError, match=rf"Process 1 of 2 .* rank 0 at host 127\.0\.0\.1, port {port}"):
        join(here, timedelta(seconds=1))


def test_a_name_that_nobody_knows(impatient):
    here = Layout(2, 1, 2, 1, rank=1, local_rank=0, dist_url="tcp://no-such-machine.invalid:1234")
    with pytest.raises(RuntimeError, match=r"The name no-such-machine\.invalid is not known on this machine\."):
        join(here, timedelta(seconds=1))


def test_a_port_in_use(impatient):
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


def test_a_silent_death_is_a_failure():
    with pytest.raises(mp.ProcessExitedException, match=r"rank 5 .* ended with exit code 1 and no error message"):
        run_processes(os._exit, 2, 4, ())  # with their local ranks, 0 and 1


def test_other_ways_to_end():
    process = types.SimpleNamespace(pid=11)
    with pytest.raises(mp.ProcessExitedException, match=r"rank 3 .* killed by SIGKILL.* when memory runs out"):
        _raise((1, "died", -9), 2, process)
    with pytest.raises(KeyboardInterrupt):
        _raise((1, "interrupt", None), 2, process)
    with pytest.raises(SystemExit, match="3"):
        _raise((1, "exit", 3), 2, process)
