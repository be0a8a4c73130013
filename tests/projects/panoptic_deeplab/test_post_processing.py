"""Grouping of pixels and merging against loops over pixels, instances and classes."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectron2.projects.panoptic_deeplab import get_panoptic_segmentation
from detectron2.projects.panoptic_deeplab import post_processing as P

THINGS = [1, 3]


def _peaks(heatmap, threshold, kernel):
    h, w = heatmap.shape
    half = kernel // 2
    return [
        [y, x]
        for y in range(h)
        for x in range(w)
        if heatmap[y, x] > threshold
        and heatmap[y, x] == heatmap[max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1].max()
    ]


@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("threshold", [0.1, 0.7])
def test_find_instance_center(kernel, threshold):
    heatmap = torch.rand(1, 13, 17)
    found = P.find_instance_center(heatmap, threshold, kernel)
    assert found.tolist() == _peaks(heatmap[0].numpy(), np.float32(threshold), kernel)


def test_find_instance_center_keeps_the_best():
    heatmap = torch.zeros(1, 9, 9)
    heatmap[0, [0, 0, 4, 8], [0, 8, 4, 0]] = torch.tensor([0.5, 0.9, 0.3, 0.7])
    assert P.find_instance_center(heatmap, 0.1, 3).tolist() == [[0, 0], [0, 8], [4, 4], [8, 0]]
    assert P.find_instance_center(heatmap, 0.1, 3, top_k=2).tolist() == [[0, 8], [8, 0]]
    assert P.find_instance_center(heatmap, 0.1, 3, top_k=9).tolist() == [[0, 0], [0, 8], [4, 4], [8, 0]]
    assert P.find_instance_center(heatmap, 0.95, 3, top_k=2).shape == (0, 2)
    assert P.find_instance_center(torch.zeros(1, 4, 4), -1.0, 3).shape == (0, 2)
    for kernel in (0, 4):
        with pytest.raises(ValueError, match="odd"):
            P.find_instance_center(heatmap, nms_kernel=kernel)


@pytest.mark.parametrize("limit", [1 << 24, 7])
def test_group_pixels(monkeypatch, limit):
    monkeypatch.setattr(P, "_DISTANCES_ON_CPU", limit)
    centers, offsets = torch.randint(0, 12, (5, 2)), torch.randn(2, 6, 9) * 4
    found = P.group_pixels(centers, offsets)
    assert found.shape == (1, 6, 9)
    for y in range(6):
        for x in range(9):
            at = np.array([y + offsets[0, y, x].item(), x + offsets[1, y, x].item()])
            distances = np.linalg.norm(centers.numpy() - at, axis=1)
            assert distances[found[0, y, x].item() - 1] <= distances.min() + 1e-5
    with pytest.raises(ValueError, match="at least one"):
        P.group_pixels(centers[:0], offsets)


@pytest.mark.parametrize("given", [False, True])
def test_get_instance_segmentation(given):
    sem_seg = torch.randint(0, 4, (1, 6, 9))
    heatmap, offsets = torch.rand(1, 6, 9), torch.randn(2, 6, 9)
    things = torch.from_numpy(np.isin(sem_seg.numpy(), THINGS))
    found, centers = P.get_instance_segmentation(
        sem_seg, heatmap, offsets, things if given else None, THINGS, nms_kernel=3
    )
    torch.testing.assert_close(centers[0], P.find_instance_center(heatmap, 0.1, 3))
    torch.testing.assert_close(found, P.group_pixels(centers[0], offsets) * things)
    found, centers = P.get_instance_segmentation(sem_seg, heatmap * 0, offsets, things, THINGS)
    assert found.sum() == 0 and centers.shape == (1, 0, 2)


def _merge(sem_seg, instances, things, divisor, stuff_area, void):
    """The definition, one instance and one class at a time."""
    out = np.full(sem_seg.shape, void)
    numbers = Counter()
    for i in range(1, instances.max() + 1 if instances.size else 1):
        mask = (instances == i) & things
        if mask.any():
            label = np.bincount(sem_seg[mask]).argmax()
            numbers[label] += 1
            out[mask] = label * divisor + numbers[label]
    for label in np.unique(sem_seg):
        mask = (sem_seg == label) & (instances == 0)
        if label not in THINGS and mask.sum() >= max(stuff_area, 1):
            out[mask] = label * divisor
    return out


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 8), st.integers(1, 8), st.integers(0, 4), st.sampled_from([0, 5, 99]), st.integers(0, 10**6))
def test_merge_semantic_and_instance(height, width, count, stuff_area, seed):
    rng = np.random.default_rng(seed)
    sem_seg, instances = rng.integers(0, 5, (1, height, width)), rng.integers(0, count + 1, (1, height, width))
    things = np.isin(sem_seg, THINGS)
    found = P.merge_semantic_and_instance(
        torch.from_numpy(sem_seg), torch.from_numpy(instances), torch.from_numpy(things), 100, THINGS, stuff_area, -1
    )
    assert found.dtype == torch.int64
    np.testing.assert_array_equal(found.numpy(), _merge(sem_seg, instances, things, 100, stuff_area, -1))


def test_panoptic_segmentation_by_hand():
    sem_seg = torch.zeros(1, 8, 12, dtype=torch.int64)
    sem_seg[0, 2:6, 1:5] = 1
    sem_seg[0, 2:6, 7:11] = 1
    sem_seg[0, 5, 10] = 3  # a wrong label is outvoted by the rest of the object
    sem_seg[0, 7, :3] = 2  # too little
    heatmap = torch.zeros(1, 8, 12)
    heatmap[0, 4, 3], heatmap[0, 4, 9] = 0.9, 0.8
    offsets = torch.zeros(2, 8, 12)
    ids, centers = get_panoptic_segmentation(sem_seg, heatmap, offsets, THINGS, 1000, 4, -1)
    assert centers.tolist() == [[[4, 3], [4, 9]]]
    expected = torch.zeros(1, 8, 12, dtype=torch.int64)
    expected[0, 2:6, 1:5], expected[0, 2:6, 7:11], expected[0, 7, :3] = 1001, 1002, -1
    assert torch.equal(ids, expected)
    # Offsets that point to the other object make the two one.
    offsets[1, :, 7:] = -6
    ids, _ = get_panoptic_segmentation(sem_seg, heatmap, offsets, THINGS, 1000, 4, -1)
    assert ids[0, 3, 8] == ids[0, 3, 2] == 1001


def test_without_a_center_things_are_void():
    sem_seg = torch.tensor([[[1, 1, 0, 0]]])
    zeros = torch.zeros(1, 1, 4)
    ids, centers = get_panoptic_segmentation(sem_seg, zeros, zeros.expand(2, 1, 4), THINGS, 10, 1, -1)
    assert ids.tolist() == [[[-1, -1, 0, 0]]] and centers.shape == (1, 0, 2)


def test_foreground_mask_decides():
    sem_seg, heatmap = torch.tensor([[[1, 1, 0, 3]]]), torch.tensor([[[0.0, 1.0, 0.0, 0.0]]])
    mask = torch.tensor([[[0, 1, 1, 0]]])
    ids, _ = get_panoptic_segmentation(sem_seg, heatmap, torch.zeros(2, 1, 4), THINGS, 10, 1, -1, foreground_mask=mask)
    assert ids.tolist() == [[[-1, 1, 1, -1]]]  # an instance of label 0, the first of two equally frequent ones


def test_maps_of_one_image():
    one, two = torch.zeros(1, 4, 4), torch.zeros(2, 4, 4)
    label = one.long()
    for arguments in ((label[0], one, two), (label, two, two), (label, one, one)):
        with pytest.raises(ValueError, match="one image"):
            get_panoptic_segmentation(*arguments, THINGS, 10, 1, -1)
