"""Points: where to predict, what the feature maps hold there, and what the ground truth says.

`N` images, `R` regions over the whole batch, `P` points of each, `C` channels, `K` classes, `(H, W)` size of a map.
Coordinates of points are `(x, y)`. Unless said otherwise they are shares of a region or a map: `(0, 0)` is its top
left corner and `(1, 1)` its bottom right corner, so the cell in row i and column j of a map has its centre at
`((j + 0.5) / W, (i + 0.5) / H)`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from detectron2.layers import cat
from detectron2.layers.wrappers import at_most
from detectron2.modeling.roi_heads.matched_masks import MatchedBitMasks
from detectron2.structures import BitMasks, Boxes, Instances

__all__ = [
    "generate_regular_grid_point_coords",
    "get_point_coords_wrt_image",
    "get_uncertain_point_coords_on_grid",
    "get_uncertain_point_coords_with_randomness",
    "point_sample",
    "point_sample_fine_grained_features",
    "sample_point_labels",
    "subdivide",
]


def point_sample(input: torch.Tensor, point_coords: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """Read maps at points: `torch.nn.functional.grid_sample` for coordinates in `[0, 1]`.

    Args:
        input: `Tensor[N, C, H, W]`.
        point_coords: `Tensor[N, P, 2]` or `Tensor[N, Hg, Wg, 2]`, `(x, y)` as shares of the map.
        **kwargs: arguments of `grid_sample`. Give `align_corners=False`; PyTorch's default may change.

    Returns:
        `Tensor[N, C, P]` or `Tensor[N, C, Hg, Wg]`, bilinearly interpolated; outside the map the values are 0.
    """
    is_list = point_coords.dim() == 3
    grid = 2.0 * point_coords - 1.0
    if grid.dtype != input.dtype:
        # Coordinates in half precision would be off by whole cells of a large map.
        common = torch.promote_types(grid.dtype, input.dtype)
        input, grid = input.to(common), grid.to(common)
    if is_list:
        return F.grid_sample(input, grid.unsqueeze(2), **kwargs).squeeze(3)
    return F.grid_sample(input, grid, **kwargs)


def generate_regular_grid_point_coords(R: int, side_size: int, device: torch.device | str) -> torch.Tensor:
    """Centres of the cells of a square grid, the same for all `R` regions: `Tensor[R, side_size ** 2, 2]`."""
    centres = (torch.arange(side_size, device=device, dtype=torch.float32) + 0.5) / side_size
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x, y], dim=2).reshape(1, side_size * side_size, 2).expand(R, -1, -1)


@torch.no_grad()
def get_uncertain_point_coords_with_randomness(
    coarse_logits: torch.Tensor,
    uncertainty_func: Callable[[torch.Tensor], torch.Tensor],
    num_points: int,
    oversample_ratio: float,
    importance_sample_ratio: float,
) -> torch.Tensor:
    """Draw points for training: many candidates, of which the least certain stay, and some others (section 3.1).

    Args:
        coarse_logits: `Tensor[R, K, H, W]`, or any other map that `uncertainty_func` understands.
        uncertainty_func: from the map's values at points, `Tensor[R, K, P]`, to `Tensor[R, 1, P]`, larger where less
            certain.
        num_points: how many points to return.
        oversample_ratio: how many candidates are drawn for each point, at least 1.
        importance_sample_ratio: share of the points that is taken from the least certain candidates, in `[0, 1]`; the
            others are drawn anew, evenly.

    Returns:
        `Tensor[R, num_points, 2]`, `(x, y)` as shares of the map. First come the least certain ones.
    """
    if oversample_ratio < 1:
        raise ValueError(f"oversample_ratio must be at least 1, got {oversample_ratio}")
    if not 0 <= importance_sample_ratio <= 1:
        raise ValueError(f"importance_sample_ratio must be between 0 and 1, got {importance_sample_ratio}")
    regions, device = coarse_logits.shape[0], coarse_logits.device
    candidates = torch.rand(regions, int(num_points * oversample_ratio), 2, device=device)
    # The uncertainty is computed from interpolated logits, not interpolated itself: between a logit of 1 and one of
    # -1 lies a border, and the mean of the two uncertainties would not show it.
    uncertainty = uncertainty_func(point_sample(coarse_logits, candidates, align_corners=False))
    num_uncertain = int(importance_sample_ratio * num_points)
    best = uncertainty[:, 0].topk(num_uncertain, dim=1).indices
    chosen = candidates.gather(1, best.unsqueeze(2).expand(-1, -1, 2))
    if num_uncertain == num_points:
        return chosen
    others = torch.rand(regions, num_points - num_uncertain, 2, device=device)
    return torch.cat([chosen, others], dim=1)


def get_uncertain_point_coords_on_grid(
    uncertainty_map: torch.Tensor, num_points: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `num_points` cells of a map `Tensor[R, 1, H, W]` that are least certain, or all if there are fewer.

    The result is their indices in `[0, H * W)`, `Tensor[R, P]`, and their centres, `Tensor[R, P, 2]`.
    """
    regions, _, height, width = uncertainty_map.shape
    if not torch.jit.is_tracing() and num_points >= height * width:
        indices = torch.arange(height * width, device=uncertainty_map.device).expand(regions, -1)
    else:
        flat = uncertainty_map.reshape(regions, height * width)
        indices = flat.topk(at_most(height * width, num_points), dim=1, sorted=False).indices
    column, row = indices % width, indices.div(width, rounding_mode="floor")
    coords = torch.stack([(column + 0.5) / width, (row + 0.5) / height], dim=2)
    return indices, coords


@torch.no_grad()
def get_point_coords_wrt_image(boxes_coords: torch.Tensor, point_coords: torch.Tensor) -> torch.Tensor:
    """Points `Tensor[R, P, 2]` from shares of boxes `Tensor[R, 4]`, `(x1, y1, x2, y2)`, to pixels of the image."""
    corner, opposite = boxes_coords[:, None, :2], boxes_coords[:, None, 2:]
    return corner + point_coords * (opposite - corner)


def point_sample_fine_grained_features(
    features_list: Sequence[torch.Tensor],
    feature_scales: Sequence[float],
    boxes: Sequence[Boxes],
    point_coords: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read the feature maps of the images at points of their regions.

    Args:
        features_list: feature maps, each `Tensor[N, Ci, Hi, Wi]`; their channels are put after one another.
        feature_scales: the size of each feature map relative to the image, for example 0.25.
        boxes: regions of each image, `R` in all.
        point_coords: `Tensor[R, P, 2]`, `(x, y)` as shares of each region.

    Returns:
        Features `Tensor[R, C, P]`, and the points in pixels of the image, `Tensor[R, P, 2]`.
    """
    coords_px = get_point_coords_wrt_image(Boxes.cat(list(boxes)).tensor, point_coords)
    counts = [x.tensor.shape[0] for x in boxes]
    levels = []
    for maps, scale in zip(features_list, feature_scales, strict=True):
        height, width = maps.shape[-2:]
        x, y = coords_px.unbind(dim=2)
        shares = torch.stack([x * (scale / width), y * (scale / height)], dim=2)
        read = [
            # The regions are the rows of one large grid over their image.
            point_sample(maps[i : i + 1], of_image.unsqueeze(0), align_corners=False)[0]
            for i, of_image in enumerate(shares.split(counts))
        ]
        levels.append(cat(read, dim=1).transpose(0, 1))
    return cat(levels, dim=1), coords_px


def sample_point_labels(instances: Sequence[Instances], point_coords: torch.Tensor) -> torch.Tensor:
    """What ground truth masks say at points `Tensor[R, P, 2]`: `Tensor[R, P]` in `[0, 1]`, bilinearly interpolated.

    The regions of each image, `R` in all, have `proposal_boxes` and `gt_masks`, which must be bitmaps; without
    regions the fields may be absent. Outside the image the result is 0.
    """
    labels = []
    with torch.no_grad():
        for per_image, coords in zip(instances, point_coords.split([len(x) for x in instances]), strict=True):
            if len(per_image) == 0:
                continue
            masks = per_image.gt_masks
            if not isinstance(masks, BitMasks):
                raise ValueError(
                    f"points are compared with bitmaps, but gt_masks are {type(masks).__name__}: set "
                    "INPUT.MASK_FORMAT to 'bitmask' (DatasetMapper: instance_mask_format='bitmask')"
                )
            coords_px = get_point_coords_wrt_image(per_image.proposal_boxes.tensor, coords)
            labels.append(_interpolate_bitmaps(masks, coords_px))
        if not labels:
            return point_coords.new_zeros(point_coords.shape[:2])
        return cat(labels)


def _interpolate_bitmaps(masks: BitMasks, coords_px: torch.Tensor) -> torch.Tensor:
    """Bitmaps `bool[R, H, W]` at `(x, y)` in pixels, `Tensor[R, P, 2]`: float `Tensor[R, P]`."""
    # Four reads for each point. Floating point bitmaps, which `grid_sample` asks for, would take half a gigabyte for
    # 128 regions of an image of 800 x 1333 pixels.
    if isinstance(masks, MatchedBitMasks):  # regions share the bitmaps of their objects
        bitmaps, owner = masks._masks.tensor, masks._index
    else:
        bitmaps, owner = masks.tensor, torch.arange(len(masks), device=masks.device)
    height, width = bitmaps.shape[-2:]
    owner = owner.to(coords_px.device)[:, None]
    from_centre = coords_px - 0.5  # pixel i has its centre at i + 0.5
    low = from_centre.floor()
    x_high, y_high = (from_centre - low).unbind(dim=2)  # weights of the right and the lower neighbours
    x_low, y_low = low.long().unbind(dim=2)
    total = torch.zeros_like(x_high)
    for dy, y_weight in ((0, 1 - y_high), (1, y_high)):
        for dx, x_weight in ((0, 1 - x_high), (1, x_high)):
            x, y = x_low + dx, y_low + dy
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            hit = bitmaps[owner, y.clamp(0, height - 1), x.clamp(0, width - 1)] & inside
            total += hit * (x_weight * y_weight)
    return total


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
        if not torch.jit.is_tracing() and 4 * height * width <= num_points and step + 1 < steps:
            continue  # the next step will predict all of its cells, whatever happens in this one
        indices, coords = get_uncertain_point_coords_on_grid(uncertainty(logits), num_points)
        values = predict(coords).to(logits.dtype)
        flat = logits.flatten(2).scatter(2, indices.unsqueeze(1).expand_as(values), values)
        logits = flat.unflatten(2, (height, width))
    return logits
