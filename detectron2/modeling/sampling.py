"""Draw a balanced sample of labelled elements."""

import torch

__all__ = ["subsample_labels"]


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
