"""RoIAlign (He et al., "Mask R-CNN", https://arxiv.org/abs/1703.06870).

On the CPU, of features with channels last, each bin is a weighted sum of rows of the features, which are a table with
one row of `C` numbers for each cell. That is the work of `torch.nn.functional.embedding_bag`, which uses all cores and
adds whole rows; torchvision's operator copies the features, and takes one core and one number at a time. Samples that
share a cell are added before. The gradient of a cell is a weighted sum of the gradients of bins, in the same way. For
other features torchvision's is as fast as their copy into a table.

Letters: `N` images, `R` regions, `C` channels, `P` bins along a side, `S` samples along a side of a bin, `T` cells that
they reach.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.ops
from torch import nn

from detectron2.utils.tracing import when_compiled, when_traced

__all__ = ["ROIAlign", "check_images", "check_regions", "roi_align"]

_CELLS_AT_ONCE = 1 << 20  # of all bins that are pooled together, each time it is read
_MOST_CELLS = 1 << 12  # of one bin; regions far beyond the map are left to torchvision
_FEWEST_CHANNELS = 8


class ROIAlign(nn.Module):
    """Crop regions from a feature map and resize each to one size, by bilinear sampling.

    With `aligned=True` a continuous coordinate `c` lies between the pixels `floor(c - 0.5)` and
    `ceil(c - 0.5)`, because pixel `i` covers `[i, i + 1]` and is sampled at its centre `i + 0.5`. With
    `aligned=False` the half pixel is left out, as in the first published implementation.

    Args:
        output_size: size of each result, `(height, width)`, or one number for both.
        spatial_scale: feature cells per unit of the region coordinates; 1/16 for a map of stride 16.
        sampling_ratio: samples along each side of an output cell; 0 takes as many as fit the region.
        aligned: whether to take the half pixel into account.

    Example:
        >>> from detectron2.layers import ROIAlign
        >>> pooler = ROIAlign((7, 7), spatial_scale=1 / 16, sampling_ratio=0)
        >>> rois = torch.tensor([[0.0, 32, 32, 128, 96]])  # image 0, (x1, y1, x2, y2)
        >>> pooler(torch.rand(1, 256, 20, 30), rois).shape
        torch.Size([1, 256, 7, 7])
    """

    def __init__(
        self, output_size: int | tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool = True
    ):
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        """Pool features `(N, C, H, W)` to `(R, C, height, width)`, of the same type.

        Each row of `rois (R, 5)` is the index of an image and `(x1, y1, x2, y2)`. Half-precision features are pooled
        in float32: a float16 coordinate near 1000 is wrong by half a pixel. See `check_regions` for what is refused.
        """
        if rois.dim() != 2 or rois.shape[1] != 5:
            raise ValueError(
                "ROIAlign expects regions of shape (R, 5), rows of (image index, x1, y1, x2, y2); "
                f"got {tuple(rois.shape)}."
            )
        check_regions("ROIAlign", input, rois)
        dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        x, regions = input.to(dtype), rois.to(dtype)
        if _are_rows(x, regions):
            samples_hw = _samples_of(regions, self)
            if _can_sum_cells(samples_hw):
                pool = _SumCells.apply if torch.is_grad_enabled() and x.requires_grad else _sum_cells
                return pool(x, regions, samples_hw, self).to(input.dtype)
        options = self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned
        return torchvision.ops.roi_align(x, regions, *options).to(input.dtype)

    def extra_repr(self) -> str:
        """Summarise the arguments for `repr`."""
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}"
        )


@when_compiled(torchvision.ops.roi_align)
@when_traced(torchvision.ops.roi_align)
def roi_align(
    input: torch.Tensor,
    boxes: torch.Tensor | list[torch.Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> torch.Tensor:
    """Pool regions by torchvision's operator, which ends the process where `check_regions` raises.

    Models that `torch.jit.script` compiles call that operator, `torchvision.ops.roi_align`.

    Args:
        input: features `(N, C, H, W)`.
        boxes: `(R, 5)`, each row the index of an image and `(x1, y1, x2, y2)`; or N times `(R_i, 4)`.
        output_size: as for `ROIAlign`.
        spatial_scale: as for `ROIAlign`.
        sampling_ratio: as for `ROIAlign`, also below 0.
        aligned: as for `ROIAlign`.

    Returns:
        `(R, C, height, width)`.

    Raises:
        FloatingPointError: a region is not finite.
        ValueError: the features have another shape, or no cells; a region is of an image that is not there.

    Example:
        >>> roi_align(torch.ones(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 4, 4]]), 1)
        tensor([[[[1.]]]])
    """
    if not isinstance(boxes, torch.Tensor) and len(boxes) > 0:
        boxes = torch.cat([F.pad(part, (1, 0), value=i) for i, part in enumerate(boxes)])
    if isinstance(boxes, torch.Tensor) and boxes.dim() == 2 and boxes.shape[1] == 5:  # else it says itself
        check_regions("roi_align", input, boxes)
    size: Any = output_size
    return torchvision.ops.roi_align(input, boxes, size, spatial_scale, sampling_ratio, aligned)


def _unchecked(*args: object) -> None:
    """A graph has no checks that depend on values."""


@when_compiled(_unchecked)
@when_traced(_unchecked)
def check_regions(name: str, input: torch.Tensor, rois: torch.Tensor) -> None:
    """Refuse what ends the process, or a kernel on the CPU, without a word of the reason.

    Args:
        name: the operator, for the message.
        input: features `(N, C, H, W)`.
        rois: `(R, 5)`, each row the index of an image and `(x1, y1, x2, y2)`. On a GPU their values are not looked at.

    Raises:
        FloatingPointError: a region is not finite.
        ValueError: the features have another shape, or no cells; a region is of an image that is not there.

    Example:
        >>> check_regions("ROIAlign", torch.zeros(2, 8, 4, 4), torch.tensor([[1.0, 0, 0, 16, 16]]))
    """
    if input.dim() != 4:
        raise ValueError(f"{name} expects features of shape (N, C, H, W); got {tuple(input.shape)}.")
    if rois.shape[0] == 0:
        return
    if 0 in input.shape[2:]:
        raise ValueError(
            f"{name} cannot pool {rois.shape[0]} regions from features without cells, of shape {tuple(input.shape)}: "
            "the image is too small for the stride of this map."
        )
    check_images(name, input, rois)
    if _is_on_host(rois) and not bool(rois.isfinite().all()):
        row = int((~rois.isfinite()).any(dim=1).nonzero()[0])
        raise FloatingPointError(  # as for losses: a training may skip the step
            f"{name}: region {row} is {rois[row, 1:].tolist()}; coordinates must be finite numbers. Where a model made "
            "it, look for weights that are NaN, or for a diverged training."
        )


def _is_on_host(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu"


@when_compiled(_unchecked)
def check_images(name: str, input: torch.Tensor, rois: torch.Tensor) -> None:
    """Refuse regions of images that are not there; a GPU is not asked, since that would have to wait for it.

    Args:
        name: the operator, for the message.
        input: features `(N, C, H, W)`.
        rois: `(R, …)`, each row the index of an image, and its region.

    Raises:
        ValueError: an index is none of `0 … N - 1`.

    Example:
        >>> check_images("ROIAlign", torch.zeros(2, 8, 4, 4), torch.tensor([[1.0, 0, 0, 16, 16]]))
    """
    if rois.shape[0] == 0 or not _is_on_host(rois):
        return
    first, last = (float(index) for index in rois[:, 0].detach().aminmax())
    if not 0 <= first <= last < input.shape[0]:
        raise ValueError(
            f"{name}: a region is of image {first if first < 0 else last:g}, but the features are of {input.shape[0]} "
            "images, counted from 0."
        )


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _never(*args: torch.Tensor) -> bool:
    """A graph takes torchvision's operator: what the sums do depends on values."""
    return False


@when_compiled(_never)
@when_traced(_never)
def _are_rows(x: torch.Tensor, rois: torch.Tensor) -> bool:
    """Whether the features are rows in memory, on the CPU."""
    if x.device.type != "cpu" or x.dim() != 4 or x.shape[1] < _FEWEST_CHANNELS:
        return False
    is_empty = x.numel() == 0 or rois.shape[0] == 0
    return not is_empty and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _samples_of(rois: torch.Tensor, pooler: ROIAlign) -> torch.Tensor:
    """Samples along the sides of a bin of each region, `(R, 2)`, rows before columns, as floating numbers."""
    sides_hw = _sides_of(rois, pooler)[1]
    if pooler.sampling_ratio > 0:
        return torch.full_like(sides_hw, pooler.sampling_ratio)
    return (sides_hw / sides_hw.new_tensor(_pair(pooler.output_size))).ceil()


def _sides_of(rois: torch.Tensor, pooler: ROIAlign) -> tuple[torch.Tensor, torch.Tensor]:
    """Upper left corner and size of each region in cells, both `(R, 2)`, rows before columns."""
    shift = 0.5 if pooler.aligned else 0.0
    start = rois[:, [2, 1]] * pooler.spatial_scale - shift
    sides = rois[:, [4, 3]] * pooler.spatial_scale - shift - start
    return start, sides if pooler.aligned else sides.clamp(min=1)


def _can_sum_cells(samples_hw: torch.Tensor) -> bool:
    """Whether no region is far larger than usual; not so with coordinates that are not numbers."""
    largest = samples_hw.clamp(min=0).add(1).mul(2).prod(dim=1).amax()
    return bool(largest <= _MOST_CELLS)


def _sum_cells(
    x: torch.Tensor,
    rois: torch.Tensor,
    samples_hw: torch.Tensor,
    pooler: ROIAlign,
    entries: list[tuple[torch.Tensor, ...]] | None = None,
) -> torch.Tensor:
    """Pool features `(N, C, H, W)` with channels last; the result lies in memory as they do.

    What has been added to bins is appended to `entries`, if given, as `_entries` writes it.
    """
    channels, height, width = x.shape[1:]
    output_hw = _pair(pooler.output_size)
    table = x.permute(0, 2, 3, 1).view(-1, channels)
    start, sides = _sides_of(rois, pooler)
    image = rois[:, 0].long() * (height * width)
    out = x.new_empty((rois.shape[0], *output_hw, channels))
    is_dense = pooler.sampling_ratio <= 0
    for rows, grid_hw in _groups(samples_hw, output_hw):
        of_axes = [
            _cells_and_weights(start[rows, i], sides[rows, i], output_hw[i], grid_hw[i], (height, width)[i], is_dense)
            for i in range(2)
        ]
        (y, y_weight), (x_, x_weight) = of_axes
        y = y * width + image[rows, None, None]
        cell = y[:, :, None, :, None] + x_[:, None, :, None, :]
        weight = y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :]
        bins = cell.flatten(0, 2).flatten(1), weight.flatten(0, 2).flatten(1)
        pooled = F.embedding_bag(bins[0], table, mode="sum", per_sample_weights=bins[1])
        out.index_put_((rows,), pooled.view(-1, *output_hw, channels))
        if entries is not None:
            entries.append(_entries(rows, *bins))
    return out.permute(0, 3, 1, 2)


class _SumCells(torch.autograd.Function):
    """`_sum_cells` with a gradient for the features, which lies in memory as they do."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, rois: torch.Tensor, samples_hw: torch.Tensor, pooler: ROIAlign) -> torch.Tensor:
        entries: list[tuple[torch.Tensor, ...]] = []
        out = _sum_cells(x, rois, samples_hw, pooler, entries)
        ctx.shape = x.shape
        ctx.save_for_backward(*(torch.cat(column) for column in zip(*entries, strict=True)))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: torch.Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        num_images, channels, height, width = ctx.shape
        cells, bins, weights = ctx.saved_tensors
        order = cells.argsort(stable=True)  # so that sums are always taken in the same order
        ends = cells.bincount(minlength=num_images * height * width).cumsum(0)
        table = F.embedding_bag(
            bins[order],
            grad.permute(0, 2, 3, 1).reshape(-1, channels),
            torch.cat([ends.new_zeros(1), ends]).to(bins.dtype),
            mode="sum",
            per_sample_weights=weights[order],
            include_last_offset=True,
        )
        return table.view(num_images, height, width, channels).permute(0, 3, 1, 2), None, None, None


def _entries(rows: torch.Tensor, cells: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Cell, bin of all regions, and weight of whatever has one in the bins `(B, T)` of the regions `rows`."""
    bins_of_region = len(cells) // len(rows)
    bins = (rows[:, None] * bins_of_region + torch.arange(bins_of_region)).view(-1, 1).int().expand_as(cells)
    has_weight = weights != 0
    return cells[has_weight].int(), bins[has_weight], weights[has_weight]


def _groups(samples_hw: torch.Tensor, output_hw: tuple[int, int]) -> Iterator[tuple[torch.Tensor, list[int]]]:
    """Indices of regions whose bins have the same number of samples, and this number, rows before columns."""
    grids, group = samples_hw.clamp(min=0).long().unique(dim=0, return_inverse=True)
    order = group.argsort(stable=True)
    counts = group.bincount(minlength=len(grids))
    for rows, grid_hw in zip(order.split(counts.tolist()), grids.tolist(), strict=True):
        cells = output_hw[0] * output_hw[1] * 2 * (grid_hw[0] + 1) * (grid_hw[1] + 1)
        for part in rows.split(max(1, _CELLS_AT_ONCE // cells)):
            yield part, grid_hw


def _cells_and_weights(
    start: torch.Tensor, side: torch.Tensor, bins: int, samples: int, size: int, is_dense: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells that the samples of each bin reach along one axis, and their shares of the mean, both `(R, P, T)`."""
    if samples == 0:  # a region turned inside out has none
        return start.new_zeros((len(start), bins, 1), dtype=torch.int64), start.new_zeros((len(start), bins, 1))
    # In the order of torchvision's operator, so that rounding is the same.
    length = (side / bins)[:, None, None]
    number = torch.arange(bins, dtype=start.dtype)[:, None]
    offset = (torch.arange(samples, dtype=start.dtype) + 0.5) * length / samples
    position = start[:, None, None] + number * length + offset
    share = ((position >= -1) & (position <= size)).to(start.dtype) / samples
    position = position.clamp(0, size - 1)
    low = position.floor()
    if is_dense:  # samples are at most a cell apart, but for rounding
        first = low[:, :, :1]
        low = low.minimum(first + (samples - 1))
        first, slot = first.long(), (low - first).long()
        upper_share = (position - low) * share
        weights = start.new_zeros((*low.shape[:2], samples + 1))
        weights.scatter_add_(2, slot, share - upper_share)
        weights.scatter_add_(2, slot + 1, upper_share)
        cells = first + torch.arange(samples + 1)
    else:
        upper_share = (position - low) * share
        weights = torch.cat([share - upper_share, upper_share], dim=2)
        cells = torch.cat([low.long(), low.long() + 1], dim=2)
    return cells.clamp(max=size - 1), weights  # beyond the last cell there is no weight
