"""Starting functions in one and in several processes."""

import os
import re
from pathlib import Path

import pytest
import torch

from detectron2.engine import launch
from detectron2.engine.launch import _find_free_port, _resolve_url


def add(a, b):
    return a + b


def record_rank(folder):
    from detectron2.utils import comm

    numbers = comm.all_gather(comm.get_rank())
    Path(folder, f"{comm.get_rank()}.txt").write_text(
        f"{numbers} {comm.get_world_size()} {comm.get_local_rank()} {torch.get_num_threads()}"
    )


def test_one_process_returns_the_result():
    assert launch(add, 1, args=(2, 3)) == 5


def test_no_process():
    with pytest.raises(ValueError, match="At least one process"):
        launch(add, 0)


def test_rank_must_exist():
    with pytest.raises(ValueError, match=r"machine_rank must be in \[0, 2\), got 2"):
        launch(add, 1, num_machines=2, machine_rank=2, dist_url="tcp://127.0.0.1:1")


def test_several_machines_need_a_meeting_place():
    with pytest.raises(ValueError, match="must name machine 0"):
        _resolve_url("auto", 2)


def test_auto_is_a_free_local_port():
    assert re.fullmatch(r"tcp://127\.0\.0\.1:\d+", _resolve_url("auto", 1))
    assert _find_free_port() > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests the start without GPUs")
def test_two_processes_without_gpu(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    launch(record_rank, 2, dist_url="auto", args=(str(tmp_path),))
    for rank in (0, 1):
        gathered, world, local, _ = re.fullmatch(
            r"(\[.*\]) (\d+) (\d+) (\d+)", (tmp_path / f"{rank}.txt").read_text()
        ).groups()
        assert (gathered, world, local) == ("[0, 1]", "2", str(rank))
