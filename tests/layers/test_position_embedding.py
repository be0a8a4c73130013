"""Sine embeddings against the formula, number by number."""

import math

import pytest
import torch

from detectron2.layers import SinePositionEmbedding, sine_embedding


def test_nothing():
    assert sine_embedding(torch.zeros(0, 3), 6).shape == (0, 3, 6)
    assert SinePositionEmbedding(4)(torch.zeros(0, 2, 3, dtype=torch.bool)).shape == (0, 8, 2, 3)


def formula(value, channels, temperature):
    out = []
    for i in range(channels // 2):
        angle = value / temperature ** (2 * i / channels)
        out += [math.sin(angle), math.cos(angle)]
    return out


@pytest.mark.parametrize("temperature", [20.0, 10000.0])
def test_values(temperature):
    values = [0.0, -1.5, 2.75]
    expected = torch.tensor([formula(value, 6, temperature) for value in values])
    torch.testing.assert_close(sine_embedding(torch.tensor(values), 6, temperature), expected)


def test_odd_channels():
    with pytest.raises(ValueError, match="num_channels must be even, got 5"):
        sine_embedding(torch.zeros(1), 5)


@pytest.mark.parametrize(("normalize", "offset"), [(True, 0.0), (True, -0.5), (False, 0.0)])
def test_rows_and_columns(normalize, offset):
    padding = torch.ones(2, 4, 5, dtype=torch.bool)
    sizes = [(4, 5), (2, 3)]
    for mask, (height, width) in zip(padding, sizes, strict=True):
        mask[:height, :width] = False
    got = SinePositionEmbedding(6, temperature=50.0, normalize=normalize, offset=offset)(padding)
    for n, (height, width) in enumerate(sizes):
        for row in range(height):
            for column in range(width):
                y, x = row + 1.0, column + 1.0
                if normalize:
                    y, x = (y + offset) / height * 2 * math.pi, (x + offset) / width * 2 * math.pi
                expected = torch.tensor(formula(y, 6, 50.0) + formula(x, 6, 50.0))
                torch.testing.assert_close(got[n, :, row, column], expected, atol=1e-4, rtol=1e-4)
