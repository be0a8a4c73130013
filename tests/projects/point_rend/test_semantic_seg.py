import copy
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model, build_sem_seg_head
from detectron2.projects.point_rend import PointRendSemSegHead, StandardPointHead
from detectron2.projects.point_rend.semantic_seg import calculate_uncertainty

SHAPES = {"p2": ShapeSpec(channels=8, stride=4), "p3": ShapeSpec(channels=8, stride=8)}


@pytest.mark.parametrize("classes", [1, 2, 5])
@pytest.mark.parametrize("shape", [(0,), (4, 6)])
def test_uncertainty(classes, shape):
    logits = torch.randn(2, classes, *shape)
    got = calculate_uncertainty(logits)
    assert got.shape == (2, 1, *shape)
    best = np.sort(logits.numpy(), axis=1)
    expected = best[:, -2:-1] - best[:, -1:] if classes > 1 else -np.abs(logits.numpy())
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-6)


class KnownCoarseHead(nn.Module):
    """Coarse logits that are given."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def layers(self, features):
        return self.logits

    def losses(self, predictions, targets):
        return {"loss_sem_seg": predictions.sum() * 0 + 1}


def known_head(coarse, **changes):
    arguments = {
        "coarse_sem_seg_head": KnownCoarseHead(coarse),
        "point_head": StandardPointHead(ShapeSpec(channels=8), num_classes=coarse.shape[1], fc_dim=4, num_fc=1),
        "in_features": ["p2"],
        "train_num_points": 10,
        "oversample_ratio": 3,
        "importance_sample_ratio": 0.75,
        "subdivision_steps": 2,
        "subdivision_num_points": 12,
        "ignore_value": 255,
    }
    return PointRendSemSegHead(**{**arguments, **changes})


def test_point_loss_by_hand():
    """Near-zero logits of a fresh point head: the loss of each point with a label is log(K)."""
    head = known_head(torch.randn(1, 3, 4, 6))
    features = {"p2": torch.randn(1, 8, 4, 6)}
    targets = torch.randint(0, 3, (1, 16, 24))
    nn.init.zeros_(head.point_head.predictor.weight)
    _, losses = head(features, targets)
    assert losses["loss_sem_seg"] == 1
    assert losses["loss_sem_seg_point"].item() == pytest.approx(math.log(3), rel=1e-5)
    with torch.no_grad():
        head.point_head.predictor.bias.copy_(torch.tensor([0.0, 50, 0]))
    for label, expected in ((1, 0.0), (0, 50.0), (255, 0.0)):
        _, losses = head(features, torch.full((1, 16, 24), label))
        assert losses["loss_sem_seg_point"].item() == pytest.approx(expected, abs=1e-5)
        losses["loss_sem_seg_point"].backward()


def test_labels_are_those_of_the_pixel():
    """Only the left half has a label, and the point head always says class 0: right half ignored, left half wrong."""
    head = known_head(torch.zeros(1, 2, 4, 4), train_num_points=200, importance_sample_ratio=0.0)
    nn.init.zeros_(head.point_head.predictor.weight)
    with torch.no_grad():
        head.point_head.predictor.bias.copy_(torch.tensor([10.0, 0]))
    targets = torch.full((1, 8, 8), 0)
    targets[0, :2] = 1  # a quarter
    _, losses = head({"p2": torch.randn(1, 8, 4, 4)}, targets)
    assert losses["loss_sem_seg_point"].item() == pytest.approx(10 * 0.25, rel=0.3)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_inference_resolution(steps):
    coarse = torch.randn(2, 3, 4, 6)
    head = known_head(coarse, subdivision_steps=steps).eval()
    with torch.no_grad():
        scores, losses = head({"p2": torch.randn(2, 8, 4, 6)})
    assert scores.shape == (2, 3, 4 * 2**steps, 6 * 2**steps) and losses == {}


def test_training_without_labels():
    with pytest.raises(KeyError, match="sem_seg"):
        known_head(torch.zeros(1, 3, 4, 4))({"p2": torch.zeros(1, 8, 4, 4)})


def test_from_config(tiny_config):
    head = build_sem_seg_head(tiny_config("semantic"), SHAPES)
    assert isinstance(head, PointRendSemSegHead)
    assert (head.num_classes, head.ignore_value, head.subdivision_steps) == (3, 255, 2)
    names = {name.split(".")[0] for name in head.state_dict()}
    assert names == {"coarse_sem_seg_head", "point_head"}
    with pytest.raises(ValueError, match=r"MODEL\.POINT_HEAD\.NUM_CLASSES is 9"):
        build_sem_seg_head(tiny_config("semantic", "MODEL.POINT_HEAD.NUM_CLASSES", 9), SHAPES)
    with pytest.raises(KeyError, match="COARSE_SEM_SEG_HEAD_NAME"):
        build_sem_seg_head(tiny_config("semantic", "MODEL.POINT_HEAD.COARSE_SEM_SEG_HEAD_NAME", "Nothing"), SHAPES)


def test_model(tiny_config, make_batch):
    model = build_model(tiny_config("semantic"))
    losses = model(make_batch(True))
    assert set(losses) == {"loss_sem_seg", "loss_sem_seg_point"}
    sum(losses.values()).backward()
    used = {name for name, p in model.named_parameters() if p.grad is not None}
    assert used == {name for name, _ in model.named_parameters()}
    model.eval()
    with torch.no_grad():
        out = model(make_batch(False))
        assert [tuple(x["sem_seg"].shape) for x in out] == [(3, 64, 96), (3, 48, 80)]
        for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(same(make_batch(False))[0]["sem_seg"], out[0]["sem_seg"])


def test_nothing_labelled(tiny_config, make_batch):
    batch = make_batch(True)
    for item in batch:
        item["sem_seg"].fill_(255)
    model = build_model(tiny_config("semantic"))
    losses = model(batch)
    sum(losses.values()).backward()
    assert all(x == 0 for x in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_half_precision(tiny_config, make_batch):
    model = build_model(tiny_config("semantic"))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            losses = model(make_batch(True))
        sum(losses.values()).backward()
        optimizer.step()
        assert all(torch.isfinite(x) for x in losses.values())


def test_compiles_whole(tiny_config):
    head = build_sem_seg_head(tiny_config("semantic"), SHAPES).eval()
    features = {"p2": torch.randn(1, 8, 16, 24), "p3": torch.randn(1, 8, 8, 12)}
    with torch.no_grad():
        compiled, _ = torch.compile(head, fullgraph=True, backend="eager")(features)
        torch.testing.assert_close(compiled, head(features)[0])
