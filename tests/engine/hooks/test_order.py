"""Which hooks a training has, and their order."""

import pytest
import torch
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine.hooks.order import default_hooks, with_outer_hooks
from detectron2.engine.options import TrainOptions


@pytest.fixture
def names(tmp_path):
    def build(**options):
        model = nn.Linear(1, 1)
        checkpointer = DetectionCheckpointer(model, str(tmp_path))
        hooks = default_hooks(
            TrainOptions(**options),
            model,
            checkpointer,
            checkpoint_periods={"period": 5},
            eval_period=5,
            evaluate=dict,
            build_validation_loader=lambda: [torch.ones(1)],
            build_writers=list,
        )
        hooks = with_outer_hooks(hooks, model, checkpointer, 5, None)
        return [type(hook).__name__ for hook in hooks if hook is not None]

    return build


def test_without_options(names):
    assert names() == [
        "RunFolder",
        "StopOnSignal",
        "RandomStates",
        "IterationTimer",
        "LRScheduler",
        "PeriodicCheckpointer",
        "EvalHook",
        "PeriodicWriter",
        "FinalDescription",
        "RunSummary",
        "RunFolderRelease",
    ]


def test_with_all_options(names):
    found = names(ema_decay=0.9, validation_loss_period=5, best_metric="toy/AP", early_stopping_patience=2)
    assert found[3:-3] == [
        "IterationTimer",
        "LRScheduler",
        "WeightAverage",
        "PeriodicCheckpointer",
        "ValidationLoss",
        "EvalHook",
        "BestCheckpointer",
        "OwedEvaluation",
        "EarlyStopping",
        "AverageCheckpointer",
        "PeriodicWriter",
    ]
