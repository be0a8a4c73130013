"""A toy model, and trainings of it, for the tests of hooks."""

import torch
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import SimpleTrainer


class Model(nn.Module):
    def __init__(self, norm=False):
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1)) if norm else nn.Linear(2, 1)

    def forward(self, x):
        return {"loss": self.layer(x).square().mean()}


def trainer(norm=False, lr=0.1, groups=None):
    model = Model(norm)
    return SimpleTrainer(model, [torch.ones(4, 2)] * 100, torch.optim.SGD(groups or model.parameters(), lr=lr))


class Weight(nn.Module):
    """The gradient of its loss is -1: with a rate of 1, the weight is the number of steps."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))
        self.frozen = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.norm = nn.BatchNorm1d(2)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("count", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.count = self.count + 1
        if "late" not in self._buffers:
            self.register_buffer("late", torch.zeros(()), persistent=False)
        torch.rand(())
        return {"loss": self.drop(self.norm(x)).sum().detach() - self.w}


def weight_trainer(folder=None, steps=100):
    torch.manual_seed(0)
    model = Weight()
    data = [torch.randn(4, 2) for _ in range(steps)]
    trainer = SimpleTrainer(model, data, torch.optim.SGD([model.w], lr=1.0))
    return trainer, DetectionCheckpointer(model, str(folder or ""), trainer=trainer)
