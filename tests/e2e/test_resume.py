"""Training that is interrupted and continued gives what training at a stretch gives, bit for bit."""

import itertools
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall as L
from detectron2.engine import AMPTrainer, DefaultTrainer, SimpleTrainer, hooks, lazy_train
from detectron2.engine.hooks.random_states import RandomStates
from detectron2.solver import get_default_optimizer_params
from detectron2.utils.env import seed_all_rng
from tests.engine.conftest import loggers_restored, restore_logging

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
    """Return what was drawn in the iterations that ran."""
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


def state_of(folder, kind, name="model_final"):
    """Return all that a checkpoint holds."""
    return DetectionCheckpointer(torch.nn.Identity())._read(str(folder / f"{name}.{kind}"))


@pytest.mark.parametrize(
    ("workers", "kind", "grouping"), [(0, "pth", True), (2, "safetensors", True), (0, "pth", False), (2, "pth", False)]
)
def test_default_trainer(cfg, tmp_path, workers, kind, grouping, capsys):
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouping
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.STEPS = 4, 2, (3,)
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.TEST.EVAL_PERIOD = 1
    cfg.merge_from_list(["SOLVER.EMA_DECAY", 0.9, "TEST.BEST_METRIC", "bbox/AP50", "SOLVER.ACCUMULATION_STEPS", 2])
    cfg.merge_from_list(["SOLVER.CHECKPOINT_FORMAT", kind])
    whole = run(cfg, tmp_path / "whole", seed=0)
    first = run(cfg, tmp_path / "parts", seed=0, stop_at=1)
    assert f"model_0000001.{kind} is saved. To continue:" in (log := capsys.readouterr().out) and "--resume" in log
    assert (tmp_path / "parts/last_checkpoint").read_text() == f"model_0000001.{kind}"
    # Another seed: what the second part needs comes from the checkpoint alone.
    second = run(cfg, tmp_path / "parts", seed=99)
    assert [i for i, *_ in second] == [2, 3]
    assert first + second == whole
    states = [state_of(tmp_path / name, kind) for name in ("whole", "parts")]
    assert {"data_loader", "optimizer"} <= states[0]["trainer"]["_trainer"].keys()
    assert states[0]["trainer"]["_trainer"]["data_loader"]["num_batches"] == 8
    assert "average" in states[0]["trainer"]["hooks"]["WeightAverage"]
    hook_states = states[0]["trainer"]["hooks"]
    assert {"best_metric", "best_iter"} == hook_states["BestCheckpointer"].keys()
    assert {"last_epoch", "base_lrs"} <= hook_states["LRScheduler"].keys()
    assert {"python", "numpy", "torch"} <= hook_states["RandomStates"]["ranks"][0].keys()
    assert_same(states[0], states[1])
    for name in ("model_final_ema", "model_best"):
        assert_same(*(state_of(tmp_path / part, kind, name) for part in ("whole", "parts")))
    histories = [(tmp_path / part / "model_best_history.json").read_text() for part in ("whole", "parts")]
    assert histories[0] == histories[1]
    lines = [(tmp_path / part / "metrics.json").read_text().splitlines() for part in ("whole", "parts")]
    of_losses = [
        [{k: v for k, v in json.loads(x).items() if "loss" in k} for x in part if "total_" in x] for part in lines
    ]
    assert of_losses[0][-1] == of_losses[1][-1] and of_losses[0]  # medians over all iterations


def test_moving_average_of_retinanet(shapes, tiny_config, tmp_path):
    """It is neither a weight nor in the state dict, and scales the loss."""
    cfg = tiny_config("COCO-Detection/retinanet_R_50_FPN_1x.yaml", "SOLVER.MAX_ITER", 4)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (shapes,), ()
    cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.RETINANET.NUM_CONVS = 6, 1
    run(cfg, tmp_path / "whole", seed=0)
    run(cfg, tmp_path / "parts", seed=0, stop_at=1)
    run(cfg, tmp_path / "parts", seed=99)
    states = [torch.load(tmp_path / f"{name}/model_final.pth", weights_only=True) for name in ("whole", "parts")]
    assert "loss_normalizer" in states[0]["trainer"]["hooks"]["RandomStates"]["buffers"][0]
    assert_same(states[0], states[1])


@pytest.mark.parametrize(("workers", "grouping"), [(0, True), (2, False)])
def test_lazy_train(cfg, tmp_path, monkeypatch, workers, grouping):
    cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.ASPECT_RATIO_GROUPING = workers, grouping
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


def count_up(folder, kind):
    """Train until killed, saving in every iteration."""
    model = Counting()
    trainer = SimpleTrainer(model, itertools.repeat(0), torch.optim.SGD(model.parameters(), lr=1.0))
    keeper = DetectionCheckpointer(model, folder, trainer=trainer)
    keeper.file_format = kind
    trainer.register_hooks(
        [RandomStates(model, 1), hooks.PeriodicCheckpointer(keeper, 1, max_to_keep=3), hooks.StopOnSignal(keeper)]
    )
    keeper.resume_or_load("", resume=True)
    trainer.train(trainer.iter + 1 if keeper.has_checkpoint() else 0, STEPS)


def kill_often(folder, times, kind, seed=0):
    """Return the iterations that were reached, each checked to be whole."""
    rng = random.Random(seed)
    reached = []
    context = multiprocessing.get_context("fork")
    for _ in range(times):
        process = context.Process(target=count_up, args=(str(folder), kind))
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
        state = state_of(folder, kind, name.removesuffix(f".{kind}"))
        iteration = state["iteration"]
        assert state["trainer"]["iteration"] == iteration
        assert torch.equal(state["model"]["w"], torch.full((1000,), float(iteration + 1)))
        reached.append(iteration)
    return reached


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_killed_at_random_moments(tmp_path, kind):
    reached = kill_often(tmp_path, 8, kind)
    assert reached == sorted(reached) and reached[0] >= 0 and reached[-1] > reached[0]
    # At most: three that are kept, one that was saved when the process died, one that it could not delete any more.
    assert len(list(Path(tmp_path).glob(f"model_*.{kind}"))) <= 5
    assert len(list(Path(tmp_path).glob("*.state*.pt"))) <= 6
    assert len(list(Path(tmp_path).glob("*.tmp"))) <= 2


def test_gradient_scaler(tmp_path):
    """Its scale grows after so many good steps; both the scale and the number of steps are restored."""

    def make(folder):
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 1)
        model.forward = lambda x: {"loss": torch.nn.Linear.forward(model, x).sum()}
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
        data = [torch.full((1, 2), float(i)) for i in range(20)]
        trainer = AMPTrainer(model, data, torch.optim.SGD(model.parameters(), lr=0.1), scaler)
        keeper = DetectionCheckpointer(model, str(folder), trainer=trainer)
        trainer.register_hooks([hooks.PeriodicCheckpointer(keeper, 4)])
        return trainer, keeper

    whole, _ = make(tmp_path / "whole")
    whole.train(0, 8)
    first, _ = make(tmp_path / "parts")
    first.train(0, 4)
    assert (first.grad_scaler.get_scale(), first.grad_scaler._get_growth_tracker()) == (16.0, 1)
    second, keeper = make(tmp_path / "parts")
    second.data_loader = second.data_loader[4:]
    keeper.resume_or_load("")
    second.train(4, 8)
    assert_same(second.state_dict(), whole.state_dict())
    assert second.grad_scaler.get_scale() == 32.0
    assert torch.equal(second.model.weight, whole.model.weight)


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


@pytest.fixture
def resumed(cfg, tmp_path):
    """A function that prepares to continue a finished training of two steps, after something was changed."""
    cfg.DATASETS.TEST = ()
    cfg.SOLVER.CHECKPOINT_PERIOD = 1
    cfg.OUTPUT_DIR = str(tmp_path / "former")
    with loggers_restored():  # the log of what comes next is the test's
        DefaultTrainer(cfg).train()

    def prepare(*options, change=lambda folder: None):
        folder = tmp_path / "changed"
        shutil.copytree(tmp_path / "former", folder)
        change(folder)
        changed = cfg.clone()
        changed.OUTPUT_DIR = str(folder)
        changed.merge_from_list(["SOLVER.MAX_ITER", 3, *options])
        trainer = DefaultTrainer(changed)
        trainer.resume_or_load()
        return trainer

    return prepare


def test_nothing_was_changed(resumed, capsys):
    assert resumed().start_iter == 2
    log = capsys.readouterr().out
    assert "resumed training:\n  SOLVER.MAX_ITER: 2 -> 3\n" in log
    assert "WARNING" not in log.partition("Loading from")[2]


@pytest.mark.parametrize("max_iter", [2, 1])
def test_the_training_is_complete(resumed, shapes, caplog, monkeypatch, max_iter):
    """Nothing is trained, and the model is evaluated as after training; a warning says how to train longer."""
    trainer = resumed("SOLVER.MAX_ITER", max_iter, "DATASETS.TEST", (shapes,))
    folder = Path(trainer.cfg.OUTPUT_DIR)
    before = (folder / "model_final.pth").stat().st_mtime_ns, state_of(folder, "pth")
    assert trainer.test(trainer.cfg, trainer.model)["bbox"].keys() >= {"AP", "AP50"}
    monkeypatch.setattr(logging.getLogger("detectron2"), "handlers", [caplog.handler])
    assert trainer.train()["bbox"].keys() >= {"AP", "AP50"}
    (warning,) = (r.getMessage() for r in caplog.records if "none is left" in r.getMessage())
    assert f"has had 2 iterations and is to have {max_iter}" in warning and "raise SOLVER.MAX_ITER" in warning
    after = state_of(folder, "pth")
    assert after["description"]["metrics"].keys() >= {"bbox/AP"} and after["description"]["iteration"] == 1
    for name in ("model", "trainer", "iteration"):
        assert_same(after[name], before[1][name])


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_killed_after_the_last_iteration(cfg, tmp_path, kind):
    """What the former process could not save any more is what it would have saved."""
    cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.CHECKPOINT_FORMAT = 1, kind
    cfg.merge_from_list(["SOLVER.EMA_DECAY", 0.9, "TEST.BEST_METRIC", "bbox/AP50", "TEST.VALIDATION_LOSS_PERIOD", 2])
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(cfg, whole, seed=0)
    shutil.copytree(whole, killed)
    for path in [*killed.glob("model_final*"), *killed.glob("model_best*"), killed / "metrics.json"]:
        path.unlink()
    (killed / "last_checkpoint").write_text(f"model_0000001.{kind}")
    assert run(cfg, killed, seed=99) == []
    assert sorted(p.name for p in killed.glob("model_*")) == sorted(p.name for p in whole.glob("model_*"))
    for name in ("model_final", "model_final_ema", "model_best"):
        states = [state_of(folder, kind, name) for folder in (whole, killed)]
        assert states[0]["description"].pop("versions") == states[1]["description"].pop("versions")
        assert_same(*states)
    histories = [(folder / "model_best_history.json").read_text() for folder in (whole, killed)]
    assert histories[0] == histories[1]
    assert (killed / "last_checkpoint").read_text() == f"model_final.{kind}"
    assert '"validation/total_loss"' in (killed / "metrics.json").read_text()


def test_nothing_is_saved_where_starting_again_fails(tmp_path):
    """A training that is complete and that a hook refuses is not taken for one that ended well."""
    model = Counting()
    trainer = SimpleTrainer(model, itertools.repeat(0), torch.optim.SGD(model.parameters(), lr=1.0))
    keeper = DetectionCheckpointer(model, str(tmp_path), trainer=trainer)
    evaluated = []

    def refuse(trainer):
        raise OSError("no")

    trainer.register_hooks([hooks.CallbackHook(before_train=refuse), hooks.PeriodicCheckpointer(keeper, 1)])
    trainer.register_hooks([hooks.EvalHook(0, lambda: evaluated.append(1))])
    with pytest.raises(OSError, match="no"):
        trainer.train(3, 3)
    assert not evaluated and not list(tmp_path.iterdir())


def test_the_last_checkpoint_was_cut_off(resumed):
    def cut(folder):
        path = folder / "model_final.pth"
        path.write_bytes(path.read_bytes()[:10000])

    with pytest.raises(ValueError, match="is not a readable checkpoint") as error:
        resumed(change=cut)
    assert "last_checkpoint names it; others, which could be named there instead, are model_0000000." in str(
        error.value
    )


def test_the_last_checkpoint_was_deleted(resumed):
    with pytest.raises(
        FileNotFoundError, match=r"There is no checkpoint .*model_final\.pth; .*last_checkpoint names it"
    ):
        resumed(change=lambda folder: (folder / "model_final.pth").unlink())


def test_nothing_says_which_is_the_last(resumed, capsys):
    trainer = resumed(change=lambda folder: (folder / "last_checkpoint").unlink())
    assert trainer.start_iter == 0
    log = capsys.readouterr().out
    assert "no file last_checkpoint" in log and "To continue instead: echo model_0000001.pth > " in log


def test_other_classes(resumed):
    with pytest.raises(ValueError, match=r"with this model\. That training had other classes: 6, not 8"):
        resumed("MODEL.ROI_HEADS.NUM_CLASSES", 8)


def test_another_model(resumed):
    with pytest.raises(ValueError, match=r"cannot be continued with this model\. Continue with the config of that tra"):
        resumed("MODEL.FPN.OUT_CHANNELS", 32)


@pytest.mark.parametrize(
    "options",
    [
        ["SOLVER.OPTIMIZER", "AdamW"],
        ["SOLVER.FREEZE", ("roi_heads.box_head",)],
        ["SOLVER.WEIGHT_DECAY_BIAS", 0.1],  # parameters in other groups
    ],
)
def test_another_optimizer(resumed, options):
    with pytest.raises(ValueError, match=r"The state of 'trainer' in .* does not fit this training \(.*start anew"):
        resumed(*options)


def test_other_batches(resumed, capsys):
    trainer = resumed("SOLVER.IMS_PER_BATCH", 1)
    assert trainer.start_iter == 2
    assert trainer.data_loader.state_dict()["num_batches"] == 4
    assert "SOLVER.IMS_PER_BATCH: 2 -> 1" in capsys.readouterr().out


def test_what_was_not_there_before(resumed, capsys):
    """An average begins with the weights, and mixed precision with the usual scale."""
    trainer = resumed("SOLVER.EMA_DECAY", 0.5, "SOLVER.AMP.ENABLED", True)
    trainer.train()
    assert "SOLVER.EMA_DECAY: not there -> 0.5" in capsys.readouterr().out
    assert (Path(trainer.cfg.OUTPUT_DIR) / "model_final_ema.pth").is_file()


def test_another_format(resumed):
    trainer = resumed("SOLVER.CHECKPOINT_FORMAT", "safetensors")
    trainer.train()
    folder = Path(trainer.cfg.OUTPUT_DIR)
    assert (folder / "last_checkpoint").read_text() == "model_final.safetensors"
    assert (folder / "model_0000002.safetensors").is_file()


def train_with_workers(cfg, ready):
    """Body of the leader of a process group."""
    os.setpgrp()
    trainer = DefaultTrainer(cfg)
    started = hooks.CallbackHook(after_step=lambda t: t.iter == 2 and ready.set())
    trainer.register_hooks([started])
    trainer.train()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_to_the_whole_group(cfg, tmp_path, number):
    """Data workers leave the end to the main process, which saves as if it alone had the signal."""
    cfg.SOLVER.MAX_ITER, cfg.DATALOADER.NUM_WORKERS, cfg.DATASETS.TEST = 10000, 2, ()
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=train_with_workers, args=(cfg, ready))
    process.start()
    assert ready.wait(60)
    os.killpg(process.pid, number)
    process.join(60)
    assert process.exitcode == 128 + number
    assert (Path(cfg.OUTPUT_DIR) / "last_checkpoint").read_text().startswith("model_00")
    with pytest.raises(ProcessLookupError):  # nobody is left behind
        os.killpg(process.pid, 0)
