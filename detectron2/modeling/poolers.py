"""Pool the features of regions out of a feature pyramid.

Letters: `N` images, `L` levels, `R` regions of all images, `C` channels.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torchvision.ops import RoIPool

from detectron2.layers import ROIAlign, ROIAlignRotated, cat
from detectron2.structures import Boxes

from . import fixed_shapes

__all__ = ["ROIPooler", "assign_boxes_to_levels", "convert_boxes_to_pooler_format"]


def assign_boxes_to_levels(
    box_lists: Sequence[Boxes], min_level: int, max_level: int, canonical_box_size: int, canonical_level: int
) -> torch.Tensor:
    """Choose the pyramid level of each box by its size (Lin et al. 2017, equation 1).

    `level = floor(canonical_level + log2(sqrt(area) / canonical_box_size))`, limited to the levels there are.

    Args:
        box_lists: for each image its boxes (also rotated ones), in pixels of the network input.
        min_level: the finest level, as log2 of its stride.
        max_level: the coarsest level.
        canonical_box_size: side in pixels of the box that belongs on the canonical level.
        canonical_level: that level.

    Returns:
        `Tensor[R]` int64: the level counted from `min_level`, over all images in order.
    """
    size = cat([boxes.area() for boxes in box_lists]).sqrt()
    # A size that is exactly a power of two of the canonical one must not fall a level short by rounding.
    level = torch.floor(canonical_level + torch.log2(size / canonical_box_size + 1e-8))
    return level.clamp(min=min_level, max=max_level).to(torch.int64) - min_level


def convert_boxes_to_pooler_format(box_lists: Sequence[Boxes]) -> torch.Tensor:
    """Join the boxes of all images into `Tensor[R, 1 + 4]`, as `detectron2.layers.ROIAlign` takes them.

    A row is the index of the image, then the box. Rotated boxes give `Tensor[R, 1 + 5]`.
    """
    boxes = cat([b.tensor for b in box_lists])
    image_index = cat([torch.full_like(b.tensor[:, :1], i) for i, b in enumerate(box_lists)])
    return cat([image_index, boxes], dim=1)


def _make_level_pooler(pooler_type: str, output_size: tuple[int, int], scale: float, sampling_ratio: int) -> nn.Module:
    if pooler_type == "ROIAlign":
        return ROIAlign(output_size, spatial_scale=scale, sampling_ratio=sampling_ratio, aligned=False)
    if pooler_type == "ROIAlignV2":
        return ROIAlign(output_size, spatial_scale=scale, sampling_ratio=sampling_ratio, aligned=True)
    if pooler_type == "ROIPool":
        return RoIPool(output_size, spatial_scale=scale)
    if pooler_type == "ROIAlignRotated":
        return ROIAlignRotated(output_size, spatial_scale=scale, sampling_ratio=sampling_ratio)
    raise ValueError(
        f"unknown POOLER_TYPE {pooler_type!r}; choose 'ROIAlign', 'ROIAlignV2', 'ROIPool' or 'ROIAlignRotated'"
    )


def _group_by_level(levels: torch.Tensor, num_levels: int) -> list[torch.Tensor]:
    """For each level the indices of its boxes, ascending. One transfer to the host, whatever the number of levels."""
    order = levels.argsort(stable=True)
    # How many boxes lie on each level or below it. As bounds of slices these stay tensors, so that exported and traced
    # graphs compute them anew.
    ends = (levels[:, None] <= torch.arange(num_levels, device=levels.device)).sum(dim=0).cpu()
    return [order[: ends[0]]] + [order[ends[i - 1] : ends[i]] for i in range(1, num_levels)]


def _merge_levels(groups: Sequence[torch.Tensor], pooled: Sequence[torch.Tensor], num_regions: int) -> torch.Tensor:
    """Put the rows of each level back to where their boxes came from."""
    size = (num_regions, *pooled[0].shape[1:])
    if any(not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last) for x in pooled):
        first = pooled[0]
        merged = torch.empty(size, dtype=first.dtype, device=first.device, memory_format=torch.channels_last)
    else:
        merged = pooled[0].new_empty(size)
    for index, rows in zip(groups, pooled, strict=True):
        merged.index_put_((index,), rows)  # by `=`, a traced graph would keep the shape of a level with one region
    return merged


class _MergeLevels(torch.autograd.Function):
    """`_merge_levels` with a backward pass in which each level takes its rows, where autograd copies the whole."""

    # 62 ms against 175 ms, forward and backward, for 1024 regions of 256 x 7 x 7 on one CPU thread.

    @staticmethod
    def forward(ctx, num_regions: int, *groups_and_pooled: torch.Tensor) -> torch.Tensor:
        half = len(groups_and_pooled) // 2
        groups, pooled = groups_and_pooled[:half], groups_and_pooled[half:]
        ctx.save_for_backward(*groups)
        return _merge_levels(groups, pooled, num_regions)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: torch.Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        groups = ctx.saved_tensors
        return (None, *[None for _ in groups], *[grad[index] for index in groups])


class ROIPooler(nn.Module):
    """Pools each region from the level of the pyramid that fits its size.

    Args:
        output_size: `(height, width)` of the pooled region in bins, or one number for both.
        scales: for each level the size of its map relative to the network input, i.e. 1 / stride; each half of the one
            before, and powers of two.
        sampling_ratio: samples per bin and direction; 0 chooses by the size of the box.
        pooler_type: "ROIAlign" (the original, half a pixel off), "ROIAlignV2" (aligned), "ROIPool", or
            "ROIAlignRotated" for rotated boxes.
        canonical_box_size: side in pixels of the box that belongs on the canonical level; 224 after the FPN paper.
        canonical_level: that level, as log2 of its stride.
    """

    def __init__(
        self,
        output_size: int | tuple[int, int] | list[int],
        scales: Sequence[float],
        sampling_ratio: int,
        pooler_type: str,
        canonical_box_size: int = 224,
        canonical_level: int = 4,
    ):
        super().__init__()
        size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
        if len(size) != 2:
            raise ValueError(f"output_size is a number or (height, width); got {output_size}")
        self.output_size: tuple[int, int] = size
        self.level_poolers = nn.ModuleList(_make_level_pooler(pooler_type, size, s, sampling_ratio) for s in scales)
        levels = [-math.log2(scale) for scale in scales]
        if not levels or any(level != levels[0] + i for i, level in enumerate(levels)) or levels[0] % 1:
            raise ValueError(f"scales must be powers of two, each half of the one before; got {list(scales)}")
        self.min_level, self.max_level = int(levels[0]), int(levels[-1])
        if self.min_level < 0:
            raise ValueError(f"feature maps cannot be larger than the input; got scales {list(scales)}")
        if canonical_box_size <= 0:
            raise ValueError(f"canonical_box_size is in pixels and positive; got {canonical_box_size}")
        self.canonical_level = canonical_level
        self.canonical_box_size = canonical_box_size

    def forward(self, x: list[torch.Tensor], box_lists: Sequence[Boxes]) -> torch.Tensor:
        """Pool.

        Args:
            x: for each level `Tensor[N, C, H, W]`.
            box_lists: for each image its boxes, in pixels of the network input.

        Returns:
            `Tensor[R, C, height, width]` over the boxes of all images, in order.
        """
        num_levels = len(self.level_poolers)
        if not isinstance(x, (list, tuple)) or len(x) != num_levels:
            given = f"{len(x)} maps" if isinstance(x, (list, tuple)) else f"a {type(x).__name__}"
            raise ValueError(f"this ROIPooler takes a list of {num_levels} feature maps; got {given}")
        if len(box_lists) != x[0].shape[0]:
            raise ValueError(f"got boxes of {len(box_lists)} images for a batch of {x[0].shape[0]}")
        if len(box_lists) == 0:
            return x[0].new_zeros((0, x[0].shape[1], *self.output_size))
        regions = convert_boxes_to_pooler_format(box_lists)
        if num_levels == 1:
            return self.level_poolers[0](x[0], regions)
        levels = assign_boxes_to_levels(
            box_lists, self.min_level, self.max_level, self.canonical_box_size, self.canonical_level
        )
        if fixed_shapes.runs_ahead(regions.device) and regions.shape[1] == 5:
            return fixed_shapes.pool_on_every_level(self.level_poolers, x, regions, levels)
        groups = _group_by_level(levels, num_levels)
        pooled = [pool(m, regions[i]) for pool, m, i in zip(self.level_poolers, x, groups, strict=True)]
        # Tracing, in which lengths are tensors, knows nothing of functions written here.
        if torch.is_grad_enabled() and not isinstance(regions.shape[0], torch.Tensor):
            return _MergeLevels.apply(regions.shape[0], *groups, *pooled)
        return _merge_levels(groups, pooled, regions.shape[0])
