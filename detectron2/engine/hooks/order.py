"""Which hooks a training has, and in which order they run."""

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

import detectron2.utils.comm as comm
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine.hooks.average import WeightAverage
from detectron2.engine.hooks.basic import EvalHook, IterationTimer, LRScheduler, PeriodicWriter
from detectron2.engine.hooks.checkpoints import (
    AverageCheckpointer,
    BestCheckpointer,
    EarlyStopping,
    FinalDescription,
    OwedEvaluation,
    PeriodicCheckpointer,
)
from detectron2.engine.hooks.random_states import RandomStates
from detectron2.engine.hooks.run_summary import RunSummary
from detectron2.engine.hooks.signals import StopOnSignal
from detectron2.engine.hooks.validation_loss import ValidationLoss
from detectron2.engine.options import TrainOptions
from detectron2.engine.run_folder import RunFolder, RunFolderRelease
from detectron2.engine.sharding import is_sharded, whole_weights
from detectron2.engine.train_loop import HookBase
from detectron2.utils.events import EventWriter

__all__ = ["default_hooks", "with_outer_hooks"]


def default_hooks(
    options: TrainOptions,
    model: nn.Module,
    checkpointer: Any,
    *,
    checkpoint_periods: dict[str, Any],
    eval_period: int,
    evaluate: Callable[[], Any],
    build_validation_loader: Callable[[], Iterable],
    build_writers: Callable[[], list[EventWriter]],
    log_period: int = 20,
    scheduler: Any = None,
    precise_bn: HookBase | None = None,
) -> list[HookBase | None]:
    """Make the hooks of a training, in their order.

    Evaluation follows the checkpoint, so that a failing evaluation loses nothing. The writer comes last, so that it
    writes what the other hooks recorded.

    An entry that this process or these options do not need is `None`. `evaluate` is called with the average of the
    weights in the model, if there is one, and `build_writers` on the main process only; periods are in iterations. The
    other arguments are those of `PeriodicCheckpointer`, `ValidationLoss`, `PeriodicWriter` and `LRScheduler`;
    `precise_bn` is a hook that runs before checkpoints and evaluation.
    """
    is_main = comm.is_main_process()
    saves = is_main or is_sharded(model)  # all processes take part in saving a sharded model
    is_ours = isinstance(checkpointer, DetectionCheckpointer)
    average = None
    if options.ema_decay:  # a checkpointer of ours saves the average itself, with a description
        average = WeightAverage(model, options.ema_decay, checkpointer.save_dir if is_main and not is_ours else "")

    def evaluate_average() -> Any:
        with contextlib.nullcontext() if average is None else average.in_place(), whole_weights(model):
            return evaluate()

    hooks: list[HookBase | None] = [IterationTimer(), LRScheduler(scheduler=scheduler), precise_bn, average]
    hooks.append(PeriodicCheckpointer(checkpointer, **checkpoint_periods) if saves else None)
    if options.validation_loss_period:
        hooks.append(ValidationLoss(options.validation_loss_period, model, build_validation_loader))
    hooks.append(EvalHook(eval_period, evaluate_average))
    if options.best_metric:
        by_loss = options.best_metric.startswith("validation/")
        period = options.validation_loss_period if by_loss else eval_period
        best = None
        if saves:
            best = BestCheckpointer(period, checkpointer, options.best_metric, options.best_mode, average=average)
        hooks += [best, OwedEvaluation(period, best, ValidationLoss if by_loss else EvalHook)]
        if options.early_stopping_patience:
            hooks.append(EarlyStopping(period, options.early_stopping_patience, best, checkpointer))
    if average is not None and saves and is_ours:
        hooks.append(AverageCheckpointer(average, checkpointer))
    hooks.append(PeriodicWriter(build_writers(), log_period) if is_main else None)
    return hooks


def with_outer_hooks(
    hooks: list[HookBase | None],
    model: nn.Module,
    checkpointer: Any,
    checkpoint_period: int,
    batch_size: int | None,
    notes: dict[str, str] | None = None,
) -> list[HookBase | None]:
    """Put the hooks that must be first and last around those of `default_hooks`; see there for the arguments.

    `DefaultTrainer.build_hooks` returns a list without them, which subclasses know and change by position.
    `batch_size` and `notes` are those of `RunSummary`.
    """
    folder = RunFolder(checkpointer.save_dir)
    first = [folder, StopOnSignal(checkpointer), RandomStates(model, checkpoint_period)]
    return [*first, *hooks, FinalDescription(checkpointer), RunSummary(batch_size, notes), RunFolderRelease(folder)]
