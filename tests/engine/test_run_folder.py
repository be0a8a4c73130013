"""One training at a time in a folder, and the metrics of an earlier one."""

import argparse
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from detectron2.checkpoint import DetectionCheckpointer, detection_checkpoint
from detectron2.config import get_cfg
from detectron2.engine import SimpleTrainer, default_setup, hooks, launch, run_folder
from detectron2.engine.run_folder import (
    RunFolder,
    RunFolderRelease,
    earlier_results,
    is_restarted,
    other_training,
    resumes_after_restart,
    training_in,
)
from detectron2.utils import comm
from detectron2.utils.events import JSONWriter
from detectron2.utils.file_io import atomic_write


class Weight(torch.nn.Module):
    """One weight, which each step raises by one."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return {"loss": -self.w.sum()}


def make(folder, *more):
    model = Weight()
    trainer = SimpleTrainer(model, itertools.repeat(0), torch.optim.SGD(model.parameters(), lr=1.0))
    keeper = DetectionCheckpointer(model, str(folder), trainer=trainer)
    writer = hooks.PeriodicWriter([JSONWriter(str(Path(folder) / "metrics.json"))], 1)
    own = RunFolder(str(folder))
    trainer.register_hooks([own, hooks.PeriodicCheckpointer(keeper, 2), *more, writer, RunFolderRelease(own)])
    return trainer


def train_until_killed(folder):
    """Body of a process, which starts another one that outlives it, as data workers do for some seconds."""

    def wait(trainer):
        if trainer.iter == 1:
            multiprocessing.get_context("fork").Process(target=time.sleep, args=(5,)).start()
            (Path(folder) / "is_training").touch()
            time.sleep(600)

    make(folder, hooks.CallbackHook(before_step=wait)).train(0, 3)


@pytest.fixture
def training(tmp_path):
    """A process that trains in `tmp_path`."""
    process = multiprocessing.get_context("fork").Process(target=train_until_killed, args=(str(tmp_path),))
    process.start()
    while not (tmp_path / "is_training").exists():
        assert process.is_alive(), f"it ended with {process.exitcode}"
        time.sleep(0.01)
    yield process
    process.kill()
    process.join()


def test_a_second_training_is_told_who_trains_there(training, tmp_path):
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(RuntimeError, match=rf"Another training runs in .*: process {training.pid} on .*folder"):
        make(tmp_path).train(0, 2)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    link = tmp_path.with_name(f"{tmp_path.name}_link")
    link.symlink_to(tmp_path)
    assert f"process {training.pid}" in other_training(str(link))
    with pytest.raises(RuntimeError, match="Another training"):  # also one that has nothing left to train
        make(tmp_path).train(2, 2)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_killed_training_holds_nothing(training, tmp_path):
    training.kill()
    training.join()
    assert other_training(str(tmp_path)) is None
    make(tmp_path).train(0, 2)


def test_one_after_the_other_in_one_process(tmp_path):
    trainer = make(tmp_path)
    trainer.train(0, 2)
    assert not (tmp_path / ".training.lock").exists()
    make(tmp_path).train(2, 4)
    trainer.train(4, 6)

    def fail(trainer):
        raise OSError("no")

    failing = make(tmp_path, hooks.CallbackHook(before_step=fail))
    with pytest.raises(OSError, match="no"):
        failing.train(6, 8)
    make(tmp_path).train(6, 8)


def test_one_within_the_other(tmp_path):
    inner = hooks.CallbackHook(before_step=lambda _: make(tmp_path).train(0, 1))
    with pytest.raises(RuntimeError, match="this process"):
        make(tmp_path, inner).train(0, 2)


def test_locked_until_the_final_evaluation_is_over(tmp_path):
    seen = []
    make(tmp_path, hooks.EvalHook(0, lambda: seen.append(other_training(str(tmp_path))))).train(0, 2)
    assert len(seen) == 1 and f"this process ({os.getpid()})" in seen[0]
    assert other_training(str(tmp_path)) is None


def test_evaluation_beside_a_training_leaves_its_config(training, tmp_path, restore_logging):
    (tmp_path / "config.yaml").write_text("the training's")
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    default_setup(cfg, argparse.Namespace(eval_only=True))
    assert (tmp_path / "config.yaml").read_text() == "the training's"


def train_together(folder, other):
    """Body of one of two processes: beside another training, one after the other, and beside a loop without hooks."""
    with pytest.raises(RuntimeError, match=rf"Another training runs in .*: process {other} "):
        make(folder).train(0, 2)
    comm.synchronize()
    if comm.is_main_process():
        os.kill(other, signal.SIGKILL)
    while other_training(folder):
        time.sleep(0.01)
    comm.synchronize()
    make(folder).train(0, 2)
    make(folder).train(2, 4)
    with training_in(folder, 4), pytest.raises(RuntimeError, match="Another training runs"):
        make(folder).train(4, 6)
    make(folder).train(4, 6)
    (Path(folder) / f"rank_{comm.get_rank()}").touch()


def test_two_processes(training, tmp_path):
    """Both are told who else trains there; together they are one training."""
    launch(train_together, 2, dist_url="auto", args=(str(tmp_path), training.pid))
    assert {"rank_0", "rank_1", "model_final.pth"} <= {p.name for p in tmp_path.iterdir()}
    assert not (tmp_path / ".training.lock").exists()
    assert {r["iteration"] for r in records(tmp_path / "metrics.json")} == set(range(6))


def test_a_loop_without_hooks(training, tmp_path):
    with pytest.raises(RuntimeError, match="Another training"), training_in(str(tmp_path), 0):
        pass
    training.kill()
    training.join()
    with training_in(str(tmp_path), 0):
        assert "this process" in other_training(str(tmp_path))
    assert other_training(str(tmp_path)) is None


@pytest.mark.parametrize("error", [OSError(38, "no locks"), None])
def test_file_systems_without_locks(tmp_path, monkeypatch, error):
    class NoLocks:
        LOCK_EX = LOCK_NB = 0

        def lockf(self, *args):
            raise error

    monkeypatch.setattr(run_folder, "fcntl", NoLocks() if error else None)
    make(tmp_path).train(0, 2)
    assert (tmp_path / "model_final.pth").is_file()


def records(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_new_training_sets_earlier_metrics_aside(tmp_path, caplog):
    make(tmp_path).train(0, 4)
    first = (tmp_path / "metrics.json").read_text()
    assert "earlier" not in caplog.text
    make(tmp_path).train(0, 2)
    assert (tmp_path / "metrics.earlier_1.json").read_text() == first
    assert {r["iteration"] for r in records(tmp_path / "metrics.json")} == {0, 1}
    assert "holds the results of an earlier training (metrics.json, last_checkpoint, model_final.pth)" in caplog.text
    assert "metrics.json of that training is now metrics.earlier_1.json" in caplog.text
    second = (tmp_path / "metrics.json").read_text()
    make(tmp_path).train(0, 2)
    assert (tmp_path / "metrics.earlier_2.json").read_text() == second
    make(tmp_path).train(2, 4)  # resumed
    assert {r["iteration"] for r in records(tmp_path / "metrics.json")} == {0, 1, 2, 3}
    assert earlier_results(str(tmp_path)) == ["metrics.json", "last_checkpoint", "model_final.pth"]


def test_files_of_living_processes_stay(tmp_path):
    """Leftovers of processes that are gone are removed."""
    code = (
        "import sys, torch; from detectron2.checkpoint import DetectionCheckpointer\n"
        "DetectionCheckpointer(torch.nn.Linear(1, 1), sys.argv[1]).remove_leftovers()"
    )
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / f"model_0000008.pth.{gone.pid}.tmp").write_text("half")
    (tmp_path / f"model_0000007.pth.{10**30}.tmp").write_text("half")
    with atomic_write(tmp_path / "model_0000009.pth") as file:
        file.write(b"x")
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert [p.name for p in tmp_path.iterdir()] == ["model_0000009.pth"]


def test_where_asking_for_a_process_would_end_it(tmp_path, monkeypatch):
    """On Windows; there, removing a file that another process has open is what fails."""

    def refuse(path):
        raise PermissionError(path)

    (tmp_path / f"model_0000001.pth.{os.getpid()}.tmp").write_text("half")
    keeper = DetectionCheckpointer(Weight(), str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(detection_checkpoint, "os", _Windows(refuse))
        keeper.remove_leftovers()
    assert list(tmp_path.iterdir())


class _Windows:
    """The module `os`, which removes with `remove`, and ends a process when it is asked for."""

    name = "nt"

    def __init__(self, remove):
        self.remove = remove

    def kill(self, pid, number):
        raise AssertionError("a process was ended")

    def __getattr__(self, name):
        return getattr(os, name)


@pytest.fixture
def torchrun(monkeypatch):
    """A function that starts this process, as it were, for the n-th time by the torchrun of that id."""

    def start(attempt, run_id="one"):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", run_id)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(attempt))

    for key in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(key, raising=False)
    return start


def test_nothing_is_restarted_without_torchrun(tmp_path):
    assert not is_restarted(str(tmp_path)) and not is_restarted("")
    make(tmp_path).train(0, 2)
    assert not (tmp_path / ".torchrun").exists()


def test_a_restart_by_torchrun(tmp_path, torchrun, caplog):
    """It goes on from the checkpoint of its own training, never from that of an earlier one."""
    caplog.set_level("INFO", logger="detectron2")
    make(tmp_path).train(0, 4)
    torchrun(1)
    assert not resumes_after_restart(str(tmp_path))  # killed before it began
    assert "(restart 1), which had not begun in" in caplog.text
    torchrun(0)
    assert not resumes_after_restart(str(tmp_path))
    train_until(tmp_path, 1)
    torchrun(1)
    assert resumes_after_restart(str(tmp_path))
    assert "(restart 1): it has no checkpoint yet and begins again." in caplog.text
    assert (tmp_path / "last_checkpoint.earlier_1").read_text() == "model_final.pth"
    train_until(tmp_path, 3)
    torchrun(2)
    assert resumes_after_restart(str(tmp_path))
    assert "(restart 2): it goes on from its last checkpoint." in caplog.text
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    torchrun(2, "two")
    assert not is_restarted(str(tmp_path))


def train_until(folder, iteration):
    """Train, and die in an iteration."""

    def die(trainer):
        if trainer.iter == iteration:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(folder, hooks.CallbackHook(before_step=die)).train(0, 4)


def test_a_torchrun_without_an_id_is_known_by_its_process(tmp_path, torchrun, monkeypatch):
    torchrun(0, "none")
    make(tmp_path).train(0, 2)
    torchrun(1, "none")
    assert is_restarted(str(tmp_path))
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert not is_restarted(str(tmp_path))
