"""Samplers: what they yield, that ranks share it, and that seeds fix it."""

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detectron2.data.samplers import (
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils import comm


@pytest.fixture
def on_rank(monkeypatch):
    """Make a sampler as a certain rank would."""

    def make(rank, world_size, factory):
        with monkeypatch.context() as m:
            m.setattr(comm, "get_rank", lambda: rank)
            m.setattr(comm, "get_world_size", lambda: world_size)
            return factory()

    return make


def take(sampler, n):
    return list(itertools.islice(iter(sampler), n))


class TestTrainingSampler:
    @pytest.mark.parametrize("size", [0, -1])
    def test_empty(self, size):
        with pytest.raises(ValueError, match="nothing to train on"):
            TrainingSampler(size)

    def test_not_a_size(self):
        with pytest.raises(TypeError):
            TrainingSampler([1, 2])

    def test_in_order(self):
        assert take(TrainingSampler(3, shuffle=False), 7) == [0, 1, 2, 0, 1, 2, 0]

    def test_each_epoch_is_a_permutation(self):
        indices = take(TrainingSampler(10, seed=1), 30)
        epochs = [indices[i : i + 10] for i in (0, 10, 20)]
        assert all(sorted(e) == list(range(10)) for e in epochs)
        assert epochs[0] != epochs[1]

    def test_seed_fixes_the_order(self):
        g = torch.Generator().manual_seed(7)
        expected = torch.randperm(20, generator=g).tolist() + torch.randperm(20, generator=g).tolist()
        assert take(TrainingSampler(20, seed=7), 40) == expected
        assert take(TrainingSampler(20, seed=8), 40) != expected

    def test_iterating_again_starts_over(self):
        sampler = TrainingSampler(20)
        assert take(sampler, 30) == take(sampler, 30)

    @pytest.mark.parametrize("world_size", [2, 3])
    def test_ranks_take_turns(self, on_rank, world_size):
        alone = take(TrainingSampler(10, seed=3), 60)
        for rank in range(world_size):
            sampler = on_rank(rank, world_size, lambda: TrainingSampler(10, seed=3))
            assert take(sampler, 60 // world_size) == alone[rank::world_size]


class TestRandomSubsetTrainingSampler:
    @pytest.mark.parametrize("ratio", [0.0, -0.5, 1.1, 0.05])
    def test_bad_ratio(self, ratio):
        with pytest.raises(ValueError):
            RandomSubsetTrainingSampler(10, ratio)

    def test_draws_one_part(self):
        indices = take(RandomSubsetTrainingSampler(100, 0.25, seed_shuffle=1, seed_subset=2), 75)
        epochs = [indices[i : i + 25] for i in (0, 25, 50)]
        assert len(set(epochs[0])) == 25
        assert set(epochs[0]) == set(epochs[1]) == set(epochs[2]) and epochs[0] != epochs[1]

    def test_seeds(self):
        def part(**seeds):
            return take(RandomSubsetTrainingSampler(100, 0.25, **seeds), 25)

        first = part(seed_shuffle=1, seed_subset=2)
        assert part(seed_shuffle=1, seed_subset=2) == first
        assert set(part(seed_shuffle=3, seed_subset=2)) == set(first)
        assert set(part(seed_shuffle=1, seed_subset=4)) != set(first)

    def test_whole(self):
        assert sorted(take(RandomSubsetTrainingSampler(7, 1.0), 7)) == list(range(7))

    def test_in_drawn_order_without_shuffle(self):
        sampler = RandomSubsetTrainingSampler(10, 0.5, shuffle=False, seed_subset=1)
        indices = take(sampler, 10)
        assert indices[:5] == indices[5:]


class TestRepeatFactorTrainingSampler:
    def test_empty(self):
        with pytest.raises(ValueError):
            RepeatFactorTrainingSampler(torch.zeros(0))

    def test_ones_are_the_training_sampler(self):
        counts = Counter(take(RepeatFactorTrainingSampler(torch.ones(8), seed=1), 24))
        assert counts == dict.fromkeys(range(8), 3)

    def test_whole_factors(self):
        sampler = RepeatFactorTrainingSampler(torch.tensor([1.0, 3.0, 2.0]), shuffle=False)
        assert take(sampler, 12) == [0, 1, 1, 1, 2, 2] * 2

    def test_fractions_on_average(self):
        counts = Counter(take(RepeatFactorTrainingSampler(torch.tensor([1.0, 1.5]), seed=5), 10_000))
        assert counts[1] / counts[0] == pytest.approx(1.5, rel=0.05)

    def test_ranks_take_turns(self, on_rank):
        factors = torch.tensor([1.0, 2.5, 1.2])
        alone = take(RepeatFactorTrainingSampler(factors, seed=3), 60)
        for rank in (0, 1):
            sampler = on_rank(rank, 2, lambda: RepeatFactorTrainingSampler(factors, seed=3))
            assert take(sampler, 30) == alone[rank::2]

    def test_factors_of_no_images(self):
        assert RepeatFactorTrainingSampler.repeat_factors_from_category_frequency([], 0.5).shape == (0,)

    def test_images_of_other_kinds_and_negative_thresholds(self):
        compute = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
        assert compute([{"file_name": "a.png"}, {"annotations": []}], 0.5).tolist() == [1, 1]
        for threshold in (-1, float("nan")):
            with pytest.raises(ValueError, match=r"repeat_thresh .* must be 0 or more"):
                compute([{"annotations": [{"category_id": 1}]}], threshold)

    def test_factors(self):
        def image(*labels):
            return {"annotations": [{"category_id": c} for c in labels]}

        # Category 0 is in all four images but one, 1 in one of them, 2 in another.
        dicts = [image(0, 0), image(0, 1), image(0, 2, 2), image()]
        by_hand = [1.0, math.sqrt(0.5 / 0.25), math.sqrt(0.5 / 0.25), 1.0]
        compute = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
        assert compute(dicts, 0.5).tolist() == pytest.approx(by_hand)
        assert compute(dicts, 0.5, sqrt=False).tolist() == pytest.approx([1.0, 2.0, 2.0, 1.0])
        assert compute(dicts, 0.0).tolist() == [1.0] * 4

    @pytest.mark.parametrize("factors", [[0.0, 0.0], [1.0, -0.5], [1.0, math.inf], [math.nan, 1.0]])
    def test_bad_factors(self, factors):
        with pytest.raises(ValueError, match="finite, not negative, and not all zero"):
            RepeatFactorTrainingSampler(torch.tensor(factors))


class TestState:
    @pytest.mark.parametrize(
        "make",
        [
            lambda: TrainingSampler(20),
            lambda: RandomSubsetTrainingSampler(20, 0.5),
            lambda: RepeatFactorTrainingSampler(torch.rand(20) + 0.1),
        ],
    )
    def test_takes_over_the_sequence(self, make):
        torch.manual_seed(0)
        first = make()
        torch.manual_seed(0)  # the same repeat factors
        second = make()
        assert first.seed != second.seed and take(first, 30) != take(second, 30)
        second.load_state_dict(first.state_dict())
        assert take(first, 100) == take(second, 100) and first.state_dict() == second.state_dict()


class TestInferenceSampler:
    def test_empty(self):
        assert list(InferenceSampler(0)) == [] and len(InferenceSampler(0)) == 0
        with pytest.raises(ValueError):
            InferenceSampler(-1)

    def test_alone(self):
        assert list(InferenceSampler(5)) == [0, 1, 2, 3, 4]

    @given(st.integers(0, 60), st.integers(1, 9))
    def test_ranks_cover_everything_once(self, size, world_size):
        shares = [InferenceSampler._get_local_indices(size, world_size, rank) for rank in range(world_size)]
        assert [i for share in shares for i in share] == list(range(size))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1

    def test_uses_its_rank(self, on_rank):
        sampler = on_rank(1, 3, lambda: InferenceSampler(8))
        assert list(sampler) == [3, 4, 5] and len(sampler) == 3
