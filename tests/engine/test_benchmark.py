"""Parts of a step are measured, and what is measured stays as it was."""

import itertools
import time

import pytest
import torch
from torch import nn

from detectron2.config import instantiate
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.engine import benchmark as benchmark_module
from detectron2.engine.benchmark import (
    build_loader_benchmark,
    build_trainer,
    measure_inference,
    measure_training,
    set_norms_by_batch,
    take_batches,
    wait_for_device,
)
from detectron2.evaluation import DatasetEvaluator
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch import rcnn


def test_take_batches():
    with pytest.raises(ValueError, match="no images"):
        take_batches([], 3)
    assert take_batches([1, 2], 3) == [1, 2]
    assert take_batches(itertools.count(), 2) == [0, 1]
    wait_for_device()  # without a GPU there is nothing to wait for


class Clock:
    """Counts what is done in place of time: a forward pass takes 3, backward 5, the optimizer 7, the rest nothing."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


class Linear(nn.Module):
    def __init__(self, clock):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.clock = clock

    def forward(self, x):
        if not self.training:
            self.clock.now += 2
            return [{"found": x}]
        self.clock.now += 3
        loss = (self.weight * x).sum()
        loss.register_hook(lambda _: setattr(self.clock, "now", self.clock.now + 5))
        return {"loss": loss}


class SGD(torch.optim.SGD):
    clock = None

    def step(self, closure=None):
        self.clock.now += 7
        return super().step(closure)


def test_parts_of_a_training_step(monkeypatch):
    clock = Clock(monkeypatch)
    model = Linear(clock)
    optimizer = SGD(model.parameters(), lr=0.5)
    optimizer.clock = clock
    trainer = SimpleTrainer(model, itertools.repeat(torch.ones(2)), optimizer)
    seconds = measure_training(trainer, 4, warmup=2)
    assert seconds == {"forward": 3, "backward": 5, "update": 7}
    assert clock.now == 6 * 15
    assert model.weight.tolist() == [1, 1]
    assert not model._forward_hooks


@pytest.mark.parametrize(("max_seconds", "expected"), [(0.0, 2), (151.0, 10), (1e9, 50)])
def test_as_many_steps_as_there_is_time(monkeypatch, max_seconds, expected):
    clock = Clock(monkeypatch)
    model = Linear(clock)
    optimizer = SGD(model.parameters(), lr=0.5)
    optimizer.clock = clock
    measure_training(SimpleTrainer(model, itertools.repeat(torch.ones(2)), optimizer), max_seconds=max_seconds)
    assert clock.now == 15 * (1 + expected)


class Evaluator(DatasetEvaluator):
    def __init__(self, clock):
        self.clock, self.seen, self.rounds = clock, [], 0

    def reset(self):
        self.seen = []

    def process(self, inputs, outputs):
        self.clock.now += 1
        self.seen.append(inputs)

    def evaluate(self):
        self.clock.now += 4
        self.rounds += 1


def test_parts_of_inference(monkeypatch):
    clock = Clock(monkeypatch)
    model, evaluator = Linear(clock).train(), Evaluator(clock)
    seconds = measure_inference(model, ["a", "b"], evaluator, 5, warmup=2)
    assert seconds == {"network": 2, "postprocessing": 0, "evaluation": (2 * 1 + 4) / 2}
    assert evaluator.seen == ["a", "b"] and evaluator.rounds == 1
    assert model.training
    assert measure_inference(model, ["a"]).keys() == {"network", "postprocessing"}


def test_of_a_real_model(cfg):
    """Postprocessing is seen, the functions for it are put back, and weights stay as they are."""
    function = rcnn.detector_postprocess
    torch.manual_seed(0)
    model = build_model(cfg)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    loader = build_loader_benchmark(cfg)
    assert (loader.total_batch_size, loader.num_workers) == (2, 0)
    image = loader.mapper(loader.dataset[0])
    seconds = measure_inference(model, [[image]], None, 2)
    assert min(seconds.values()) > 0
    assert rcnn.detector_postprocess is function
    trainer = build_trainer(cfg, model, itertools.repeat([image]))
    assert type(trainer) is SimpleTrainer
    assert min(measure_training(trainer, 2).values()) > 0
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    cfg.SOLVER.AMP.ENABLED = True
    assert type(build_trainer(cfg, model, [])) is AMPTrainer


def test_functions_are_put_back_after_an_error(cfg):
    function = rcnn.detector_postprocess
    with pytest.raises(ZeroDivisionError), benchmark_module._postprocessing_timed() as seconds:
        assert rcnn.detector_postprocess is not function and seconds == []
        raise ZeroDivisionError
    assert rcnn.detector_postprocess is function


def test_a_lazy_config(repo_root, shapes):
    from detectron2 import model_zoo

    cfg = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py")
    cfg.dataloader.train.dataset.names = shapes
    cfg.dataloader.train.num_workers = 3
    cfg.model = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}
    loader = build_loader_benchmark(cfg, max_time_seconds=1)
    assert (loader.total_batch_size, loader.num_workers, loader.max_time_seconds) == (16, 3, 1)
    assert len(loader.dataset) == 6
    assert type(build_trainer(cfg, instantiate(cfg.model), [])) is SimpleTrainer
    cfg.train.amp.enabled = True
    trainer = build_trainer(cfg, instantiate(cfg.model), [])
    assert type(trainer) is AMPTrainer
    assert len(trainer.optimizer.param_groups[0]["params"]) > 0


def test_norms_by_batch():
    torch.manual_seed(0)
    x = 5 + 3 * torch.randn(2, 4, 6, 7)
    model = nn.Sequential(FrozenBatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False))
    set_norms_by_batch(model, x)
    first = model[0](x)
    torch.testing.assert_close(first.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(first.var((0, 2, 3), correction=0), torch.ones(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(model[0].running_mean, x.mean((0, 2, 3)))
    assert not any(m._forward_pre_hooks for m in model)
    assert model.training
