"""The order of shards: every image once an epoch, few shards at a time, and a stream that can be continued."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectron2.data.samplers import ShardedTrainingSampler
from detectron2.utils import comm


def on_ranks(world_size, sizes, **options):
    """The sampler of each rank."""
    samplers = []
    for rank in range(world_size):
        with pytest.MonkeyPatch.context() as m:
            m.setattr(comm, "get_rank", lambda rank=rank: rank)
            m.setattr(comm, "get_world_size", lambda: world_size)
            samplers.append(ShardedTrainingSampler(sizes, **options))
    return samplers


def together(samplers, count):
    """The first samples of the shared stream, of which rank `r` takes `r, r + world_size, ...`."""
    streams = [iter(s) for s in samplers]
    return [next(streams[place % len(streams)]) for place in range(count)]


def take(sampler, count, start=0):
    return list(itertools.islice(sampler, start, start + count))


@pytest.mark.parametrize("sizes", [[], [0], [0, 0]])
def test_empty(sizes):
    with pytest.raises(ValueError, match=r"nothing to train on"):
        ShardedTrainingSampler(sizes)


@pytest.mark.parametrize(
    ("options", "message"), [({"window": 0}, "SHARD_WINDOW"), ({"shard_sizes": [3, -1]}, "expected 0 or more")]
)
def test_impossible(options, message):
    with pytest.raises(ValueError, match=message):
        ShardedTrainingSampler(**{"shard_sizes": [3], "seed": 0, **options})


shard_sizes = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any)


@given(shard_sizes, st.integers(1, 5), st.integers(1, 6), st.integers(-5, 2**40))
def test_every_sample_once_an_epoch(sizes, world_size, window, seed):
    total = sum(sizes)
    stream = together(on_ranks(world_size, sizes, window=window, seed=seed), 3 * total)
    for epoch in range(3):
        assert sorted(stream[epoch * total : (epoch + 1) * total]) == list(range(total))


@given(shard_sizes, st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(0, 40))
def test_continued_by_another_number_of_ranks(sizes, before, after, window, passed):
    samplers = on_ranks(before, sizes, window=window, seed=3)
    whole = together(samplers, passed + 40)
    others = on_ranks(after, sizes, window=window, seed=99)
    for sampler in others:
        sampler.load_state_dict(samplers[0].state_dict())
    assert together(others, passed + 40) == whole


@given(shard_sizes, st.integers(1, 3), st.integers(0, 30))
def test_the_tail_from_any_position(sizes, world_size, passed):
    (sampler, *_) = on_ranks(world_size, sizes, window=2, seed=7)
    assert take(sampler, 20, passed) == take(sampler, passed + 20)[passed:]


@given(
    st.integers(1, 9), st.integers(1, 30), st.integers(1, 5), st.integers(1, 4), st.integers(1, 80), st.integers(0, 9)
)
def test_few_shards_at_a_time(size, shards, window, world_size, length, seed):
    sizes = [size] * shards
    total = size * shards
    for sampler in on_ranks(world_size, sizes, window=window, seed=seed):
        piece = [index // size for index in take(sampler, total // world_size)]
        # A piece begins in the midst of a shard; whole windows follow.
        bound = window * (2 + max(length - 2, 0) // max(window * size - size + 1, 1))
        for i in range(len(piece)):
            assert len(set(piece[i : i + length])) <= min(bound, shards)
        # All in all, a piece has its own shards, but for one at each end.
        assert len(set(piece)) <= total // world_size // size + 2


def test_samples_of_a_window_are_mixed():
    stream = np.array(take(ShardedTrainingSampler([50] * 40, window=4, seed=0), 2000)) // 50
    runs = 1 + (np.diff(stream) != 0).sum()
    assert runs > 1200  # three of four neighbours are of different shards, if all orders are as likely
    assert {len(set(stream[i : i + 200])) for i in range(0, 2000, 200)} == {4}


def test_orders_differ():
    sampler = ShardedTrainingSampler([3] * 10, window=2, seed=0)
    assert take(sampler, 60) == take(sampler, 60)
    assert take(sampler, 30) != take(sampler, 30, 30)
    assert take(sampler, 30) != take(ShardedTrainingSampler([3] * 10, window=2, seed=1), 30)
    firsts = Counter(take(ShardedTrainingSampler([2, 2], window=1, seed=s), 1)[0] for s in range(400))
    assert all(70 < firsts[i] < 130 for i in range(4))  # 100 expected


class TestShardSizes:
    def record(self, archive, number=0):
        return {"file_name": f"shard://d/{archive}.tar#{512 * number}+9/{number}.jpg"}

    def test_none(self):
        assert ShardedTrainingSampler.shard_sizes_of([]) == []

    def test_counted(self):
        records = [self.record("a", 1), self.record("a", 2), self.record("c", 3), self.record("a", 4)]
        assert ShardedTrainingSampler.shard_sizes_of(records) == [2, 1, 1]

    def test_single_files(self):
        with pytest.raises(ValueError, match=r"'b.jpg' is a file by itself\. Set DATALOADER.SAMPLER_TRAIN"):
            ShardedTrainingSampler.shard_sizes_of([self.record("a"), {"file_name": "b.jpg"}])
