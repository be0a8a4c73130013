"""DeepLabCE against sorting the losses of all pixels by hand."""

import numpy as np
import pytest
import torch

from detectron2.projects.deeplab import DeepLabCE


def _pixel_losses(logits, labels, ignored):
    """Cross entropy of each pixel, from its definition, in double precision."""
    z = logits.double().numpy()
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    n, y, x = np.indices(labels.shape)
    safe = np.where(labels.numpy() == ignored, 0, labels.numpy())
    return np.where(labels.numpy() == ignored, 0.0, -log_p[n, safe, y, x])


@pytest.mark.parametrize("part", [0.01, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_mean_of_the_worst_pixels(part, weighted):
    logits, labels = torch.randn(2, 5, 6, 7), torch.randint(0, 5, (2, 6, 7))
    labels[0, :2] = 255
    weights = torch.rand(2, 6, 7) * 3 if weighted else None
    losses = _pixel_losses(logits, labels, 255)
    if weights is not None:
        losses = losses * weights.double().numpy()
    worst = np.sort(losses.ravel())[::-1][: max(1, int(part * losses.size))]
    found = DeepLabCE(255, part)(logits, labels, weights)
    assert found.item() == pytest.approx(worst.mean(), rel=1e-5)


def test_nothing_labelled_costs_nothing():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    for part in (0.2, 1.0):
        loss = DeepLabCE(7, part)(logits, torch.full((1, 4, 4), 7))
        loss.backward()
        assert loss.item() == 0
        assert logits.grad.abs().sum() == 0


def test_weights_of_classes():
    logits, labels = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 4, 4))
    weight = torch.tensor([1.0, 0.0, 2.0])
    expected = (_pixel_losses(logits, labels, -1) * weight[labels].numpy()).mean()
    module = DeepLabCE(weight=weight)
    assert module(logits, labels).item() == pytest.approx(expected, rel=1e-5)
    assert module.state_dict() == {}


@pytest.mark.parametrize("part", [0, -1, 1.5])
def test_the_part_must_be_one(part):
    with pytest.raises(ValueError, match="top_k_percent_pixels"):
        DeepLabCE(top_k_percent_pixels=part)
