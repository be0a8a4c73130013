import copy
import math

import numpy as np
import pytest
import torch

from detectron2.layers import ShapeSpec
from detectron2.projects.point_rend import (
    POINT_HEAD_REGISTRY,
    ImplicitPointHead,
    StandardPointHead,
    build_point_head,
    roi_mask_point_loss,
)
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage


def labelled(*classes_of_images):
    return [Instances((9, 9), gt_classes=torch.tensor(x, dtype=torch.int64)) for x in classes_of_images]


def cross_entropy(logit, label):
    p = 1 / (1 + math.exp(-logit))
    return -(label * math.log(p) + (1 - label) * math.log(1 - p))


@pytest.mark.parametrize("agnostic", [False, True])
def test_loss_by_hand(agnostic):
    logits = torch.randn(3, 1 if agnostic else 4, 5)
    labels = torch.tensor([[0, 1, 0.25, 1, 0], [1, 1, 1, -1, -1], [-1.0] * 5])
    classes = [0, 0, 0] if agnostic else [3, 0, 1]
    expected = sum(
        cross_entropy(logits[r, k, p].item(), labels[r, p].item())
        for r, k in enumerate(classes)
        for p in range(5)
        if labels[r, p] >= 0
    )
    loss = roi_mask_point_loss(logits, labelled([3], [], [0, 1]), labels)
    assert loss.item() == pytest.approx(expected / 15, rel=1e-5)


@pytest.mark.parametrize(("instances", "shape"), [([], (0, 4)), (labelled([], []), (0, 4)), (labelled([1]), (1, 0))])
def test_loss_of_nothing_is_zero_and_differentiable(instances, shape):
    logits = torch.zeros(shape[0], 3, shape[1], requires_grad=True)
    loss = roi_mask_point_loss(logits, instances, torch.zeros(shape))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None


def test_integer_labels_are_taken():
    loss = roi_mask_point_loss(torch.zeros(1, 1, 2), labelled([0]), torch.tensor([[1, -1]]))
    assert loss.item() == pytest.approx(math.log(2) / 2)


def test_statistics_by_hand():
    logits = torch.tensor([[[1.0, 1, -1, -1, 1]]])
    labels = torch.tensor([[1.0, 0, 1, 0, -1]])
    with EventStorage() as storage:
        roi_mask_point_loss(logits, labelled([0]), labels)
        values = {k: float(v[0]) for k, v in storage.latest().items()}
    assert values == pytest.approx({"point/accuracy": 0.5, "point/false_positive": 0.5, "point/false_negative": 0.5})


@pytest.mark.parametrize("each_layer", [False, True])
@pytest.mark.parametrize("agnostic", [False, True])
def test_standard_head_by_hand(each_layer, agnostic):
    head = StandardPointHead(
        ShapeSpec(channels=5),
        num_classes=3,
        fc_dim=6,
        num_fc=2,
        cls_agnostic_mask=agnostic,
        coarse_pred_each_layer=each_layer,
    )
    assert head.predictor.weight.abs().max() < 0.01 and not head.predictor.bias.any()
    fine, coarse = torch.randn(2, 5, 4), torch.randn(2, 3, 4)
    state = {k: v.numpy() for k, v in head.state_dict().items()}
    assert set(state) == {f"{name}.{kind}" for name in ("fc1", "fc2", "predictor") for kind in ("weight", "bias")}
    got = head(fine, coarse)
    assert got.shape == (2, 1 if agnostic else 3, 4)
    x = np.concatenate([fine.numpy(), coarse.numpy()], axis=1)
    for name in ("fc1", "fc2"):
        x = np.maximum(np.einsum("oi,rip->rop", state[f"{name}.weight"][..., 0], x) + state[f"{name}.bias"][:, None], 0)
        if each_layer:
            x = np.concatenate([x, coarse.numpy()], axis=1)
    x = np.einsum("oi,rip->rop", state["predictor.weight"][..., 0], x) + state["predictor.bias"][:, None]
    np.testing.assert_allclose(got.detach().numpy(), x, atol=1e-5)


@pytest.mark.parametrize(("image", "position"), [(True, True), (True, False), (False, True)])
def test_implicit_head_by_hand(image, position):
    head = ImplicitPointHead(
        ShapeSpec(channels=5),
        num_classes=3,
        fc_dim=4,
        num_fc=2,
        image_feature_enabled=image,
        positional_encoding_enabled=position,
    )
    inputs = 5 * image + 256 * position
    assert head.num_params == (inputs * 4 + 4) + (4 * 4 + 4) + (4 * 3 + 3)
    assert set(head.state_dict()) == ({"positional_encoding_gaussian_matrix"} if position else set())
    fine, coords, parameters = torch.randn(2, 5, 6), torch.rand(2, 6, 2), torch.randn(2, head.num_params) * 0.3
    got = head(fine if image else None, coords, parameters)
    for r in range(2):
        parts = []
        if position:
            angles = 2 * np.pi * (2 * coords[r].numpy() - 1) @ head.positional_encoding_gaussian_matrix.numpy()
            parts += [np.sin(angles).T, np.cos(angles).T]
        if image:
            parts.append(fine[r].numpy())
        x = np.concatenate(parts)
        values = parameters[r].numpy()
        weights, biases = values[: inputs * 4 + 16 + 12], values[inputs * 4 + 16 + 12 :]
        w1, w2, w3 = np.split(weights, [inputs * 4, inputs * 4 + 16])
        b1, b2, b3 = np.split(biases, [4, 8])
        x = np.maximum(w1.reshape(4, inputs) @ x + b1[:, None], 0)
        x = np.maximum(w2.reshape(4, 4) @ x + b2[:, None], 0)
        x = w3.reshape(3, 4) @ x + b3[:, None]
        np.testing.assert_allclose(got[r].numpy(), x, atol=1e-3)


@pytest.mark.parametrize("regions", [0, 1])
def test_heads_take_no_region_and_no_point(regions):
    standard = StandardPointHead(ShapeSpec(channels=5), num_classes=3, fc_dim=4, num_fc=1)
    assert standard(torch.zeros(regions, 5, 7), torch.zeros(regions, 3, 7)).shape == (regions, 3, 7)
    implicit = ImplicitPointHead(ShapeSpec(channels=5), num_classes=3, fc_dim=4, num_fc=1, cls_agnostic_mask=True)
    for points in (0, 7):
        got = implicit(
            torch.zeros(regions, 5, points), torch.zeros(regions, points, 2), torch.zeros(regions, implicit.num_params)
        )
        assert got.shape == (regions, 1, points)


def test_implicit_head_wants_a_description():
    with pytest.raises(ValueError, match="POS_ENC_ENABLED"):
        ImplicitPointHead(
            ShapeSpec(channels=5),
            num_classes=3,
            fc_dim=4,
            num_fc=1,
            image_feature_enabled=False,
            positional_encoding_enabled=False,
        )
    head = ImplicitPointHead(ShapeSpec(channels=5), num_classes=3, fc_dim=4, num_fc=1)
    with pytest.raises(ValueError, match="image features"):
        head(None, torch.zeros(1, 2, 2), torch.zeros(1, head.num_params))


def test_heads_from_config(tiny_config):
    head = build_point_head(tiny_config("standard"), ShapeSpec(channels=8))
    assert isinstance(head, StandardPointHead) and head.fc1.in_channels == 8 + 3 and head.coarse_pred_each_layer
    cfg = tiny_config("implicit", "MODEL.IMPLICIT_POINTREND.POS_ENC_ENABLED", False)
    head = build_point_head(cfg, ShapeSpec(channels=8))
    assert isinstance(head, ImplicitPointHead) and head.in_channels == 8
    assert {"StandardPointHead", "ImplicitPointHead"} <= {name for name, _ in POINT_HEAD_REGISTRY}
    with pytest.raises(KeyError, match=r"MODEL\.POINT_HEAD\.NAME"):
        build_point_head(tiny_config("standard", "MODEL.POINT_HEAD.NAME", "StandartPointHead"), ShapeSpec(channels=8))


def test_heads_compile_whole_and_copy():
    standard = StandardPointHead(ShapeSpec(channels=5), num_classes=3, fc_dim=4, num_fc=2)
    inputs = torch.randn(2, 5, 7), torch.randn(2, 3, 7)
    torch.testing.assert_close(torch.compile(standard, fullgraph=True, backend="eager")(*inputs), standard(*inputs))
    copied = copy.deepcopy(standard)
    copied.fc1.weight.data.zero_()
    copied.fc1.bias.data.fill_(-1)
    assert not torch.equal(copied(*inputs), standard(*inputs))  # the copy uses layers of its own
    implicit = ImplicitPointHead(ShapeSpec(channels=5), num_classes=3, fc_dim=4, num_fc=2)
    inputs = torch.randn(2, 5, 7), torch.rand(2, 7, 2), torch.randn(2, implicit.num_params)
    torch.testing.assert_close(torch.compile(implicit, fullgraph=True, backend="eager")(*inputs), implicit(*inputs))
