"""Samplers that agree across ranks without talking: each rank draws the same sequence and keeps its own share.

Rank `r` of `world_size` keeps the elements `r, r + world_size, r + 2 * world_size ...` of a shared sequence.

`state_dict()` of a training sampler holds what determines this sequence: its seeds. How far a training got is the
loader's to know, since workers ask for samples in advance.
"""

import itertools
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data.sampler import Sampler

from detectron2.utils import comm

__all__ = ["InferenceSampler", "RandomSubsetTrainingSampler", "RepeatFactorTrainingSampler", "TrainingSampler"]

logger = logging.getLogger(__name__)


def _check_size(size: int, owner: object) -> None:
    if not isinstance(size, int):
        raise TypeError(f"{type(owner).__name__} takes the number of samples as an int, not {size!r}.")
    if size <= 0:
        raise ValueError(
            f"{type(owner).__name__} got size={size}: there is nothing to train on. Check that the data set is not "
            "empty after filtering (DATALOADER.FILTER_EMPTY_ANNOTATIONS)."
        )


class _EndlessSampler(Sampler):
    """An endless sequence of shuffled epochs, of which this rank takes its share."""

    def __init__(self, shuffle: bool, seed: int | None) -> None:
        self._shuffle = shuffle
        self._seed = int(comm.shared_random_seed() if seed is None else seed)
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    @property
    def seed(self) -> int:
        """The seed in use, given or drawn."""
        return self._seed

    def state_dict(self) -> dict[str, Any]:
        """Return the seeds: with them, a sampler with the same arguments gives the same sequence."""
        return {"seed": self._seed}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over the seeds of another sampler; takes effect when iteration starts."""
        self._seed = int(state_dict["seed"])

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        """Return the indices of one epoch (int64), before shuffling."""
        raise NotImplementedError

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed)
        while True:
            indices = self._epoch(generator)
            if self._shuffle:
                indices = indices[torch.randperm(len(indices), generator=generator)]
            yield from indices.tolist()

    def __iter__(self) -> Iterator[int]:
        yield from itertools.islice(self._infinite_indices(), self._rank, None, self._world_size)


class TrainingSampler(_EndlessSampler):
    """An endless stream of indices: `shuffle(range(size)) + shuffle(range(size)) + ...`, shared among the ranks."""

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None) -> None:
        """Make the sampler.

        Args:
            size: number of samples in the data set.
            shuffle: whether each epoch has its own random order.
            seed: seed of the shuffle, the same on all ranks; None draws one and shares it among the ranks.
        """
        _check_size(size, self)
        super().__init__(shuffle, seed)
        self._size = size

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        return torch.arange(self._size)


class RandomSubsetTrainingSampler(TrainingSampler):
    """Like `TrainingSampler`, on a random part of the data set that is drawn once."""

    def __init__(
        self,
        size: int,
        subset_ratio: float,
        shuffle: bool = True,
        seed_shuffle: int | None = None,
        seed_subset: int | None = None,
    ) -> None:
        """Make the sampler.

        Args:
            size: number of samples in the data set.
            subset_ratio: part of the data set to use, in (0, 1].
            shuffle: whether each epoch has its own random order.
            seed_shuffle: seed of the shuffle, the same on all ranks; None draws one and shares it.
            seed_subset: seed of the choice of the part, the same on all ranks; None draws one and shares it.
        """
        super().__init__(size, shuffle, seed_shuffle)
        if not 0.0 < subset_ratio <= 1.0:
            raise ValueError(f"subset_ratio (DATALOADER.RANDOM_SUBSET_RATIO) must be in (0, 1], not {subset_ratio}.")
        self._size_subset = int(size * subset_ratio)
        if self._size_subset == 0:
            raise ValueError(f"subset_ratio={subset_ratio} of {size} samples leaves none; use at least {1 / size:.3g}.")
        self._draw_subset(int(comm.shared_random_seed() if seed_subset is None else seed_subset))
        logger.info("Training on a random subset: %d of %d samples.", self._size_subset, size)

    def _draw_subset(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._seed_subset = seed
        self._indexes_subset = torch.randperm(self._size, generator=generator)[: self._size_subset]

    def state_dict(self) -> dict[str, Any]:
        """Return the seeds of shuffle and choice."""
        return {**super().state_dict(), "seed_subset": self._seed_subset}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over the seeds of another sampler, and draw its subset; takes effect when iteration starts."""
        super().load_state_dict(state_dict)
        self._draw_subset(int(state_dict["seed_subset"]))

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        return self._indexes_subset


class RepeatFactorTrainingSampler(_EndlessSampler):
    """Like `TrainingSampler`, but each sample comes as often as its repeat factor says, on average.

    The fraction of a factor is rounded up or down at random, anew in each epoch; with a factor below 1, a sample comes
    in some epochs only. Source: Gupta et al., "LVIS", 2019 (version 2 or later), appendix B.2.
    """

    def __init__(self, repeat_factors: torch.Tensor, *, shuffle: bool = True, seed: int | None = None) -> None:
        """Make the sampler.

        Args:
            repeat_factors: `Tensor[N]`, how often each of the `N` samples comes in an epoch: finite, not negative, not
                all zero. All ones is the same as `TrainingSampler`.
            shuffle: whether each epoch has its own random order.
            seed: seed of shuffle and rounding, the same on all ranks; None draws one and shares it.
        """
        _check_size(len(repeat_factors), self)
        if not (torch.isfinite(repeat_factors).all() and (repeat_factors >= 0).all() and repeat_factors.any()):
            raise ValueError(
                "Repeat factors must be finite, not negative, and not all zero; they range from "
                f"{float(repeat_factors.min())} to {float(repeat_factors.max())}."
            )
        super().__init__(shuffle, seed)
        self.repeat_factors = repeat_factors
        self._int_part = torch.trunc(repeat_factors)
        self._frac_part = repeat_factors - self._int_part

    @staticmethod
    def repeat_factors_from_category_frequency(
        dataset_dicts: Sequence[Mapping[str, Any]], repeat_thresh: float, sqrt: bool = True
    ) -> torch.Tensor:
        """Compute one repeat factor per image from how rare its rarest category is.

        With `f(c)` the part of all images that contain category `c`, a category repeats
        `r(c) = max(1, sqrt(t / f(c)))` times and an image `max r(c)` over its categories.

        Args:
            dataset_dicts: the data set, with annotations.
            repeat_thresh: `t`: categories rarer than this part of the images are repeated.
            sqrt: whether to take the square root; without it, `r(c) = max(1, t / f(c))`.

        Returns:
            `Tensor[N]`, the repeat factor of each image; 1 where it has no annotations.

        Raises:
            ValueError: the threshold is negative.
        """
        if not repeat_thresh >= 0:
            raise ValueError(f"repeat_thresh (DATALOADER.REPEAT_THRESHOLD) must be 0 or more, not {repeat_thresh}.")
        categories = [{a["category_id"] for a in d.get("annotations", ())} for d in dataset_dicts]
        images_with = Counter(itertools.chain.from_iterable(categories))
        num_images = len(dataset_dicts)

        def factor(count: int) -> float:
            ratio = repeat_thresh / (count / num_images)
            return max(1.0, math.sqrt(ratio) if sqrt else ratio)

        of_category = {category: factor(count) for category, count in images_with.items()}
        per_image = [max((of_category[c] for c in present), default=1.0) for present in categories]
        return torch.tensor(per_image, dtype=torch.float32)

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        rounded_up = torch.rand(len(self._frac_part), generator=generator) < self._frac_part
        return torch.repeat_interleave((self._int_part + rounded_up).long())


class InferenceSampler(Sampler):
    """Every sample exactly once: each rank takes one contiguous share, and shares differ in length by one at most."""

    def __init__(self, size: int) -> None:
        """Share `size` samples, which may be none, among the ranks."""
        if size < 0:
            raise ValueError(f"InferenceSampler got size={size}.")
        self._size = size
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()
        self._local_indices = self._get_local_indices(size, self._world_size, self._rank)

    @staticmethod
    def _get_local_indices(total_size: int, world_size: int, rank: int) -> range:
        share, rest = divmod(total_size, world_size)
        begin = rank * share + min(rank, rest)
        return range(begin, begin + share + (rank < rest))

    def __iter__(self) -> Iterator[int]:
        yield from self._local_indices

    def __len__(self) -> int:
        return len(self._local_indices)
