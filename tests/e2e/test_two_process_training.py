"""What several processes have to do alike: resume, stop on a signal, deal with losses that are not finite."""

import itertools
import json
import logging
import os
import shutil
import signal
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from fvcore.common.param_scheduler import ConstantParamScheduler
from torch import nn

from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer, SimpleTrainer, create_ddp_model, hooks, launch, lazy_train
from detectron2.engine.divergence import DivergencePolicy
from detectron2.engine.hooks.random_states import RandomStates
from detectron2.solver import get_default_optimizer_params
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from tests.e2e.conftest import _tiny_config

# ---------------------------------------------------------------------------------------------------------------------
# In the processes
# ---------------------------------------------------------------------------------------------------------------------


_DETECTORS = {  # RetinaNet has a moving average of what each process has seen
    "faster_rcnn": "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
    "retinanet": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
}


def _detector(folder, seed, shapes, config):
    """Train a detector for four steps, or on from a checkpoint; random crops, flips, anchors and regions are drawn."""
    cfg = _tiny_config(config)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (shapes,), ()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = 6
    cfg.INPUT.CROP.ENABLED = True
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = 4, 2
    cfg.OUTPUT_DIR = str(folder)
    seed_all_rng(seed + comm.get_rank())
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load()
    trainer.train()
    return trainer.start_iter


def _resume_detector(folder, config):
    starts = [_detector(folder / "whole", 0, "two_process_shapes", config)]
    if comm.is_main_process():
        (folder / "parts").mkdir(parents=True)
        shutil.copy(folder / "whole" / "model_0000001.pth", folder / "parts")
        (folder / "parts" / "last_checkpoint").write_text("model_0000001.pth")
    comm.synchronize()
    # Another seed: what the second part needs comes from the checkpoint alone.
    return [*starts, _detector(folder / "parts", 50, "two_process_shapes", config)]


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


def _leave(folder):
    """A model that notices by itself, before there is a loss."""

    def forward(self, x):
        if not x.isfinite().all():
            raise FloatingPointError("the proposals are not finite")
        return _without_noise(self, x)

    trainer = _trainer(_batches([0.0, float("nan"), 0.0]), 0)
    trainer.model.module.forward = forward.__get__(trainer.model.module)
    (folder / "leave").mkdir(exist_ok=True)
    trainer.divergence = DivergencePolicy("skip", folder=str(folder / "leave"))
    with pytest.raises(FloatingPointError) as error:
        trainer.train(0, 3)
    comm.synchronize()
    return {"iter": trainer.iter, "text": str(error.value)}


class Regression(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, batch):
        x, y = batch
        difference = self.linear(x) - y
        return {"loss": difference.square().mean(), "loss_l1": difference.abs().mean()}


def _shares():
    """Twelve batches of four; of each, this process's half, or the whole where there is only one process."""
    generator = torch.Generator().manual_seed(4)
    size = 4 // comm.get_world_size()
    own = slice(comm.get_rank() * size, (comm.get_rank() + 1) * size)
    return [
        (torch.randn(4, 3, generator=generator)[own], torch.randn(4, 1, generator=generator)[own]) for _ in range(12)
    ]


def _lazily(folder, **ddp):
    """Six steps of two batches each, with a moving average of the weights."""
    cfg = LazyConfig.load(model_zoo.get_config_file("common/train.py"))
    cfg.train.update(output_dir=str(folder), init_checkpoint="", max_iter=6, device="cpu", eval_period=0)
    cfg.train.update(log_period=1, accumulation_steps=2, ema_decay=0.9)
    cfg.train.ddp.update(ddp)
    cfg.dataloader = {"train": L(_shares)()}
    cfg.model = L(Regression)()
    cfg.optimizer = L(torch.optim.SGD)(params=L(get_default_optimizer_params)(base_lr=0.1), lr=0.1, momentum=0.9)
    cfg.lr_multiplier = L(ConstantParamScheduler)(value=1.0)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(5)
    lazy_train(cfg)


def _without_noise(self, x):
    return {"loss": (self.linear(self.norm(x + torch.arange(12.0).reshape(4, 3).sin())) - 1).square().mean()}


def _everything(folder):
    logging.getLogger("detectron2").setLevel(logging.ERROR)
    folder = Path(folder)
    found = {"signal": _stop_and_go_on(folder), "skip": _skip(folder), "leave": _leave(folder)}
    images = folder / "shapes"
    register_coco_instances("two_process_shapes", {}, str(images / "annotations.json"), str(images / "images"))
    for name, config in _DETECTORS.items():
        found[name] = _resume_detector(folder / name, config)
    _lazily(folder / "lazy_two")
    _lazily(folder / "lazy_fp16", fp16_compression=True)
    _lazily(folder / "lazy_bf16", bf16_compression=True)
    torch.save(found, folder / f"found_{comm.get_rank()}.pt")


# ---------------------------------------------------------------------------------------------------------------------
# What came of it
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory, shapes_dir):
    """Return (folder, what each of two processes found)."""
    folder = tmp_path_factory.mktemp("two_processes")
    (folder / "shapes").symlink_to(shapes_dir)
    _lazily(folder / "lazy_one")
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


@pytest.mark.parametrize("name", _DETECTORS)
def test_a_detector_resumes_exactly(runs, name):
    folder, found = runs
    assert [x[name] for x in found] == [[0, 2], [0, 2]]
    whole, parts = (
        torch.load(folder / name / part / "model_final.pth", weights_only=True, map_location="cpu")
        for part in ("whole", "parts")
    )
    _assert_same(whole, parts)


def test_the_checkpoint_holds_the_generators_of_both(runs):
    state = torch.load(runs[0] / "faster_rcnn" / "whole" / "model_0000001.pth", weights_only=True)
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
def test_both_stop_in_the_same_step_and_say_where_it_began(runs, policy, at):
    folder, found = runs
    assert [x["skip"][policy]["iter"] for x in found] == [at, at]
    assert {p.name for p in (folder / policy).iterdir()} == {f"nonfinite_{at:07d}_rank1.pth"}
    texts = [x["skip"][policy]["text"] for x in found]
    for rank, text in enumerate(texts):
        first = text.splitlines()[0]
        assert first.startswith(f"The loss became infinite or NaN in iteration {at} on rank 1")
        assert first.endswith("rank 1: loss=nan." if rank else "rank 1.")
        assert ("Gave up after 2 skipped steps in a row." in text) == (policy == "skip")
        assert "Rank 1: The first tensor that is not finite is in the input: batch" in text
        assert f"nonfinite_{at:07d}_rank1.pth" in text
        assert "Rank 0:" not in text


def test_one_that_leaves_the_step_takes_the_other_along(runs):
    for rank, x in enumerate(runs[1]):
        assert x["leave"]["iter"] == 1
        first, *rest = x["leave"]["text"].splitlines()
        own = "the proposals are not finite"
        assert first == (own if rank else "Rank 1 found numbers that are not finite and left the step.")
        assert (f"Rank 1: {own}" in rest) == (rank == 0)
        assert any("nonfinite_0000001_rank1.pth" in line for line in rest)


def _weights_of(folder, name="model_final"):
    return torch.load(folder / f"{name}.pth", weights_only=True)["model"]


@pytest.mark.parametrize("name", ["model_final", "model_final_ema"])
def test_accumulation_and_average_are_those_of_one_process_with_the_whole_batch(runs, name):
    one, two = (_weights_of(runs[0] / run, name) for run in ("lazy_one", "lazy_two"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-5, atol=1e-6)


def test_the_average_is_another_one_than_the_last_weights(runs):
    last, average = (_weights_of(runs[0] / "lazy_two", name) for name in ("model_final", "model_final_ema"))
    assert not torch.allclose(last["linear.weight"], average["linear.weight"], atol=1e-3)


def test_losses_are_means_over_processes_and_batches(runs):
    one, two = (
        [json.loads(line) for line in (runs[0] / run / "metrics.json").read_text().splitlines()]
        for run in ("lazy_one", "lazy_two")
    )
    assert [line["iteration"] for line in two[:6]] == list(range(6))
    for a, b in zip(one[:6], two[:6], strict=True):
        for name in ("total_loss", "loss", "loss_l1"):
            assert b[name] == pytest.approx(a[name], rel=1e-5)


@pytest.mark.parametrize(("run", "tolerance"), [("lazy_fp16", 2e-3), ("lazy_bf16", 2e-2)])
def test_with_compressed_gradients_training_is_nearly_the_same(runs, run, tolerance):
    whole, compressed = (_weights_of(runs[0] / name)["linear.weight"] for name in ("lazy_two", run))
    torch.testing.assert_close(compressed, whole, rtol=tolerance, atol=tolerance)
    assert not torch.equal(compressed, whole)
