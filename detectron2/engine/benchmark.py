"""How long the parts of a training step and of inference take, for the model and the data of a config.

A config is of one of two kinds: a `CfgNode` (YAML) or an omegaconf `DictConfig` (LazyConfig). Times are by the clock,
and wait for the device after every part.
"""

import contextlib
import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from detectron2.config import CfgNode, instantiate
from detectron2.data import DatasetMapper, get_detection_dataset_dicts
from detectron2.data.benchmark import DataLoaderBenchmark
from detectron2.engine.hooks import HookBase
from detectron2.engine.train_loop import AMPTrainer, SimpleTrainer
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, inference_context
from detectron2.evaluation.evaluator import lean_masks
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import postprocessing
from detectron2.modeling.meta_arch import panoptic_fpn
from detectron2.modeling.optimized import OptimizedForm
from detectron2.solver import build_optimizer
from detectron2.utils.wrappers import unwrap_model

__all__ = [
    "StepTimer",
    "build_loader_benchmark",
    "build_trainer",
    "measure_inference",
    "measure_training",
    "set_norms_by_batch",
    "take_batches",
    "wait_for_device",
]

_POSTPROCESSING: tuple[Callable[..., Any], ...] = (
    postprocessing.detector_postprocess,
    postprocessing.sem_seg_postprocess,
    panoptic_fpn.combine_semantic_and_instance_outputs,
)


def wait_for_device() -> None:
    """Wait until the GPU has done what was asked of it; without one, return at once.

    Example:
        >>> wait_for_device()
    """
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def take_batches(loader: Iterable[Any], count: int) -> list[Any]:
    """Take the first batches of a loader, so that they can be used again and again.

    Args:
        loader: yields batches.
        count: how many to take; fewer where there are no more.

    Returns:
        the batches.

    Raises:
        ValueError: the loader yields nothing.

    Example:
        >>> take_batches(iter("abc"), 2)
        ['a', 'b']
    """
    batches = list(itertools.islice(loader, count))
    if not batches:
        raise ValueError("The data set of the config has no images.")
    return batches


def build_loader_benchmark(cfg: Any, **options: Any) -> DataLoaderBenchmark:
    """Make the benchmark of the training data of a config.

    Args:
        cfg: a config of either kind.
        **options: further arguments of `DataLoaderBenchmark`.

    Returns:
        the benchmark, with the data set, mapper, batch size and workers of the config.

    Example:
        >>> build_loader_benchmark(cfg).benchmark_mapper(20)  # doctest: +SKIP
    """
    if isinstance(cfg, CfgNode):
        return DataLoaderBenchmark(
            get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS),
            mapper=DatasetMapper(cfg, is_train=True),
            total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
            **options,
        )
    known = {k: instantiate(v) for k, v in cfg.dataloader.train.items() if k not in ("_target_", "on_bad_image")}
    return DataLoaderBenchmark(**known, **options)


def build_trainer(cfg: Any, model: nn.Module, data: Iterable[Any]) -> SimpleTrainer:
    """Make the optimizer and the trainer of a config, without hooks.

    Args:
        cfg: a config of either kind.
        model: to be trained, on its device.
        data: yields batches.

    Returns:
        An `AMPTrainer` where the config wants mixed precision, else a `SimpleTrainer`.

    Example:
        >>> build_trainer(cfg, model, loader).train(0, 10)  # doctest: +SKIP
    """
    if isinstance(cfg, CfgNode):
        optimizer, use_amp = build_optimizer(cfg, model), cfg.SOLVER.AMP.ENABLED
    else:
        cfg.optimizer.params.model = unwrap_model(model)
        optimizer, use_amp = instantiate(cfg.optimizer), cfg.train.amp.enabled
    return (AMPTrainer if use_amp else SimpleTrainer)(model, data, optimizer)


class StepTimer(HookBase):
    """Adds up the seconds of the three parts of a training step.

    "forward" is from the beginning of the step to the losses, "backward" from there until the gradients are there, and
    "update" from there to the end of the step, with the records of the losses.

    Attributes:
        seconds: sums over the steps since the last `before_train`.
        steps: their number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds = {"forward": 0.0, "backward": 0.0, "update": 0.0}
        self.steps = 0
        self._mark = 0.0
        self._handle: Any = None

    def before_train(self) -> None:
        """Set the sums to zero, and watch the model."""
        self.seconds, self.steps = dict.fromkeys(self.seconds, 0.0), 0
        model: nn.Module = self.trainer.model  # pyright: ignore[reportAttributeAccessIssue]  # of SimpleTrainer
        self._handle = model.register_forward_hook(lambda *_: self._lap("forward"))

    def before_step(self) -> None:
        """Begin to measure."""
        wait_for_device()
        self._mark = time.perf_counter()

    def after_backward(self) -> None:
        """End the part "backward"."""
        self._lap("backward")

    def after_step(self) -> None:
        """End the part "update"."""
        self._lap("update")
        self.steps += 1

    def after_train(self) -> None:
        """Leave the model as it was."""
        self._handle.remove()

    def _lap(self, part: str) -> None:
        wait_for_device()
        now = time.perf_counter()
        self.seconds[part] += now - self._mark
        self._mark = now


def measure_training(
    trainer: SimpleTrainer, iterations: int | None = None, *, warmup: int = 1, max_seconds: float = 20.0
) -> dict[str, float]:
    """Measure the parts of training steps. The learning rate is 0 from then on, so that the weights stay as they are.

    Args:
        trainer: its data yields batches from memory, at least `warmup + iterations`.
        iterations: steps to measure; by default as many as `max_seconds` allow, from 2 to 50.
        warmup: steps to run before; at least 1.
        max_seconds: see `iterations`.

    Returns:
        seconds of "forward", "backward" and "update" of one step.

    Example:
        >>> measure_training(build_trainer(cfg, model, itertools.cycle(batches)), 10)  # doctest: +SKIP
    """
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.0
    timer = StepTimer()
    trainer.register_hooks([timer])
    begin = time.perf_counter()
    trainer.train(0, warmup)
    if iterations is None:
        per_step = (time.perf_counter() - begin) / warmup
        iterations = min(max(int(max_seconds / per_step), 2), 50)
    trainer.train(0, iterations)
    return {part: seconds / timer.steps for part, seconds in timer.seconds.items()}


def measure_inference(
    model: nn.Module,
    batches: Sequence[Any],
    evaluator: DatasetEvaluator | None = None,
    iterations: int | None = None,
    *,
    warmup: int = 1,
    max_seconds: float = 20.0,
) -> dict[str, float]:
    """Measure inference as `inference_on_dataset` does it, and evaluation.

    Args:
        model: on the CPU its optimized form runs, as in evaluation.
        batches: used in turn.
        evaluator: gets the outputs of each batch once; None for none.
        iterations: batches to measure; by default as many as `max_seconds` allow, from 2 to 200.
        warmup: batches to run before; at least 1.
        max_seconds: see `iterations`.

    Returns:
        seconds of "network" and "postprocessing" (resizing and pasting what was found to the size of the image) of one
        batch; with an evaluator also of "evaluation".

    Example:
        >>> measure_inference(model, batches, iterations=10)  # doctest: +SKIP
    """
    receiver = DatasetEvaluators([]) if evaluator is None else evaluator
    receiver.reset()
    form, evaluated = OptimizedForm(model), 0.0
    with inference_context(model), torch.no_grad(), lean_masks(model, receiver):
        begin = time.perf_counter()
        for inputs in itertools.islice(itertools.cycle(batches), warmup):
            form.current()(inputs)
        wait_for_device()
        if iterations is None:
            per_batch = (time.perf_counter() - begin) / warmup
            iterations = min(max(int(max_seconds / per_batch), 2), 200)
        with _postprocessing_timed() as after_network:
            total = 0.0
            for index in range(iterations):
                inputs = batches[index % len(batches)]
                begin = time.perf_counter()
                outputs = form.current()(inputs)
                wait_for_device()
                middle = time.perf_counter()
                total += middle - begin
                if index < len(batches):
                    receiver.process(inputs, outputs)
                    evaluated += time.perf_counter() - middle
    seconds = {
        "network": (total - sum(after_network)) / iterations,
        "postprocessing": sum(after_network) / iterations,
    }
    if evaluator is not None:
        begin = time.perf_counter()
        evaluator.evaluate_part()
        evaluated += time.perf_counter() - begin
        seconds["evaluation"] = evaluated / min(iterations, len(batches))
    return seconds


@contextlib.contextmanager
def _postprocessing_timed() -> Iterator[list[float]]:
    """Collect the seconds of each call of the functions for postprocessing, wherever they have been imported."""
    seconds: list[float] = []

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            wait_for_device()
            begin = time.perf_counter()
            result = function(*args, **kwargs)
            wait_for_device()
            seconds.append(time.perf_counter() - begin)
            return result

        return call

    replaced = []
    try:
        for function in _POSTPROCESSING:
            name, wrapper = function.__name__, timed(function)
            for module in list(sys.modules.values()):
                if getattr(module, "__dict__", {}).get(name) is function:
                    replaced.append((module, name, function))
                    setattr(module, name, wrapper)
        yield seconds
    finally:
        for module, name, function in replaced:
            setattr(module, name, function)


def set_norms_by_batch(model: nn.Module, batch: Any) -> None:
    """Give the batch norms of a model with random weights the statistics of a batch, so that its numbers stay small.

    Args:
        model: changed in place: the means and variances of `BatchNorm2d` and `FrozenBatchNorm2d`.
        batch: the model is run on it, in evaluation mode.

    Example:
        >>> model = nn.Sequential(FrozenBatchNorm2d(1))
        >>> set_norms_by_batch(model, torch.tensor([[[[1.0, 3.0]]]]))
        >>> model(torch.tensor([[[[1.0, 3.0]]]])).flatten().round().tolist()
        [-1.0, 1.0]
    """

    def observe(norm: Any, args: tuple[torch.Tensor]) -> None:
        var, mean = torch.var_mean(args[0].float(), dim=(0, 2, 3), correction=0)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var.clamp(min=1e-8))

    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d)]
    handles = [m.register_forward_pre_hook(observe) for m in norms if m.running_mean is not None]
    try:
        with inference_context(model), torch.no_grad():
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
