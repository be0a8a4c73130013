"""The losses of Deformable DETR and DINO: focal loss of classes, L1 distance and generalized IoU of boxes.

Letters: `N` images, `Q` queries, `K` classes. Boxes are `(centre x, centre y, width, height)` in parts of the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torchvision.ops import box_convert, generalized_box_iou_loss, sigmoid_focal_loss

import detectron2.utils.comm as comm

from .matcher import HungarianMatcher, Match, Targets
from .transformer import Prediction

__all__ = ["SetCriterion"]


@dataclass(frozen=True)
class SetCriterion:
    """Matches predictions with objects and compares them.

    Args:
        matcher: assigns queries to objects.
        class_weight: factor of the focal loss.
        box_weight: factor of the L1 distance.
        giou_weight: factor of one minus the generalized IoU.
        focal_alpha: weight of the label in the focal loss; of other classes it is one minus this.

    Example:
        >>> from detectron2.projects.deformable_detr import Prediction, SetCriterion, Targets
        >>> prediction = Prediction(torch.zeros(1, 2, 3), torch.full((1, 2, 4), 0.5))
        >>> target = Targets(torch.tensor([0]), torch.tensor([[0.5, 0.5, 0.5, 0.4]]))
        >>> sorted(SetCriterion()([prediction], [target]))
        ['loss_bbox', 'loss_ce', 'loss_giou']
    """

    matcher: HungarianMatcher = field(default_factory=HungarianMatcher)
    class_weight: float = 2.0
    box_weight: float = 5.0
    giou_weight: float = 2.0
    focal_alpha: float = 0.25

    def __call__(self, layers: Sequence[Prediction], targets: Sequence[Targets]) -> dict[str, torch.Tensor]:
        """Compute the weighted losses of the predictions of each layer.

        Args:
            layers: what each layer of the decoder predicts.
            targets: the objects of each image.

        Returns:
            `loss_ce`, `loss_bbox` and `loss_giou` of the last layer; those of layer `i` before it end with `_i`.
        """
        losses: dict[str, torch.Tensor] = {}
        count = self.count(targets)
        for i, prediction in enumerate(layers):
            suffix = "" if i + 1 == len(layers) else f"_{i}"
            losses.update(self.of_matches(prediction, targets, self.matcher(prediction, targets), count, suffix))
        return losses

    def matched(self, prediction: Prediction, targets: Sequence[Targets], suffix: str = "") -> dict[str, torch.Tensor]:
        """Compute the weighted losses of one prediction; `suffix` ends their names."""
        return self.of_matches(prediction, targets, self.matcher(prediction, targets), self.count(targets), suffix)

    def count(self, targets: Sequence[Targets]) -> torch.Tensor:
        """The number of objects that an average process has, at least 1: what losses are divided by."""
        total = targets[0].boxes.new_tensor(sum(len(target.labels) for target in targets), dtype=torch.float32)
        if comm.get_world_size() > 1:
            dist.all_reduce(total)
        return (total / comm.get_world_size()).clamp(min=1)

    def of_matches(
        self,
        prediction: Prediction,
        targets: Sequence[Targets],
        matches: Sequence[Match],
        count: torch.Tensor,
        suffix: str = "",
    ) -> dict[str, torch.Tensor]:
        """Compute the weighted losses of matched predictions.

        Args:
            prediction: for each query.
            targets: the objects of each image.
            matches: of each image; other queries are to find nothing.
            count: what losses are divided by.
            suffix: the end of their names.

        Returns:
            Three losses.
        """
        logits = prediction.logits.float()
        labels = torch.zeros_like(logits)
        for row, target, match in zip(labels, targets, matches, strict=True):
            row[match.queries, target.labels[match.objects]] = 1.0
        loss_ce = sigmoid_focal_loss(logits, labels, alpha=self.focal_alpha, gamma=2.0, reduction="sum")
        boxes = torch.cat([b[match.queries] for b, match in zip(prediction.boxes.float(), matches, strict=True)])
        wanted = torch.cat([t.boxes[match.objects] for t, match in zip(targets, matches, strict=True)])
        loss_giou = generalized_box_iou_loss(
            box_convert(boxes, "cxcywh", "xyxy"),
            box_convert(wanted, "cxcywh", "xyxy"),
            reduction="sum",
            eps=1e-12,  # the default is as large as a box of a few pixels
        )
        return {
            f"loss_ce{suffix}": self.class_weight * loss_ce / count,
            f"loss_bbox{suffix}": self.box_weight * F.l1_loss(boxes, wanted, reduction="sum") / count,
            f"loss_giou{suffix}": self.giou_weight * loss_giou / count,
        }
