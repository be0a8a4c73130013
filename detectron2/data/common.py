"""Data sets made of lists and of other data sets, and batches of images with alike shapes."""

import contextlib
import copy
import itertools
import logging
import pickle
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.utils.data as torchdata
from PIL import Image

from detectron2.utils import comm
from detectron2.utils.serialize import PicklableWrapper

__all__ = [
    "AspectRatioGroupedDataset",
    "DatasetFromList",
    "MapDataset",
    "ShardedIterableDataset",
    "ToIterableDataset",
    "set_default_dataset_from_list_serialize_method",
]

logger = logging.getLogger(__name__)


_64_BITS = 2**64 - 1


def _call_seeded(function: Callable[[Any], Any], argument: Any, seed: int, place: int) -> Any:
    """Call a function with the global generators of Python, NumPy and PyTorch (CPU) seeded for one place in a stream.

    In the main process the generators are put back afterwards: a model in training goes on with its own numbers,
    however many workers load the data. Takes 0.1 ms there, and 0.02 ms in a worker.
    """
    number = _scrambled(_scrambled(seed & _64_BITS) + place & _64_BITS)  # looks unrelated for neighbouring places
    if torchdata.get_worker_info() is not None:
        _seed_generators(number)
        return function(argument)
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()  # noqa: NPY002  # all global
    try:
        _seed_generators(number)
        return function(argument)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002  # global
        torch.default_generator.set_state(states[2])


def _seed_generators(number: int) -> None:
    # Python's and NumPy's generator are of one kind, and with the same seed would give the same numbers.
    random.seed(_scrambled(number))
    np.random.seed((number & 0xFFFFFFFF, number >> 32))  # noqa: NPY002  # the global generator is what is seeded
    torch.default_generator.manual_seed(number >> 1)  # not torch.manual_seed(), which would touch the GPU's as well


def _scrambled(z: int) -> int:
    # SplitMix64: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014, figure 16 ff.
    z = (z + 0x9E3779B97F4A7C15) & _64_BITS
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _64_BITS
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _64_BITS
    return z ^ (z >> 31)


# What readers raise for damaged, missing and mislabelled files. Other exceptions are mistakes in a program.
_BAD_IMAGE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
_MAX_IN_A_ROW = 100  # more failures than this mean that the folder is gone, or the mapper is wrong
_MAX_NAMED = 20  # per process; after that only the count is reported
_SLOTS = 1024


class _BadImages:
    """Counts elements that could not be read, over all workers, and names the first ones in the log."""

    def __init__(self) -> None:
        # One slot per process, so that no two write to the same: workers see this memory, not a copy.
        self._counts = torch.zeros(_SLOTS, dtype=torch.int64).share_memory_()
        self._named: set[str] = set()

    @property
    def total(self) -> int:
        """How often an element could not be read, in all processes."""
        return int(self._counts.sum())

    def add(self, description: str, error: Exception) -> None:
        """Count one element, and say which one it is and why it could not be read."""
        worker = torchdata.get_worker_info()
        self._counts[0 if worker is None else 1 + worker.id % (_SLOTS - 1)] += 1
        if description in self._named or len(self._named) >= _MAX_NAMED:
            return
        self._named.add(description)
        last = "; further ones are only counted" if len(self._named) == _MAX_NAMED else ""
        logger.warning("Skipped %s: %s: %s%s", description, type(error).__name__, error, last)


def _counter_of_bad_images(on_bad_image: str) -> _BadImages | None:
    if on_bad_image not in ("stop", "skip"):
        raise ValueError(
            f'on_bad_image (DATALOADER.ON_BAD_IMAGE) is {on_bad_image!r}; it must be "stop" (an image that cannot be '
            'read ends training) or "skip" (another one is taken in its place, and counted).'
        )
    return _BadImages() if on_bad_image == "skip" else None


def _check_in_a_row(count: int, description: str) -> None:
    """Give up if too many elements, of which the last is described, could not be read one after the other."""
    if count >= _MAX_IN_A_ROW:
        raise RuntimeError(
            f"{count} elements one after the other could not be read, the last being {description}. Check that the "
            "image folder is still there; to see the error itself, set DATALOADER.ON_BAD_IMAGE (on_bad_image) to "
            '"stop".'
        )


class _TorchSerializedList:
    """A read-only list that keeps its elements pickled, one behind the other, in a single tensor.

    Reading an object writes its reference count, so that each worker comes to copy a list page by page. This buffer is
    never written to: forked workers share its pages, others receive it through shared memory, since it is a tensor.
    """

    def __init__(self, items: Iterable[Any]) -> None:
        # The bytes never leave this program: they are made here and read back below.
        buffer = bytearray()
        ends = []
        for item in items:
            buffer += pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL)
            ends.append(len(buffer))
        self._ends = torch.from_numpy(np.asarray(ends, dtype=np.int64))
        self._bytes = torch.frombuffer(buffer, dtype=torch.uint8) if buffer else torch.empty(0, dtype=torch.uint8)
        if len(ends) > 1000:
            logger.info("Serialized %d dataset elements into %.1f MiB.", len(ends), len(buffer) / 2**20)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Any:
        ends = self._ends.numpy()
        if index < 0:
            index += len(ends)
        if not 0 <= index < len(ends):
            raise IndexError(f"index {index} is out of range for {len(ends)} elements")
        start = ends[index - 1] if index else 0
        return pickle.loads(self._bytes.numpy()[start : ends[index]].data)


_DEFAULT_SERIALIZE_METHOD: Callable[[list[Any]], Any] = _TorchSerializedList


@contextlib.contextmanager
def set_default_dataset_from_list_serialize_method(new: Callable[[list[Any]], Any]) -> Iterator[None]:
    """Within a `with` block, have `DatasetFromList(serialize=True)` keep its elements in another kind of list.

    Args:
        new: takes the list, and returns something with `__len__` and `__getitem__`.
    """
    global _DEFAULT_SERIALIZE_METHOD
    old = _DEFAULT_SERIALIZE_METHOD
    _DEFAULT_SERIALIZE_METHOD = new
    try:
        yield
    finally:
        _DEFAULT_SERIALIZE_METHOD = old


class DatasetFromList(torchdata.Dataset):
    """A list as a torch data set."""

    def __init__(self, lst: list, copy: bool = True, serialize: bool | Callable[[list[Any]], Any] = True) -> None:
        """Make the data set.

        Args:
            lst: the elements.
            copy: whether to hand out deep copies, which may be changed. A serialized list hands out new objects anyway.
            serialize: whether to keep the elements serialized in one buffer that data loading workers share, instead
                of a copy of the list in each; or a function that makes such a list.
        """
        self._copy = copy
        self._serialize = bool(serialize)
        if not serialize:
            self._lst: Any = lst
        elif callable(serialize):
            self._lst = serialize(lst)
        else:
            self._lst = _DEFAULT_SERIALIZE_METHOD(lst)

    def __len__(self) -> int:
        return len(self._lst)

    def __getitem__(self, idx: int) -> Any:
        element = self._lst[idx]
        return copy.deepcopy(element) if self._copy and not self._serialize else element


def _describe(element: Any, index: Any) -> str:
    """Say which element of a data set this is, as a person would look for it."""
    known = element if isinstance(element, dict) else {}
    details = [f"{key} {known[key]!r}" for key in ("file_name", "image_id") if key in known]
    return f"dataset element {index}" + (f" ({', '.join(details)})" if details else "")


def _apply(
    function: Callable[[Any], Any], element: Any, description: str, bad_images: _BadImages | None
) -> tuple[Any, bool]:
    """Return the result, or None and True for an exception that is counted; others tell which element it was."""
    try:
        return function(element), False
    except StopIteration as e:  # which ends loops over data: passed on, it would say nothing, or look like their end
        name = getattr(function, "_obj", function)
        raise RuntimeError(
            f"The mapper {getattr(name, '__qualname__', type(name).__name__)} raised StopIteration while mapping "
            f"{description}: give next() a second value there, or catch it."
        ) from e
    except Exception as e:
        if bad_images is not None and isinstance(e, _BAD_IMAGE_ERRORS):
            bad_images.add(description, e)
            return None, True
        add_note = getattr(e, "add_note", logger.error)  # exceptions take notes since Python 3.11
        add_note(f"This happened while mapping {description}.")
        raise


class _MapIterableDataset(torchdata.IterableDataset):
    """Map a function over the elements of an iterable data set; None leaves an element out."""

    def __init__(self, dataset: Iterable[Any], map_func: Callable[[Any], Any], on_bad_image: str = "stop") -> None:
        self._dataset: Any = dataset
        self._map_func = PicklableWrapper(map_func)
        self._bad_images = _counter_of_bad_images(on_bad_image)

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Any]:
        in_a_row = 0
        for index, element in enumerate(self._dataset):
            description = _describe(element, index)
            mapped, was_bad = _apply(self._map_func, element, description, self._bad_images)
            in_a_row = in_a_row + 1 if was_bad else 0
            _check_in_a_row(in_a_row, description)
            if mapped is not None:
                yield mapped


class MapDataset(torchdata.Dataset):
    """Map a function over the elements of a data set.

    Where the function returns None, meaning that it could make nothing of an element, another element is taken at
    random. An exception of the function passes through, with a note that names the element.
    """

    def __new__(cls, dataset: Any, map_func: Callable[[Any], Any], *, on_bad_image: str = "stop") -> Any:
        """Make a data set of the same kind as the given one, iterable or indexed."""
        if isinstance(dataset, torchdata.IterableDataset):
            return _MapIterableDataset(dataset, map_func, on_bad_image)
        return super().__new__(cls)

    def __init__(self, dataset: Any, map_func: Callable[[Any], Any], *, on_bad_image: str = "stop") -> None:
        """Make the data set.

        Args:
            dataset: the data set to map, indexed or iterable.
            map_func: takes an element, returns the mapped one or None.
            on_bad_image: what to do if the function raises one of the errors that damaged files lead to (OSError,
                ValueError, SyntaxError, EOFError, Pillow's DecompressionBombError). "stop" lets it pass; "skip" takes
                another element (an iterable data set: the next one), and counts: see `num_bad_images`.
        """
        self._dataset = dataset
        self._map_func = PicklableWrapper(map_func)
        self._rng = random.Random(42)
        self._fallback_candidates = set(range(len(dataset)))
        self._bad_images = _counter_of_bad_images(on_bad_image)

    def __getnewargs__(self) -> tuple[Any, ...]:
        return self._dataset, self._map_func

    def __len__(self) -> int:
        return len(self._dataset)

    @property
    def num_bad_images(self) -> int:
        """How often `on_bad_image="skip"` took another element so far, in all workers."""
        return 0 if self._bad_images is None else self._bad_images.total

    def __getitem__(self, idx: int) -> Any:
        current = int(idx)
        failures = bad_in_a_row = 0
        while True:
            element = self._dataset[current]
            description = _describe(element, current)  # before the call, which may change the element
            mapped, was_bad = _apply(self._map_func, element, description, self._bad_images)
            if mapped is not None:
                self._fallback_candidates.add(current)
                return mapped
            failures += 1
            bad_in_a_row = bad_in_a_row + 1 if was_bad else 0
            _check_in_a_row(bad_in_a_row, description)
            self._fallback_candidates.discard(current)
            if not self._fallback_candidates:
                raise RuntimeError(
                    f"The mapping function returned None for {description} and for every element tried in its place "
                    f"({failures} in this call). It must return something for at least one of the {len(self)} elements."
                    + (" None of their images can be read." if was_bad else "")
                )
            if failures >= 3 and not was_bad:
                logger.warning(
                    "The mapping function returned None %d times in a row, last for %s.", *(failures, description)
                )
            current = self._another(first=failures == 1)

    def _another(self, first: bool) -> int:
        """Draw an element that has not failed before."""
        if first:  # in a train loader, the numbers then depend on the sample, not on what this worker saw before
            self._rng.seed(random.getrandbits(64))
        candidates, count = self._fallback_candidates, len(self)
        if 100 * len(candidates) < count:
            return self._rng.choice(sorted(candidates))
        # Drawing until one is found gives the same one whether or not those in between are known to fail.
        while True:
            index = self._rng.randrange(count)
            if index in candidates:
                return index


def _share_of_worker(iterable: Iterable[Any], chunk_size: int = 1) -> Iterator[Any]:
    """Return the share of this data loading worker: every `num_workers`-th chunk; everything in another process."""
    worker = torchdata.get_worker_info()
    if worker is None:
        return iter(iterable)
    return (e for i, e in enumerate(iterable) if i // chunk_size % worker.num_workers == worker.id)


def _started(iterable: Iterable[Any]) -> Iterator[Any]:
    """Return an iterator that has its first element already; by then, a sampler has drawn its order."""
    iterator = iter(iterable)
    return itertools.chain(list(itertools.islice(iterator, 1)), iterator)


@dataclass(frozen=True)
class _StreamStart:
    """Where in a stream of samples to begin; places are counted in this rank's share of it, from 0.

    A sampler that ends is gone through again and again; the stream is then all its rounds one after the other, and one
    iteration goes to the end of a round.
    """

    passed: int = 0  # samples of this round that are passed over
    waiting: tuple[tuple[int, int], ...] = ()  # (place, index) of those that are given out nevertheless, and first


class ToIterableDataset(torchdata.IterableDataset):
    """An indexed data set in the order of a sampler, as an iterable one.

    Attributes:
        seed: if not None, the random numbers of each sample depend on this and its place in the stream only. Takes
            effect when iteration starts.
    """

    def __init__(
        self, dataset: Any, sampler: Iterable[int], shard_sampler: bool = True, shard_chunk_size: int = 1
    ) -> None:
        """Make the data set.

        Args:
            dataset: an indexed data set.
            sampler: gives the indices.
            shard_sampler: whether each data loading worker takes only its share of the indices; the sampler has to
                know about workers otherwise.
            shard_chunk_size: number of consecutive indices that one worker takes at a time.
        """
        if isinstance(dataset, torchdata.IterableDataset):
            raise TypeError("ToIterableDataset needs a data set with indices; this one is iterable already.")
        if not isinstance(sampler, Iterable):
            raise TypeError(f"sampler must be iterable, not {type(sampler).__name__}.")
        self.dataset = dataset
        self.sampler: Any = sampler
        self.shard_sampler = shard_sampler
        self.shard_chunk_size = shard_chunk_size
        self.seed: int | None = None
        self._start = _StreamStart()
        self._round_start = torch.zeros((), dtype=torch.int64)  # place of the round's first sample; shared with workers
        # Workers that are not forked do not know.
        self._rank, self._world_size = comm.get_rank(), comm.get_world_size()

    def __iter__(self) -> Iterator[Any]:
        return self._elements(self._start, self.seed)

    def _round(self, round_start: int) -> Iterator[int]:
        """Go through the sampler from its start; one that asks the global generators gives the same in all workers."""
        if self.seed is None:
            return iter(self.sampler)
        return _call_seeded(_started, self.sampler, self.seed, ~round_start)

    def _elements(self, start: _StreamStart, seed: int | None) -> Iterator[Any]:
        round_start = int(self._round_start)
        places = itertools.count(round_start + start.passed)
        rest = zip(places, itertools.islice(self._round(round_start), start.passed, None), strict=False)
        numbered: Iterable[tuple[int, int]] = itertools.chain(start.waiting, rest)
        if self.shard_sampler:
            numbered = _share_of_worker(numbered, self.shard_chunk_size)
        for place, index in numbered:
            if seed is None:
                yield self.dataset[index]
            else:
                yield _call_seeded(self.dataset.__getitem__, index, seed, place * self._world_size + self._rank)

    def __len__(self) -> int:
        return len(self.sampler)


class ShardedIterableDataset(torchdata.IterableDataset):
    """The part of an iterable data set that this rank and this data loading worker are to load.

    Torch hands a whole iterable data set to each worker of each rank, so that every element is seen many times; wrapped
    in this, once. The first of `n` processes takes the elements `0, n, 2 n ...`. All elements are read in all
    processes: a data set of many files does better to choose its files by itself.
    """

    def __init__(self, dataset: Iterable[Any]) -> None:
        """Make the data set, in the main process, of one that yields the same elements everywhere."""
        self.dataset = dataset
        self._rank, self._world_size = comm.get_rank(), comm.get_world_size()

    def __iter__(self) -> Iterator[Any]:
        worker = torchdata.get_worker_info()
        workers, worker_id = (1, 0) if worker is None else (worker.num_workers, worker.id)
        yield from itertools.islice(self.dataset, self._rank * workers + worker_id, None, self._world_size * workers)


def _is_wide(element: dict[str, Any]) -> bool:
    """Whether an image is wider than high, by its size in the element or by the image itself."""
    if "width" in element and "height" in element:
        return element["width"] > element["height"]
    if "image" not in element:
        raise ValueError(
            f"images are batched by their proportions, and a sample has neither 'width' and 'height' nor 'image', only "
            f"{sorted(map(str, element))}: have the mapper return one of them, or turn it off (aspect_ratio_grouping, "
            "DATALOADER.ASPECT_RATIO_GROUPING)"
        )
    height, width = element["image"].shape[-2:]
    return width > height


class AspectRatioGroupedDataset(torchdata.IterableDataset):
    """Batches of images that are all wider than high, or all not, so that padding wastes little.

    Elements are dicts with "width" and "height" (any unit), or else with an "image" of shape (C, H, W). Elements at the
    end that do not fill a batch are dropped.
    """

    def __init__(self, dataset: Iterable[dict[str, Any]], batch_size: int) -> None:
        """Make batches of `batch_size` elements of a data set."""
        self.dataset = dataset
        self.batch_size = batch_size
        self._buckets: Sequence[list[dict[str, Any]]] = [[], []]

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        self._buckets = [[], []]
        for element in self.dataset:
            bucket = self._buckets[0 if _is_wide(element) else 1]
            bucket.append(element)
            if len(bucket) == self.batch_size:
                batch = bucket[:]
                bucket.clear()  # before the yield: what follows it may never run
                yield batch
