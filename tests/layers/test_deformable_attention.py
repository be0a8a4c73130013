"""Deformable attention against a loop over its definition."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from detectron2.layers import (
    DeformableEncoderLayer,
    MultiScaleDeformableAttention,
    multi_scale_deformable_attention,
)


def bilinear(plane, x, y):
    """One sample at `(x, y)` in parts of a map, `plane` an array (H, W, D); what is outside is zero."""
    height, width, channels = plane.shape
    x, y = x * width - 0.5, y * height - 0.5
    out = np.zeros(channels)
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                out += plane[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return out


def slow(value, shapes, locations, weights):
    images, queries, heads, levels, points, _ = locations.shape
    out = np.zeros((images, queries, heads, value.shape[3]))
    first = np.cumsum([0, *(h * w for h, w in shapes)])
    for n, q, m, level, p in np.ndindex(images, queries, heads, levels, points):
        plane = value[n, first[level] : first[level + 1], m].numpy().reshape(*shapes[level], -1)
        sample = bilinear(plane, *locations[n, q, m, level, p].tolist())
        out[n, q, m] += weights[n, q, m, level, p].item() * sample
    return torch.from_numpy(out).flatten(2)


def inputs(images, shapes, queries, heads, points, channels, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    cells = sum(h * w for h, w in shapes)
    value = torch.randn(images, cells, heads, channels, generator=generator, dtype=dtype)
    where = (images, queries, heads, len(shapes), points)
    locations = torch.rand(*where, 2, generator=generator, dtype=dtype) * 1.6 - 0.3  # a part of them outside
    return value, shapes, locations, torch.rand(where, generator=generator, dtype=dtype)


@pytest.mark.parametrize(("images", "queries"), [(0, 3), (2, 0)])
def test_nothing_to_attend(images, queries):
    assert multi_scale_deformable_attention(*inputs(images, [(2, 3)], queries, 2, 1, 4)).shape == (images, queries, 8)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 2),
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=3),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(0, 99),
)
def test_against_a_loop(images, shapes, queries, heads, points, seed):
    arguments = inputs(images, shapes, queries, heads, points, 3, seed)
    torch.testing.assert_close(multi_scale_deformable_attention(*arguments), slow(*arguments))


def test_gradient():
    value, shapes, locations, weights = inputs(1, [(3, 4), (2, 2)], 2, 2, 2, 2)
    for tensor in (value, locations, weights):
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v, at, w: multi_scale_deformable_attention(v, shapes, at, w), (value, locations, weights)
    )


def test_maps_of_other_sizes():
    value, _, locations, weights = inputs(1, [(3, 4)], 2, 2, 2, 2)
    with pytest.raises(ValueError, match=r"12 cells.*\[\(3, 3\)\].*have 9"):
        multi_scale_deformable_attention(value, [(3, 3)], locations, weights)


def attention(**kwargs):
    torch.manual_seed(3)
    module = MultiScaleDeformableAttention(embed_dim=8, num_heads=2, num_levels=2, num_points=3, **kwargs).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


SHAPES = [(3, 4), (2, 2)]


@pytest.mark.parametrize("numbers", [2, 4])
def test_module_against_its_definition(numbers):
    module = attention()
    query, value = torch.randn(2, 5, 8).double(), torch.randn(2, 16, 8).double()
    references = torch.rand(2, 5, 2, numbers).double()
    padding = torch.rand(2, 16) < 0.3
    got = module(query, references, value, SHAPES, padding)

    cells = (module.value_proj(value) * ~padding[..., None]).reshape(2, 16, 2, 4).detach()
    offsets = module.sampling_offsets(query).reshape(2, 5, 2, 2, 3, 2).detach()
    weights = module.attention_weights(query).reshape(2, 5, 2, 6).softmax(-1).reshape(2, 5, 2, 2, 3).detach()
    locations = torch.zeros_like(offsets)
    for level, (height, width) in enumerate(SHAPES):
        at = references[:, :, level, None, None]
        if numbers == 2:
            locations[:, :, :, level] = at + offsets[:, :, :, level] / torch.tensor([width, height])
        else:
            locations[:, :, :, level] = at[..., :2] + offsets[:, :, :, level] * at[..., 2:] / 2 / 3
    torch.testing.assert_close(got, module.output_proj(slow(cells, SHAPES, locations, weights)))


def test_points_lie_in_all_directions_at_the_start():
    module = MultiScaleDeformableAttention(embed_dim=8, num_heads=4, num_levels=2, num_points=2)
    offsets = module.sampling_offsets(torch.randn(1, 8)).reshape(4, 2, 2, 2)
    for level in (0, 1):
        right, down, left, up = offsets[:, level]
        torch.testing.assert_close(right, torch.tensor([[1.0, 0], [2, 0]]), atol=1e-6, rtol=0)
        torch.testing.assert_close(down, torch.tensor([[0, 1.0], [0, 2]]), atol=1e-6, rtol=0)
        torch.testing.assert_close(left, -right, atol=1e-6, rtol=0)
        torch.testing.assert_close(up, -down, atol=1e-6, rtol=0)
    assert not module.attention_weights(torch.randn(1, 8)).any()


def test_bad_arguments():
    with pytest.raises(ValueError, match="embed_dim must be a multiple of num_heads, got 10 and 4"):
        MultiScaleDeformableAttention(embed_dim=10, num_heads=4)
    with pytest.raises(ValueError, match=r"2 or 4 numbers, got shape \(1, 1, 2, 3\)"):
        attention()(torch.rand(1, 1, 8).double(), torch.rand(1, 1, 2, 3), torch.rand(1, 16, 8).double(), SHAPES)


def test_encoder_layer_against_its_definition():
    torch.manual_seed(0)
    layer = DeformableEncoderLayer(8, 2, num_levels=2, num_points=3, feedforward_dim=16, dropout=0.5).double().eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    cells, positions = torch.randn(2, 2, 16, 8).double()
    places, padding = torch.rand(2, 16, 2, 2).double(), torch.rand(2, 16) < 0.3
    got = layer(cells, positions, places, SHAPES, padding)
    attended = layer.norm1(cells + layer.self_attn(cells + positions, places, cells, SHAPES, padding))
    hidden = torch.relu(attended @ layer.linear1.weight.T + layer.linear1.bias)
    expected = layer.norm2(attended + hidden @ layer.linear2.weight.T + layer.linear2.bias)
    torch.testing.assert_close(got, expected)
    assert not torch.equal(layer.train()(cells, positions, places, SHAPES, padding), got)  # dropout
