"""How dense and per-region heads encode a box relative to a reference box, and the loss on that encoding.

Letters: `N` images, `R` reference boxes (anchors or proposals), `P` positive ones, `k` classes with boxes of their own.
Boxes are `(x1, y1, x2, y2)` in absolute pixels, continuous coordinates. Deltas have no unit.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from detectron2.layers import cat, ciou_loss, diou_loss
from detectron2.structures import Boxes

from . import fixed_shapes

__all__ = ["Box2BoxTransform", "Box2BoxTransformLinear", "Box2BoxTransformRotated"]

# exp(dw) is clamped so that a 16-pixel reference box cannot grow beyond 1000 pixels: an untrained or diverging head
# must not overflow.
_DEFAULT_SCALE_CLAMP = math.log(1000.0 / 16)


def _giou_loss(boxes1: torch.Tensor, boxes2: torch.Tensor, reduction: str = "none", eps: float = 1e-7) -> torch.Tensor:
    """Generalized IoU loss (Rezatofighi et al. 2019) of matched boxes `Tensor[P, 4]`: one minus GIoU, 0 to 2."""
    low1, high1, low2, high2 = boxes1[:, :2], boxes1[:, 2:], boxes2[:, :2], boxes2[:, 2:]
    intersection = (torch.minimum(high1, high2) - torch.maximum(low1, low2)).clamp(min=0).prod(dim=1)
    union = (high1 - low1).prod(dim=1) + (high2 - low2).prod(dim=1) - intersection
    hull = (torch.maximum(high1, high2) - torch.minimum(low1, low2)).prod(dim=1)
    loss = 1 - intersection / (union + eps) + (hull - union) / (hull + eps)
    return loss.sum() if reduction == "sum" else loss


def _smooth_l1_sum(pred: torch.Tensor, target: torch.Tensor, beta: float) -> torch.Tensor:
    """Smooth L1 (Girshick 2015, equation 3, stretched by beta), summed; plain L1 where beta vanishes."""
    pred = pred.to(target.dtype)
    if beta < 1e-5:
        return (pred - target).abs().sum()
    return F.smooth_l1_loss(pred, target, beta=beta, reduction="sum")


_IOU_LOSSES = {"giou": _giou_loss, "diou": diou_loss, "ciou": ciou_loss}


def _check_pair(src_boxes, target_boxes) -> None:
    for boxes in (src_boxes, target_boxes):
        if not isinstance(boxes, torch.Tensor):
            raise TypeError(f"boxes must be a Tensor[R, 4]; got {type(boxes).__name__} (of Boxes, pass .tensor)")


def _check_has_area(src_boxes: torch.Tensor, src_wh: torch.Tensor, form: str) -> None:
    # Only where looking at a value does not stall the device.
    if not fixed_shapes.runs_ahead(src_boxes.device) and not bool((src_wh > 0).all()):
        bad = int((~(src_wh > 0)).any(dim=-1).nonzero()[0])
        raise ValueError(
            f"cannot encode relative to box {bad} of {len(src_boxes)}: {src_boxes[bad].tolist()} {form} has no area; "
            "remove such boxes first"
        )


def _center_and_size(boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split boxes `(..., 4)` into centres `(x, y)` and sizes `(w, h)`."""
    corner, opposite = boxes[..., :2], boxes[..., 2:]
    size_wh = opposite - corner
    return corner + 0.5 * size_wh, size_wh


def _scale(pair: torch.Tensor, factor_x: float, factor_y: float) -> torch.Tensor:
    """Multiply x and y of `(..., 2)`, without moving the factors to the device."""
    if factor_x == factor_y:
        return pair if factor_x == 1 else pair * factor_x
    return torch.stack((pair[..., 0] * factor_x, pair[..., 1] * factor_y), dim=-1)


class Box2BoxTransform:
    """The encoding of R-CNN (Girshick et al. 2014, appendix C): shifts of the centre and logarithms of the size.

    `dx = wx (x' - x) / w`, `dw = ww log(w' / w)`, likewise in y, with centres x and sizes w.

    Args:
        weights: `(wx, wy, ww, wh)`. Fast R-CNN chose them so that deltas have unit variance.
        scale_clamp: largest `dw` and `dh` (after removal of the weight) that `apply_deltas` honours.
    """

    def __init__(self, weights: tuple[float, float, float, float], scale_clamp: float = _DEFAULT_SCALE_CLAMP):
        # Five are those of rotated boxes: what reads them builds this encoding first, and then its own.
        if len(weights) not in (4, 5) or not all(0 < w < math.inf for w in weights):
            raise ValueError(f"weights (BBOX_REG_WEIGHTS) must be four numbers above 0; got {weights}")
        self.weights = weights
        self.scale_clamp = scale_clamp

    def get_deltas(self, src_boxes: torch.Tensor, target_boxes: torch.Tensor) -> torch.Tensor:
        """Encode each target relative to its source: `Tensor[R, 4]` of `(dx, dy, dw, dh)`.

        Args:
            src_boxes: `Tensor[R, 4]`, for instance proposals; their sides must be positive.
            target_boxes: `Tensor[R, 4]`, for instance matched ground truth.

        Returns:
            What `apply_deltas` turns back into the targets, unless the clamp cuts it.
        """
        _check_pair(src_boxes, target_boxes)
        src_center, src_wh = _center_and_size(src_boxes)
        _check_has_area(src_boxes, src_wh, "(x1, y1, x2, y2)")
        target_center, target_wh = _center_and_size(target_boxes)
        wx, wy, ww, wh = self.weights
        shift = _scale((target_center - src_center) / src_wh, wx, wy)
        growth = _scale(torch.log(target_wh / src_wh), ww, wh)
        return torch.cat((shift, growth), dim=-1)

    def apply_deltas(self, deltas: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Decode deltas relative to boxes, in single precision at least.

        Args:
            deltas: `Tensor[R, k * 4]`: for every box `k` encodings, for instance one for each class.
            boxes: `Tensor[R, 4]`.

        Returns:
            `Tensor[R, k * 4]` of boxes.
        """
        deltas = deltas.to(torch.promote_types(deltas.dtype, torch.float32))
        center, size_wh = _center_and_size(boxes.to(deltas.dtype)[:, None])
        wx, wy, ww, wh = self.weights
        encoded = deltas.reshape(deltas.shape[0], deltas.shape[1] // 4, 4)
        center = center + _scale(encoded[..., :2], 1 / wx, 1 / wy) * size_wh
        growth = _scale(encoded[..., 2:], 1 / ww, 1 / wh).clamp(max=self.scale_clamp)
        half_wh = growth.exp() * (0.5 * size_wh)
        return torch.cat((center - half_wh, center + half_wh), dim=-1).reshape(deltas.shape)


class Box2BoxTransformRotated:
    """The encoding of Rotated R-CNN: that of `Box2BoxTransform`, and the turn `da = wa (a' - a)` in radians.

    Boxes are `(x_center, y_center, width, height, angle)`; their angles are in degrees, counter-clockwise.

    Args:
        weights: `(wx, wy, ww, wh, wa)`.
        scale_clamp: largest `dw` and `dh` (after removal of the weight) that `apply_deltas` honours.
    """

    def __init__(self, weights: tuple[float, float, float, float, float], scale_clamp: float = _DEFAULT_SCALE_CLAMP):
        if len(weights) != 5:
            raise ValueError(
                f"rotated boxes have five deltas (dx, dy, dw, dh, da), so five weights are needed; got {weights}. "
                "Set MODEL.RPN.BBOX_REG_WEIGHTS to e.g. (1, 1, 1, 1, 1) and MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS to "
                "(10, 10, 5, 5, 1)"
            )
        self.weights = weights
        self.scale_clamp = scale_clamp

    def get_deltas(self, src_boxes: torch.Tensor, target_boxes: torch.Tensor) -> torch.Tensor:
        """Encode targets relative to sources, both `Tensor[R, 5]`, as `Tensor[R, 5]` of `(dx, dy, dw, dh, da)`.

        The sides of sources must be positive. Of the two ways to turn the shorter one is taken.
        """
        _check_pair(src_boxes, target_boxes)
        src_center, src_wh, src_angle = src_boxes.split((2, 2, 1), dim=-1)
        _check_has_area(src_boxes, src_wh, "(x_center, y_center, width, height, angle)")
        target_center, target_wh, target_angle = target_boxes.split((2, 2, 1), dim=-1)
        wx, wy, ww, wh, wa = self.weights
        shift = _scale((target_center - src_center) / src_wh, wx, wy)
        growth = _scale(torch.log(target_wh / src_wh), ww, wh)
        turn = torch.deg2rad(_principal_angle(target_angle - src_angle)) * wa
        return torch.cat((shift, growth, turn), dim=-1)

    def apply_deltas(self, deltas: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Decode deltas `Tensor[R, k * 5]` relative to boxes `Tensor[R, 5]`, in single precision at least.

        The result is `Tensor[R, k * 5]` of boxes, with angles in [-180, 180).
        """
        if deltas.shape[1] % 5 != 0 or boxes.shape[1] != 5:
            raise ValueError(
                f"rotated boxes take deltas of shape (R, k * 5) and boxes of shape (R, 5); got {tuple(deltas.shape)} "
                f"and {tuple(boxes.shape)}"
            )
        deltas = deltas.to(torch.promote_types(deltas.dtype, torch.float32))
        center, size_wh, angle = boxes.to(deltas.dtype)[:, None].split((2, 2, 1), dim=-1)
        wx, wy, ww, wh, wa = self.weights
        encoded = deltas.reshape(deltas.shape[0], deltas.shape[1] // 5, 5)
        center = center + _scale(encoded[..., :2], 1 / wx, 1 / wy) * size_wh
        growth = _scale(encoded[..., 2:4], 1 / ww, 1 / wh).clamp(max=self.scale_clamp)
        turned = _principal_angle(angle + torch.rad2deg(encoded[..., 4:] / wa))
        return torch.cat((center, growth.exp() * size_wh, turned), dim=-1).reshape(deltas.shape)


def _principal_angle(degrees: torch.Tensor) -> torch.Tensor:
    """Bring angles into [-180, 180) degrees."""
    return torch.remainder(degrees + 180.0, 360.0) - 180.0


class Box2BoxTransformLinear:
    """The encoding of FCOS (Tian et al. 2019): distances from the reference's centre to the four sides.

    Args:
        normalize_by_size: divide the distances by the sides of the reference box. With square anchors as large as
            the stride of their level this is the normalisation of the paper.
    """

    def __init__(self, normalize_by_size: bool = True):
        self.normalize_by_size = normalize_by_size

    def get_deltas(self, src_boxes: torch.Tensor, target_boxes: torch.Tensor) -> torch.Tensor:
        """Encode targets relative to the centres of sources, both `Tensor[R, 4]`.

        The result is `Tensor[R, 4]` of distances to the left, upper, right and lower side; meaningful where the target
        contains the centre.
        """
        _check_pair(src_boxes, target_boxes)
        center, size_wh = _center_and_size(src_boxes)
        before, after = center - target_boxes[..., :2], target_boxes[..., 2:] - center
        if self.normalize_by_size:
            before, after = before / size_wh, after / size_wh
        return torch.cat((before, after), dim=-1)

    def apply_deltas(self, deltas: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Decode distances `Tensor[R, k * 4]` relative to the centres of boxes `Tensor[R, 4]`: `Tensor[R, k * 4]`.

        Negative distances count as zero.
        """
        deltas = F.relu(deltas.to(torch.promote_types(deltas.dtype, torch.float32)))
        center, size_wh = _center_and_size(boxes.to(deltas.dtype)[:, None])
        encoded = deltas.reshape(deltas.shape[0], deltas.shape[1] // 4, 4)
        before, after = encoded[..., :2], encoded[..., 2:]
        if self.normalize_by_size:
            before, after = before * size_wh, after * size_wh
        return torch.cat((center - before, center + after), dim=-1).reshape(deltas.shape)


def _dense_box_regression_loss(
    anchors: Sequence[Boxes | torch.Tensor],
    box2box_transform: Any,
    pred_anchor_deltas: Sequence[torch.Tensor],
    gt_boxes: Sequence[torch.Tensor],
    fg_mask: torch.Tensor,
    box_reg_loss_type: str = "smooth_l1",
    smooth_l1_beta: float = 0.0,
) -> torch.Tensor:
    """Sum the box loss over the positive anchors `fg_mask`, `Tensor[N, R]`.

    Only their rows are encoded or decoded; on a GPU, all are, and the others count as zero.

    Deltas are `Tensor[N, R_i, 4]` for each level; `gt_boxes` are `Tensor[R, 4]` for each image, matched to the anchors.
    """
    all_anchors = cat([a.tensor if not isinstance(a, torch.Tensor) else a for a in anchors])
    pred_deltas, targets = cat(list(pred_anchor_deltas), dim=1), torch.stack(list(gt_boxes))
    positive: torch.Tensor | None = None
    if fixed_shapes.runs_ahead(fg_mask.device):
        positive = fg_mask.reshape(-1, 1)
        references = all_anchors.expand_as(targets).flatten(0, 1)
        # Without positives among them, neither values nor gradients can become infinite.
        pred_deltas = torch.where(positive, pred_deltas.flatten(0, 1), 0.0)
        targets = torch.where(positive, targets.flatten(0, 1), references)
    else:
        image_index, anchor_index = fg_mask.nonzero(as_tuple=True)
        pred_deltas, targets = pred_deltas[image_index, anchor_index], targets[image_index, anchor_index]
        references = all_anchors[anchor_index]

    if box_reg_loss_type == "smooth_l1":
        target_deltas = box2box_transform.get_deltas(references, targets)
        if positive is not None:
            target_deltas = torch.where(positive, target_deltas, 0.0)
        return _smooth_l1_sum(pred_deltas, target_deltas, smooth_l1_beta)
    if box_reg_loss_type in _IOU_LOSSES:
        pred_boxes = box2box_transform.apply_deltas(pred_deltas, references)
        if positive is None:
            return _IOU_LOSSES[box_reg_loss_type](pred_boxes, targets, reduction="sum")
        of_each = _IOU_LOSSES[box_reg_loss_type](pred_boxes, targets, reduction="none")
        return torch.where(positive[:, 0], of_each, 0.0).sum()
    raise ValueError(
        f"unknown BBOX_REG_LOSS_TYPE {box_reg_loss_type!r}; choose 'smooth_l1' or one of {sorted(_IOU_LOSSES)}"
    )
