"""Training on shards: few archives are in use at a time, and each image still comes once an epoch.

In each epoch the shards are shuffled and laid end to end, and this sequence is cut into as many pieces of equal length
as there are ranks. A piece is taken a few shards at a time, the window, whose images are shuffled.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from detectron2.data.samplers.distributed_sampler import TrainingSampler
from detectron2.data.tar_members import SCHEME, TarMember

__all__ = ["ShardedTrainingSampler"]

_64_BITS = 2**64 - 1


class ShardedTrainingSampler(TrainingSampler):
    """An endless stream of indices that stays within a few shards for some time.

    While a rank takes as many images as `window` shards hold, it touches `2 * window` shards at most, and some more
    where an epoch ends. A shard is shared by two ranks only where a piece ends within it. All orders come from the
    seed; with another number of ranks, a stream that is continued has the same order, in pieces for the first number.

    Example:
        >>> sampler = ShardedTrainingSampler([2, 2, 2], window=1, seed=0)
        >>> [index // 2 for index in itertools.islice(sampler, 6)]
        [2, 2, 1, 1, 0, 0]
    """

    def __init__(self, shard_sizes: Sequence[int], *, window: int = 8, seed: int | None = None) -> None:
        """Make the sampler.

        Args:
            shard_sizes: number of samples of each shard, in the order of the data set, which has one after the other.
            window: number of shards whose samples are mixed with each other. A larger one mixes better; the images of
                this many shards should fit into the memory that the system keeps files in.
            seed: seed of the orders, the same on all ranks; None draws one and shares it.
        """
        super().__init__(int(sum(shard_sizes)), seed=seed)
        if min(shard_sizes) < 0:
            raise ValueError(f"A shard has {min(shard_sizes)} samples; expected 0 or more.")
        if window < 1:
            raise ValueError(f"window (DATALOADER.SHARD_WINDOW) must be at least 1, not {window}.")
        self._sizes = np.asarray([size for size in shard_sizes if size], dtype=np.int64)
        self._window = window
        self._num_pieces = self._world_size

    @staticmethod
    def shard_sizes_of(dataset_dicts: Sequence[Mapping[str, Any]]) -> list[int]:
        """Count the images of each shard.

        Args:
            dataset_dicts: of one or more data sets in tar shards, in their order; images may have been left out.

        Returns:
            number of images of each shard, in this order.

        Raises:
            ValueError: an image is not in a shard.
        """

        def archive(record: Mapping[str, Any]) -> str:
            if not str(record.get("file_name")).startswith(SCHEME):
                raise ValueError(
                    f"ShardedTrainingSampler is for data sets in tar shards (register_sharded_dataset, --tar-shards), "
                    f"and {record.get('file_name')!r} is a file by itself. Set DATALOADER.SAMPLER_TRAIN to "
                    "TrainingSampler, or write all data sets into shards (detectron2 data shard)."
                )
            return TarMember.parse(str(record["file_name"])).archive

        return [sum(1 for _ in group) for _, group in itertools.groupby(dataset_dicts, archive)]

    def state_dict(self) -> dict[str, Any]:
        """Return the seed, and the number of ranks for which the stream was cut."""
        return {**super().state_dict(), "num_pieces": self._num_pieces}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over the stream of another sampler; takes effect when iteration starts."""
        super().load_state_dict(state_dict)
        self._num_pieces = int(state_dict["num_pieces"])

    def __iter__(self) -> Iterator[int]:
        first = self._rank
        for epoch in itertools.count():
            yield from self._share(epoch, first)
            first = (first - self._size) % self._world_size

    def _share(self, epoch: int, first: int) -> Iterator[int]:
        """Every `world_size`-th sample of an epoch, from `first` on; pieces take turns in an epoch."""
        if self._num_pieces == self._world_size:
            yield from self._piece(epoch, first)
            return
        pieces = [self._piece(epoch, number) for number in range(self._num_pieces)]
        for place in range(self._size):
            index = next(pieces[place % self._num_pieces])
            if place % self._world_size == first:
                yield index

    def _generator(self, *place: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self._seed & _64_BITS, spawn_key=place))

    def _piece(self, epoch: int, number: int) -> Iterator[int]:
        """The samples of a piece; the first pieces are longer by one where the length is not a multiple."""
        order = self._generator(epoch, 0).permutation(len(self._sizes))
        starts = np.cumsum(self._sizes) - self._sizes
        length, rest = divmod(self._size, self._num_pieces)
        begin = number * length + min(number, rest)
        end = begin + length + (number < rest)
        generator = self._generator(epoch, 1 + number)
        window: list[np.ndarray] = []
        place = 0
        for shard in order.tolist():
            size = int(self._sizes[shard])
            low, high = max(begin - place, 0), min(end - place, size)
            place += size
            if low < high:
                window.append(starts[shard] + np.arange(low, high))
            if len(window) == self._window or (window and place >= end):
                yield from generator.permutation(np.concatenate(window)).tolist()
                window = []
            if place >= end:
                return
