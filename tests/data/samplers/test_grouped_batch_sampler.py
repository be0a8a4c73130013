"""Batches of one group each."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data.sampler import SequentialSampler

from detectron2.data.samplers import GroupedBatchSampler


def test_empty():
    assert list(GroupedBatchSampler(SequentialSampler([]), [], 2)) == []


def test_by_hand():
    sampler = GroupedBatchSampler(SequentialSampler(range(7)), [0, 1, 0, 1, 1, 0, 1], 2)
    assert list(sampler) == [[0, 2], [1, 3], [4, 6]]


@pytest.mark.parametrize("batch_size", [0, -1])
def test_bad_batch_size(batch_size):
    with pytest.raises(ValueError):
        GroupedBatchSampler(SequentialSampler(range(3)), [0, 0, 0], batch_size)


def test_no_length():
    with pytest.raises(TypeError):
        len(GroupedBatchSampler(SequentialSampler(range(3)), [0, 0, 0], 2))


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 5))
def test_batches_are_of_one_group_and_in_order(groups, batch_size):
    batches = list(GroupedBatchSampler(SequentialSampler(groups), groups, batch_size))
    indices = [i for b in batches for i in b]
    assert all(len(b) == batch_size and len({groups[i] for i in b}) == 1 and b == sorted(b) for b in batches)
    assert len(set(indices)) == len(indices)
    assert len(groups) - len(indices) == sum(groups.count(g) % batch_size for g in set(groups))
