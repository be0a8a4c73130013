"""Training that is interrupted and continued gives what training at a stretch gives, bit for bit."""

import itertools
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall as L
from detectron2.engine import DefaultTrainer, SimpleTrainer, hooks, lazy_train
from detectron2.engine._random_states import RandomStates
from detectron2.solver import get_default_optimizer_params
from detectron2.utils.env import seed_all_rng
from tests.engine.conftest import restore_logging

__all__ = ["restore_logging"]
pytestmark = pytest.mark.usefixtures("restore_logging")


class StopAt(hooks.HookBase):
    """Sends this process a signal in an iteration."""

    def __init__(self, iteration, number=signal.SIGTERM):
        self.iteration, self.number = iteration, number

    def before_step(self):
        if self.trainer.iter == self.iteration:
            os.kill(os.getpid(), self.number)


class Consumer(hooks.HookBase):
    """Notes, and so uses up, random numbers of every generator in each iteration."""

    def __init__(self):
        self.seen = []

    def after_step(self):
        self.seen.append((self.trainer.iter, random.random(), np.random.rand(), torch.rand(()).item()))


def assert_same(a, b, path="state"):
    """Compare nested containers of tensors and numbers, exactly."""
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b, path


def run(cfg, folder, seed, stop_at=None):
    """-> what was drawn in the iterations that ran."""
    cfg.OUTPUT_DIR = str(folder)
    seed_all_rng(seed)
    trainer = DefaultTrainer(cfg)
    if seed == 0:
        torch.manual_seed(1)
    trainer.resume_or_load()
    consumer = Consumer()
    trainer.register_hooks([consumer])
    if stop_at is None:
        trainer.train()
    else:
        trainer.register_hooks([StopAt(stop_at)])
        with pytest.raises(SystemExit, match="143"):
            trainer.train()
    return consumer.seen


@pytest.mark.parametrize("workers", [0, 2])
def test_default_trainer(cfg, tmp_path, workers, capsys):
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.STEPS = 4, 2, (3,)
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.TEST.EVAL_PERIOD = 1
    cfg.merge_from_list(["SOLVER.EMA_DECAY", 0.9, "TEST.BEST_METRIC", "bbox/AP50", "SOLVER.ACCUMULATION_STEPS", 2])
    whole = run(cfg, tmp_path / "whole", seed=0)
    first = run(cfg, tmp_path / "parts", seed=0, stop_at=1)
    assert "model_0000001.pth is saved. To continue:" in (log := capsys.readouterr().out) and "--resume" in log
    assert (tmp_path / "parts/last_checkpoint").read_text() == "model_0000001.pth"
    # Another seed: what the second part needs comes from the checkpoint alone.
    second = run(cfg, tmp_path / "parts", seed=99)
    assert [i for i, *_ in second] == [2, 3]
    assert first + second == whole
    states = [torch.load(tmp_path / f"{name}/model_final.pth", weights_only=True) for name in ("whole", "parts")]
    assert {"data_loader", "optimizer"} <= states[0]["trainer"]["_trainer"].keys()
    assert states[0]["trainer"]["_trainer"]["data_loader"]["num_batches"] == 8
    assert "average" in states[0]["trainer"]["hooks"]["WeightAverage"]
    assert_same(states[0], states[1])
    averages = [torch.load(tmp_path / f"{name}/model_final_ema.pth", weights_only=True) for name in ("whole", "parts")]
    assert_same(averages[0], averages[1])


def test_moving_average_of_retinanet(shapes, tiny_config, tmp_path):
    """It is neither a weight nor in the state dict, and scales the loss."""
    cfg = tiny_config("COCO-Detection/retinanet_R_50_FPN_1x.yaml", "SOLVER.MAX_ITER", 4)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (shapes,), ()
    cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.RETINANET.NUM_CONVS = 6, 1
    run(cfg, tmp_path / "whole", seed=0)
    run(cfg, tmp_path / "parts", seed=0, stop_at=1)
    run(cfg, tmp_path / "parts", seed=99)
    states = [torch.load(tmp_path / f"{name}/model_final.pth", weights_only=True) for name in ("whole", "parts")]
    assert "loss_normalizer" in states[0]["trainer"]["hooks"]["RandomStates"]["buffers"]
    assert_same(states[0], states[1])


def test_lazy_train(cfg, tmp_path, monkeypatch):
    from fvcore.common.param_scheduler import MultiStepParamScheduler

    from detectron2 import model_zoo
    from detectron2.config import LazyConfig

    def config(folder):
        lazy = LazyConfig.load(model_zoo.get_config_file("common/train.py"))
        lazy.model = L(DefaultTrainer.build_model)(cfg=cfg)
        lazy.optimizer = L(torch.optim.SGD)(params=L(get_default_optimizer_params)(), lr=0.001, momentum=0.9)
        lazy.lr_multiplier = L(MultiStepParamScheduler)(values=[1.0, 0.5], milestones=[2, 4])
        lazy.dataloader = {"train": L(DefaultTrainer.build_train_loader)(cfg=cfg)}
        lazy.train.output_dir = str(tmp_path / folder)
        lazy.train.device, lazy.train.max_iter, lazy.train.eval_period = "cpu", 4, 0
        lazy.train.ema_decay = 0.5
        return lazy

    seed_all_rng(0)
    lazy_train(config("whole"))
    seed_all_rng(0)
    before_step = hooks.IterationTimer.before_step

    def stop(self):
        before_step(self)
        if self.trainer.iter == 1:
            os.kill(os.getpid(), signal.SIGUSR1)

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match=str(128 + signal.SIGUSR1)):
        patch.setattr(hooks.IterationTimer, "before_step", stop)
        lazy_train(config("parts"))
    seed_all_rng(99)
    lazy_train(config("parts"), resume=True)
    states = [torch.load(tmp_path / f"{name}/model_final.pth", weights_only=True) for name in ("whole", "parts")]
    assert_same(states[0], states[1])


class Counting(torch.nn.Module):
    """Its weight is the number of steps that it was trained."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1000))

    def forward(self, x):
        return {"loss": -self.w.sum()}


STEPS = 100000


def count_up(folder):
    """Train until killed, saving in every iteration."""
    model = Counting()
    trainer = SimpleTrainer(model, itertools.repeat(0), torch.optim.SGD(model.parameters(), lr=1.0))
    keeper = DetectionCheckpointer(model, folder, trainer=trainer)
    trainer.register_hooks(
        [RandomStates(model, 1), hooks.PeriodicCheckpointer(keeper, 1, max_to_keep=3), hooks.StopOnSignal(keeper)]
    )
    keeper.resume_or_load("", resume=True)
    trainer.train(trainer.iter + 1 if keeper.has_checkpoint() else 0, STEPS)


def kill_often(folder, times, seed=0):
    """-> the iterations that were reached, each checked to be whole."""
    rng = random.Random(seed)
    reached = []
    context = multiprocessing.get_context("fork")
    for _ in range(times):
        process = context.Process(target=count_up, args=(str(folder),))
        process.start()
        deadline = time.monotonic() + 20
        former = (folder / "last_checkpoint").read_text() if (folder / "last_checkpoint").exists() else ""
        while process.is_alive() and time.monotonic() < deadline:  # until it has made some progress
            if (folder / "last_checkpoint").exists() and (folder / "last_checkpoint").read_text() != former:
                break
        process.join(rng.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        name = (folder / "last_checkpoint").read_text()
        state = torch.load(folder / name, weights_only=True)
        iteration = state["iteration"]
        assert state["trainer"]["iteration"] == iteration
        assert torch.equal(state["model"]["w"], torch.full((1000,), float(iteration + 1)))
        reached.append(iteration)
    return reached


def test_killed_at_random_moments(tmp_path):
    reached = kill_often(tmp_path, 12)
    assert reached == sorted(reached) and reached[0] >= 0 and reached[-1] > reached[0]
    # At most: three that are kept, one that was saved when the process died, one that it could not delete any more.
    assert len(list(Path(tmp_path).glob("model_*.pth"))) <= 5
    assert len(list(Path(tmp_path).glob("*.tmp"))) <= 2


def test_second_interrupt_stops_at_once(tmp_path):
    model = Counting()
    trainer = SimpleTrainer(model, itertools.repeat(0), torch.optim.SGD(model.parameters(), lr=1.0))
    keeper = DetectionCheckpointer(model, str(tmp_path), trainer=trainer)
    trainer.register_hooks([hooks.StopOnSignal(keeper), StopAt(2, signal.SIGINT), StopAt(2, signal.SIGINT)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train(0, 5)
    assert model.w[0] == 2 and not keeper.has_checkpoint()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interrupt_in_an_evaluation(tmp_path):
    model = Counting()
    trainer = SimpleTrainer(model, itertools.repeat(0), torch.optim.SGD(model.parameters(), lr=1.0))
    keeper = DetectionCheckpointer(model, str(tmp_path), trainer=trainer)

    def evaluate():
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            time.sleep(0.001)
        raise AssertionError("the evaluation was not left")

    trainer.register_hooks([hooks.StopOnSignal(keeper), hooks.EvalHook(2, evaluate)])
    with pytest.raises(SystemExit, match="130"):
        trainer.train(0, 5)
    assert keeper.get_checkpoint_file().endswith("model_0000001.pth")
