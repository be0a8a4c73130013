"""Batches in which all samples belong to the same group."""

from collections.abc import Iterable, Iterator, Sequence

from torch.utils.data.sampler import BatchSampler, Sampler

__all__ = ["GroupedBatchSampler"]


class GroupedBatchSampler(BatchSampler):
    """Yield batches of indices of one group each, in an order close to that of the underlying sampler.

    A batch is given out as soon as its group has enough indices; those at the end that do not fill one are dropped.
    """

    def __init__(self, sampler: Sampler | Iterable[int], group_ids: Sequence[int], batch_size: int) -> None:
        """Make the sampler.

        Args:
            sampler: gives the indices.
            group_ids: the group of each index, e.g. 0 for landscape and 1 for portrait images.
            batch_size: size of a batch.
        """
        if batch_size <= 0:
            raise ValueError(f"batch_size must be positive, not {batch_size}.")
        super().__init__(sampler, batch_size, drop_last=True)
        self.group_ids = [int(g) for g in group_ids]

    def __iter__(self) -> Iterator[list[int]]:
        waiting: dict[int, list[int]] = {}
        for index in self.sampler:
            group = self.group_ids[index]
            batch = waiting.setdefault(group, [])
            batch.append(index)
            if len(batch) == self.batch_size:
                del waiting[group]
                yield batch

    def __len__(self) -> int:
        # list() goes on without a length only after a TypeError.
        raise TypeError("The number of batches depends on the order in which the sampler gives the groups.")
