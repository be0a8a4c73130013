"""Overlap of rotated boxes, against shapely and by its laws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import affinity, geometry

from detectron2.layers import rotated_boxes
from detectron2.layers.rotated_boxes import pairwise_iou_rotated


def polygon(row):
    x, y, width, height, angle = (float(v) for v in row)
    upright = geometry.box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return affinity.rotate(upright, -angle, origin=(x, y))  # shapely turns counter-clockwise with y up


def expected_iou(boxes1, boxes2):
    first, second = [polygon(b) for b in boxes1], [polygon(b) for b in boxes2]
    rows = [[p.intersection(q).area / p.union(q).area for q in second] for p in first]
    return torch.tensor(rows, dtype=torch.float64)


def boxes_of(*rows, dtype=torch.float64):
    return torch.tensor(rows, dtype=dtype).reshape(-1, 5)


def random_boxes(count, span=60.0, size=50.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    unit = torch.rand(count, 5, generator=generator, dtype=torch.float64)
    low = torch.tensor([0.0, 0, 2, 2, -720], dtype=torch.float64)
    return unit * torch.tensor([span, span, size, size, 1440.0], dtype=torch.float64) + low


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (3, 0)])
def test_no_boxes(n, m):
    iou = pairwise_iou_rotated(torch.zeros(n, 5), torch.zeros(m, 5))
    assert iou.shape == (n, m)
    assert iou.dtype == torch.float32


@pytest.mark.parametrize("span", [1.0, 60.0, 400.0])
def test_random_boxes_against_shapely(span):
    boxes1, boxes2 = random_boxes(50, span), random_boxes(40, span, seed=1)
    torch.testing.assert_close(pairwise_iou_rotated(boxes1, boxes2), expected_iou(boxes1, boxes2), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("first", "second", "iou"),
    [
        ((5, 3, 4, 2, 0), (5, 3, 4, 2, 0), 1),
        ((5, 3, 4, 2, 90), (5, 3, 4, 2, -90), 1),
        ((5, 3, 4, 2, 17), (5, 3, 4, 2, 17 + 180), 1),
        ((5, 3, 4, 2, 17), (5, 3, 2, 4, 17 + 90), 1),
        ((5, 3, 4, 2, 0), (5, 3, 4, 2, 360e6), 1),
        ((5, 3, 10, 6, 0), (5, 3, 10, 6, 90), 36 / 84),
        ((0, 0, 2, 2, 0), (0, 0, 2, 2, 45), 1 / math.sqrt(2)),  # an octagon
        ((0, 0, 1, 1, 0), (0.5, 0, 1, 1, 0), 1 / 3),
        # touching: along a side, with a corner, corner to corner
        ((0, 0, 2, 2, 0), (2, 0, 2, 2, 0), 0),
        ((0, 0, 2, 2, 0), (1 + math.sqrt(2), 0, 2, 2, 45), 0),
        ((0, 0, 2, 2, 45), (2 * math.sqrt(2), 0, 2, 2, 45), 0),
        ((0, 0, 2, 2, 0), (2, 2, 2, 2, 0), 0),
        # their bounds overlap, they do not
        ((0, 0, 20, 1, 45), (3, 3, 20, 1, 45), 0),
        # nested, with and without common sides
        ((7, 7, 10, 10, 30), (7, 7, 5, 2, -11), 0.1),
        ((0, 0, 10, 10, 0), (-2.5, 0, 5, 10, 0), 0.5),
        ((0, 0, 10, 10, 90), (0, 2.5, 10, 5, 0), 0.5),
        # tiny, huge, thin, far away
        ((1e-6, 1e-6, 2e-8, 2e-8, 3), (1e-6, 1e-6, 1e-8, 1e-8, 3), 0.25),
        ((0, 0, 1e12, 1e12, 20), (0, 0, 5e11, 1e12, 20), 0.5),
        ((0, 0, 1e6, 1e6, 20), (1, 2, 1e-3, 1e-3, 50), 1e-18),
        ((5, 3, 1e-3, 6, 45), (5, 3, 1e-3, 6, 45), 1),
        ((5, 3, 1e-7, 600, 45), (5, 3, 1e-7, 300, 45), 0.5),
        ((5, 3, 100, 1, 45), (5, 3, 1, 100, 45), 1 / 199),
        ((1e7, 1e7, 10, 6, 30), (1e7, 1e7, 10, 3, 30), 0.5),
        # a box without area, or not a box
        ((5, 3, 0, 2, 0), (5, 3, 4, 2, 0), 0),
        ((5, 3, 0, 0, 0), (5, 3, 0, 0, 0), 0),
        ((5, 3, -4, -2, 0), (5, 3, 4, 2, 0), 0),
        ((math.nan, 3, 4, 2, 0), (5, 3, 4, 2, 0), 0),
        ((5, 3, math.inf, 2, 0), (5, 3, 4, 2, 0), 0),
        ((5, 3, 4, 2, math.inf), (5, 3, 4, 2, 0), 0),
    ],
)
def test_by_hand(first, second, iou):
    for a, b in ((first, second), (second, first)):
        got = pairwise_iou_rotated(boxes_of(a), boxes_of(b)).item()
        assert got == pytest.approx(iou, rel=1e-6, abs=1e-30 if iou else 0)


@pytest.mark.parametrize("exponent", [-3, -6, -9, -12, -15])
@pytest.mark.parametrize("column", range(5))
@pytest.mark.parametrize("angle", [0, 30, 45, 90, -123.456])
def test_nearly_identical_boxes(exponent, column, angle):
    """The published float32 operators once gave such pairs an IoU of 0 or of more than 1."""
    box = boxes_of((565, 565, 10, 8.3, angle))
    near = box.clone()
    near[0, column] += 10.0**exponent
    got = pairwise_iou_rotated(box, near)
    assert got.item() <= 1
    torch.testing.assert_close(got, expected_iou(box, near), rtol=0, atol=1e-11)


@pytest.mark.parametrize("angle", [0, 30, 45, 90, -123.456])
def test_boxes_in_single_precision_have_corners_in_single_precision(angle):
    """So it is in the published operators: a sliver does not quite cover itself. In float64 it does."""
    sliver = boxes_of((5, 3, 1e-3, 6, angle), dtype=torch.float32)
    _, _, width, height, degrees = sliver[0].double().tolist()
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    offsets = [(sx * width / 2, sy * height / 2) for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    rounded = torch.tensor([(cos * dx + sin * dy, cos * dy - sin * dx) for dx, dy in offsets], dtype=torch.float32)
    covered = geometry.Polygon(rounded.tolist()).area
    expected = covered / (2 * width * height - covered)
    assert pairwise_iou_rotated(sliver, sliver).item() == pytest.approx(expected, rel=1e-6)
    assert pairwise_iou_rotated(sliver.double(), sliver.double()).item() == pytest.approx(1, rel=1e-12)


def test_a_box_thinner_than_single_precision_covers_nothing():
    thin = boxes_of((5, 3, 1e-9, 600, 45), (5, 3, 10, 600, 45), dtype=torch.float32)
    assert pairwise_iou_rotated(thin, thin).tolist() == [[0, 0], [0, pytest.approx(1, rel=1e-5)]]


numbers = st.floats(-200, 200)
sides = st.floats(0.01, 300)
angles = st.one_of(st.floats(-720, 720), st.sampled_from([0.0, 45.0, 90.0, -90.0, 180.0, 270.0, 1e-7, 90 - 1e-7]))
box_rows = st.tuples(numbers, numbers, sides, sides, angles)


@settings(max_examples=80, deadline=None)
@given(box_rows, box_rows)
def test_against_shapely(first, second):
    first, second = boxes_of(first), boxes_of(second)
    torch.testing.assert_close(pairwise_iou_rotated(first, second), expected_iou(first, second), rtol=0, atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(box_rows, box_rows, st.floats(-360, 360), st.floats(0.1, 10))
def test_laws(first, second, turn, factor):
    a, b = boxes_of(first), boxes_of(second)
    iou = pairwise_iou_rotated(a, b).item()
    assert 0 <= iou <= 1
    assert pairwise_iou_rotated(b, a).item() == pytest.approx(iou, abs=1e-11)
    assert pairwise_iou_rotated(a, a).item() == pytest.approx(1, abs=1e-11)
    same = b[:, [0, 1, 3, 2, 4]] + boxes_of((0, 0, 0, 0, 90))  # the sides change names
    assert pairwise_iou_rotated(a, same).item() == pytest.approx(iou, abs=1e-10)

    def moved(row):
        x, y, width, height, angle = row
        cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        x, y = cos * x + sin * y, cos * y - sin * x
        return boxes_of((factor * x + 7, factor * y - 5, factor * width, factor * height, angle + turn))

    assert pairwise_iou_rotated(moved(first), moved(second)).item() == pytest.approx(iou, abs=1e-9)


def test_work_in_pieces_is_the_same(monkeypatch):
    boxes1, boxes2 = random_boxes(40), random_boxes(30, seed=1)
    whole = pairwise_iou_rotated(boxes1, boxes2)
    monkeypatch.setattr(rotated_boxes, "_PAIRS_AT_ONCE", {"cpu": 7})
    monkeypatch.setattr(rotated_boxes, "_TESTS_AT_ONCE", 100)
    torch.testing.assert_close(pairwise_iou_rotated(boxes1, boxes2), whole, rtol=0, atol=0)


def test_only_pairs_that_can_overlap_are_computed():
    apart = torch.arange(50.0)[:, None] * torch.tensor([30.0, 0, 0, 0, 0]) + boxes_of((0, 0, 20, 10, 30))
    table = rotated_boxes.box_table(apart)
    ((row, column),) = rotated_boxes.candidate_pairs(table, table)
    assert row.tolist() == column.tolist() == list(range(50))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_types(dtype):
    boxes = boxes_of((50, 30, 10, 6, 30), (52, 30, 10, 6, 0)).to(dtype).requires_grad_()
    iou = pairwise_iou_rotated(boxes, boxes)
    assert iou.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not iou.requires_grad
    torch.testing.assert_close(iou.double(), expected_iou(boxes.tolist(), boxes.tolist()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 4), (5,), (1, 2, 5)])
def test_wrong_shape(shape):
    with pytest.raises(ValueError, match=r"shape \(N, 5\)"):
        pairwise_iou_rotated(torch.zeros(2, 5), torch.zeros(shape))
