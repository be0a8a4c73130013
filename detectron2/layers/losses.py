"""IoU losses of matched boxes.

Letters: `N` pairs of boxes, rows `(x1, y1, x2, y2)` with `x1 <= x2` and `y1 <= y2`.
"""

import math

import torch

__all__ = ["ciou_loss", "diou_loss"]


def diou_loss(boxes1: torch.Tensor, boxes2: torch.Tensor, reduction: str = "none", eps: float = 1e-7) -> torch.Tensor:
    """Distance-IoU loss, equation 7 of https://arxiv.org/abs/1911.08287.

    Args:
        boxes1: `(N, 4)` predictions.
        boxes2: `(N, 4)` targets, matched by row.
        reduction: `"none"`, `"mean"` (0 when there are no boxes) or `"sum"`.
        eps: added to denominators.

    Returns:
        The loss: `(N,)` for `"none"`, else a scalar.

    Example:
        >>> from detectron2.layers import diou_loss
        >>> targets = torch.tensor([[0.0, 0, 10, 10]])
        >>> diou_loss(targets, targets), diou_loss(targets + 10, targets)
        (tensor([0.]), tensor([1.2500]))
    """
    iou, distance = _iou_and_distance(boxes1, boxes2, eps)
    return _reduce(1 - iou + distance, reduction)


def ciou_loss(boxes1: torch.Tensor, boxes2: torch.Tensor, reduction: str = "none", eps: float = 1e-7) -> torch.Tensor:
    """Complete-IoU loss, equation 10 of https://arxiv.org/abs/1911.08287.

    Args:
        boxes1: `(N, 4)` predictions.
        boxes2: `(N, 4)` targets, matched by row.
        reduction: `"none"`, `"mean"` (0 when there are no boxes) or `"sum"`.
        eps: added to denominators.

    Returns:
        The loss: `(N,)` for `"none"`, else a scalar.

    Example:
        >>> from detectron2.layers import ciou_loss
        >>> targets = torch.tensor([[0.0, 0, 10, 10]])
        >>> ciou_loss(torch.tensor([[0.0, 0, 10, 5]]), targets)
        tensor([0.5345])
    """
    iou, distance = _iou_and_distance(boxes1, boxes2, eps)
    shape = (4 / math.pi**2) * (_aspect_angle(boxes2) - _aspect_angle(boxes1)) ** 2
    with torch.no_grad():  # the trade-off weight of equation 11 is a constant of the optimisation
        weight = shape / (1 - iou + shape + eps)
    return _reduce(1 - iou + distance + weight * shape, reduction)


def _aspect_angle(boxes: torch.Tensor) -> torch.Tensor:
    """`arctan(width / height)`."""
    w, h = (boxes[..., 2:] - boxes[..., :2]).unbind(-1)
    return torch.atan(w / h)


def _iou_and_distance(boxes1: torch.Tensor, boxes2: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """IoU, and squared distance of the centres over the squared diagonal of the enclosing box."""
    low1, high1 = boxes1[..., :2], boxes1[..., 2:]
    low2, high2 = boxes2[..., :2], boxes2[..., 2:]
    inter = (torch.minimum(high1, high2) - torch.maximum(low1, low2)).clamp(min=0).prod(-1)
    union = (high1 - low1).prod(-1) + (high2 - low2).prod(-1) - inter
    diagonal = (torch.maximum(high1, high2) - torch.minimum(low1, low2)).square().sum(-1)
    between = ((low1 + high1 - low2 - high2) / 2).square().sum(-1)
    return inter / (union + eps), between / (diagonal + eps)


def _reduce(loss: torch.Tensor, reduction: str) -> torch.Tensor:
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        return loss.mean() if loss.numel() else loss.sum() * 0.0
    raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}.")
