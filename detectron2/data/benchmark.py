"""Where the time of data loading goes: reading elements, mapping them, handing them over from the workers."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
import torch.utils.data as torchdata

from detectron2.data._loader import describe_workers, mib, process_memory, system_memory
from detectron2.data.build import build_batch_data_loader
from detectron2.data.common import DatasetFromList, MapDataset
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm

__all__ = ["DataLoaderBenchmark", "iter_benchmark"]

logger = logging.getLogger(__name__)


def iter_benchmark(
    iterator: Iterator[Any], num_iter: int, warmup: int = 5, max_time_seconds: float = 60
) -> tuple[float, list[float]]:
    """Measure how long an iterator takes for each element.

    Args:
        iterator: what to measure.
        num_iter: number of elements to take after the warm-up.
        warmup: number of elements to take before.
        max_time_seconds: stop when this much time has passed, warm-up included.

    Returns:
        seconds per element on average, and of each element.
    """
    if num_iter < 1:
        raise ValueError(f"num_iter must be at least 1, not {num_iter}.")
    begin = time.perf_counter()
    seconds = []
    for index in range(warmup + num_iter):
        before = time.perf_counter()
        next(iterator)
        now = time.perf_counter()
        if index >= warmup:
            seconds.append(now - before)
            if now - begin > max_time_seconds:
                break
    return float(np.mean(seconds)), seconds


class DataLoaderBenchmark:
    """Measures a data loader stage by stage; each method logs and returns seconds per batch (or per sample).

    Each takes the number of elements or batches to measure, and the number to pass over before. Where workers run,
    their memory is logged as well (on Linux): USS, what one has for itself and another one would cost; PSS, the same
    plus its part of what is shared; RSS, all that it sees.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        mapper: Callable[[Any], Any],
        sampler: Any = None,
        total_batch_size: int,
        num_workers: int = 0,
        max_time_seconds: float = 90,
        **kwargs: Any,
    ) -> None:
        """Take the arguments of `build_detection_train_loader`, and an upper bound for the time of each measurement."""
        self.dataset = DatasetFromList(dataset, copy=False) if isinstance(dataset, list) else dataset
        self.mapper = mapper
        self.sampler = TrainingSampler(len(self.dataset)) if sampler is None else sampler
        self.total_batch_size = total_batch_size
        self.num_workers = num_workers
        self.max_time_seconds = max_time_seconds
        self.kwargs = kwargs
        self.per_gpu_batch_size = total_batch_size // comm.get_world_size()

    def benchmark_dataset(self, num_iter: int, warmup: int = 5) -> float:
        """Measure reading one element of the data set, without mapping."""
        elements = (self.dataset[i] for i in self.sampler)
        return self._measure(elements, "dataset", "sample", num_iter, warmup)

    def benchmark_mapper(self, num_iter: int, warmup: int = 5) -> float:
        """Measure reading and mapping one element, in this process."""
        mapped = MapDataset(self.dataset, self.mapper)
        return self._measure((mapped[i] for i in self.sampler), "mapper", "sample", num_iter, warmup)

    def benchmark_workers(
        self, num_iter: int, warmup: int = 10, workers: Iterable[int] | None = None
    ) -> dict[int, float]:
        """Measure the whole loader with numbers of workers, which are the keys; by default 0, 1 and that configured."""
        mapped = MapDataset(self.dataset, self.mapper)
        return {
            count: self._measure_loader(mapped, count, f"{count} workers", num_iter, warmup)
            for count in sorted({0, 1, self.num_workers} if workers is None else set(workers))
        }

    def benchmark_IPC(self, num_iter: int, warmup: int = 10) -> float:
        """Measure handing batches over from the workers, with samples that cost nothing to make."""
        sample = self.mapper(self.dataset[next(iter(self.sampler))])
        return self._measure_loader(_Always(sample), max(self.num_workers, 1), "handing over", num_iter, warmup)

    def benchmark_distributed(self, num_iter: int, warmup: int = 10) -> float:
        """Measure the whole loader on all ranks at once."""
        mapped = MapDataset(self.dataset, self.mapper)
        comm.synchronize()
        seconds = self._measure_loader(mapped, self.num_workers, "all ranks", num_iter, warmup)
        on_ranks = comm.all_gather(seconds)
        if comm.is_main_process() and len(on_ranks) > 1:
            logger.info("Seconds per batch on the ranks: %s", ", ".join(f"{s:.4f}" for s in on_ranks))
        return seconds

    def _measure_loader(self, dataset: Any, num_workers: int, what: str, num_iter: int, warmup: int) -> float:
        loader = build_batch_data_loader(
            dataset,
            None if isinstance(dataset, torchdata.IterableDataset) else self.sampler,
            self.total_batch_size,
            num_workers=num_workers,
            **self.kwargs,
        )
        iterator = iter(loader)  # has to live until the memory of its workers is read
        average = self._measure(iterator, what, "batch", num_iter, warmup)
        if (memory := describe_workers(loader.worker_pids)) is not None:
            logger.info("%s: %s", what, memory)
        return average

    def _measure(self, iterator: Iterator[Any], what: str, unit: str, num_iter: int, warmup: int) -> float:
        average, each = iter_benchmark(iterator, num_iter, warmup, self.max_time_seconds)
        samples = 1 if unit == "sample" else self.per_gpu_batch_size
        logger.info(
            "%s: %.4f seconds per %s (median %.4f, largest %.4f of %d), %.1f samples per second; RAM in use: %s",
            *(what, average, unit, float(np.median(each)), max(each), len(each), samples / max(average, 1e-9)),
            _ram_usage(),
        )
        return average


class _Always(torchdata.IterableDataset):
    """The same sample again and again, copied so that it is handed over anew."""

    def __init__(self, sample: Any) -> None:
        self._sample = sample

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield _copy_tensors(self._sample)


def _copy_tensors(sample: Any) -> Any:
    if isinstance(sample, torch.Tensor):
        return sample.clone()
    if isinstance(sample, dict):
        return {key: _copy_tensors(value) for key, value in sample.items()}
    return sample


def _ram_usage() -> str:
    system, own = system_memory(), process_memory()
    if system is None or not own:  # not Linux
        return "unknown"
    return f"{mib(system[1] - system[0])} of {mib(system[1])}, {mib(own['RSS'])} of it by this process"
