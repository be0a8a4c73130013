"""Which query answers for which object in training.

Letters: `Q` queries, `K` classes, `M` objects of an image, `P` points, `H` and `W` height and width of a mask.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from detectron2.projects.point_rend.point_features import point_sample
from detectron2.tracking.hungarian_tracker import linear_sum_assignment

__all__ = ["HungarianMatcher", "pairwise_dice_loss", "pairwise_sigmoid_ce_loss"]

_NEVER = 1e6  # the cost of a pair whose cost is not a number


def pairwise_dice_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Dice loss of all pairs of masks.

    Args:
        logits: `Tensor[Q, P]`, predicted.
        targets: `Tensor[M, P]` in `[0, 1]`.

    Returns:
        `Tensor[Q, M]`.

    Example:
        >>> from detectron2.projects.mask2former.matcher import pairwise_dice_loss
        >>> pairwise_dice_loss(torch.tensor([[9.0, -9.0]]), torch.eye(2)).round(decimals=2)
        tensor([[0.0000, 0.6700]])
    """
    covered = logits.sigmoid()
    shared = covered @ targets.T
    return 1 - (2 * shared + 1) / (covered.sum(1)[:, None] + targets.sum(1) + 1)


def pairwise_sigmoid_ce_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy of all pairs of masks.

    Args:
        logits: `Tensor[Q, P]`, predicted.
        targets: `Tensor[M, P]` in `[0, 1]`.

    Returns:
        `Tensor[Q, M]`.

    Example:
        >>> from detectron2.projects.mask2former.matcher import pairwise_sigmoid_ce_loss
        >>> pairwise_sigmoid_ce_loss(torch.tensor([[9.0, -9.0]]), torch.eye(2)).round(decimals=2)
        tensor([[0., 9.]])
    """
    # -t log(sigmoid(x)) - (1 - t) log(1 - sigmoid(x)) = softplus(x) - t x
    return (F.softplus(logits).sum(1)[:, None] - logits @ targets.T) / logits.shape[1]


class HungarianMatcher(nn.Module):
    """Pairs objects and queries one to one, at the least sum of costs.

    The cost of a pair is a weighted sum of minus the probability of the class, and the binary cross-entropy and the
    dice loss of the mask, the latter two at random points, the same for all masks of an image.

    Args:
        cost_class: weight of the class.
        cost_mask: weight of the cross-entropy.
        cost_dice: weight of the dice loss.
        num_points: P.

    Raises:
        ValueError: all weights are 0.

    Example:
        >>> from detectron2.projects.mask2former import HungarianMatcher
        >>> masks = torch.zeros(1, 2, 4, 4)
        >>> masks[0, :, :, :2], masks[0, :, :, 2:] = torch.tensor([-9.0, 9.0])[:, None, None], 0.0
        >>> object = {"labels": torch.tensor([0]), "masks": masks[0, 1:] > 0}
        >>> HungarianMatcher()({"pred_logits": torch.zeros(1, 2, 3), "pred_masks": masks}, [object])
        [(tensor([1]), tensor([0]))]
    """

    def __init__(self, cost_class: float = 1, cost_mask: float = 1, cost_dice: float = 1, num_points: int = 112 * 112):
        super().__init__()
        if cost_class == 0 and cost_mask == 0 and cost_dice == 0:
            raise ValueError(
                "all weights of the matcher are 0: give MODEL.MASK_FORMER.CLASS_WEIGHT, MASK_WEIGHT or "
                "DICE_WEIGHT another value"
            )
        self.cost_class = cost_class
        self.cost_mask = cost_mask
        self.cost_dice = cost_dice
        self.num_points = num_points

    @torch.no_grad()
    def forward(
        self, outputs: dict[str, Any], targets: Sequence[dict[str, torch.Tensor]]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Match.

        Args:
            outputs: `pred_logits`, `Tensor[N, Q, K + 1]`, and `pred_masks`, `Tensor[N, Q, H, W]`.
            targets: for each image `labels`, integer `Tensor[M]`, and `masks`, `Tensor[M, H', W']`, which cover the
                same field as the predicted ones.

        Returns:
            For each image indices of queries, ascending, and of their objects: two int64 tensors `[min(Q, M)]` on the
            CPU.
        """
        with torch.autocast(outputs["pred_masks"].device.type, enabled=False):
            costs = [
                self._costs(logits.float(), masks.float(), target)
                for logits, masks, target in zip(outputs["pred_logits"], outputs["pred_masks"], targets, strict=True)
            ]
        pairs = [linear_sum_assignment(cost.cpu().numpy()) for cost in costs]
        return [(torch.from_numpy(queries), torch.from_numpy(objects)) for queries, objects in pairs]

    def _costs(self, logits: torch.Tensor, masks: torch.Tensor, target: dict[str, torch.Tensor]) -> torch.Tensor:
        """Costs of all pairs of an image, `Tensor[Q, M]`."""
        points = torch.rand(1, self.num_points, 2, device=masks.device)
        predicted = point_sample(masks[None], points, align_corners=False)[0]
        wanted = point_sample(target["masks"][None].float(), points, align_corners=False)[0]
        cost = self.cost_mask * pairwise_sigmoid_ce_loss(predicted, wanted)
        cost = cost + self.cost_class * -logits.softmax(-1)[:, target["labels"]]
        cost = cost + self.cost_dice * pairwise_dice_loss(predicted, wanted)
        return cost.nan_to_num(_NEVER, _NEVER, -_NEVER)
