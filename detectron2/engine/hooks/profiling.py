"""Hooks that measure: operator profiles and device memory."""

import logging
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch

from detectron2.engine.train_loop import HookBase, TrainerBase
from detectron2.utils.file_io import PathManager

__all__ = ["AutogradProfiler", "TorchMemoryStats", "TorchProfiler"]

logger = logging.getLogger(__name__)


class TorchProfiler(HookBase):
    """Profile chosen iterations with `torch.profiler.profile`.

    For example `TorchProfiler(lambda trainer: 10 < trainer.iter < 20, output_dir)` writes traces of nine iterations,
    one folder each, to `output_dir/log` for TensorBoard, or without `save_tensorboard` one file each to
    `output_dir` (open them in `chrome://tracing`). A table of the slowest operators lies beside.

    Args:
        enable_predicate: called with the trainer before each iteration; whether to profile it. Leave out the first
            iterations, which are slower than the rest.
        output_dir: where the traces go.
        activities: as in `torch.profiler.profile`; default: CPU, and CUDA where there is one.
        save_tensorboard: write the traces for TensorBoard.
    """

    def __init__(
        self,
        enable_predicate: Callable[[TrainerBase], bool],
        output_dir: str,
        *,
        activities: Iterable | None = None,
        save_tensorboard: bool = True,
    ) -> None:
        self._enable_predicate = enable_predicate
        self._output_dir = output_dir
        self._activities = activities
        self._save_tensorboard = save_tensorboard
        self._profiler: torch.profiler.profile | None = None

    def before_step(self) -> None:
        """Start profiling if the iteration is chosen."""
        if not self._enable_predicate(self.trainer):
            return
        PathManager.mkdirs(self._output_dir)
        to_tensorboard = None
        if self._save_tensorboard:
            folder = os.path.join(self._output_dir, "log", f"profiler-tensorboard-iter{self.trainer.iter}")
            to_tensorboard = torch.profiler.tensorboard_trace_handler(folder)
        extras: Any = dict.fromkeys(("record_shapes", "profile_memory", "with_stack", "with_flops"), True)
        self._profiler = torch.profiler.profile(activities=self._activities, on_trace_ready=to_tensorboard, **extras)
        self._profiler.__enter__()

    def after_step(self) -> None:
        """Stop and write the trace."""
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        profiler.__exit__(None, None, None)
        path = os.path.join(self._output_dir, f"profiler-trace-iter{self.trainer.iter}.json")
        if not self._save_tensorboard:  # a trace can be written only once; TensorBoard's handler has done it already
            profiler.export_chrome_trace(path)
        table = os.path.join(self._output_dir, f"profiler-summary-iter{self.trainer.iter}.txt")
        with PathManager.open(table, "w") as f:
            f.write(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=40))
        logger.info("Wrote the profile of iteration %d to %s", self.trainer.iter, self._output_dir)

    def after_train(self) -> None:
        """Stop a profiler that an exception left running."""
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            profiler.__exit__(None, None, None)


class AutogradProfiler(TorchProfiler):
    """Profile chosen iterations like `TorchProfiler`, but write one Chrome trace each, without TensorBoard.

    With `use_cuda` it also times CUDA kernels.
    """

    def __init__(self, enable_predicate: Callable[[TrainerBase], bool], output_dir: str, *, use_cuda: bool = True):
        activities = [torch.profiler.ProfilerActivity.CPU]
        if use_cuda and torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        super().__init__(enable_predicate, output_dir, activities=activities, save_tensorboard=False)


class TorchMemoryStats(HookBase):
    """Log the memory of the CUDA allocator every `period` iterations, `max_runs` times; do nothing without CUDA."""

    def __init__(self, period: int = 20, max_runs: int = 10) -> None:
        self._period = period
        self._max_runs = max_runs
        self._runs = 0

    def after_step(self) -> None:
        """Report if it is time."""
        if not torch.cuda.is_available() or self._runs >= self._max_runs:
            return
        if (self.trainer.iter + 1) % self._period == 0 or self.trainer.iter == self.trainer.max_iter - 1:
            cuda = torch.cuda
            sizes = (cuda.memory_reserved, cuda.max_memory_reserved, cuda.memory_allocated, cuda.max_memory_allocated)
            logger.info(
                "Iteration %d: CUDA memory reserved %.0f MiB (peak %.0f), allocated %.0f MiB (peak %.0f)",
                *(self.trainer.iter, *(size() / 1024.0**2 for size in sizes)),
            )
            torch.cuda.reset_peak_memory_stats()
            self._runs += 1
