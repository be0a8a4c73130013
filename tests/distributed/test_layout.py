"""Layouts from arguments and from the environment."""

import socket

import pytest

from detectron2.distributed.layout import (
    Layout,
    find_free_port,
    find_layout,
    first_host,
    host_and_port,
    torchrun_attempt,
)

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


def test_a_free_port_can_be_taken():
    with socket.socket() as s:
        port = find_free_port()
        s.bind(("127.0.0.1", port))
        assert s.getsockname()[1] == port > 0


def test_parts_of_an_address():
    assert host_and_port("tcp://[fe80::1]:77") == ("fe80::1", 77)
    with pytest.raises(ValueError, match="must be like"):
        host_and_port("http://a:1")


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


def test_a_file_as_meeting_place(tmp_path):
    url = f"file://{tmp_path}/x"
    assert find_layout(2, dist_url=url, environ={}).dist_url == url
    for wrong in (f"file://{tmp_path}", f"file://{tmp_path}/no/x", "file://x", "file://"):
        with pytest.raises(ValueError, match="in a folder that is there"):
            find_layout(2, dist_url=wrong, environ={})


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


OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500",
}  # fmt: skip
PYTORCH_JOB = {"MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456", "WORLD_SIZE": "4", "RANK": "3"}
INDEXED_JOB = {"JOB_COMPLETION_INDEX": "3", **{key: value for key, value in PYTORCH_JOB.items() if key != "RANK"}}


def test_how_often_torchrun_has_restarted():
    assert torchrun_attempt({}) is None
    assert torchrun_attempt({"TORCHELASTIC_RUN_ID": "none"}) == ("none", 0)
    assert torchrun_attempt(TORCHRUN) == ("job", 2)
    with pytest.raises(ValueError, match="TORCHELASTIC_RESTART_COUNT must be an integer, got 'x'"):
        torchrun_attempt({**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "x"})


def test_layout_under_open_mpi():
    here = find_layout(1, environ=OPEN_MPI)
    assert (here.rank, here.world_size, here.local_rank, here.local_size) == (5, 8, 1, 4)
    assert (here.machine_rank, here.num_machines, here.dist_url) == (1, 2, "tcp://10.0.0.1:29500")
    assert (here.started_by, here.store_is_up) == ("Open MPI", False)
    assert find_layout(1, environ={**SLURM, **OPEN_MPI}) == here  # whose daemons srun starts
    assert find_layout(1, environ={**OPEN_MPI, **TORCHRUN}).started_by == "torchrun"
    assert find_layout(1, dist_url="tcp://a:1", environ=OPEN_MPI).dist_url == "tcp://a:1"
    assert find_layout(2, environ={"OMPI_COMM_WORLD_SIZE": "1"}) == Layout(2, 2)
    with pytest.raises(ValueError, match=r"rank 5 to process 2 of the 4 .* mpirun --map-by slot"):
        find_layout(1, environ={**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_RANK": "2"})
    with pytest.raises(ValueError, match="Leave out --num-gpus, --num-machines and --machine-rank under Open MPI"):
        find_layout(3, environ=OPEN_MPI)


@pytest.mark.parametrize("environ", [PYTORCH_JOB, INDEXED_JOB], ids=["PyTorchJob", "IndexedJob"])
def test_layout_under_kubernetes(environ):
    here = find_layout(1, environ=environ)
    assert here == Layout(4, 1, 4, 3, 3, 0, "tcp://job-master-0:23456", "environment")
    pods = find_layout(8, environ=environ)  # which start a process for each of their GPUs
    assert (pods.rank, pods.world_size, pods.local_size, pods.machine_rank, pods.num_machines) == (None, 32, 8, 3, 4)
    assert pods.of_child(7).rank == 31
    assert find_layout(1, dist_url="tcp://a:1", environ=environ).dist_url == "tcp://a:1"
    assert find_layout(8, 2, 1, "tcp://a:1", environ=environ) == Layout(16, 8, 2, 1, dist_url="tcp://a:1")
    assert find_layout(1, environ={**environ, "WORLD_SIZE": "1"}) == Layout(1, 1)
    assert find_layout(1, environ={**environ, **SLURM}).started_by == "SLURM"
    assert find_layout(1, environ={**environ, **TORCHRUN}).started_by == "torchrun"


@pytest.mark.parametrize(
    ("environ", "missing"),
    [
        *[(PYTORCH_JOB, key) for key in PYTORCH_JOB if key != "MASTER_ADDR"],
        *[(INDEXED_JOB, key) for key in INDEXED_JOB if key != "MASTER_ADDR"],
        *[(TORCHRUN, key) for key in ("RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")],
        *[(OPEN_MPI, key) for key in OPEN_MPI if key != "OMPI_COMM_WORLD_SIZE"],
        *[(SLURM, key) for key in ("SLURM_STEP_NUM_NODES", "SLURM_NODEID", "SLURM_LOCALID", "SLURM_JOB_ID")],
    ],
)
def test_a_missing_variable_is_named(environ, missing):
    with pytest.raises(ValueError, match=rf"\b{missing}\b.*(is missing|must be an integer, got None)"):
        find_layout(1, environ={key: value for key, value in environ.items() if key != missing})


def test_an_address_may_come_from_the_arguments():
    without = {key: value for key, value in PYTORCH_JOB.items() if not key.startswith("MASTER")}
    assert find_layout(1, dist_url="tcp://a:1", environ=without).rank == 3
    with pytest.raises(
        ValueError, match=r"MASTER_ADDR is missing\. Set MASTER_ADDR \(the address of rank 0\) or --dist"
    ):
        find_layout(1, environ=without)
    with pytest.raises(ValueError, match="RANK=4 of WORLD_SIZE=4"):
        find_layout(1, environ={**PYTORCH_JOB, "RANK": "4"})
