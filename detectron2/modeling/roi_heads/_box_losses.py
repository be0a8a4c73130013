"""What the losses of the box predictor are made of: targets, box regression, and the classes of the federated loss.

`R` regions over the whole batch, `K` foreground classes, `B` numbers per box. Class index `K` is background.
"""

from collections.abc import Sequence
from typing import Any

import torch

from detectron2.layers import cat, nonzero_tuple
from detectron2.modeling.box_regression import _dense_box_regression_loss
from detectron2.structures import Instances

__all__ = ["box_regression_loss", "draw_fed_loss_classes", "gather_targets"]


def gather_targets(
    proposals: Sequence[Instances], scores: torch.Tensor, box_dim: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Labels `Tensor[R]`, proposal boxes `Tensor[R, B]` and matched boxes `Tensor[R, B]` of all images.

    An image without ground truth has no `gt_boxes`; its own proposals stand in, and no loss reads them.
    """
    if not proposals:
        no_boxes = scores.new_zeros(0, box_dim)
        return torch.zeros(0, dtype=torch.int64, device=scores.device), no_boxes, no_boxes
    boxes = cat([x.proposal_boxes.tensor for x in proposals])
    assert not boxes.requires_grad, "proposal boxes must be detached before the second stage"
    matched = cat([(x.gt_boxes if x.has("gt_boxes") else x.proposal_boxes).tensor for x in proposals])
    return cat([x.gt_classes for x in proposals]), boxes, matched


def box_regression_loss(
    proposal_boxes: torch.Tensor,
    gt_boxes: torch.Tensor,
    pred_deltas: torch.Tensor,
    gt_classes: torch.Tensor,
    *,
    num_classes: int,
    box2box_transform: Any,
    loss_type: str,
    smooth_l1_beta: float,
) -> torch.Tensor:
    """Box loss summed over the foreground, divided by the number of all regions; see `FastRCNNOutputLayers`."""
    box_dim = proposal_boxes.shape[1]
    foreground = nonzero_tuple((gt_classes >= 0) & (gt_classes < num_classes))[0]
    if pred_deltas.shape[1] == box_dim:
        deltas = pred_deltas[foreground]
    else:
        deltas = pred_deltas.view(-1, num_classes, box_dim)[foreground, gt_classes[foreground]]
    loss = _dense_box_regression_loss(
        [proposal_boxes[foreground]],
        box2box_transform,
        [deltas.unsqueeze(0)],
        [gt_boxes[foreground]],
        torch.ones(1, deltas.shape[0], dtype=torch.bool, device=deltas.device),
        box_reg_loss_type=loss_type,
        smooth_l1_beta=smooth_l1_beta,
    )
    return loss / max(gt_classes.numel(), 1)


def draw_fed_loss_classes(
    gt_classes: torch.Tensor, num_drawn: int, num_classes: int, weight: torch.Tensor
) -> torch.Tensor:
    """The distinct labels of `gt_classes`, filled up to `num_drawn` with absent classes drawn in ratio of `weight`."""
    present = gt_classes.unique()
    missing = num_drawn - present.numel()
    if missing <= 0:
        return present
    chance = torch.zeros(num_classes + 1, dtype=torch.float32, device=gt_classes.device)
    chance[:num_classes] = weight
    chance[present] = 0
    drawable = int(torch.count_nonzero(chance))
    if drawable == 0:
        return present
    return torch.cat([present, torch.multinomial(chance, min(missing, drawable), replacement=False)])
