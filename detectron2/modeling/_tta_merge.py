"""What test-time augmentation does with predictions that already share a frame: choose boxes, average the rest.

`A` augmented copies of one image, `B` boxes found in all of them together, `D` detections, `K` keypoints, `M` side of a
mask. Boxes are `(x1, y1, x2, y2)`, or rotated `(x_center, y_center, width, height, angle)`, in pixels.
"""

from collections.abc import Sequence

import torch

from detectron2.layers.nms import greedy_nms
from detectron2.modeling.roi_heads._numerics import best_after_nms
from detectron2.structures import Boxes, Instances, RotatedBoxes

__all__ = ["average_keypoints", "average_masks", "best_boxes"]

# A box whose score is nothing at all is none: the padding of some custom heads, for example.
_MIN_SCORE = 1e-8


def best_boxes(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    classes: torch.Tensor,
    image_size_hw: tuple[int, int],
    nms_thresh: float,
    limit: int,
) -> Instances:
    """The best boxes that non-maximum suppression within each class leaves over.

    Args:
        boxes: `Tensor[B, 4]` or, rotated, `Tensor[B, 5]`.
        scores: `Tensor[B]`.
        classes: `Tensor[B]`.
        image_size_hw: `(height, width)`, to which boxes are clipped.
        nms_thresh: of two boxes of one class that overlap by more than this IoU, only the better stays.
        limit: at most so many; all when negative.

    Returns:
        Detections with `pred_boxes`, `scores` and `pred_classes`, best first.
    """
    usable = (torch.isfinite(boxes).all(dim=1) & (scores > _MIN_SCORE)).nonzero()[:, 0]
    boxes, scores, classes = boxes[usable], scores[usable], classes[usable]
    is_rotated = boxes.shape[1] == 5
    candidates = RotatedBoxes(boxes) if is_rotated else Boxes(boxes)
    candidates.clip(image_size_hw)
    if is_rotated:
        keep = greedy_nms(candidates.tensor, scores, nms_thresh, classes, limit=limit)
    else:
        keep = best_after_nms(candidates.tensor, scores, classes, nms_thresh, limit)
    return Instances(image_size_hw, pred_boxes=candidates[keep], scores=scores[keep], pred_classes=classes[keep])


def average_masks(masks: Sequence[torch.Tensor], flipped_dims: Sequence[Sequence[int]]) -> torch.Tensor:
    """Mean of the masks of the same boxes in all copies.

    Args:
        masks: for each copy `Tensor[D, 1, M, M]` of probabilities inside the boxes.
        flipped_dims: for each copy the dimensions along which its image, and so its masks, are mirrored.

    Returns:
        `Tensor[D, 1, M, M]` in the orientation of the image.
    """
    total = torch.zeros_like(masks[0])
    for mask, dims in zip(masks, flipped_dims, strict=True):
        total += mask.flip(list(dims)) if dims else mask
    return total.div_(len(masks))


def average_keypoints(keypoints: torch.Tensor) -> torch.Tensor:
    """Mean of the keypoints of the same objects in all copies.

    Positions are weighted by their scores, so that a copy in which a keypoint was hardly seen does not drag it away.

    Args:
        keypoints: `Tensor[A, D, K, 3]` of x, y and score in one frame, left and right already as in the image.

    Returns:
        `Tensor[D, K, 3]`; its scores are plain means.
    """
    xy, score = keypoints[..., :2], keypoints[..., 2:]
    weight = score.clamp(min=torch.finfo(score.dtype).tiny)  # where all scores are 0, all copies count the same
    weight = weight / weight.amax(dim=0, keepdim=True)  # before the sum: of such small numbers it would lose digits
    mean_xy = (xy * weight).sum(dim=0) / weight.sum(dim=0)
    return torch.cat([mean_xy, score.mean(dim=0)], dim=-1)
