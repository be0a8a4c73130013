"""The loss, against loops over queries."""

import pytest
import torch
import torch.nn.functional as F

from detectron2.projects.mask2former import HungarianMatcher, SetCriterion
from detectron2.projects.mask2former.criterion import dice_loss, loss_weights, sigmoid_ce_loss
from tests.projects.mask2former.test_mask_former_model import objects


def criterion(num_inner=1, num_points=400):
    matcher = HungarianMatcher(2.0, 5.0, 5.0, num_points=400)
    weights = loss_weights(2.0, 5.0, 5.0, num_inner)
    return SetCriterion(3, matcher, weights, 0.1, num_points, 1.0, 0.0)  # points are drawn evenly


def predictions(images=2, queries=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = [
        {
            "pred_logits": torch.randn(images, queries, 4, generator=generator, requires_grad=True),
            "pred_masks": torch.randn(images, queries, 8, 12, generator=generator, requires_grad=True),
        }
        for _ in range(2)
    ]
    return {**found[0], "aux_outputs": found[1:]}


def target(classes):
    found = objects(32, 48, classes)
    return {"labels": found.gt_classes, "masks": found.gt_masks.tensor}


def test_no_objects():
    outputs = predictions()
    losses = criterion()(outputs, [target([]), target([])])
    assert losses["loss_mask"] == losses["loss_dice"] == losses["loss_mask_0"] == 0
    nothing = torch.full((8,), 3)
    torch.testing.assert_close(losses["loss_ce"], F.cross_entropy(outputs["pred_logits"].flatten(0, 1), nothing))
    sum(losses.values()).backward()
    assert not outputs["pred_masks"].grad.any()
    none = torch.zeros(0, 5)
    assert dice_loss(none, none, 1) == sigmoid_ce_loss(none, none, 1) == 0


def test_losses_of_points_by_hand():
    logits, wanted = torch.tensor([[2.0, -1.0], [0.0, 3.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    rows = [F.binary_cross_entropy_with_logits(x, y) for x, y in zip(logits, wanted, strict=True)]
    torch.testing.assert_close(sigmoid_ce_loss(logits, wanted, 4), sum(rows) / 4)
    p = logits.sigmoid()
    rows = [1 - (2 * (a * b).sum() + 1) / (a.sum() + b.sum() + 1) for a, b in zip(p, wanted, strict=True)]
    torch.testing.assert_close(dice_loss(logits, wanted, 4), sum(rows) / 4)


def test_class_loss():
    """A weighted mean: queries without an object count a tenth."""
    loss, outputs, targets = criterion(), predictions(), [target([0, 2]), target([1])]
    torch.manual_seed(0)
    got = loss(outputs, targets)["loss_ce"]
    torch.manual_seed(0)
    total = weight = 0.0
    for i, (queries, rows) in enumerate(loss.matcher(outputs, targets)):
        label = {int(q): int(targets[i]["labels"][r]) for q, r in zip(queries, rows, strict=True)}
        for q in range(4):
            wanted = label.get(q, 3)
            share = 0.1 if wanted == 3 else 1.0
            total = total - share * outputs["pred_logits"][i, q].log_softmax(0)[wanted]
            weight += share
    torch.testing.assert_close(got, total / weight)


def test_mask_losses_of_many_points_are_those_of_the_pixels():
    """Masks of one value each: every point says the same."""
    outputs = {
        "pred_logits": torch.tensor([[[9.0, 0, 0, 0], [0, 9.0, 0, 0]]]),
        "pred_masks": torch.tensor([1.0, -2.0])[None, :, None, None].expand(1, 2, 8, 8),
    }
    whole = {"labels": torch.tensor([0, 1]), "masks": torch.ones(2, 32, 32, dtype=torch.bool)}
    losses = criterion(0, num_points=1000)(outputs, [whole])
    inside = torch.tensor([1.0, -2.0])
    # Half a cell around the border of a map its values fade.
    want = F.softplus(-inside).mean()
    assert losses["loss_mask"] == pytest.approx(float(want), abs=0.05)
    p = inside.sigmoid()
    assert losses["loss_dice"] == pytest.approx(float((1 - (2000 * p + 1) / (1000 * p + 1001)).mean()), abs=0.03)


def test_inner_predictions_without_a_weight_have_no_loss():
    outputs, targets = predictions(), [target([0]), target([1])]
    assert set(criterion(0)(outputs, targets)) == {"loss_ce", "loss_mask", "loss_dice"}
    assert len(criterion(1)(outputs, targets)) == 6
    assert loss_weights(1.0, 2.0, 3.0, 1)["loss_dice_0"] == 3.0


def test_the_number_of_masks_is_the_mean_over_processes(monkeypatch):
    loss, targets = criterion(), [target([0, 1]), target([])]
    assert loss._num_masks(targets) == 2 and loss._num_masks([target([])]) == 1
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 4)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: x.add_(8))
    assert loss._num_masks(targets) == 2.5
