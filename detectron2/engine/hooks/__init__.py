"""The hooks that come with the trainers; `order` says which ones a training has, and in which order they run."""

from detectron2.engine.hooks.average import WeightAverage
from detectron2.engine.hooks.basic import CallbackHook, EvalHook, IterationTimer, LRScheduler, PeriodicWriter
from detectron2.engine.hooks.checkpoints import BestCheckpointer, EarlyStopping, PeriodicCheckpointer
from detectron2.engine.hooks.precise_bn import PreciseBN
from detectron2.engine.hooks.profiling import AutogradProfiler, TorchMemoryStats, TorchProfiler
from detectron2.engine.hooks.signals import StopOnSignal
from detectron2.engine.hooks.validation_loss import ValidationLoss
from detectron2.engine.train_loop import HookBase

__all__ = [
    "AutogradProfiler",
    "BestCheckpointer",
    "CallbackHook",
    "EarlyStopping",
    "EvalHook",
    "HookBase",
    "IterationTimer",
    "LRScheduler",
    "PeriodicCheckpointer",
    "PeriodicWriter",
    "PreciseBN",
    "StopOnSignal",
    "TorchMemoryStats",
    "TorchProfiler",
    "ValidationLoss",
    "WeightAverage",
]
