import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from detectron2.layers import batched_nms, nms


def slow_nms(boxes, scores, groups, threshold):
    """Greedy suppression, pair by pair."""
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        a = boxes[i]
        for j in kept:
            b = boxes[j]
            if groups[i] != groups[j]:
                continue
            w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
            inter = max(w, 0) * max(h, 0)
            union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
            if inter > threshold * union:
                break
        else:
            kept.append(i)
    return kept


def random_boxes(n, size=200.0, generator=None):
    low = torch.rand(n, 2, generator=generator) * size
    return torch.cat([low, low + 1 + torch.rand(n, 2, generator=generator) * size / 3], dim=1)


def test_nms_is_that_of_torchvision():
    assert nms is torchvision.ops.nms


def test_no_boxes():
    keep = batched_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0.5)
    assert keep.dtype == torch.int64 and keep.shape == (0,)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 6), st.sampled_from([0.0, 0.3, 0.5, 0.7]), st.integers(0, 2**31))
def test_against_a_slow_one(n, groups, threshold, seed):
    g = torch.Generator().manual_seed(seed)
    boxes, scores = random_boxes(n, 60.0, g), torch.rand(n, generator=g)
    idxs = torch.randint(0, groups, (n,), generator=g)
    got = batched_nms(boxes, scores, idxs, threshold)
    assert got.tolist() == slow_nms(boxes.double().numpy(), scores.numpy(), idxs.numpy(), threshold)


@pytest.mark.parametrize("groups", [3, 80, 3000])
def test_many_boxes(groups):
    boxes, scores, idxs = random_boxes(1100), torch.rand(1100), torch.randint(0, groups, (1100,))
    got = batched_nms(boxes, scores, idxs, 0.5)
    assert got.tolist() == slow_nms(boxes.double().numpy(), scores.numpy(), idxs.numpy(), 0.5)


@pytest.mark.parametrize("n", [2, 1200])
def test_high_group_numbers_keep_their_precision(n):
    # IoU of 0.499 and of 0.501; float32 coordinates moved by 3000 groups times 4000 pixels could not tell them apart.
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 4.99, 1]]).repeat(n // 2, 1)
    boxes[:, [0, 2]] += 4000
    scores = torch.tensor([0.9, 0.8]).repeat(n // 2)
    idxs = (torch.arange(n) // 2) + 3000
    assert len(batched_nms(boxes, scores, idxs, 0.5)) == n
    boxes[1::2, 2] += 0.02
    assert len(batched_nms(boxes, scores, idxs, 0.5)) == n // 2


def test_negative_coordinates_and_groups():
    boxes = torch.tensor([[-10.0, -10, -1, -1], [-10, -10, -1, -1], [-10, -10, -1, -1]])
    keep = batched_nms(boxes, torch.tensor([0.1, 0.9, 0.5]), torch.tensor([-1, 0, 0]), 0.5)
    assert keep.tolist() == [1, 0]


@pytest.mark.parametrize("n", [4, 1500])
def test_half_precision(n):
    boxes, scores, idxs = random_boxes(n).half(), torch.rand(n), torch.randint(0, 3, (n,))
    expected = batched_nms(boxes.float(), scores, idxs, 0.5)
    assert torch.equal(batched_nms(boxes, scores, idxs, 0.5), expected)


def test_wrong_shape():
    with pytest.raises(ValueError, match=r"\(N, 4\), got \(3, 5\)"):
        batched_nms(torch.zeros(3, 5), torch.zeros(3), torch.zeros(3), 0.5)
