import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectron2.modeling.roi_heads.matched_masks import MatchedBitMasks
from detectron2.projects.point_rend.point_features import (
    generate_regular_grid_point_coords,
    get_point_coords_wrt_image,
    get_uncertain_point_coords_on_grid,
    get_uncertain_point_coords_with_randomness,
    point_sample,
    point_sample_fine_grained_features,
    sample_point_labels,
)
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks

# An image without objects: its regions have no ground truth masks.
EMPTY = Instances((8, 8), gt_classes=torch.zeros(0, dtype=torch.int64))


def bilinear(values, x, y):
    """The value at `(x, y)` in cells of an array whose cell (i, j) has its centre at (j + 0.5, i + 0.5)."""
    height, width = values.shape
    x0, y0 = math.floor(x - 0.5), math.floor(y - 0.5)
    total = 0.0
    for i in (y0, y0 + 1):
        for j in (x0, x0 + 1):
            if 0 <= i < height and 0 <= j < width:
                total += values[i, j] * (1 - abs(x - 0.5 - j)) * (1 - abs(y - 0.5 - i))
    return total


@pytest.mark.parametrize("points", [0, 1, 7])
def test_point_sample_against_bilinear_interpolation_by_hand(points):
    maps = torch.randn(2, 3, 4, 5)
    coords = torch.rand(2, points, 2)
    got = point_sample(maps, coords, align_corners=False)
    assert got.shape == (2, 3, points)
    for n in range(2):
        for c in range(3):
            for p in range(points):
                x, y = coords[n, p].tolist()
                assert got[n, c, p].item() == pytest.approx(bilinear(maps[n, c].numpy(), 5 * x, 4 * y), abs=1e-5)


def test_point_sample_on_a_grid_and_in_other_types():
    maps = torch.randn(2, 3, 4, 5)
    coords = torch.rand(2, 6, 2)
    flat = point_sample(maps, coords, align_corners=False)
    torch.testing.assert_close(
        point_sample(maps, coords.view(2, 2, 3, 2), align_corners=False), flat.reshape(2, 3, 2, 3)
    )
    low = point_sample(maps.bfloat16(), coords, align_corners=False)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, flat, atol=0.05, rtol=0)
    nearest = point_sample(maps, coords, mode="nearest", align_corners=False)
    x, y = (coords[0, 0] * torch.tensor([5.0, 4.0])).long().tolist()
    torch.testing.assert_close(nearest[0, :, 0], maps[0, :, y, x])


@pytest.mark.parametrize("regions", [0, 2])
def test_regular_grid(regions):
    grid = generate_regular_grid_point_coords(regions, 2, "cpu")
    assert grid.shape == (regions, 4, 2)
    for of_region in grid.tolist():
        assert of_region == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]  # (x, y), row after row


@pytest.mark.parametrize(("num_points", "expected"), [(0, set()), (2, {1, 5}), (6, set(range(6))), (99, set(range(6)))])
def test_uncertain_points_on_grid(num_points, expected):
    uncertainty = torch.tensor([[[[0.0, 9.0, 1.0], [2.0, 3.0, 8.0]]]])
    indices, coords = get_uncertain_point_coords_on_grid(uncertainty, num_points)
    assert set(indices[0].tolist()) == expected
    for index, xy in zip(indices[0].tolist(), coords[0].tolist(), strict=True):
        assert xy == pytest.approx([(index % 3 + 0.5) / 3, (index // 3 + 0.5) / 2])


def test_uncertain_points_of_no_region():
    indices, coords = get_uncertain_point_coords_on_grid(torch.zeros(0, 1, 4, 4), 3)
    assert indices.shape == (0, 3) and coords.shape == (0, 3, 2)
    coords = get_uncertain_point_coords_with_randomness(torch.zeros(0, 2, 4, 4), lambda x: x[:, :1], 8, 3, 0.75)
    assert coords.shape == (0, 8, 2)


@pytest.mark.parametrize("ratio", [0.0, 0.75, 1.0])
def test_most_uncertain_candidates_come_first(ratio):
    values = torch.randn(2, 1, 16, 16, requires_grad=True)
    seen = []
    coords = get_uncertain_point_coords_with_randomness(values, lambda x: seen.append(x) or x, 40, 3, ratio)
    assert coords.shape == (2, 40, 2) and coords.min() >= 0 and coords.max() <= 1
    (candidates,) = seen
    assert candidates.shape == (2, 1, 120)
    count = int(40 * ratio)
    best = np.sort(candidates[:, 0].numpy(), axis=1)[:, ::-1][:, :count]
    chosen = point_sample(values.detach(), coords, align_corners=False)[:, 0]
    np.testing.assert_allclose(chosen[:, :count].numpy(), best, atol=1e-6)
    if ratio < 1:  # the others are drawn evenly
        assert coords[:, count:].min() < 0.2 and coords[:, count:].max() > 0.8
    assert not coords.requires_grad


def test_ratios_are_checked():
    logits = torch.zeros(1, 1, 4, 4)
    with pytest.raises(ValueError, match="oversample_ratio"):
        get_uncertain_point_coords_with_randomness(logits, lambda x: x, 4, 0.5, 0.75)
    with pytest.raises(ValueError, match="importance_sample_ratio"):
        get_uncertain_point_coords_with_randomness(logits, lambda x: x, 4, 3, 1.5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 100), min_size=4, max_size=4), st.floats(0, 1), st.floats(0, 1))
def test_corners_of_boxes_and_what_lies_between(numbers, x, y):
    x1, x2 = sorted(numbers[:2])
    y1, y2 = sorted(numbers[2:])
    box = torch.tensor([[x1, y1, x2, y2]], dtype=torch.float64)
    shares = torch.tensor([[[0, 0], [1, 1], [x, y]]], dtype=torch.float64)
    got = get_point_coords_wrt_image(box, shares)[0].tolist()
    for point, expected in zip(got, [(x1, y1), (x2, y2), (x1 + x * (x2 - x1), y1 + y * (y2 - y1))], strict=True):
        assert point == pytest.approx(expected, abs=1e-9)


def test_fine_grained_features_by_hand():
    p2, p3 = torch.randn(3, 2, 8, 12), torch.randn(3, 1, 4, 6)
    # Three images, of which the second has no region.
    boxes = [Boxes(torch.tensor([[4.0, 0, 20, 16], [8, 8, 40, 30]])), Boxes(torch.zeros(0, 4)), Boxes([[0, 0, 48, 32]])]
    coords = torch.rand(3, 5, 2)
    features, in_image = point_sample_fine_grained_features([p2, p3], [0.25, 0.125], boxes, coords)
    assert features.shape == (3, 3, 5) and in_image.shape == (3, 5, 2)
    regions = [(0, boxes[0].tensor[0]), (0, boxes[0].tensor[1]), (2, boxes[2].tensor[0])]
    for r, (image, box) in enumerate(regions):
        x1, y1, x2, y2 = box.tolist()
        for p in range(5):
            x, y = x1 + coords[r, p, 0].item() * (x2 - x1), y1 + coords[r, p, 1].item() * (y2 - y1)
            assert in_image[r, p].tolist() == pytest.approx([x, y], rel=1e-5)
            expected = [bilinear(p2[image, c].numpy(), x / 4, y / 4) for c in range(2)]
            expected.append(bilinear(p3[image, 0].numpy(), x / 8, y / 8))
            assert features[r, :, p].tolist() == pytest.approx(expected, abs=1e-4)


def test_fine_grained_features_of_no_region():
    features, in_image = point_sample_fine_grained_features(
        [torch.randn(2, 4, 8, 8)], [0.25], [Boxes(torch.zeros(0, 4))] * 2, torch.zeros(0, 5, 2)
    )
    assert features.shape == (0, 4, 5) and in_image.shape == (0, 5, 2)


@pytest.mark.parametrize("matched", [False, True])
def test_labels_are_interpolated_between_pixels(matched):
    masks = torch.rand(2, 10, 12) > 0.5
    owner = torch.tensor([1, 0, 1]) if matched else torch.tensor([0, 1])
    instances = Instances((10, 12))
    # The last one reaches beyond the image.
    instances.proposal_boxes = Boxes(torch.tensor([[1.0, 2, 9, 8], [0, 0, 12, 10], [-3, -2, 15, 12]])[: len(owner)])
    instances.gt_masks = MatchedBitMasks(BitMasks(masks), owner) if matched else BitMasks(masks)
    coords = torch.rand(len(owner), 9, 2)
    labels = sample_point_labels([EMPTY, instances], coords)
    for r, k in enumerate(owner.tolist()):
        x1, y1, x2, y2 = instances.proposal_boxes.tensor[r].tolist()
        for p in range(9):
            x, y = x1 + coords[r, p, 0].item() * (x2 - x1), y1 + coords[r, p, 1].item() * (y2 - y1)
            assert labels[r, p].item() == pytest.approx(bilinear(masks[k].numpy().astype(float), x, y), abs=1e-4)


@pytest.mark.parametrize("instances", [[], [EMPTY]])
def test_labels_of_no_region(instances):
    assert sample_point_labels(instances, torch.zeros(0, 6, 2)).shape == (0, 6)


def test_polygons_are_refused_with_advice():
    instances = Instances((8, 8))
    instances.proposal_boxes = Boxes([[0, 0, 4, 4]])
    instances.gt_masks = PolygonMasks([[np.array([0.0, 0, 4, 0, 4, 4])]])
    with pytest.raises(ValueError, match="MASK_FORMAT"):
        sample_point_labels([instances], torch.zeros(1, 2, 2))
