"""What both ways to train, from a YAML and from a Lazy config, do with their options."""

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

import detectron2.utils.comm as comm
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_test_loader, get_detection_dataset_dicts
from detectron2.data.detection_utils import build_augmentation
from detectron2.engine import hooks
from detectron2.engine._checkpoint_hooks import AverageCheckpointer
from detectron2.engine._compilation import compile_parts
from detectron2.engine._freezing import freeze_by_pattern
from detectron2.engine._options import TrainOptions
from detectron2.engine._owed_evaluation import OwedEvaluation
from detectron2.engine._sharding import ShardedCheckpointer, is_sharded, shard_model, whole_weights
from detectron2.engine.train_loop import HookBase


def prepare_model(model: nn.Module, options: TrainOptions) -> nn.Module:
    """Freeze, change the memory format, compile and split, as asked for; before the optimizer is made.

    Args:
        model: is changed.
        options: what is asked for.

    Returns:
        the same model.
    """
    if options.freeze:
        freeze_by_pattern(model, options.freeze)
    if options.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if options.compile:
        compile_parts(model)
    if options.shard_model and not is_sharded(model):
        shard_model(model)
    return model


def build_checkpointer(model: nn.Module, folder: str, options: TrainOptions, trainer: Any) -> DetectionCheckpointer:
    """Make what saves a training.

    Args:
        model: in training.
        folder: where to.
        options: what is asked for.
        trainer: its state is saved along.

    Returns:
        The checkpointer for a model of this kind.
    """
    checkpointer_type = ShardedCheckpointer if is_sharded(model) else DetectionCheckpointer
    checkpointer = checkpointer_type(model, folder, trainer=trainer)
    checkpointer.file_format = options.checkpoint_format
    return checkpointer


def build_validation_loader(cfg: CfgNode) -> Iterable:
    """Load ``DATASETS.TEST`` with annotations, in the size of test images and without random augmentations.

    Args:
        cfg: also says what the mapper reads, and the size of batches.

    Returns:
        A loader of this process's share.

    Raises:
        ValueError: there is no test set.
    """
    if not cfg.DATASETS.TEST:
        raise ValueError("TEST.VALIDATION_LOSS_PERIOD is set, but DATASETS.TEST names no data set.")
    mapper = DatasetMapper(cfg, is_train=True, augmentations=build_augmentation(cfg, is_train=False))
    return build_detection_test_loader(
        get_detection_dataset_dicts(list(cfg.DATASETS.TEST), filter_empty=False),
        mapper=mapper,
        batch_size=max(1, cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


class ModelHooks:
    """The hooks that options ask for, in the places where they belong; lists are empty where nothing is asked for.

    Args:
        options: what is asked for.
        model: the model in training.
        checkpointer: saves it.
        eval_period: the period of evaluation.
        build_validation_loader: see :class:`~detectron2.engine.hooks.ValidationLoss`.

    Attributes:
        after_schedule: belong before the hook that saves.
        before_evaluation: behind that, before the evaluation.
        after_evaluation: behind the evaluation.
        average: the moving average of the weights, if there is one.
    """

    def __init__(
        self,
        options: TrainOptions,
        model: nn.Module,
        checkpointer: Any,
        eval_period: int,
        build_validation_loader: Callable[[], Iterable],
    ) -> None:
        self._model = model
        self.average: hooks.WeightAverage | None = None
        self.after_schedule: list[HookBase | None] = []
        self.before_evaluation: list[HookBase | None] = []
        self.after_evaluation: list[HookBase | None] = []
        # Who takes part in saving.
        self._saves = comm.is_main_process() or is_sharded(model)
        if options.ema_decay:
            is_ours = isinstance(checkpointer, DetectionCheckpointer)
            folder = checkpointer.save_dir if comm.is_main_process() and not is_ours else ""
            self.average = hooks.WeightAverage(model, options.ema_decay, folder)
            self.after_schedule.append(self.average)
        if options.validation_loss_period:
            period = options.validation_loss_period
            self.before_evaluation.append(hooks.ValidationLoss(period, model, build_validation_loader))
        if options.best_metric:
            self._add_best(options, checkpointer, eval_period)
        if self.average is not None and self._saves and isinstance(checkpointer, DetectionCheckpointer):
            self.after_evaluation.append(AverageCheckpointer(self.average, checkpointer))

    def _add_best(self, options: TrainOptions, checkpointer: Any, eval_period: int) -> None:
        by_loss = options.best_metric.startswith("validation/")
        period = options.validation_loss_period if by_loss else eval_period
        metric, mode = options.best_metric, options.best_mode
        best = None
        if self._saves:
            best = hooks.BestCheckpointer(period, checkpointer, metric, mode, average=self.average)
        evaluator = hooks.ValidationLoss if by_loss else hooks.EvalHook
        self.after_evaluation += [best, OwedEvaluation(period, best, (evaluator,))]
        if options.early_stopping_patience:
            self.after_evaluation.append(
                hooks.EarlyStopping(period, options.early_stopping_patience, best, checkpointer)
            )

    def evaluation_of(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """-> a function that evaluates the average of the weights, where there is one, in place of the weights."""
        average, model = self.average, self._model

        def evaluate() -> Any:
            with contextlib.nullcontext() if average is None else average.in_place(), whole_weights(model):
                return function()

        return evaluate
