"""Data sets in chosen proportions."""

import itertools
from collections import Counter

import pytest
import torch

from detectron2.data.samplers import TrainingSampler, WeightedTrainingSampler


def draw(sampler, n):
    return Counter(itertools.islice(sampler, n))


@pytest.mark.parametrize(
    ("sizes", "weights", "message"),
    [
        ([], [], "not all zero"),
        ([0], [1], "no images"),
        ([2, 3], [1], "1 weights .* for 2 data sets"),
        ([2, 3], [1, -1], "negative"),
        ([2, 3], [1, float("nan")], "negative"),
        ([2, 3], [0, 0], "all zero"),
        ([2, 0], [1, 1], "Data set 1 has no images"),
    ],
)
def test_errors(sizes, weights, message):
    with pytest.raises(ValueError, match=message):
        WeightedTrainingSampler(sizes, weights)


def test_image_factors_of_other_images():
    with pytest.raises(ValueError, match="2 image factors for 3 images"):
        WeightedTrainingSampler([3], [1], image_factors=torch.ones(2))


def test_one_data_set_is_the_training_sampler():
    counts = draw(WeightedTrainingSampler([8], [3.0], seed=1), 24)
    assert counts == draw(TrainingSampler(8, seed=1), 24) == dict.fromkeys(range(8), 3)


def test_shares():
    # 2 and 8 images in equal shares: 5 of 10 draws each.
    sampler = WeightedTrainingSampler([2, 8], [1, 1], seed=1)
    assert sampler.repeat_factors.tolist() == pytest.approx([2.5] * 2 + [0.625] * 8)
    counts = draw(sampler, 20_000)
    assert counts[0] + counts[1] == pytest.approx(10_000, rel=0.03)
    assert max(counts[i] for i in range(2, 10)) < 1.1 * min(counts[i] for i in range(2, 10))


def test_left_out():
    sampler = WeightedTrainingSampler([2, 0, 3], [0, 0, 5], seed=1)
    assert draw(sampler, 3000) == dict.fromkeys([2, 3, 4], pytest.approx(1000, rel=0.1))


def test_image_factors_within_a_data_set():
    sampler = WeightedTrainingSampler([2, 2], [3, 1], image_factors=torch.tensor([1.0, 3.0, 7.0, 7.0]))
    assert sampler.repeat_factors.tolist() == pytest.approx([0.75, 2.25, 0.5, 0.5])
