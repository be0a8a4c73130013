"""Checkpointers of trainings; `tests/e2e/test_self_description.py` has the descriptions of whole runs."""

import math

import pytest
import torch
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.engine.checkpointing import build_checkpointer, load_or_resume, yaml_config
from detectron2.engine.options import TrainOptions
from detectron2.engine.train_loop import SimpleTrainer


class Trainer:
    def state_dict(self):
        return {}


def test_checkpointer_of_a_whole_model(tmp_path):
    found = build_checkpointer(nn.Linear(1, 1), str(tmp_path), TrainOptions(), Trainer())
    assert type(found) is DetectionCheckpointer and found.file_format == "pth"
    assert list(found.checkpointables) == ["trainer"]


def test_config_text_does_not_have_the_folder(tmp_path):
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    text, kind = yaml_config(cfg)
    assert kind == "yaml" and "OUTPUT_DIR: ./output" in text and str(tmp_path) not in text
    assert str(tmp_path) == cfg.OUTPUT_DIR


def resumable(tmp_path, change, lr=0.1, momentum=0.9):
    """Return a trainer, its optimizer, and the checkpointer of a folder with a checkpoint that was changed."""
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    first = SimpleTrainer(model, [], optimizer)
    first.iter = 3
    keeper = DetectionCheckpointer(model, str(tmp_path), trainer=first)
    keeper.save("model_0000003", iteration=3)
    content = torch.load(path := tmp_path / "model_0000003.pth", weights_only=False)
    change(content)
    torch.save(content, path)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    trainer = SimpleTrainer(model, [], optimizer)
    return trainer, optimizer, DetectionCheckpointer(model, str(tmp_path), trainer=trainer)


def unchanged(content):
    """Leave a checkpoint as it is."""


@pytest.mark.parametrize(
    ("change", "start"),
    [
        (unchanged, 4),
        (lambda c: c.pop("iteration"), 4),
        (lambda c: c.pop("trainer"), 4),
        (lambda c: (c.pop("trainer"), c.pop("iteration")), 0),
        (lambda c: c.update(iteration=-1), 0),
        (lambda c: c.update(iteration=10**12), 10**12 + 1),
    ],
)
def test_where_a_training_goes_on(tmp_path, caplog, change, start):
    trainer, optimizer, keeper = resumable(tmp_path, change)
    assert load_or_resume(trainer, optimizer, keeper, "", True)[1] == start
    assert ("does not say after which iteration" in caplog.text) == (start == 0 and trainer.iter == -1)
    assert load_or_resume(trainer, optimizer, keeper, "", False) == ({}, None) and trainer.iter == 0


@pytest.mark.parametrize("iteration", [-2, 3.5, math.nan, "3", None])
def test_an_iteration_that_cannot_be(tmp_path, iteration):
    trainer, optimizer, keeper = resumable(tmp_path, lambda c: c.update(iteration=iteration))
    with pytest.raises(
        ValueError, match=rf"model_0000003\.pth says that it was saved after iteration {iteration!r}, wh"
    ):
        load_or_resume(trainer, optimizer, keeper, "", True)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, ""),
        ({"lr": 0.5}, "in its checkpoint: learning rate 0.1, not 0.5. Those"),
        ({"lr": 0.5, "momentum": 0.0}, "in its checkpoint: learning rate 0.1, not 0.5, momentum 0.9, not 0.0. Those"),
    ],
)
def test_settings_of_the_optimizer_that_have_no_effect(tmp_path, caplog, settings, text):
    trainer, optimizer, keeper = resumable(tmp_path, unchanged, **settings)
    assert load_or_resume(trainer, optimizer, keeper, "", True)[1] == 4
    assert text in caplog.text and ("keeps the settings" in caplog.text) == bool(text)
    assert optimizer.param_groups[0]["momentum"] == 0.9
