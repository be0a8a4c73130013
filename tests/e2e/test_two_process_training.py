"""What several processes have to do alike: resume, stop on a signal, deal with losses that are not finite."""

import itertools
import logging
import os
import shutil
import signal
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer, SimpleTrainer, create_ddp_model, hooks, launch
from detectron2.engine._divergence import DivergencePolicy
from detectron2.engine._random_states import RandomStates
from detectron2.utils import comm
from detectron2.utils._supervise import _Crew
from detectron2.utils.env import seed_all_rng
from tests.e2e.conftest import _tiny_config

# ---------------------------------------------------------------------------------------------------------------------
# In the processes
# ---------------------------------------------------------------------------------------------------------------------


def _detector(folder, seed, shapes):
    """Train a detector for four steps, or on from a checkpoint; random crops, flips, anchors and regions are drawn."""
    cfg = _tiny_config("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (shapes,), ()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 6
    cfg.INPUT.CROP.ENABLED = True
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = 4, 2
    cfg.OUTPUT_DIR = str(folder)
    seed_all_rng(seed + comm.get_rank())
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load()
    trainer.train()
    return trainer.start_iter


def _resume_detector(folder):
    images = folder / "shapes"
    register_coco_instances("two_process_shapes", {}, str(images / "annotations.json"), str(images / "images"))
    starts = [_detector(folder / "whole", 0, "two_process_shapes")]
    if comm.is_main_process():
        (folder / "parts").mkdir()
        shutil.copy(folder / "whole" / "model_0000001.pth", folder / "parts")
        (folder / "parts" / "last_checkpoint").write_text("model_0000001.pth")
    comm.synchronize()
    # Another seed: what the second part needs comes from the checkpoint alone.
    return [*starts, _detector(folder / "parts", 50, "two_process_shapes")]


class Noisy(nn.Module):
    """Its loss depends on noise that each process draws for itself."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.linear = nn.Linear(3, 1)

    def forward(self, x):
        return {"loss": (self.linear(self.norm(x + torch.randn(4, 3))) - 1).square().mean()}


class Interrupt(hooks.HookBase):
    """Sends rank 1 a signal."""

    def before_step(self):
        if self.trainer.iter == 3 and comm.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGUSR1)


def _trainer(data, seed):
    torch.manual_seed(7)
    model = create_ddp_model(Noisy(), broadcast_buffers=False)
    torch.manual_seed(seed + comm.get_rank())
    return SimpleTrainer(model, data, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))


def _state(trainer):
    """The weights, the statistics, which are each process's own, and the generator."""
    return {**trainer.model.module.state_dict(), "generator": torch.get_rng_state()}


def _stop_and_go_on(folder):
    def run(name, seed, extra=()):
        trainer = _trainer(itertools.repeat(torch.zeros(4, 3)), seed)
        keeper = DetectionCheckpointer(trainer.model, str(folder / name), trainer=trainer)
        (folder / name).mkdir(exist_ok=True)
        trainer.register_hooks([hooks.StopOnSignal(keeper), RandomStates(trainer.model, 0), *extra])
        keeper.resume_or_load("", resume=True)
        return trainer, trainer.iter + 1 if keeper.has_checkpoint() else 0

    whole, start = run("signal_whole", 0)
    whole.train(start, 16)
    first, start = run("signal_parts", 0, [Interrupt()])
    with pytest.raises(SystemExit) as stopped:
        first.train(start, 16)
    comm.synchronize()
    second, start = run("signal_parts", 50)
    # Batch norm's statistics are those of each process, and checkpoints hold those of the main one.
    second.model.module.norm.load_state_dict(first.model.module.norm.state_dict())
    second.train(start, 16)
    return {
        "code": stopped.value.code, "stopped_at": first.iter, "start": start,
        "whole": _state(whole), "parts": _state(second),
    }  # fmt: skip


def _batches(rank_1):
    """Rank 0 never gets anything unusual; rank 1's batches begin with the values that are given."""
    values = rank_1 if comm.get_rank() == 1 else [0.0] * len(rank_1)
    return [torch.full((4, 3), value) for value in values]


def _skip(folder):
    """Six batches of which one is bad for rank 1, against the five others."""
    nan = float("nan")
    found = {}
    for name, values in (("with", [0.0, 0.0, nan, 0.0, 0.0, 0.0]), ("without", [0.0] * 5)):
        trainer = _trainer(_batches(values), 0)
        trainer.divergence = DivergencePolicy("skip")
        trainer.model.module.forward = _without_noise.__get__(trainer.model.module)
        trainer.train(0, len(values))
        state = trainer.model.module.state_dict()
        found[name] = {"state": state, "skipped": trainer.divergence.num_skipped}
    for policy in ("skip", "stop"):
        (folder / policy).mkdir(exist_ok=True)
        trainer = _trainer(_batches([0.0, nan, nan, nan, nan]), 0)
        trainer.divergence = DivergencePolicy(policy, max_in_a_row=2, folder=str(folder / policy))
        with pytest.raises(FloatingPointError) as error:
            trainer.train(0, 5)
        comm.synchronize()
        found[policy] = {"iter": trainer.iter, "text": str(error.value)}
    return found


def _without_noise(self, x):
    return {"loss": (self.linear(self.norm(x + torch.arange(12.0).reshape(4, 3).sin())) - 1).square().mean()}


def _everything(folder):
    logging.getLogger("detectron2").setLevel(logging.ERROR)
    folder = Path(folder)
    found = {"signal": _stop_and_go_on(folder), "skip": _skip(folder), "resume": _resume_detector(folder)}
    torch.save(found, folder / f"found_{comm.get_rank()}.pt")


# ---------------------------------------------------------------------------------------------------------------------
# What came of it
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory, shapes_dir):
    """-> (folder, what each of two processes found)."""
    folder = tmp_path_factory.mktemp("two_processes")
    (folder / "shapes").symlink_to(shapes_dir)
    launch(_everything, 2, args=(str(folder),), timeout=timedelta(seconds=60))
    return folder, [torch.load(folder / f"found_{rank}.pt", weights_only=True) for rank in (0, 1)]


def _assert_same(a, b, path="state"):
    """Compare nested containers of tensors and numbers, exactly."""
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            _assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            _assert_same(x, y, f"{path}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b, path


def test_a_detector_resumes_exactly(runs):
    folder, found = runs
    assert [x["resume"] for x in found] == [[0, 2], [0, 2]]
    whole, parts = (
        torch.load(folder / name / "model_final.pth", weights_only=True, map_location="cpu")
        for name in ("whole", "parts")
    )
    _assert_same(whole, parts)


def test_the_checkpoint_holds_the_generators_of_both(runs):
    state = torch.load(runs[0] / "whole" / "model_0000001.pth", weights_only=True)
    first, second = state["trainer"]["hooks"]["RandomStates"]["ranks"]
    for kind in ("python", "numpy", "torch"):
        assert kind in first and kind in second
    assert not torch.equal(first["torch"], second["torch"])
    assert not torch.equal(first["python"][1], second["python"][1])
    assert not torch.equal(first["numpy"][1], second["numpy"][1])


def test_a_signal_to_one_stops_both_in_the_same_step(runs):
    folder, found = runs
    for x in found:
        signalled = x["signal"]
        assert (signalled["code"], signalled["stopped_at"], signalled["start"]) == (128 + signal.SIGUSR1, 9, 10)
    assert [p.name for p in (folder / "signal_parts").iterdir() if p.suffix == ".pth"] == ["model_0000009.pth"]
    assert (folder / "signal_parts" / "last_checkpoint").read_text() == "model_0000009.pth"
    state = torch.load(folder / "signal_parts" / "model_0000009.pth", weights_only=True)
    assert state["iteration"] == state["trainer"]["iteration"] == 9
    assert len(state["trainer"]["hooks"]["RandomStates"]["ranks"]) == 2


def test_both_go_on_from_that_step_as_if_nothing_had_been(runs):
    for x in runs[1]:
        _assert_same(x["signal"]["whole"], x["signal"]["parts"])
    one, two = (x["signal"]["whole"] for x in runs[1])
    assert torch.equal(one["linear.weight"], two["linear.weight"])
    assert not torch.equal(one["generator"], two["generator"])  # there was something to restore on each


def test_a_bad_batch_of_one_is_skipped_by_both(runs):
    for x in runs[1]:
        assert (x["skip"]["with"]["skipped"], x["skip"]["without"]["skipped"]) == (1, 0)
        _assert_same(x["skip"]["with"]["state"], x["skip"]["without"]["state"])
    one, two = (x["skip"]["with"]["state"] for x in runs[1])
    _assert_same(one, two)


@pytest.mark.parametrize(("policy", "at"), [("stop", 1), ("skip", 3)])
def test_both_stop_in_the_same_step(runs, policy, at):
    folder, found = runs
    assert [x["skip"][policy]["iter"] for x in found] == [at, at]
    files = {p.name for p in (folder / policy).iterdir()}
    assert files == {f"nonfinite_{at:07d}.pth", f"nonfinite_{at:07d}_rank1.pth"}
    texts = [x["skip"][policy]["text"] for x in found]
    for rank, text in enumerate(texts):
        suffix = "_rank1" if rank else ""
        assert f"nonfinite_{at:07d}{suffix}.pth" in text
        assert ("Gave up after 2 skipped steps in a row." in text) == (policy == "skip")
    assert "is in the input: batch" in texts[1]
    assert "it began in another process" in texts[0]


def test_the_supervisor_does_not_wait_when_all_have_just_ended():
    crew = _Crew(0)
    crew._wait()
    assert crew.failure is None and not crew.steps
