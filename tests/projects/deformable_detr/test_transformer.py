import math

import pytest
import torch

from detectron2.projects.deformable_detr.transformer import (
    MLP,
    DeformableTransformer,
    Levels,
    box_embedding,
    inverse_sigmoid,
    refine_boxes,
    take_rows,
)


def sizes(levels, layers):
    """Sizes of a small transformer."""
    counts = dict.fromkeys(("encoder_layers", "decoder_layers", "num_points"), layers)
    return {**counts, "embed_dim": 32, "num_heads": 4, "num_levels": levels, "feedforward_dim": 40, "dropout": 0.0}


def levels():
    """Maps of 2 x 4 and 1 x 2 cells; the second image covers the left half."""
    paddings = [torch.zeros(2, 2, 4, dtype=torch.bool), torch.zeros(2, 1, 2, dtype=torch.bool)]
    paddings[0][1, :, 2:] = paddings[1][1, :, 1:] = True
    maps = [torch.arange(2.0 * 8 * p[0].numel()).view(2, 8, *p.shape[1:]) for p in paddings]
    return Levels.of_maps(maps, [torch.zeros_like(x) for x in maps], paddings, torch.tensor([[1.0] * 8, [2.0] * 8]))


def test_levels_are_joined():
    found = levels()
    assert found.shapes == ((2, 4), (1, 2)) and found.cells.shape == (2, 10, 8)
    assert found.cells[1, :, 0].tolist() == [*range(64, 72), 16, 17]
    assert found.positions[0, :, 3].tolist() == [1.0] * 8 + [2.0] * 2
    assert found.image_wh.tolist() == [[[4, 2], [2, 1]], [[2, 2], [1, 1]]]
    assert found.padding[1].tolist() == [False, False, True, True] * 2 + [False, True]


def test_middles_and_anchors_of_cells():
    centers, anchors = levels().centers(), levels().anchors()
    assert centers[0, :4].tolist() == [[0.125, 0.25], [0.375, 0.25], [0.625, 0.25], [0.875, 0.25]]
    assert centers[1, 4:8].tolist() == [[0.25, 0.75], [0.75, 0.75], [1.25, 0.75], [1.75, 0.75]]
    assert centers[1, 8:].tolist() == [[0.5, 0.5], [1.5, 0.5]]
    assert torch.equal(anchors[..., :2], centers)
    assert torch.allclose(anchors[0, :, 2:], torch.tensor([0.05] * 8 + [0.1] * 2)[:, None].expand(-1, 2))


def test_references_on_padded_maps():
    on_maps = levels().on_maps(torch.tensor([[[0.5, 0.5]]] * 2))
    assert on_maps.tolist() == [[[[0.5, 0.5], [0.5, 0.5]]], [[[0.25, 0.5], [0.25, 0.5]]]]
    boxes = levels().on_maps(torch.tensor([[[0.5, 0.5, 0.2, 0.4]]] * 2))
    assert torch.allclose(boxes[1, 0, 0], torch.tensor([0.25, 0.5, 0.1, 0.4]))


def test_inverse_sigmoid():
    assert inverse_sigmoid(torch.zeros(0)).shape == (0,)
    x = torch.tensor([0.0, 0.1, 0.5, 1.0])
    found = inverse_sigmoid(x, 1e-3)
    assert torch.allclose(found, torch.tensor([math.log(1e-3), math.log(1 / 9), 0.0, -math.log(1e-3)]))


@pytest.mark.parametrize("known", [2, 4])
def test_refined_boxes(known):
    references = torch.tensor([[0.5, 0.25, 0.2, 0.4]])[:, :known]
    same = refine_boxes(torch.zeros(1, 4), references)
    assert torch.allclose(same[:, :known], references)
    assert torch.equal(same[:, known:], torch.full((1, 4 - known), 0.5))
    moved = refine_boxes(torch.tensor([[0.3, 0.0, 0.0, 0.7]]), references)
    assert float(moved[0, 0]) == pytest.approx(1 / (1 + math.exp(-0.3)))


def test_embedding_of_boxes():
    found = box_embedding(torch.tensor([[0.25, 0.5]]), 4)
    angles = [0.5 * math.pi, 0.5 * math.pi / 100, math.pi, math.pi / 100]
    wanted = [f(x) for x in angles for f in (math.sin, math.cos)]
    assert torch.allclose(found, torch.tensor([wanted]), atol=1e-6)


def test_rows():
    x = torch.arange(12.0).view(2, 3, 2)
    assert take_rows(x, torch.zeros(2, 0, dtype=torch.int64)).shape == (2, 0, 2)
    assert take_rows(x, torch.tensor([[2, 0], [1, 1]])).tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]


def test_mlp():
    mlp = MLP(2, 3, 1)
    x = torch.randn(5, 2)
    hidden = (x @ mlp.layers[0].weight.T + mlp.layers[0].bias).clamp(min=0)
    assert torch.allclose(mlp(x), hidden @ mlp.layers[1].weight.T + mlp.layers[1].bias)


def test_padding_does_not_matter():
    """The same image alone and in a larger batch, with noise in the padding."""
    torch.manual_seed(0)
    transformer = DeformableTransformer(**sizes(1, 2)).eval()
    embed, image = torch.randn(3, 64), torch.randn(1, 32, 4, 5)
    noise = torch.randn(1, 32, 6, 8)
    noise[:, :, :4, :5] = image
    padding = torch.ones(1, 6, 8, dtype=torch.bool)
    padding[:, :4, :5] = False
    with torch.no_grad():
        alone, _, _ = transformer([image], [torch.zeros_like(image)], [torch.zeros(1, 4, 5) > 0], 3, embed)
        padded, _, _ = transformer([noise], [torch.zeros_like(noise)], [padding], 3, embed)
    assert torch.allclose(alone[-1], padded[-1], atol=1e-5)


def test_proposals_of_border_and_padding_are_alike():
    transformer = DeformableTransformer(two_stage=True, **sizes(2, 1))
    found = levels()
    memory = torch.randn(2, 10, 32)
    features, boxes = transformer.propose(memory, found)
    constant = transformer.enc_output_norm(transformer.enc_output(torch.zeros(32)))
    assert torch.allclose(features[found.padding], constant.expand(5, -1))
    assert boxes[found.padding].isinf().all() and boxes[~found.padding].isfinite().all()
    assert torch.allclose(boxes[0].sigmoid(), found.anchors()[0], atol=1e-6)


def test_starting_weights():
    transformer = DeformableTransformer(**sizes(2, 1))
    assert transformer.reference_points.bias.abs().max() == 0
    assert transformer.encoder.layers[0].self_attn.sampling_offsets.weight.abs().max() == 0
    assert transformer.level_embed.std() > 0.5
