"""Which query is to predict which object: the assignment of least cost.

Carion et al., "End-to-End Object Detection with Transformers" (https://arxiv.org/abs/2005.12872), section 3.1, with the
cost of classes of Deformable DETR.

Letters: `N` images, `Q` queries, `K` classes, `T` objects of an image, `M = min(Q, T)` matches. Boxes are `(centre x,
centre y, width, height)` in parts of the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torchvision.ops import box_convert, generalized_box_iou

from detectron2.tracking.hungarian_tracker import linear_sum_assignment

from .transformer import Prediction

__all__ = ["HungarianMatcher", "Match", "Targets"]

_LARGE = 1e9  # the cost of a prediction that is not a number


class Targets(NamedTuple):
    """The objects of an image."""

    labels: torch.Tensor
    """int64 `Tensor[T]`."""
    boxes: torch.Tensor
    """`Tensor[T, 4]`."""


class Match(NamedTuple):
    """Queries of an image and the objects that they are to predict."""

    queries: torch.Tensor
    """int64 `Tensor[M]`, ascending."""
    objects: torch.Tensor
    """int64 `Tensor[M]`."""


@dataclass(frozen=True)
class HungarianMatcher:
    """Assigns queries to objects so that the sum of costs is least.

    Args:
        class_cost: factor of the cost of a class, the change of the focal loss when it becomes the label.
        box_cost: factor of the L1 distance of boxes.
        giou_cost: factor of the negative generalized IoU.
        focal_alpha: weight of the label in the focal loss; of other classes it is one minus this.

    Example:
        >>> from detectron2.projects.deformable_detr import HungarianMatcher, Prediction, Targets
        >>> boxes = torch.tensor([[[0.2, 0.2, 0.1, 0.1], [0.8, 0.8, 0.3, 0.3]]])
        >>> target = Targets(torch.tensor([0]), torch.tensor([[0.8, 0.8, 0.2, 0.2]]))
        >>> HungarianMatcher()(Prediction(torch.zeros(1, 2, 3), boxes), [target])
        [Match(queries=tensor([1]), objects=tensor([0]))]
    """

    class_cost: float = 2.0
    box_cost: float = 5.0
    giou_cost: float = 2.0
    focal_alpha: float = 0.25

    @torch.no_grad()
    def __call__(self, prediction: Prediction, targets: Sequence[Targets]) -> list[Match]:
        """Match the objects of each image; those beyond the number of queries are left out."""
        costs = [
            self.cost(logits, boxes, target)
            for logits, boxes, target in zip(prediction.logits, prediction.boxes, targets, strict=True)
        ]
        device = prediction.logits.device
        shapes = [cost.shape for cost in costs]
        # In one transfer.
        flat = torch.cat([cost.flatten() for cost in costs]).cpu().split([shape.numel() for shape in shapes])
        matches = []
        for cost, shape in zip(flat, shapes, strict=True):
            pairs = linear_sum_assignment(cost.view(shape).numpy())
            matches.append(Match(*(torch.from_numpy(index).to(device) for index in pairs)))
        return matches

    def cost(self, logits: torch.Tensor, boxes: torch.Tensor, target: Targets) -> torch.Tensor:
        """Costs `Tensor[Q, T]` of all pairs in an image, of logits `Tensor[Q, K]` and boxes `Tensor[Q, 4]`."""
        logits, boxes, wanted = logits.float(), boxes.float(), target.boxes.float()
        probabilities = logits.sigmoid()
        as_label = self.focal_alpha * (1 - probabilities) ** 2 * -F.logsigmoid(logits)
        as_other = (1 - self.focal_alpha) * probabilities**2 * -F.logsigmoid(-logits)
        corners = (box_convert(x, "cxcywh", "xyxy") for x in (boxes, wanted))
        cost = (
            self.class_cost * (as_label - as_other)[:, target.labels]
            + self.box_cost * torch.cdist(boxes, wanted, p=1)
            - self.giou_cost * generalized_box_iou(*corners)
        )
        return cost.nan_to_num(nan=_LARGE, posinf=_LARGE, neginf=_LARGE)
