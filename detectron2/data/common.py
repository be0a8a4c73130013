"""Data sets made of lists and of other data sets, and batches of images with alike shapes."""

import contextlib
import copy
import itertools
import logging
import pickle
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.utils.data as torchdata

from detectron2.utils.serialize import PicklableWrapper

__all__ = [
    "AspectRatioGroupedDataset",
    "DatasetFromList",
    "MapDataset",
    "ToIterableDataset",
    "set_default_dataset_from_list_serialize_method",
]

logger = logging.getLogger(__name__)


# ---------------------------------------------------------------------------------------------------------------------
# DatasetFromList
# ---------------------------------------------------------------------------------------------------------------------


class _TorchSerializedList:
    """A read-only list that keeps its elements pickled, one behind the other, in a single tensor.

    A list of millions of small objects is copied page by page into each worker, because reading an object writes its
    reference count.  One buffer is never written to: forked workers share its pages, and workers started in another
    way receive it through shared memory, since it is a tensor.
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
    """Within a ``with`` block, have ``DatasetFromList(serialize=True)`` keep its elements in another kind of list.

    Args:
        new: takes the list, and returns something with ``__len__`` and ``__getitem__``.
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
            copy: whether to hand out deep copies, so that they can be changed without changing the list. A serialized
                list hands out new objects anyway.
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


# ---------------------------------------------------------------------------------------------------------------------
# MapDataset
# ---------------------------------------------------------------------------------------------------------------------


def _describe(element: Any, index: Any) -> str:
    """Say which element of a data set this is, as a person would look for it."""
    known = element if isinstance(element, dict) else {}
    details = [f"{key} {known[key]!r}" for key in ("file_name", "image_id") if key in known]
    return f"dataset element {index}" + (f" ({', '.join(details)})" if details else "")


def _apply(function: Callable[[Any], Any], element: Any, description: str) -> Any:
    """Call the function; an exception keeps its type, and tells in addition which element it was."""
    try:
        return function(element)
    except Exception as e:
        message = f"This happened while mapping {description}."
        add_note = getattr(e, "add_note", logger.error)  # exceptions take notes since Python 3.11
        add_note(message)
        raise


class _MapIterableDataset(torchdata.IterableDataset):
    """Map a function over the elements of an iterable data set; None leaves an element out."""

    def __init__(self, dataset: Iterable[Any], map_func: Callable[[Any], Any]) -> None:
        self._dataset: Any = dataset
        self._map_func = PicklableWrapper(map_func)

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Any]:
        for index, element in enumerate(self._dataset):
            mapped = _apply(self._map_func, element, _describe(element, index))
            if mapped is not None:
                yield mapped


class MapDataset(torchdata.Dataset):
    """Map a function over the elements of a data set.

    Where the function returns None, meaning that it could make nothing of an element, another element is taken at
    random.  An exception of the function passes through, with a note that names the element.
    """

    def __new__(cls, dataset: Any, map_func: Callable[[Any], Any]) -> Any:
        """Make a data set of the same kind as the given one, iterable or indexed."""
        if isinstance(dataset, torchdata.IterableDataset):
            return _MapIterableDataset(dataset, map_func)
        return super().__new__(cls)

    def __init__(self, dataset: Any, map_func: Callable[[Any], Any]) -> None:
        """Make the data set.

        Args:
            dataset: the data set to map, indexed or iterable.
            map_func: takes an element, returns the mapped one or None.
        """
        self._dataset = dataset
        self._map_func = PicklableWrapper(map_func)
        self._rng = random.Random(42)
        self._fallback_candidates = set(range(len(dataset)))

    def __getnewargs__(self) -> tuple[Any, ...]:
        return self._dataset, self._map_func

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, idx: int) -> Any:
        current = int(idx)
        failures = 0
        while True:
            element = self._dataset[current]
            description = _describe(element, current)  # before the call, which may change the element
            mapped = _apply(self._map_func, element, description)
            if mapped is not None:
                self._fallback_candidates.add(current)
                return mapped
            failures += 1
            self._fallback_candidates.discard(current)
            if not self._fallback_candidates:
                raise RuntimeError(
                    f"The mapping function returned None for {description} and for every element tried in its place "
                    f"({failures} in this call). It must return something for at least one of the {len(self)} elements."
                )
            if failures >= 3:
                logger.warning(
                    "The mapping function returned None %d times in a row, last for %s.", *(failures, description)
                )
            current = self._rng.choice(tuple(self._fallback_candidates))


# ---------------------------------------------------------------------------------------------------------------------
# Iterable data sets
# ---------------------------------------------------------------------------------------------------------------------


def _share_of_worker(iterable: Iterable[Any], chunk_size: int = 1) -> Iterator[Any]:
    """In a data loading worker, yield only this worker's share: every ``num_workers``-th chunk."""
    worker = torchdata.get_worker_info()
    if worker is None or worker.num_workers == 1:
        yield from iterable
        return
    iterator = iter(iterable)
    for chunk_index in itertools.count():
        chunk = list(itertools.islice(iterator, chunk_size))
        if not chunk:
            return
        if chunk_index % worker.num_workers == worker.id:
            yield from chunk


class ToIterableDataset(torchdata.IterableDataset):
    """An indexed data set in the order of a sampler, as an iterable one."""

    def __init__(
        self, dataset: Any, sampler: Iterable[int], shard_sampler: bool = True, shard_chunk_size: int = 1
    ) -> None:
        """Make the data set.

        Args:
            dataset: an indexed data set.
            sampler: gives the indices.
            shard_sampler: whether each data loading worker takes only its share of the indices. Without it each
                yields all of them, which is right only if the sampler itself knows about workers.
            shard_chunk_size: number of consecutive indices that one worker takes at a time; a batch whose size
                divides it consists of consecutive samples.
        """
        if isinstance(dataset, torchdata.IterableDataset):
            raise TypeError("ToIterableDataset needs a data set with indices; this one is iterable already.")
        if not isinstance(sampler, Iterable):
            raise TypeError(f"sampler must be iterable, not {type(sampler).__name__}.")
        self.dataset = dataset
        self.sampler: Any = sampler
        self.shard_sampler = shard_sampler
        self.shard_chunk_size = shard_chunk_size

    def __iter__(self) -> Iterator[Any]:
        indices = _share_of_worker(self.sampler, self.shard_chunk_size) if self.shard_sampler else self.sampler
        for index in indices:
            yield self.dataset[index]

    def __len__(self) -> int:
        return len(self.sampler)


def _is_wide(element: dict[str, Any]) -> bool:
    """Whether an image is wider than high; a mapper of one's own may return nothing but the image."""
    if "width" in element and "height" in element:
        return element["width"] > element["height"]
    height, width = element["image"].shape[-2:]
    return width > height


class AspectRatioGroupedDataset(torchdata.IterableDataset):
    """Batches of images that are all wider than high, or all not, so that padding wastes little.

    Elements are dicts with "width" and "height" (any unit), or else with an "image" of shape (C, H, W).  Elements that
    do not fill a batch at the end of the underlying data set are dropped, which is of no account in an endless stream.
    """

    def __init__(self, dataset: Iterable[dict[str, Any]], batch_size: int) -> None:
        """Make the data set.

        Args:
            dataset: yields the elements.
            batch_size: number of elements of a batch.
        """
        self.dataset = dataset
        self.batch_size = batch_size
        self._buckets: Sequence[list[dict[str, Any]]] = [[], []]

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for element in self.dataset:
            bucket = self._buckets[0 if _is_wide(element) else 1]
            bucket.append(element)
            if len(bucket) == self.batch_size:
                batch = bucket[:]
                bucket.clear()  # before the yield: what follows it may never run
                yield batch
