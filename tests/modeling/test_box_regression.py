"""Deltas computed by hand, laws of encoding and decoding, and the dense loss against a loop."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectron2.modeling.box_regression import (
    Box2BoxTransform,
    Box2BoxTransformLinear,
    Box2BoxTransformRotated,
    _dense_box_regression_loss,
)
from detectron2.structures import Boxes

WEIGHTS = [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0), (1.0, 2.0, 3.0, 4.0)]


@st.composite
def boxes(draw, count):
    number = st.floats(0, 200, width=32)
    side = st.floats(1, 150, width=32)
    rows = [(draw(number), draw(number), draw(side), draw(side)) for _ in range(count)]
    return torch.tensor([[x, y, x + w, y + h] for x, y, w, h in rows], dtype=torch.float64)


@pytest.mark.parametrize("transform", [Box2BoxTransform((1, 1, 1, 1)), Box2BoxTransformLinear()])
def test_no_boxes(transform):
    none = torch.zeros(0, 4)
    assert transform.get_deltas(none, none).shape == (0, 4)
    assert transform.apply_deltas(none, none).shape == (0, 4)
    assert transform.apply_deltas(torch.zeros(0, 12), none).shape == (0, 12)


@pytest.mark.parametrize("weights", [(), (5.0,), (1, 1, 1, 1, 1, 1), (1, 1, 1, 0), (1, 1, 1, math.nan)])
def test_impossible_weights(weights):
    with pytest.raises(ValueError, match=r"weights \(BBOX_REG_WEIGHTS\) must be four numbers above 0"):
        Box2BoxTransform(weights)


def test_deltas_by_hand():
    source = torch.tensor([[10.0, 20.0, 30.0, 60.0]])  # centre (20, 40), 20 x 40
    target = torch.tensor([[20.0, 20.0, 60.0, 40.0]])  # centre (40, 30), 40 x 20
    deltas = Box2BoxTransform((1.0, 2.0, 3.0, 4.0)).get_deltas(source, target)
    expected = [1.0 * 20 / 20, 2.0 * -10 / 40, 3.0 * math.log(2), 4.0 * math.log(0.5)]
    assert deltas.tolist() == [pytest.approx(expected)]


@pytest.mark.parametrize("weights", WEIGHTS)
@settings(max_examples=40, deadline=None)
@given(pair=st.tuples(boxes(3), boxes(3)))
def test_decoding_undoes_encoding(weights, pair):
    source, target = pair
    transform = Box2BoxTransform(weights, scale_clamp=100.0)
    decoded = transform.apply_deltas(transform.get_deltas(source, target), source)
    assert torch.allclose(decoded, target, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(pair=st.tuples(boxes(3), boxes(3)))
def test_zero_deltas_are_the_identity(pair):
    source, _ = pair
    decoded = Box2BoxTransform((10, 10, 5, 5)).apply_deltas(torch.zeros(3, 4), source)
    assert torch.allclose(decoded, source.float(), atol=1e-4)


def test_classes_are_decoded_independently():
    transform = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))
    source = torch.tensor([[0.0, 0.0, 10.0, 20.0], [5.0, 5.0, 9.0, 9.0]])
    deltas = torch.randn(2, 12)
    together = transform.apply_deltas(deltas, source)
    apart = torch.cat([transform.apply_deltas(deltas[:, i : i + 4], source) for i in (0, 4, 8)], dim=1)
    assert together.shape == (2, 12) and torch.allclose(together, apart)


def test_growth_is_clamped():
    transform = Box2BoxTransform((1.0, 1.0, 1.0, 1.0))
    decoded = transform.apply_deltas(torch.tensor([[0.0, 0.0, 99.0, 99.0]]), torch.tensor([[0.0, 0.0, 16.0, 16.0]]))
    assert torch.allclose(decoded, torch.tensor([[8 - 500.0, 8 - 500.0, 8 + 500.0, 8 + 500.0]]))


def test_low_precision_deltas_are_decoded_in_single_precision():
    source = torch.tensor([[0.0, 0.0, 1000.0, 1000.0]])
    decoded = Box2BoxTransform((1, 1, 1, 1)).apply_deltas(torch.zeros(1, 4, dtype=torch.bfloat16), source)
    assert decoded.dtype == torch.float32 and torch.equal(decoded, source)


def test_source_without_area_is_named():
    source = torch.tensor([[0.0, 0.0, 5.0, 5.0], [3.0, 3.0, 3.0, 9.0]])
    with pytest.raises(ValueError, match=r"box 1 of 2: \[3.0, 3.0, 3.0, 9.0\]"):
        Box2BoxTransform((1, 1, 1, 1)).get_deltas(source, source)


def test_boxes_objects_are_refused_with_advice():
    with pytest.raises(TypeError, match=r"pass \.tensor"):
        Box2BoxTransform((1, 1, 1, 1)).get_deltas(Boxes(torch.zeros(0, 4)), torch.zeros(0, 4))


def test_linear_deltas_by_hand():
    source = torch.tensor([[10.0, 20.0, 30.0, 60.0]])  # centre (20, 40), 20 x 40
    target = torch.tensor([[16.0, 30.0, 25.0, 60.0]])
    distances = [4.0, 10.0, 5.0, 20.0]
    assert Box2BoxTransformLinear(False).get_deltas(source, target).tolist() == [distances]
    normalized = [4 / 20, 10 / 40, 5 / 20, 20 / 40]
    assert Box2BoxTransformLinear().get_deltas(source, target).tolist() == [pytest.approx(normalized)]


@pytest.mark.parametrize("normalize", [True, False])
@settings(max_examples=40, deadline=None)
@given(source=boxes(2), distances=st.lists(st.floats(0, 50, width=32), min_size=8, max_size=8))
def test_linear_decoding_undoes_encoding(normalize, source, distances):
    centre = (source[:, :2] + source[:, 2:]) / 2
    d = torch.tensor(distances, dtype=torch.float64).view(2, 4)
    target = torch.cat((centre - d[:, :2], centre + d[:, 2:]), dim=1)
    transform = Box2BoxTransformLinear(normalize)
    assert torch.allclose(transform.apply_deltas(transform.get_deltas(source, target), source), target, atol=1e-6)


def test_negative_distances_count_as_zero():
    decoded = Box2BoxTransformLinear(False).apply_deltas(torch.full((1, 4), -3.0), torch.tensor([[0.0, 0.0, 4.0, 8.0]]))
    assert decoded.tolist() == [[2, 4, 2, 4]]


def _giou_of_pair(a, b):
    inter = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return inter / union - (hull - union) / hull


def _dense_case():
    """Two images, levels of 3 and 2 anchors; anchors 0 and 4 of the first and 2 of the second image are positive."""
    corner = torch.rand(5, 2) * 20
    anchors = torch.cat((corner, corner + 10), dim=1)
    deltas = torch.randn(2, 5, 4) * 0.3
    corner = torch.rand(2, 5, 2) * 20
    gt = torch.cat((corner, corner + 5 + torch.rand(2, 5, 2) * 10), dim=2)
    mask = torch.tensor([[1, 0, 0, 0, 1], [0, 0, 1, 0, 0]], dtype=torch.bool)
    return anchors, deltas, gt, mask


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_dense_smooth_l1_against_a_loop(beta):
    anchors, deltas, gt, mask = _dense_case()
    transform = Box2BoxTransform((1.0, 1.0, 1.0, 1.0))
    expected = 0.0
    for i, j in mask.nonzero().tolist():
        target = transform.get_deltas(anchors[j : j + 1], gt[i, j : j + 1])[0]
        for x in (deltas[i, j] - target).abs().tolist():
            expected += 0.5 * x * x / beta if x < beta else x - 0.5 * beta
    loss = _dense_box_regression_loss(
        [Boxes(anchors[:3]), Boxes(anchors[3:])],
        transform,
        [deltas[:, :3], deltas[:, 3:]],
        list(gt),
        mask,
        smooth_l1_beta=beta,
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_dense_giou_against_a_loop():
    anchors, deltas, gt, mask = _dense_case()
    transform = Box2BoxTransform((1.0, 1.0, 1.0, 1.0))
    decoded = torch.stack([transform.apply_deltas(d, anchors) for d in deltas])
    expected = sum(1 - _giou_of_pair(decoded[i, j].tolist(), gt[i, j].tolist()) for i, j in mask.nonzero().tolist())
    loss = _dense_box_regression_loss([anchors], transform, [deltas], list(gt), mask, box_reg_loss_type="giou")
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou", "smooth_l1"])
def test_dense_loss_vanishes_at_the_target_and_without_positives(kind):
    anchors, _, gt, mask = _dense_case()
    transform = Box2BoxTransform((1.0, 1.0, 1.0, 1.0))
    perfect = torch.stack([transform.get_deltas(anchors, g) for g in gt]).requires_grad_()
    arguments = ([anchors], transform, [perfect], list(gt))
    assert _dense_box_regression_loss(*arguments, mask, kind).item() == pytest.approx(0, abs=1e-4)
    nothing = _dense_box_regression_loss(*arguments, torch.zeros_like(mask), kind)
    assert nothing.item() == 0
    nothing.backward()
    assert perfect.grad is not None and not perfect.grad.any()


def test_unknown_loss_is_named():
    anchors, deltas, gt, mask = _dense_case()
    with pytest.raises(ValueError, match="BBOX_REG_LOSS_TYPE 'l2'"):
        _dense_box_regression_loss([anchors], Box2BoxTransform((1, 1, 1, 1)), [deltas], list(gt), mask, "l2")


class TestRotated:
    """Five deltas; boxes `(x_center, y_center, width, height, angle)`."""

    @staticmethod
    def row(*numbers):
        return torch.tensor([numbers], dtype=torch.float64)

    def test_no_boxes(self):
        transform, none = Box2BoxTransformRotated((1, 1, 1, 1, 1)), torch.zeros(0, 5)
        assert transform.get_deltas(none, none).shape == (0, 5)
        assert transform.apply_deltas(torch.zeros(0, 15), none).shape == (0, 15)

    def test_by_hand(self):
        transform = Box2BoxTransformRotated((10.0, 20.0, 5.0, 2.0, 3.0))
        source, target = self.row(50, 40, 20, 10, 170), self.row(54, 35, 40, 5, -160)
        deltas = transform.get_deltas(source, target)
        expected = self.row(10 * 0.2, 20 * -0.5, 5 * math.log(2), 2 * math.log(0.5), 3 * math.radians(30))
        torch.testing.assert_close(deltas, expected)
        torch.testing.assert_close(transform.apply_deltas(deltas, source), target)

    @settings(max_examples=40, deadline=None)
    @given(
        st.lists(st.tuples(*[st.floats(-100, 100)] * 2, *[st.floats(1, 100)] * 2, st.floats(-720, 720)), min_size=2),
        st.sampled_from([(1.0, 1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0, 1.0), (1.0, 2.0, 3.0, 4.0, 5.0)]),
    )
    def test_decoding_undoes_encoding(self, rows, weights):
        transform = Box2BoxTransformRotated(weights, scale_clamp=math.inf)
        target = torch.tensor(rows, dtype=torch.float64)
        source = target.flip(0)
        got = transform.apply_deltas(transform.get_deltas(source, target), source)
        torch.testing.assert_close(got[:, :4], target[:, :4])
        turns = (got[:, 4] - target[:, 4]) / 360
        torch.testing.assert_close(turns, turns.round(), rtol=0, atol=1e-9)
        assert bool(((got[:, 4] >= -180) & (got[:, 4] < 180)).all())

    def test_several_encodings_of_one_box(self):
        transform = Box2BoxTransformRotated((1, 1, 1, 1, 1))
        boxes = torch.rand(4, 5) * 50 + 1
        deltas = torch.randn(4, 3 * 5)
        expected = torch.cat([transform.apply_deltas(d, boxes) for d in deltas.split(5, dim=1)], dim=1)
        torch.testing.assert_close(transform.apply_deltas(deltas, boxes), expected)

    def test_growth_is_clamped_and_half_precision_decoded_in_single(self):
        transform = Box2BoxTransformRotated((1, 1, 1, 1, 1))
        decoded = transform.apply_deltas(torch.tensor([[0.0, 0, 100, 0, 0]]).half(), torch.tensor([[5.0, 3, 16, 2, 0]]))
        assert decoded.dtype == torch.float32
        torch.testing.assert_close(decoded, torch.tensor([[5.0, 3, 1000, 2, 0]]))

    def test_errors(self):
        transform = Box2BoxTransformRotated((1, 1, 1, 1, 1))
        with pytest.raises(ValueError, match="five weights"):
            Box2BoxTransformRotated((1, 1, 1, 1))
        with pytest.raises(TypeError, match=r"pass \.tensor"):
            transform.get_deltas(Boxes(torch.zeros(1, 4)), torch.zeros(1, 5))
        with pytest.raises(ValueError, match=r"box 1 of 2.*has no area"):
            transform.get_deltas(torch.tensor([[0.0, 0, 1, 1, 0], [0, 0, 1, 0, 0]]), torch.ones(2, 5))
        with pytest.raises(ValueError, match=r"k \* 5"):
            transform.apply_deltas(torch.zeros(1, 4), torch.zeros(1, 5))
