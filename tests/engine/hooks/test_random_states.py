"""The hook that saves states of generators; `tests/e2e/test_resume.py` has whole runs."""

import pytest
import torch
from torch import nn

from detectron2.engine import SimpleTrainer
from detectron2.engine.hooks.random_states import RandomStates
from detectron2.utils import comm
from detectron2.utils.events import EventStorage


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))
        self.register_buffer("seen", torch.zeros(1), persistent=False)

    def forward(self, x):
        self.seen += 1
        return {"loss": (self.w - torch.rand(1)).square().sum()}


def trainer():
    model = Noisy()
    t = SimpleTrainer(model, [None] * 10, torch.optim.SGD(model.parameters(), lr=0.1))
    t.register_hooks([RandomStates(model, period=0)])
    return t


def test_a_resumed_run_continues_with_numbers_buffers_and_medians():
    t = trainer()
    t.train(0, 2)
    state, weights = t.state_dict(), t.model.state_dict()
    expected = torch.rand(1)
    resumed = trainer()
    resumed.model.load_state_dict(weights)
    resumed.load_state_dict(state)
    torch.manual_seed(5)
    drawn = []
    resumed.storage = EventStorage(2)
    resumed._hooks[0].before_train()
    recent = resumed.storage.recent()
    assert recent["total_loss"] == t.storage.recent()["total_loss"] and len(recent["total_loss"]) == 2
    assert "data_time" not in recent  # of another run
    resumed._hooks[0].before_step()
    drawn.append(torch.rand(1))
    assert drawn == [expected] and resumed.model.seen.item() == 2


@pytest.mark.parametrize(("rank", "expected"), [(0, 2.0), (1, 7.0), (2, 2.0)])
def test_each_process_gets_its_own_buffers(monkeypatch, rank, expected):
    """A moving average of what a process has seen is its own; a process that is new has that of the first."""
    first = trainer()
    first.train(0, 2)
    other = {"seen": torch.tensor([7.0])}
    with monkeypatch.context() as two:
        two.setattr(comm, "get_world_size", lambda: 2)
        two.setattr(comm, "gather", lambda own: [own, (own[0], other)])
        first.iter, first.max_iter = 1, 2
        first._hooks[0].after_step()
    state = first.state_dict()
    resumed = trainer()
    resumed.load_state_dict(state)
    monkeypatch.setattr(comm, "get_rank", lambda: rank)
    resumed.storage = EventStorage(2)
    resumed._hooks[0].before_train()
    assert resumed.model.seen.item() == expected


def test_checkpoints_of_before_have_one_set_of_buffers():
    first = trainer()
    first.train(0, 2)
    state = first.state_dict()
    state["hooks"]["RandomStates"]["buffers"] = {"seen": torch.tensor([5.0])}
    resumed = trainer()
    resumed.load_state_dict(state)
    resumed.storage = EventStorage(2)
    resumed._hooks[0].before_train()
    assert resumed.model.seen.item() == 5.0
