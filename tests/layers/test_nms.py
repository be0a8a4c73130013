import importlib

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from detectron2.layers import batched_nms, batched_nms_rotated, nms, nms_rotated
from detectron2.layers.rotated_boxes import pairwise_iou_rotated

nms_module = importlib.import_module("detectron2.layers.nms")  # the package has the function under this name


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


def test_other_lengths():
    boxes = torch.rand(5, 4)
    for scores, groups in ((4, 5), (5, 4)):
        with pytest.raises(ValueError, match=r"batched_nms expects one score .* each of 5 boxes; got shape \(4,\)"):
            batched_nms(boxes, torch.rand(scores), torch.zeros(groups), 0.5)


class TestRotated:
    """Greedy suppression of rotated boxes, against one that goes box by box through the matrix of all overlaps."""

    @staticmethod
    def boxes(n, span=100.0, seed=0):
        generator = torch.Generator().manual_seed(seed)
        unit = torch.rand(n, 5, generator=generator)
        boxes = unit * torch.tensor([span, span, 40, 20, 360]) + torch.tensor([0.0, 0, 4, 4, -180])
        return boxes, torch.rand(n, generator=generator)

    @staticmethod
    def slow(boxes, scores, groups, threshold):
        overlap = (pairwise_iou_rotated(boxes, boxes) > threshold).numpy()
        kept = []
        for i in np.argsort(-scores.numpy(), kind="stable"):
            if not any(overlap[i, j] and groups[i] == groups[j] for j in kept):
                kept.append(int(i))
        return kept

    def test_no_boxes(self):
        none = torch.zeros(0, 5), torch.zeros(0)
        for keep in (nms_rotated(*none, 0.5), batched_nms_rotated(*none, torch.zeros(0, dtype=torch.int64), 0.5)):
            assert keep.shape == (0,) and keep.dtype == torch.int64

    @pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5, 0.7, 1.0])
    @pytest.mark.parametrize(("n", "span"), [(1, 1.0), (300, 20.0), (700, 300.0)])
    def test_against_a_slow_one(self, n, span, threshold):
        boxes, scores = self.boxes(n, span)
        groups = torch.arange(n) % 3 - 1
        assert nms_rotated(boxes, scores, threshold).tolist() == self.slow(boxes, scores, torch.zeros(n), threshold)
        keep = batched_nms_rotated(boxes, scores, groups, threshold)
        assert keep.tolist() == self.slow(boxes, scores, groups, threshold)

    @settings(max_examples=30, deadline=None)
    @given(st.integers(1, 60), st.integers(1, 8), st.integers(0, 2**31))
    def test_blocks_do_not_matter(self, n, block, seed):
        boxes, scores = self.boxes(n, 40.0, seed)
        expected = self.slow(boxes, scores, torch.zeros(n), 0.2)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nms_module, "_FIRST_BLOCK", block)
            patch.setattr(nms_module, "_LARGEST_BLOCK", 2 * block)
            assert nms_rotated(boxes, scores, 0.2).tolist() == expected

    @pytest.mark.parametrize("limit", [0, 1, 5, 1000])
    def test_limit_keeps_the_best(self, limit):
        boxes, scores = self.boxes(600)
        everything = nms_rotated(boxes, scores, 0.3)
        assert nms_module.greedy_nms(boxes, scores, 0.3, limit=limit).tolist() == everything[:limit].tolist()

    def test_a_long_chain(self):
        """Each box suppresses the next unless it is suppressed itself, so every second one stays."""
        boxes = torch.tensor([[10.0 * i, 0, 14, 4, 0] for i in range(500)])
        assert nms_rotated(boxes, -torch.arange(500.0), 0.1).tolist() == list(range(0, 500, 2))

    def test_upright_boxes_as_by_the_other(self):
        corners = random_boxes(400)
        size_wh = corners[:, 2:] - corners[:, :2]
        center = (corners[:, 2:] + corners[:, :2]) / 2
        scores = torch.rand(400)
        rotated = torch.cat([center, size_wh, torch.zeros(400, 1)], dim=1)
        assert nms_rotated(rotated, scores, 0.4).tolist() == nms(corners, scores, 0.4).tolist()

    def test_turned_by_180_degrees_is_the_same_region(self):
        boxes = torch.tensor([[5.0, 3, 4, 2, a] for a in (0, 180, -180, 360)])
        assert nms_rotated(boxes, torch.tensor([0.1, 0.4, 0.3, 0.4]), 0.99).tolist() == [1]
        assert batched_nms_rotated(boxes, torch.ones(4), torch.tensor([0, 1, 2, 0]), 0.99).tolist() == [0, 1, 2]

    def test_half_precision_and_empty_boxes(self):
        boxes = torch.tensor([[5.0, 3, 4, 2, 0], [5, 3, 4, 2, 0], [5, 3, 0, 2, 0], [5, 3, 0, 2, 0]]).half()
        scores = torch.tensor([0.5, 0.6, 0.7, 0.8]).half()
        assert nms_rotated(boxes, scores, 0.5).tolist() == [3, 2, 1]

    def test_wrong_shapes(self):
        with pytest.raises(ValueError, match=r"shape \(N, 5\)"):
            nms_rotated(torch.zeros(2, 4), torch.zeros(2), 0.5)
        with pytest.raises(ValueError, match="each of 2 boxes"):
            batched_nms_rotated(torch.zeros(2, 5), torch.zeros(2), torch.zeros(3), 0.5)
