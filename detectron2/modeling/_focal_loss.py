"""The focal loss of dense classifiers, without a dense tensor of targets.

Letters: `N` images, `K` classes, `R_i` anchors of level i, `R` their sum.
"""

import torch
import torch.nn.functional as F

from detectron2.layers import cat

__all__ = ["sum_of_focal_losses"]


def _focal_term(logits: torch.Tensor, gamma: float) -> torch.Tensor:
    """Loss of negatives, `-p ** gamma * log(1 - p)` with `p = sigmoid(logits)`; of positives for `-logits`."""
    logits = logits.float()
    return logits.sigmoid().pow(gamma) * F.softplus(logits)


def sum_of_focal_losses(
    pred_logits: list[torch.Tensor], labels: torch.Tensor, positive: torch.Tensor, *, alpha: float, gamma: float
) -> torch.Tensor:
    """Sum the focal loss (arXiv:1708.02002, equation 5) over all classes and all anchors whose label is not -1.

    Nearly all targets are 0. So every logit is taken as a negative's, and the few positives are set right afterwards:
    no tensor of targets, and no copy of the logits.

    Args:
        pred_logits: for each level `Tensor[N, R_i, K]`.
        labels: `Tensor[N, R]`.
        positive: `Tensor[N, R]`, which labels are those of a class.
        alpha: weight of positives; of negatives it is `1 - alpha`. Negative: both weigh 1.
        gamma: the focusing parameter.

    Returns:
        A scalar.
    """
    positive_weight, negative_weight = (alpha, 1 - alpha) if alpha >= 0 else (1.0, 1.0)
    level_sizes = [logits.shape[1] for logits in pred_logits]
    per_anchor = cat([_focal_term(logits, gamma).sum(dim=-1) for logits in pred_logits], dim=1)
    total = negative_weight * torch.where(labels >= 0, per_anchor, 0).sum()

    at_positives = []
    for logits, label, is_positive in zip(
        pred_logits, labels.split(level_sizes, dim=1), positive.split(level_sizes, dim=1), strict=True
    ):
        image_index, anchor_index = is_positive.nonzero(as_tuple=True)
        at_positives.append(logits[image_index, anchor_index, label[image_index, anchor_index]])
    x = cat(at_positives)
    return total + (positive_weight * _focal_term(-x, gamma) - negative_weight * _focal_term(x, gamma)).sum()
