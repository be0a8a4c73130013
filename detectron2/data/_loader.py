"""Loaders that know how far they got, that watch their workers, and say what to do when one of them dies.

A training stream is the sequence of samples that a sampler and a seed determine. The random numbers (augmentations) of
a sample depend on the seed and its place in the stream only, so that neither the number of workers nor a stop and a
continuation change the batches. This does not hold for iterable data sets, which have an order of their own and start
at the beginning; for random generators that a mapper keeps to itself; for a mapper that returns None now and then.
"""

import functools
import gc
import itertools
import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import queues
from typing import Any

import torch.utils.data as torchdata
from torch.utils.data._utils import signal_handling

from detectron2.data.common import (
    AspectRatioGroupedDataset,
    DatasetFromList,
    MapDataset,
    ToIterableDataset,
    _is_wide,
    _StreamStart,
)

# Messages come from the public module.
logger = logging.getLogger("detectron2.data.build")

_REPORT_MEMORY_AFTER = 50  # batches of the torch loader: then workers have touched most of what they use


# Memory of processes, as Linux counts it


def process_memory(pid: int | str = "self") -> dict[str, int]:
    """Read how much memory a process uses, in bytes; nothing if it has ended, or if this is not Linux.

    RSS is all its pages that are in memory; PSS is the same with each shared page divided by the number of processes
    that share it; USS is the pages that no other process shares, which is what another worker costs.
    """
    sizes = _read_sizes(f"/proc/{pid}/smaps_rollup")  # not every system has this file, nor lets us read it
    if {"Rss", "Pss", "Private_Clean", "Private_Dirty"} <= sizes.keys():
        uss = sizes["Private_Clean"] + sizes["Private_Dirty"]
        return {"RSS": sizes["Rss"], "PSS": sizes["Pss"], "USS": uss}
    sizes = _read_sizes(f"/proc/{pid}/status")
    return {"RSS": sizes["VmRSS"]} if "VmRSS" in sizes else {}


def system_memory() -> tuple[int, int] | None:
    """Return memory that programs can still have, and all memory of the machine; None if this is not Linux."""
    sizes = _read_sizes("/proc/meminfo")
    return (sizes["MemAvailable"], sizes["MemTotal"]) if {"MemAvailable", "MemTotal"} <= sizes.keys() else None


def describe_workers(pids: Sequence[int]) -> str | None:
    """Say how much memory workers use, each on average, and this process; None if nothing is known."""
    own, workers = process_memory(), [memory for memory in map(process_memory, pids) if memory]
    if not own or not workers:
        return None
    sizes = {name: [m[name] for m in workers if name in m] for name in ("USS", "PSS", "RSS")}
    means = ", ".join(f"{name} {mib(sum(values) / len(values))}" for name, values in sizes.items() if values)
    return f"{len(workers)} workers, each {means} on average; main process RSS {mib(own['RSS'])}"


def mib(size: float) -> str:
    """Return a size in bytes as text."""
    return f"{size / 2**20:.0f} MiB"


def _read_sizes(path: str) -> dict[str, int]:
    """Read the lines "Name:  123 kB" of a file of the kernel; nothing if there is no such file."""
    try:
        with open(path, encoding="ascii", errors="replace") as f:
            lines = [line.partition(":") for line in f if line.endswith("kB\n")]
    except OSError:
        return {}
    return {name: 1024 * int(value.split()[0]) for name, _, value in lines}


def usable_workers(wanted: int) -> int:
    """Return how many workers to start: at most one per core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if wanted > cores:
        logger.info(
            "%d data loading workers are asked for (num_workers, DATALOADER.NUM_WORKERS); using %d, the number of "
            "cores.",
            *(wanted, cores),
        )
    return min(wanted, cores)


_NO_SHARED_MEMORY = re.compile(
    r"bus error|unable to (mmap|open shared memory|allocate shared memory|write to file </torch)"
)
_DEATH = re.compile(
    r"DataLoader worker \(.*\) (is killed by signal: ([\w ]+)|exited unexpectedly(?: with exit code (\d+))?)"
)


def explain_worker_error(error: BaseException, num_workers: int) -> str | None:
    """Say what to do about an error of torch that comes from the system, not from the data; None for another error."""
    text = str(error)
    lower = text.lower()
    death = _DEATH.search(text)
    fewer = f"Use fewer workers (DATALOADER.NUM_WORKERS or num_workers, now {num_workers})"
    if "too many open files" in lower or "0 items of ancdata" in lower:
        return (
            f"Data loading ran out of open files: {text}. Raise the limit (ulimit -n 65536), or let workers share "
            "memory in another way: torch.multiprocessing.set_sharing_strategy('file_system')."
        )
    if _NO_SHARED_MEMORY.search(lower):
        return (
            f"Data loading ran out of shared memory (/dev/shm), through which workers hand over images: {text.strip()} "
            f"{_memory_left()} In a container, enlarge it: docker run --shm-size=8g, or --ipc=host. {fewer}, or a "
            "smaller prefetch_factor."
        )
    if death is None:
        return None
    if death[3]:
        return (
            f"A data loading worker ended by itself ({text.strip()}). What it says of this is above; if nothing is, "
            f"look for a call of exit in the mapper. With 0 workers (DATALOADER.NUM_WORKERS, now {num_workers}) it "
            "would end the program at that place."
        )
    if death[2] in (None, "Killed", "Terminated"):
        return (
            f"A data loading worker was killed ({text.strip()}). Usually the system does this when memory runs out. "
            f"{_memory_left()} {fewer}, a smaller prefetch_factor, or smaller images. The mapper's own errors would "
            "look different."
        )
    return (
        f"A data loading worker crashed ({text.strip()}), inside of some library. With 0 workers "
        f"(DATALOADER.NUM_WORKERS, now {num_workers}) and python -X faulthandler the place is shown."
    )


def _memory_left() -> str:
    system = system_memory()
    parts = [] if system is None else [f"{mib(system[0])} of {mib(system[1])} memory"]
    try:
        shm = os.statvfs("/dev/shm")
        parts.append(f"{mib(shm.f_bavail * shm.f_frsize)} of {mib(shm.f_blocks * shm.f_frsize)} shared memory")
    except (OSError, AttributeError):  # not Linux
        pass
    return f"Now free: {', '.join(parts)}." if parts else ""


def _leave_signals_to_the_main_process() -> None:
    """Ignore signals to the whole group, after which the main process finishes its step; SIGTERM ends if it is its."""
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # which tells the sender
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_main_process_says_so, daemon=True).start()


def _end_when_the_main_process_says_so() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _end_unsent(error: Exception, obj: Any) -> None:
    """End a worker that cannot send a batch, after it has said why."""
    sys.stderr.write(
        f"A data loading worker cannot send a batch to the main process: {type(error).__name__}: {error}. What the "
        "mapper returns has to be picklable: without functions defined inside others, open files or generators.\n"
    )
    sys.stderr.flush()
    os._exit(1)


def _start_worker(worker_init_fn: Callable[[int], None] | None, worker_id: int) -> None:
    """Keep a worker's memory shared with the main process, then do what the user wants.

    The garbage collector writes to every object that it looks at, except frozen ones, and each page that is written to
    becomes the worker's own: 90 MiB after one collection, before any data are loaded.
    """
    gc.freeze()
    if torchdata.get_worker_info() is not None:
        _leave_signals_to_the_main_process()
        # By default the batch is lost, and the main process waits for it without end.
        queues.Queue._on_queue_feeder_error = staticmethod(_end_unsent)  # pyright: ignore[reportAttributeAccessIssue]
    if worker_init_fn is not None:
        worker_init_fn(worker_id)
    if _is_orphan():  # torch's own watch, which begins after this, would take the new parent for the main process
        os._exit(1)


def _is_orphan() -> bool:
    """Return whether the process that started this one has ended."""
    main = multiprocessing.parent_process()
    own_method = getattr(type(multiprocessing.current_process()), "_start_method", None)
    if main is not None and (own_method or multiprocessing.get_start_method()) == "fork":
        return main.pid != os.getppid()  # other workers have the ends of pipes that would tell
    return main is not None and not main.is_alive()


def _death_of(workers: Sequence[Any]) -> RuntimeError | None:
    """Return the error that torch has for a worker that died, if one did."""
    for worker in workers:
        if (code := worker.exitcode) is not None and code < 0:
            name = signal.strsignal(-code) or f"signal {-code}"
            return RuntimeError(f"DataLoader worker (pid {worker.pid}) is killed by signal: {name}.")
        if code:
            return RuntimeError(f"DataLoader worker (pid {worker.pid}) exited unexpectedly with exit code {code}.")
    return None


class GuardedLoader(torchdata.DataLoader):
    """A torch loader whose workers use little memory, and that, when one of them dies, says what to do."""

    worker_pids: tuple[int, ...] = ()
    """The workers of the last iteration that was started."""

    def __init__(self, dataset: Any, *, worker_init_fn: Callable[[int], None] | None = None, **kwargs: Any) -> None:
        super().__init__(dataset, worker_init_fn=functools.partial(_start_worker, worker_init_fn), **kwargs)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch's iterator, wrapped
        if self.num_workers:
            _Deaths.watch()
        iterator = super().__iter__()
        self.worker_pids = tuple(w.pid for w in getattr(iterator, "_workers", ()))
        return _GuardedIterator(iterator, self)

    def _after_batch(self) -> None:
        """Called when a batch is there."""


class _Deaths:
    """Torch's handler of the signal that a worker died raises wherever the program is; here, only while it waits."""

    waiting = False
    _handler: Any = None

    @classmethod
    def watch(cls) -> None:
        """Put this handler around torch's, which it has after the first iterator with workers."""
        if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
            return
        signal_handling._set_SIGCHLD_handler()
        current = signal.getsignal(signal.SIGCHLD)
        if getattr(current, "__module__", "") == signal_handling.__name__:
            cls._handler = current
            signal.signal(signal.SIGCHLD, cls._on_death)

    @classmethod
    def _on_death(cls, number: int, frame: Any) -> None:
        try:
            cls._handler(number, frame)
        except RuntimeError:
            if cls.waiting:  # for what may never come
                raise


class _GuardedIterator(Iterator):
    def __init__(self, iterator: Any, loader: GuardedLoader) -> None:
        self._iterator = iterator
        self._loader = loader

    def __next__(self) -> Any:
        workers = getattr(self._iterator, "_workers", ())
        if not workers:
            batch = next(self._iterator)
        elif (death := _death_of(workers)) is not None:
            raise RuntimeError(explain_worker_error(death, len(workers)))
        else:
            try:
                try:
                    _Deaths.waiting = True
                    batch = next(self._iterator)
                finally:
                    _Deaths.waiting = False
            except Exception as e:
                if isinstance(e, StopIteration) or str(e).startswith("Caught "):  # the end; an error of the mapper
                    raise
                for _ in range(20):  # what a dead worker had not sent is missed before its end is known
                    if (death := _death_of(workers)) is not None:
                        break
                    time.sleep(0.05)
                text = explain_worker_error(death or e, len(workers))
                if text is None:
                    raise
                raise RuntimeError(text) from e
        self._loader._after_batch()
        return batch

    def __len__(self) -> int:
        return len(self._iterator)


class _TrainStream(GuardedLoader):
    """Reports memory of the workers and images that could not be read."""

    _num_delivered = 0
    _num_bad_reported = 0

    def restart_workers(self) -> None:
        """Let the next iteration start new workers: those that persist have an old copy of the data set."""
        self._iterator = None

    def _after_batch(self) -> None:
        self._num_delivered += 1
        if self._num_delivered == _REPORT_MEMORY_AFTER and (text := describe_workers(self.worker_pids)) is not None:
            logger.info("Memory of data loading: %s.", text)
        mapped = self.dataset.dataset if isinstance(self.dataset, ToIterableDataset) else self.dataset
        bad_images = getattr(mapped, "_bad_images", None)
        # Reported when it has doubled: a log that grows slowly, and says in the end how bad it is.
        if bad_images is not None and (total := bad_images.total) > 2 * self._num_bad_reported:
            self._num_bad_reported = total
            logger.warning(
                "%d times so far an image could not be read and another one was taken (DATALOADER.ON_BAD_IMAGE is "
                '"skip").',
                total,
            )


class _Positioned:
    """A loader of batches from a stream, which can be continued where another one, in another process, got to."""

    num_batches: int = 0
    """Batches of the stream that were passed over and yielded: where the next iteration goes on."""
    _is_set: bool = False
    _local_batch_size: int

    def _stream(self) -> _TrainStream:
        raise NotImplementedError

    def _start_in(self, round_: Iterator[tuple[int, int]], num_batches: int) -> "_StreamStart | tuple[int, int]":
        """Follow places and indices of a round; return where this batch begins, or the round's batches and samples."""
        raise NotImplementedError

    def set_position(self, num_batches: int) -> None:
        """Let the next iteration begin after this number of batches, without loading them.

        For an iterable data set it is not possible, and a warning says so.
        """
        if num_batches < 0:
            raise ValueError(f"The position of a loader is a number of batches, not {num_batches}.")
        self.num_batches, self._is_set = num_batches, True
        self._stream().restart_workers()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs to continue the stream behind the last batch; the same on all ranks."""
        state: dict[str, Any] = {"num_batches": self.num_batches}
        source = self._stream().dataset
        if isinstance(source, ToIterableDataset):
            state["total_batch_size"] = self._local_batch_size * source._world_size
            state["size"] = len(source.dataset)
            state["seed"] = source.seed
            if hasattr(source.sampler, "state_dict"):
                state["sampler"] = {"type": type(source.sampler).__name__, **source.sampler.state_dict()}
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Let the next iteration continue the stream of a loader whose `state_dict` this is.

        The stream is the same if data set, sampler and batch size are; the numbers of workers and of ranks may differ.
        With another batch size, as many samples are passed over.
        """
        num_batches = int(state_dict["num_batches"])
        source = self._stream().dataset
        if isinstance(source, ToIterableDataset) and "seed" in state_dict:
            source.seed = state_dict["seed"]
            sampler = dict(state_dict.get("sampler", ()))
            if sampler and sampler.pop("type") == type(source.sampler).__name__:
                source.sampler.load_state_dict(sampler)
            elif sampler or hasattr(source.sampler, "state_dict"):
                logger.warning("The training sampler is another one than before: samples come in another order.")
            if state_dict["size"] != len(source.dataset):
                logger.warning(
                    "The training data has %d elements now, and had %d: they come in another order.",
                    *(len(source.dataset), state_dict["size"]),
                )
            total_batch_size = self._local_batch_size * source._world_size
            num_batches = num_batches * state_dict["total_batch_size"] // total_batch_size
        self.set_position(num_batches)

    def _begin(self) -> None:
        """Called when an iteration starts."""
        stream, source = self._stream(), self._stream().dataset
        if not isinstance(source, ToIterableDataset):
            if self.num_batches and self._is_set:
                logger.warning("An iterable data set cannot be positioned: it starts from its beginning.")
            self.num_batches, self._is_set = 0, False
            return
        start, left, round_start = _StreamStart(), self.num_batches, 0
        while left:  # there is nothing to follow at the beginning of the stream
            found = self._start_in(enumerate(source._round(round_start), round_start), left)
            if isinstance(found, _StreamStart):
                start = found
                break
            left, round_start = left - found[0] if found[0] else 0, round_start + found[1]
        if stream.persistent_workers:
            source._round_start.share_memory_()
        source._round_start.fill_(round_start)
        if start != source._start:
            source._start = start
            stream.restart_workers()


class BatchLoader(_Positioned, _TrainStream):
    """A torch loader of batches of consecutive samples of the stream."""

    def __init__(self, dataset: Any, batch_size: int, **kwargs: Any) -> None:
        super().__init__(dataset, batch_size=batch_size, **kwargs)
        self._local_batch_size = batch_size

    def _stream(self) -> _TrainStream:
        return self

    def _start_in(self, round_: Iterator[tuple[int, int]], num_batches: int) -> "_StreamStart | tuple[int, int]":
        return _start_of_batches(round_, self._local_batch_size, num_batches, self.drop_last)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch's iterator, wrapped
        self._begin()
        return super().__iter__()

    def _after_batch(self) -> None:
        self.num_batches += 1
        super()._after_batch()


class GroupedBatchLoader(_Positioned, AspectRatioGroupedDataset):
    """Batches of wide or of high images, from a torch loader of single samples.

    A position is found by following the shapes of all samples before it. For this each element of the data set needs
    its "width" and "height", and the mapper must not turn wide images into high ones; otherwise the position is
    approximate, and a warning says so.
    """

    def __init__(
        self, singles: _TrainStream, batch_size: int, collate_fn: Callable[[list[Any]], Any] | None = None
    ) -> None:
        super().__init__(singles, batch_size)
        self._local_batch_size = batch_size
        self._collate_fn = collate_fn

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """The workers of the last iteration that was started."""
        return self._stream().worker_pids

    def _stream(self) -> _TrainStream:
        return self.dataset  # type: ignore[return-value]  # as given

    def _start_in(self, round_: Iterator[tuple[int, int]], num_batches: int) -> "_StreamStart | tuple[int, int]":
        is_wide = _orientation_of(self._stream().dataset.dataset)  # type: ignore[attr-defined]  # a ToIterableDataset
        if is_wide is None:
            logger.warning(
                'The position in the training data is approximate: its elements have no "width" and "height", from '
                "which it would follow which images were put into a batch together."
            )
            return _start_of_batches(round_, self._local_batch_size, num_batches)
        return _start_of_grouped(round_, is_wide, self._local_batch_size, num_batches)

    def __iter__(self) -> Iterator[Any]:
        self._begin()
        for batch in super().__iter__():
            self.num_batches += 1
            yield batch if self._collate_fn is None else self._collate_fn(batch)


def _orientation_of(dataset: Any) -> Callable[[int], bool] | None:
    """Return a function that tells whether an element is wider than high; None if only loading it can tell."""
    records = dataset._dataset if isinstance(dataset, MapDataset) else dataset
    if not isinstance(records, (DatasetFromList, list, tuple)) or len(records) == 0:
        return None
    if not isinstance(records[0], dict) or not {"width", "height"} <= records[0].keys():
        return None
    return functools.cache(lambda index: _is_wide(records[index]))


def _start_of_batches(
    round_: Iterator[tuple[int, int]], batch_size: int, num_batches: int, drop_last: bool = True
) -> _StreamStart | tuple[int, int]:
    """Count samples until one more batch than this number is complete."""
    passed = num_batches * batch_size
    wanted = passed + (batch_size if drop_last else 1)
    found = sum(1 for _ in itertools.islice(round_, wanted))
    if found == wanted:
        return _StreamStart(passed)
    return found // batch_size if drop_last else -(-found // batch_size), found


def _start_of_grouped(
    round_: Iterator[tuple[int, int]], is_wide: Callable[[int], bool], batch_size: int, num_batches: int
) -> _StreamStart | tuple[int, int]:
    """Follow samples until one more batch than this number is complete."""
    waiting: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
    start = None
    complete = passed = 0
    for place, index in round_:
        if complete == num_batches and start is None:
            start = _StreamStart(passed, tuple(sorted(waiting[0] + waiting[1])))
        passed += 1
        bucket = waiting[is_wide(index)]
        bucket.append((place, index))
        if len(bucket) == batch_size:
            if start is not None:
                return start
            bucket.clear()
            complete += 1
    return complete, passed
