"""Training and evaluation from LazyConfig files, with a model of one weight."""

import json
from pathlib import Path

import pytest
import torch
from fvcore.common.param_scheduler import MultiStepParamScheduler
from torch import nn

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from detectron2.engine import lazy, lazy_test, lazy_train
from detectron2.evaluation import DatasetEvaluator


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
    lazy_train(config)
    with pytest.raises(ValueError, match=r"is at iteration 4 and train\.max_iter is 4: .*Raise train\.max_iter"):
        lazy_train(config, resume=True)


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
    with pytest.raises(ValueError, match=r"no writers named \['paper'\]; choose among \['csv', "):
        lazy_train(config)


@pytest.mark.parametrize(("steps", "expected"), [(1, 6), (2, 12)])
def test_batch_size_is_known(config, monkeypatch, steps, expected):
    config.dataloader.train = L(batches)(total_batch_size=6)
    config.train.accumulation_steps = steps
    given = []
    monkeypatch.setattr(lazy, "RunSummary", lambda images: given.append(images))
    monkeypatch.setattr(lazy, "default_writers", lambda _, max_iter, images: given.append((max_iter, images)) or [])
    lazy_train(config)
    assert given == [(4, expected), expected]


def test_batch_size_is_unknown(config, monkeypatch):
    given = []
    monkeypatch.setattr(lazy, "RunSummary", lambda images: given.append(images))
    lazy_train(config)
    assert given == [None]
