"""Freezing and wrapping of models; `tests/e2e/test_train_options.py` has detectors, and compilation."""

import pytest
import torch
from torch import nn

from detectron2.engine.model_preparation import create_ddp_model, freeze_by_pattern, parameter_table, prepare_model
from detectron2.engine.options import TrainOptions
from detectron2.layers import FrozenBatchNorm2d


def model():
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))


def test_without_options_nothing_changes():
    m = model()
    assert prepare_model(m, TrainOptions()) is m and all(p.requires_grad for p in m.parameters())
    assert create_ddp_model(m) is m


def test_frozen_norm_is_replaced():
    m = prepare_model(model(), TrainOptions(freeze=("1",)))
    assert isinstance(m[1], FrozenBatchNorm2d) and m[0].weight.requires_grad
    last = [cell.strip() for cell in parameter_table(m).splitlines()[-1].split("|")]
    assert last[1:4] == ["all", "4", "4"]


def test_channels_last():
    m = prepare_model(model(), TrainOptions(channels_last=True))
    assert m[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_pattern_without_a_match():
    with pytest.raises(ValueError, match="no parameter matches 'head'"):
        freeze_by_pattern(model(), ["head"])
