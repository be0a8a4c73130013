"""The loss: classes of all queries, and masks of those that are matched with an object (section 3.3).

Letters: `N` images, `Q` queries, `K` classes, `M` objects of an image, `R` matched pairs of all images, `P` points,
`H` and `W` height and width of a mask.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import detectron2.utils.comm as comm
from detectron2.projects.point_rend.point_features import get_uncertain_point_coords_with_randomness, point_sample

__all__ = ["SetCriterion", "dice_loss", "loss_weights", "sigmoid_ce_loss"]


def dice_loss(logits: torch.Tensor, targets: torch.Tensor, num_masks: float) -> torch.Tensor:
    """Dice loss (https://arxiv.org/abs/1606.04797), summed over masks and divided by `num_masks`.

    Args:
        logits: `Tensor[R, P]`, predicted.
        targets: `Tensor[R, P]` in `[0, 1]`.
        num_masks: the divisor.

    Returns:
        A scalar.

    Example:
        >>> from detectron2.projects.mask2former.criterion import dice_loss
        >>> dice_loss(torch.tensor([[9.0, -9.0]]), torch.tensor([[0.0, 1.0]]), 1).round(decimals=2)
        tensor(0.6700)
    """
    covered = logits.sigmoid()
    shared = (covered * targets).sum(1)
    return (1 - (2 * shared + 1) / (covered.sum(1) + targets.sum(1) + 1)).sum() / num_masks


def sigmoid_ce_loss(logits: torch.Tensor, targets: torch.Tensor, num_masks: float) -> torch.Tensor:
    """Binary cross-entropy, the mean over points, summed over masks and divided by `num_masks`.

    Args:
        logits: `Tensor[R, P]`, predicted.
        targets: `Tensor[R, P]` in `[0, 1]`.
        num_masks: the divisor.

    Returns:
        A scalar.

    Example:
        >>> from detectron2.projects.mask2former.criterion import sigmoid_ce_loss
        >>> sigmoid_ce_loss(torch.tensor([[9.0, -9.0]]), torch.tensor([[0.0, 1.0]]), 2).round(decimals=2)
        tensor(4.5000)
    """
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1).sum() / num_masks


def loss_weights(ce: float, mask: float, dice: float, num_inner: int) -> dict[str, float]:
    """Weights of losses by name: of the last prediction, and with a number at the end of inner ones.

    Args:
        ce: weight of the class.
        mask: weight of the cross-entropy of masks.
        dice: weight of the dice loss of masks.
        num_inner: how many predictions before the last one have a loss.

    Returns:
        The weights.

    Example:
        >>> from detectron2.projects.mask2former.criterion import loss_weights
        >>> loss_weights(2.0, 5.0, 5.0, 0)
        {'loss_ce': 2.0, 'loss_mask': 5.0, 'loss_dice': 5.0}
    """
    weights = {"loss_ce": ce, "loss_mask": mask, "loss_dice": dice}
    inner = {f"{name}_{i}": weight for i in range(num_inner) for name, weight in weights.items()}
    return {**weights, **inner}


class SetCriterion(nn.Module):
    """Losses of a set of predictions, each of which is matched with one object of the image or none.

    Masks are compared at `P` points of each: many candidates are drawn, of which the least certain ones stay, and
    others (see `get_uncertain_point_coords_with_randomness`).

    Args:
        num_classes: K.
        matcher: see `HungarianMatcher`.
        weight_dict: weights by name, see `loss_weights`. Inner predictions without a weight have no loss.
        eos_coef: weight of queries without an object in the loss of classes.
        num_points: P.
        oversample_ratio: how many candidates are drawn for each point.
        importance_sample_ratio: share of the points that is taken from the least certain candidates.
    """

    empty_weight: torch.Tensor

    def __init__(
        self,
        num_classes: int,
        matcher: nn.Module,
        weight_dict: Mapping[str, float],
        eos_coef: float,
        num_points: int,
        oversample_ratio: float,
        importance_sample_ratio: float,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.matcher = matcher
        self.weight_dict = dict(weight_dict)
        self.eos_coef = eos_coef
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        empty_weight = torch.ones(num_classes + 1)
        empty_weight[-1] = eos_coef
        self.register_buffer("empty_weight", empty_weight)

    def forward(self, outputs: dict[str, Any], targets: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Losses by name, without their weights.

        Args:
            outputs: what the decoder gives: `pred_logits`, `Tensor[N, Q, K + 1]`, `pred_masks`, `Tensor[N, Q, H, W]`,
                and `aux_outputs`.
            targets: for each image `labels`, integer `Tensor[M]`, and `masks`, `Tensor[M, H', W']`, 0 or 1, which cover
                the same field as the predicted ones.

        Returns:
            `loss_ce`, `loss_mask` and `loss_dice`, and those of inner predictions with `_0`, `_1` ... at the end.
        """
        num_masks = self._num_masks(targets)
        losses = self._losses(outputs, targets, num_masks)
        for i, inner in enumerate(outputs.get("aux_outputs", ())):
            if f"loss_ce_{i}" in self.weight_dict:
                losses |= {f"{k}_{i}": loss for k, loss in self._losses(inner, targets, num_masks).items()}
        return losses

    def _num_masks(self, targets: Sequence[dict[str, torch.Tensor]]) -> float:
        """Objects of a batch, the mean over processes, at least 1."""
        count = sum(len(target["labels"]) for target in targets)
        world = comm.get_world_size()
        if world > 1:
            total = torch.tensor(float(count), device=self.empty_weight.device)
            torch.distributed.all_reduce(total)
            count = float(total) / world
        return max(count, 1.0)

    def _losses(
        self, outputs: dict[str, Any], targets: Sequence[dict[str, torch.Tensor]], num_masks: float
    ) -> dict[str, torch.Tensor]:
        """The three losses of one prediction."""
        pairs = self.matcher(outputs, targets)
        return {**self._mask_losses(outputs, targets, pairs, num_masks), **self._class_loss(outputs, targets, pairs)}

    def _class_loss(self, outputs: dict[str, Any], targets: Sequence[Any], pairs: Sequence[Any]) -> dict[str, Any]:
        logits = outputs["pred_logits"].float()
        wanted = torch.full(logits.shape[:2], self.num_classes, dtype=torch.int64, device=logits.device)
        for row, target, (queries, objects) in zip(wanted, targets, pairs, strict=True):
            row[queries.to(row.device)] = target["labels"][objects.to(row.device)]
        return {"loss_ce": F.cross_entropy(logits.transpose(1, 2), wanted, self.empty_weight)}

    def _mask_losses(
        self, outputs: dict[str, Any], targets: Sequence[Any], pairs: Sequence[Any], num_masks: float
    ) -> dict[str, torch.Tensor]:
        device = outputs["pred_masks"].device
        predicted = torch.cat(
            [masks[queries.to(device)] for masks, (queries, _) in zip(outputs["pred_masks"], pairs, strict=True)]
        )[:, None]  # (R, 1, H, W)
        if not len(predicted):
            nothing = predicted.float().sum()
            return {"loss_mask": nothing, "loss_dice": nothing}
        with torch.no_grad():
            points = get_uncertain_point_coords_with_randomness(
                predicted,
                lambda logits: -logits.abs(),
                self.num_points,
                self.oversample_ratio,
                self.importance_sample_ratio,
            )
            counts = [len(queries) for queries, _ in pairs]
            wanted = torch.cat(
                [
                    # Image by image, because masks of numbers take four times the memory of bitmaps.
                    point_sample(target["masks"][objects.to(device), None].float(), of_image, align_corners=False)
                    for target, (_, objects), of_image in zip(targets, pairs, points.split(counts), strict=True)
                    if len(objects)
                ]
            )[:, 0]
        logits = point_sample(predicted, points, align_corners=False)[:, 0].float()
        with torch.autocast(device.type, enabled=False):
            return {
                "loss_mask": sigmoid_ce_loss(logits, wanted, num_masks),
                "loss_dice": dice_loss(logits, wanted, num_masks),
            }
