"""Costs and matching, against loops, SciPy and transformers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from detectron2.projects.mask2former import HungarianMatcher
from detectron2.projects.mask2former.matcher import pairwise_dice_loss, pairwise_sigmoid_ce_loss


def image(objects, side=16, seed=0):
    masks = torch.rand(objects, side, side, generator=torch.Generator().manual_seed(seed)) > 0.5
    return {"labels": torch.arange(objects) % 3, "masks": masks}


def predictions(images, queries, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        "pred_logits": torch.randn(images, queries, 4, generator=generator),
        "pred_masks": 3 * torch.randn(images, queries, 8, 8, generator=generator),
    }


def test_no_objects():
    ((queries, objects),) = HungarianMatcher()(predictions(1, 5), [image(0)])
    assert queries.shape == objects.shape == (0,) and queries.dtype == objects.dtype == torch.int64


def test_costs_of_all_pairs_are_losses_of_each():
    logits, targets = torch.randn(3, 20), (torch.rand(2, 20) > 0.5).float()
    cross_entropy = pairwise_sigmoid_ce_loss(logits, targets)
    dice = pairwise_dice_loss(logits, targets)
    for q in range(3):
        for m in range(2):
            want = F.binary_cross_entropy_with_logits(logits[q], targets[m])
            torch.testing.assert_close(cross_entropy[q, m], want)
            p = logits[q].sigmoid()
            want = 1 - (2 * (p * targets[m]).sum() + 1) / (p.sum() + targets[m].sum() + 1)
            torch.testing.assert_close(dice[q, m], want)
    assert pairwise_dice_loss(logits, targets[:0]).shape == (3, 0)


@pytest.mark.parametrize("counts", [(4, 1), (0, 9), (5, 6)])  # more objects than queries, too
def test_pairs_equal_those_of_scipy_and_transformers(counts):
    optimize = pytest.importorskip("scipy.optimize")
    transformers = pytest.importorskip("transformers.models.mask2former.modeling_mask2former")
    outputs, targets = predictions(len(counts), 5), [image(n) for n in counts]
    matcher = HungarianMatcher(2.0, 5.0, 4.0, num_points=50)
    torch.manual_seed(0)
    got = matcher(outputs, targets)
    torch.manual_seed(0)
    for i, (queries, objects) in enumerate(got):
        cost = matcher._costs(outputs["pred_logits"][i], outputs["pred_masks"][i], targets[i]).numpy()
        want = optimize.linear_sum_assignment(cost)
        np.testing.assert_array_equal(np.stack([queries, objects]), np.stack(want))
    torch.manual_seed(0)
    theirs = transformers.Mask2FormerHungarianMatcher(2.0, 5.0, 4.0, num_points=50)(
        outputs["pred_masks"],
        outputs["pred_logits"],
        [x["masks"].float() for x in targets],
        [x["labels"] for x in targets],
    )
    for mine, other in zip(got, theirs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))


def test_predictions_that_are_not_numbers_are_matched_last():
    outputs = predictions(1, 3)
    outputs["pred_masks"][0, 1] = float("nan")
    ((queries, _),) = HungarianMatcher()(outputs, [image(2)])
    assert queries.tolist() == [0, 2]


def test_weights_of_zero():
    with pytest.raises(ValueError, match="all weights of the matcher are 0"):
        HungarianMatcher(0, 0, 0)
