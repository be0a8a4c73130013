"""Sharding in one process, where nothing happens; `tests/e2e/test_sharded_training.py` has several."""

import torch
from torch import nn

from detectron2.engine.sharding import is_sharded, local_part, shard_model, split_like, whole_weights


def test_one_process_keeps_the_model():
    model = nn.Linear(2, 1)
    assert shard_model(model) is model and not is_sharded(model)
    before = model.weight.data_ptr()
    with whole_weights(model):
        assert model.weight.data_ptr() == before


def test_whole_tensors_stay_whole():
    value = torch.ones(2)
    assert split_like(value, torch.zeros(2)) is value and local_part(value) is value
    assert split_like(3, torch.zeros(2)) == 3
