"""Adaptive subdivision: from a coarse map to a fine one with few predictions (PointRend, section 3.1, figure 4).

`R` maps, `C` channels, `(H, W)` size of a map in cells, `P` points.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from .point_features import get_uncertain_point_coords_on_grid

__all__ = ["subdivide"]


def subdivide(
    logits: torch.Tensor,
    steps: int,
    num_points: int,
    uncertainty: Callable[[torch.Tensor], torch.Tensor],
    predict: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Double the resolution of a map `steps` times, and predict anew each time where it is least certain.

    Args:
        logits: `Tensor[R, C, H, W]`.
        steps: how often to double.
        num_points: how many cells of a map are predicted at each step.
        uncertainty: from a map `Tensor[R, C, H, W]` to `Tensor[R, 1, H, W]`, larger where less certain.
        predict: from points `Tensor[R, P, 2]`, `(x, y)` as shares of the map, to logits `Tensor[R, C, P]`.

    Returns:
        `Tensor[R, C, H * 2**steps, W * 2**steps]`.
    """
    for step in range(steps):
        logits = F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)
        height, width = logits.shape[-2:]
        if 4 * height * width <= num_points and step + 1 < steps:
            continue  # the next step will predict all of its cells, whatever happens in this one
        indices, coords = get_uncertain_point_coords_on_grid(uncertainty(logits), num_points)
        values = predict(coords).to(logits.dtype)
        flat = logits.flatten(2).scatter(2, indices.unsqueeze(1).expand_as(values), values)
        logits = flat.unflatten(2, (height, width))
    return logits
