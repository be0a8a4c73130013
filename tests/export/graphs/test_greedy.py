"""Suppression block by block keeps what the definition keeps, in the same order."""

import pytest
import torch

from detectron2.export.graphs import greedy as module
from detectron2.export.graphs.greedy import greedy_best
from detectron2.utils.env import TORCH_VERSION
from tests.export.graphs.test_operators import greedy, some


def best(boxes, scores, groups, threshold, limit):
    """Indices by the definition, group by group."""
    kept = []
    for group in set(groups):
        mine = [s if g == group else -torch.inf for s, g in zip(scores, groups, strict=True)]
        kept += greedy(boxes, mine, threshold)
    return sorted(kept, key=lambda i: (-scores[i], i))[:limit]


@pytest.mark.parametrize("together", [1, 4, 16, 256])
@pytest.mark.parametrize("limit", [1, 5, 60])
def test_keeps_the_best(monkeypatch, together, limit):
    monkeypatch.setattr(module, "_TOGETHER", together)
    boxes, scores = some(2, 1, 60)
    scores = scores[:, 0]
    groups = torch.arange(60).expand(2, 60) % 3
    index, found = greedy_best(boxes, scores, groups, 0.4, limit)
    assert index.shape == found.shape == (2, limit)
    for i in range(2):
        want = best(boxes[i].tolist(), scores[i].tolist(), groups[i].tolist(), 0.4, limit)
        assert index[i][found[i]].tolist() == want
        assert found[i].tolist() == [True] * len(want) + [False] * (limit - len(want))


def test_no_candidates():
    boxes, scores = some(2, 1, 9, empty=2.0)
    index, found = greedy_best(boxes, scores[:, 0], torch.zeros(2, 9, dtype=torch.int64), 0.5, 4)
    assert index.shape == (2, 4) and not found.any()


def test_a_chain_of_boxes():
    """Each box overlaps the next: every second one stays, however long the chain."""
    left = torch.arange(40.0)
    boxes = torch.stack((left, torch.zeros(40), left + 2.5, torch.ones(40)), dim=1)[None]
    index, found = greedy_best(boxes, torch.linspace(1, 0, 40)[None], torch.zeros(1, 40, dtype=torch.int64), 0.3, 40)
    assert index[found].tolist() == list(range(0, 40, 2))


@pytest.mark.skipif(TORCH_VERSION < (2, 7), reason="PyTorch 2.6 does not compile the loop that it exports")
def test_exported_without_sizes_that_depend_on_values():
    class Model(torch.nn.Module):
        def forward(self, boxes, scores, groups):
            return greedy_best(boxes, scores, groups, 0.4, 7)

    boxes, scores = some(2, 1, 30)
    groups = torch.zeros(2, 30, dtype=torch.int64)
    program = torch.export.export(Model(), (boxes, scores[:, 0], groups), strict=False)
    assert not program.range_constraints
    for seed, empty in ((1, 0.2), (2, 2.0)):
        boxes, scores = some(2, 1, 30, seed=seed, empty=empty)
        for got, want in zip(
            program.module()(boxes, scores[:, 0], groups), Model()(boxes, scores[:, 0], groups), strict=True
        ):
            assert torch.equal(got, want)
