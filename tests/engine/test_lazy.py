"""Training and evaluation from LazyConfig files, with a model of one weight."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from fvcore.common.param_scheduler import ConstantParamScheduler, MultiStepParamScheduler
from omegaconf import OmegaConf
from torch import nn

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from detectron2.engine import lazy, lazy_test, lazy_train
from detectron2.engine.hooks import order
from detectron2.engine.options import _OTHER_TRAIN_KEYS, TrainOptions
from detectron2.evaluation import DatasetEvaluator
from detectron2.solver import WarmupParamScheduler


class Toy(nn.Module):
    def __init__(self, start=0.0):
        super().__init__()
        self.w = nn.Parameter(torch.full((1,), start))

    def forward(self, x):
        return {"loss": ((self.w - x) ** 2).sum()} if self.training else [{"w": self.w.item()}]


class Mean(DatasetEvaluator):
    """The mean of what the model returned."""

    def reset(self):
        self.seen = []

    def process(self, inputs, outputs):
        self.seen += [o["w"] for o in outputs]

    def evaluate(self):
        return {"toy": {"w": sum(self.seen) / len(self.seen)}}


def numbers(start=0, count=100):
    return [torch.tensor(float(i)) for i in range(start, start + count)]


@pytest.fixture
def config(tmp_path):
    """A config whose sections are those of the files in ``configs/``."""
    cfg = LazyConfig.load(model_zoo.get_config_file("common/train.py"))
    cfg.model = L(Toy)(start=0.0)
    cfg.optimizer = model_zoo.get_config("common/optim.py").SGD
    cfg.optimizer.lr = 0.1
    cfg.optimizer.weight_decay = 0.0
    cfg.lr_multiplier = L(MultiStepParamScheduler)(values=[1.0, 0.5], milestones=[2, 4])
    cfg.dataloader = {"train": L(numbers)(), "test": L(numbers)(count=6), "evaluator": L(Mean)()}
    cfg.train.output_dir = str(tmp_path / "output")
    cfg.train.device = "cpu"
    cfg.train.max_iter = 4
    cfg.train.eval_period = 2
    cfg.train.checkpointer.period = 2
    return cfg


def by_hand(steps=4):
    """SGD with momentum on x = 0, 1, 2, 3; the rate halves after two iterations."""
    w = v = 0.0
    for x in range(steps):
        v = 0.9 * v + 2 * (w - x)
        w -= (0.1 if x < 2 else 0.05) * v
    return w


def test_train(config):
    model = lazy_train(config)
    assert model.w.item() == pytest.approx(by_hand())
    output = Path(config.train.output_dir)
    assert {p.name for p in output.glob("*.pth")} == {"model_0000001.pth", "model_0000003.pth", "model_final.pth"}
    (record,) = [r for r in map(json.loads, (output / "metrics.json").read_text().splitlines()) if "lr" in r]
    assert record["iteration"] == 3
    assert record["lr"] == pytest.approx(0.05)


def test_no_checkpoints_to_keep_means_all(config):
    config.train.checkpointer.max_to_keep = 0
    lazy_train(config)
    names = {p.name for p in Path(config.train.output_dir).glob("*.pth")}
    assert names == {"model_0000001.pth", "model_0000003.pth", "model_final.pth"}


@pytest.mark.parametrize("more", [{}, {"enabled": True}, {"enabled": False}])
def test_clipped_gradients(config, more):
    """Gradients -2, -4, ... become -0.5."""
    config.train.clip_grad = {"params": {"max_norm": 0.5}, **more}
    config.optimizer.momentum = 0.0
    expected = 0.0
    for x in range(4):
        gradient = 2 * (expected - x)
        limited = gradient if more.get("enabled") is False else max(-0.5, min(0.5, gradient))
        expected -= (0.1 if x < 2 else 0.05) * limited
    assert lazy_train(config).w.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    "value", [{"enabled": True}, 0.1, {"max_norm": 0.1}, {"params": {"max_norm": -1}}, {"params": {"max_norm": "x"}}]
)
def test_clipping_that_is_not_understood(config, value):
    config.train.clip_grad = value
    with pytest.raises(ValueError, match=r"clip_grad should look like dict\(enabled=True, params"):
        lazy_train(config)


def test_config_is_not_changed(config):
    before = config.copy()
    lazy_train(config)
    assert config == before


def test_no_iterations(config):
    config.train.max_iter = 0
    with pytest.raises(ValueError, match="max_iter must be at least 1, but is 0"):
        lazy_train(config)


def test_evaluation_is_recorded(config):
    lazy_train(config)
    lines = Path(config.train.output_dir, "metrics.json").read_text().splitlines()
    values = [r["toy/w"] for r in map(json.loads, lines) if "toy/w" in r]
    assert values[-1] == pytest.approx(by_hand())


def test_resume_is_exact(config):
    whole = lazy_train(config)
    (Path(config.train.output_dir) / "last_checkpoint").write_text("model_0000001.pth")
    config.dataloader.train.start = 2  # the batches that have not been seen
    assert torch.equal(lazy_train(config, resume=True).w, whole.w)


def test_resume_after_the_end(config):
    whole = lazy_train(config)
    evaluations = Path(config.train.output_dir, "metrics.json").read_text().count("toy/w")
    assert torch.equal(lazy_train(config, resume=True).w, whole.w)
    assert Path(config.train.output_dir, "metrics.json").read_text().count("toy/w") == evaluations + 1


def test_nothing_to_resume(config):
    assert lazy_train(config, resume=True).w.item() == pytest.approx(by_hand())


def test_initial_weights(config, tmp_path):
    torch.save({"model": {"w": torch.tensor([8.0])}}, tmp_path / "w.pth")
    config.train.init_checkpoint = str(tmp_path / "w.pth")
    config.optimizer.lr = 0.0
    assert lazy_train(config).w.item() == 8.0


def test_mixed_precision(config):
    config.train.amp.enabled = True
    lazy_train(config)
    state = torch.load(Path(config.train.output_dir, "model_final.pth"), weights_only=True)
    assert "grad_scaler" in state["trainer"]


def test_test(config):
    model = Toy(5.0)
    assert lazy_test(config, model) == {"toy": {"w": 5.0}}
    assert model.training


def test_without_evaluator(config):
    del config.dataloader.evaluator
    assert lazy_test(config, Toy()) == {}
    lazy_train(config)


def test_config_that_was_saved_trains_alike(config, tmp_path):
    LazyConfig.save(config, str(tmp_path / "saved.yaml"))
    loaded = LazyConfig.load(str(tmp_path / "saved.yaml"))
    assert lazy_train(loaded).w.item() == pytest.approx(by_hand())


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("train.max_epoch=2", r"train\.max_epoch: did you mean train\.max_epochs\?"),
        ("train.outputdir=x", r"train\.outputdir: did you mean train\.output_dir\?"),
        ("train.amp.enable=True", r"train\.amp\.enable: did you mean train\.amp\.enabled\?"),
        ("train.clip_grad.enable=True", r"train\.clip_grad\.enable: did you mean train\.clip_grad\.enabled\?"),
        ("train.checkpointer.perod=1", r"train\.checkpointer\.perod: did you mean train\.checkpointer\.period\?"),
    ],
)
def test_misspelt_keys(config, change, error):
    key, _, value = change.partition("=")
    OmegaConf.update(config, key, value, force_add=True)
    with pytest.raises(ValueError, match=error):
        lazy_train(config)


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("model", None, r"needs the sections train, model, .*: model is None\. See configs/common"),
        ("optimizer.lr", "abc", r"impossible value: optimizer\.lr must be a number, but is 'abc'\."),
        ("optimizer", None, "LazyConfig: optimizer is None"),
        ("optimizer", {"_target_": "torch.optim.SGD"}, "optimizer has no section params, which gets the model"),
        ("dataloader.train", None, r"dataloader\.train is None"),
        ("dataloader.train", "coco", r"dataloader\.train is 'coco'"),
        ("dataloader", None, r"dataloader\.train is None"),
        ("dataloader.test", [{"a": 1}], r"dataloader\.test is a list, and has to be one loader"),
        ("train", None, "LazyConfig: train is None"),
        (
            "train.init_checkpoint",
            5,
            r"train\.init_checkpoint must be the path or address of a checkpoint, .* but is 5",
        ),
    ],
)
def test_sections_that_are_not_there(config, key, value, error):
    OmegaConf.update(config, key, value, merge=False)
    with pytest.raises(ValueError, match=error):
        lazy_train(config)


def test_keys_of_ones_own(config, caplog):
    config.train.my_project = {"x": 1}
    lazy_train(config)
    assert "lazy_train does not read train.my_project." in caplog.text


def test_every_key_can_be_given_on_the_command_line(config):
    options = [row.name for row in fields(TrainOptions)]
    for key in ("ddp.bf16_compression", *options, *_OTHER_TRAIN_KEYS):
        LazyConfig.apply_overrides(config, [f"train.{key}=1"])
    text = Path(model_zoo.get_config_file("common/train.py")).read_text()
    assert [key for key in (*options, *_OTHER_TRAIN_KEYS) if key not in text] == []


class Sized(list):
    """A loader of batches of two out of six images."""

    def state_dict(self):
        return {"size": 6, "total_batch_size": 2, "num_batches": 0}


def sized():
    return Sized(numbers())


class TestEpochs:
    @pytest.fixture
    def config(self, config):
        config.dataloader.train = L(sized)()
        config.train.max_epochs = 3
        config.train.eval_period = 0
        return config

    def rates(self, config):
        config.train.log_period = 1
        lazy_train(config)
        lines = Path(config.train.output_dir, "metrics.json").read_text().splitlines()
        return [r["lr"] for r in map(json.loads, lines) if "lr" in r]

    def test_length(self, config):
        config.lr_multiplier = L(MultiStepParamScheduler)(values=[1.0, 0.5, 0.1], milestones=[2, 3], num_updates=4)
        assert self.rates(config) == pytest.approx([0.1] * 5 + [0.05] * 2 + [0.01] * 2)  # 4.5 and 6.75 of 9

    def test_steps(self, config):
        config.train.step_epochs = [1, 2]
        inner = L(MultiStepParamScheduler)(values=[1.0, 0.5, 0.1], milestones=[60, 80], num_updates=90)
        config.lr_multiplier = L(WarmupParamScheduler)(scheduler=inner, warmup_factor=0.5, warmup_length=1e-6)
        config.train.log_period = 1
        before = config.copy()
        assert self.rates(config)[1:] == pytest.approx([0.1] * 2 + [0.05] * 3 + [0.01] * 3)
        assert config == before

    def test_one_step_as_a_number(self, config):
        config.train.step_epochs = 1
        config.lr_multiplier = L(MultiStepParamScheduler)(values=[1.0, 0.5], milestones=[60], num_updates=90)
        assert self.rates(config) == pytest.approx([0.1] * 3 + [0.05] * 6)

    def test_steps_without_epochs(self, config):
        config.train.max_epochs, config.train.step_epochs = 0, [1]
        with pytest.raises(ValueError, match=r"train\.step_epochs\) needs SOLVER\.MAX_EPOCHS \(train\.max_epochs\)"):
            lazy_train(config)

    @pytest.mark.parametrize(
        ("schedule", "text"),
        [
            (L(ConstantParamScheduler)(value=1.0), "and no values"),
            (L(MultiStepParamScheduler)(values=[1, 2, 3], milestones=[1, 2]), "There are 1 steps, and 3 values"),
        ],
    )
    def test_steps_that_do_not_fit(self, config, schedule, text):
        config.train.step_epochs, config.lr_multiplier = [1], schedule
        with pytest.raises(ValueError, match=f"(?i){text}"):
            lazy_train(config)


@pytest.mark.parametrize(("keep", "expected"), [(1, ["model_0000003", "model_final"]), (0, None)])
def test_checkpoints_to_keep(config, keep, expected):
    config.train.checkpointer.period, config.train.checkpoints_to_keep = 1, keep
    config.train.checkpointer.max_to_keep = 2
    lazy_train(config)
    found = sorted(p.stem for p in Path(config.train.output_dir).glob("*.pth"))
    assert found == (expected or [*(f"model_000000{i}" for i in range(4)), "model_final"])


def test_checkpoints_as_safetensors(config):
    config.train.checkpoint_format = "safetensors"
    whole = lazy_train(config)
    folder = Path(config.train.output_dir)
    assert (folder / "last_checkpoint").read_text() == "model_final.safetensors"
    assert not list(folder.glob("*.pth"))
    (folder / "last_checkpoint").write_text("model_0000001.safetensors")
    config.dataloader.train.start = 2
    assert torch.equal(lazy_train(config, resume=True).w, whole.w)


def test_one_pattern_of_frozen_parameters(config, caplog):
    config.train.freeze = "nothing.*"
    with pytest.raises(ValueError, match=r"no parameter matches 'nothing\.\*'"):
        lazy_train(config)


def batches(total_batch_size):
    """Stands for a loader of batches of so many images."""
    assert total_batch_size
    return numbers()


def test_writers(config):
    config.train.writers = []
    lazy_train(config)
    output = Path(config.train.output_dir)
    assert not [p.name for p in output.iterdir() if p.suffix != ".pth" and p.name != "last_checkpoint"]
    config.train.writers = ["csv"]
    lazy_train(config)
    assert (output / "metrics.csv").read_text().startswith("iteration,")
    assert not (output / "metrics.json").exists()


def test_unknown_writer(config):
    config.train.writers = ["paper"]
    with pytest.raises(ValueError, match=r"\['paper'\].*'csv'"):
        lazy_train(config)


@pytest.mark.parametrize(("steps", "expected"), [(1, 6), (2, 12)])
def test_batch_size_is_known(config, monkeypatch, steps, expected):
    config.dataloader.train = L(batches)(total_batch_size=6)
    config.train.accumulation_steps = steps
    given = []
    monkeypatch.setattr(order, "RunSummary", lambda images, notes: given.append(images))
    monkeypatch.setattr(lazy, "default_writers", lambda _, max_iter, images: given.append((max_iter, images)) or [])
    lazy_train(config)
    assert given == [(4, expected), expected]


def test_batch_size_is_unknown(config, monkeypatch):
    given = []
    monkeypatch.setattr(order, "RunSummary", lambda images, notes: given.append(images))
    lazy_train(config)
    assert given == [None]


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests what happens without a GPU")
def test_training_without_a_gpu(config, caplog):
    config.train.device, config.train.max_iter = "cuda", 1
    assert lazy_train(config).w.device.type == "cpu"
    assert caplog.text.count("train.device is 'cuda' but no GPU is available; using the CPU.") == 1
