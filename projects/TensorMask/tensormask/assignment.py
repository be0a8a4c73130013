"""Which window is to segment which object (https://arxiv.org/abs/1903.12174, section 4.2).

Letters: `M` objects, `R` windows. Boxes are `(x1, y1, x2, y2)` in pixels of the network's input.
"""

import torch

__all__ = ["assign_windows"]


def assign_windows(
    gt_boxes: torch.Tensor,
    windows: torch.Tensor,
    unit_lengths: torch.Tensor,
    min_window_size: float,
    scale_thresh: float = 2.0,
    spatial_thresh: float = 1.0,
) -> torch.Tensor:
    """Assign an object to each window that fits it, and it alone.

    A window fits an object under three conditions. It contains the object (containment). The object's longer side is
    at least half the window's, give or take a unit, unless no smaller window exists (scale). The two centres are within
    one unit of each other (centrality). A window that fits several objects gets none (uniqueness).

    Args:
        gt_boxes: `Tensor[M, 4]`.
        windows: `Tensor[R, 4]`, squares.
        unit_lengths: `Tensor[R]`, in pixels.
        min_window_size: side of the smallest window, in pixels.
        scale_thresh: how many times as long as the object a window may be.
        spatial_thresh: distance allowed between the centres, in units.

    Returns:
        int64 `Tensor[R]`, the index of the object of each window, -1 for none.
    """
    if len(gt_boxes) == 0:
        return torch.full((len(windows),), -1, dtype=torch.int64, device=windows.device)
    objects = gt_boxes[:, None]
    contains = ((objects[..., :2] >= windows[:, :2]) & (objects[..., 2:] <= windows[:, 2:])).all(dim=2)
    longest = (gt_boxes[:, 2:] - gt_boxes[:, :2]).amax(dim=1)
    largest_window = (longest * scale_thresh).clamp(min=min_window_size)
    # Windows lie on a grid, which can move the best of them by up to a unit.
    size = (windows[:, 2:] - windows[:, :2]).amax(dim=1) - unit_lengths
    in_scale = size <= largest_window[:, None]
    distance = (objects[..., :2] + objects[..., 2:] - windows[:, :2] - windows[:, 2:]) / 2 / unit_lengths[:, None]
    central = distance.square().sum(dim=2) <= spatial_thresh**2

    fits = contains & in_scale & central
    return torch.where(fits.sum(dim=0) == 1, fits.int().argmax(dim=0), -1)
