import json
import math

import numpy as np
import pytest
import torch

from detectron2.layers import ciou_loss, diou_loss

LOSSES = [diou_loss, ciou_loss]


def boxes(n):
    low = torch.rand(n, 2) * 50
    return torch.cat([low, low + 1 + torch.rand(n, 2) * 30], dim=1)


def reference(p, t, complete):
    """Zheng et al. 2020, one box at a time."""
    w, h = min(p[2], t[2]) - max(p[0], t[0]), min(p[3], t[3]) - max(p[1], t[1])
    inter = max(w, 0) * max(h, 0)
    iou = inter / ((p[2] - p[0]) * (p[3] - p[1]) + (t[2] - t[0]) * (t[3] - t[1]) - inter)
    rho2 = ((p[0] + p[2] - t[0] - t[2]) / 2) ** 2 + ((p[1] + p[3] - t[1] - t[3]) / 2) ** 2
    c2 = (max(p[2], t[2]) - min(p[0], t[0])) ** 2 + (max(p[3], t[3]) - min(p[1], t[1])) ** 2
    loss = 1 - iou + rho2 / c2
    if complete:
        angles = [math.atan2(b[2] - b[0], b[3] - b[1]) for b in (t, p)]
        v = 4 / math.pi**2 * (angles[0] - angles[1]) ** 2
        loss += v * v / (1 - iou + v)
    return loss


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_no_boxes(loss, reduction):
    empty = torch.zeros(0, 4, requires_grad=True)
    got = loss(empty, torch.zeros(0, 4), reduction=reduction)
    got.sum().backward()
    assert got.numel() == (0 if reduction == "none" else 1) and got.sum() == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_against_the_formula(loss):
    a, b = boxes(20), boxes(20)
    got = loss(a, b)
    expected = [reference(p, t, loss is ciou_loss) for p, t in zip(a.tolist(), b.tolist(), strict=True)]
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4)
    torch.testing.assert_close(loss(a, b, reduction="sum"), got.sum())
    torch.testing.assert_close(loss(a, b, reduction="mean"), got.mean())


@pytest.mark.parametrize("loss", LOSSES)
def test_equal_boxes_cost_nothing(loss):
    a = boxes(5)
    torch.testing.assert_close(loss(a, a), torch.zeros(5), rtol=0, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_reaches_boxes_that_do_not_overlap(loss):
    a = torch.tensor([[0.0, 0, 1, 1]], requires_grad=True)
    loss(a, torch.tensor([[5.0, 5, 6, 6]]), reduction="sum").backward()
    assert a.grad is not None and a.grad.abs().sum() > 0


@pytest.mark.parametrize("loss", LOSSES)
def test_unknown_reduction(loss):
    with pytest.raises(ValueError, match="'avg'"):
        loss(boxes(1), boxes(1), reduction="avg")


@pytest.mark.parity
@pytest.mark.parametrize("loss", LOSSES)
def test_against_the_record(loss, shared_dir):
    g = torch.Generator().manual_seed(2)
    xy = torch.rand(6, 2, generator=g) * 50
    a = torch.cat([xy, xy + 1 + torch.rand(6, 2, generator=g) * 30], 1)
    b = a + torch.rand(6, 4, generator=g) * 5
    record = json.loads((shared_dir / "golden" / "pipeline.json").read_text())["losses"]
    np.testing.assert_allclose(loss(a, b).numpy(), record[loss.__name__.removesuffix("_loss")], rtol=1e-5)
