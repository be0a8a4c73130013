"""Check labels, and draw a balanced sample of labelled elements."""

from collections.abc import Sequence

import torch

from detectron2.structures import Instances

from . import fixed_shapes

__all__ = ["check_labels", "subsample_labels"]


def check_labels(targets: Sequence[Instances], num_classes: int, cure: str) -> None:
    """Raise a ValueError when a ground truth label lies outside `[0, num_classes)`.

    Such a label would otherwise be trained as background, or fail later with an unclear error. Labels on an accelerator
    are not checked, because reading them would make every step wait; the data loader checks them before training.

    Args:
        targets: for each image its ground truth; images without `gt_classes` are passed over.
        num_classes: number of foreground classes.
        cure: how to set this number, for the message.
    """
    for i, target in enumerate(targets):
        labels = target.gt_classes if target.has("gt_classes") else torch.zeros(0)
        if fixed_shapes.runs_ahead(labels.device) or labels.numel() == 0:
            continue
        low, high = (int(x) for x in labels.aminmax())
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"image {i} of the batch has the label {low if low < 0 else high}, but the model has {num_classes} "
                f"classes, so labels must be 0 to {num_classes - 1}; {cure} to the number of classes of the data set, "
                "or correct the annotation"
            )


def subsample_labels(
    labels: torch.Tensor, num_samples: int, positive_fraction: float, bg_label: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw positives and negatives at random, without repetition.

    As many positives as there are, but at most `int(num_samples * positive_fraction)`; then as many negatives as are
    left to draw, or as there are.

    Args:
        labels: `Tensor[R]`: -1 (ignore), `bg_label` (negative), anything else is positive.
        num_samples: how many to draw at most.
        positive_fraction: the largest share of positives.
        bg_label: the label of negatives.

    Returns:
        The indices of the positives and of the negatives, in random order.
    """
    is_negative = labels == bg_label
    positive = ((labels != -1) & ~is_negative).nonzero(as_tuple=True)[0]
    negative = is_negative.nonzero(as_tuple=True)[0]
    num_positive = min(len(positive), int(num_samples * positive_fraction))
    num_negative = min(len(negative), num_samples - num_positive)
    return _draw(positive, num_positive), _draw(negative, num_negative)


def _draw(indices: torch.Tensor, count: int) -> torch.Tensor:
    order = torch.randperm(len(indices), device=indices.device)
    return indices[order[:count]]
