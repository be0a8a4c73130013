"""RoIAlign of rotated regions.

He et al., "Mask R-CNN" (https://arxiv.org/abs/1703.06870), with a sampling grid that turns with the region: Ma et al.,
"Arbitrary-Oriented Scene Text Detection via Rotation Proposals" (https://arxiv.org/abs/1703.01086).

Every bin of the result is a weighted sum of a few rows of the features, taken as a table with one row of `C` numbers
for each cell. So the work is that of `torch.nn.functional.embedding_bag`, which never holds the samples themselves:
they would take `R * C * samples` numbers.

Letters: `N` images, `C` channels, `R` regions, `B` bins over all regions, `S` samples, `T` taps (four cells around
each sample). Coordinates of the maps are continuous minus a half: cell `i` is sampled at `i`.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from detectron2.utils.tracing import whole_in_trace

from .roi_align import check_images

__all__ = ["ROIAlignRotated", "roi_align_rotated"]

# Bins are pooled in portions of about this many samples.
_SAMPLES_AT_ONCE = 1 << 18


def roi_align_rotated(
    input: torch.Tensor,
    rois: torch.Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
) -> torch.Tensor:
    """Crop rotated regions from a feature map and resize each to one size; see `ROIAlignRotated`.

    Args:
        input: features `(N, C, H, W)`; the gradient flows to them.
        rois: `(R, 6)`, each row the index of its image and `(x_center, y_center, width, height, angle)`; angle in
            degrees, counter-clockwise.
        output_size: size of each result, `(height, width)`, or one number for both.
        spatial_scale: feature cells per unit of the region coordinates.
        sampling_ratio: samples along each side of an output cell; 0 takes as many as fit the region.

    Returns:
        `(R, C, height, width)`, in the type of `input`.

    Raises:
        ValueError: `rois` is not `(R, 6)`, or `input` not `(N, C, H, W)`, or a region is of an image that is not there.

    Example:
        >>> from detectron2.layers import roi_align_rotated
        >>> features = torch.arange(16.0).view(1, 1, 4, 4)
        >>> upright, upside_down = [0.0, 2, 2, 4, 4, 0], [0.0, 2, 2, 4, 4, 180]
        >>> roi_align_rotated(features, torch.tensor([upright, upside_down]), 2, 1.0, sampling_ratio=2).flatten(1)
        tensor([[ 2.5000,  4.5000, 10.5000, 12.5000],
                [12.5000, 10.5000,  4.5000,  2.5000]])
    """
    if rois.dim() != 2 or rois.shape[1] != 6:
        raise ValueError(
            "ROIAlignRotated expects regions of shape (R, 6), rows of (image index, x_center, y_center, width, height, "
            f"angle); got {tuple(rois.shape)}."
        )
    if input.dim() != 4:
        raise ValueError(f"ROIAlignRotated expects features of shape (N, C, H, W); got {tuple(input.shape)}.")
    output_hw = (output_size, output_size) if isinstance(output_size, int) else (output_size[0], output_size[1])
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    out = _pool(input.to(dtype), rois.detach().to(dtype), output_hw, spatial_scale, sampling_ratio)
    return out.to(input.dtype)


@whole_in_trace("pool_rotated(Tensor input, Tensor rois, int[] output_hw, float scale, int sampling_ratio) -> Tensor")
def _pool(*arguments: Any) -> Any:
    check_images("ROIAlignRotated", *arguments[:2])
    return _RotatedPooling.apply(*arguments)


class ROIAlignRotated(nn.Module):
    """RoIAlign with a grid of samples that turns with the region.

    Row 0 of the result lies along the side that is the upper one before the box is turned, so a box and the same box
    turned by 180 degrees give results that are upside down to each other. A continuous coordinate `c` lies between
    the cells `floor(c - 0.5)` and `ceil(c - 0.5)`, as with `ROIAlign(aligned=True)`, which gives the same for an
    angle of 0. Samples further out than one cell beyond the outermost centres count as zero.

    Half-precision features are pooled in float32: a float16 coordinate near 1000 is wrong by half a pixel.

    Args:
        output_size: size of each result, `(height, width)`, or one number for both.
        spatial_scale: feature cells per unit of the region coordinates; 1/16 for a map of stride 16.
        sampling_ratio: samples along each side of an output cell; 0 takes as many as fit the region.

    Example:
        >>> from detectron2.layers import ROIAlignRotated
        >>> pooler = ROIAlignRotated((7, 7), spatial_scale=1 / 16, sampling_ratio=0)
        >>> rois = torch.tensor([[0.0, 80, 64, 96, 64, 30]])  # image 0, (x_center, y_center, width, height, angle)
        >>> pooler(torch.rand(1, 256, 20, 30), rois).shape
        torch.Size([1, 256, 7, 7])
    """

    def __init__(self, output_size: int | tuple[int, int], spatial_scale: float, sampling_ratio: int):
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio

    def forward(self, input: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        """Pool features `(N, C, H, W)` at `rois (R, 6)` to `(R, C, height, width)`; see `roi_align_rotated`."""
        return roi_align_rotated(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio)

    def extra_repr(self) -> str:
        """Summarise the arguments for `repr`."""
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, sampling_ratio={self.sampling_ratio}"
        )


def _bin_grids(rois: torch.Tensor, output_hw: tuple[int, int], sampling_ratio: int) -> torch.Tensor:
    """Samples along both sides of a bin, int64 `(R, 2)`, rows before columns; `rois` in cells."""
    if sampling_ratio > 0:
        return torch.full((rois.shape[0], 2), sampling_ratio, dtype=torch.int64, device=rois.device)
    sides_hw = torch.stack((rois[:, 4] / output_hw[0], rois[:, 3] / output_hw[1]), dim=1)
    return sides_hw.ceil().clamp(min=0).to(torch.int64)


def _portions(samples_per_bin: torch.Tensor, bins_per_roi: int, fixed: int) -> list[tuple[int, int, int]]:
    """First bin, end and number of samples of runs of all bins; `fixed` samples for all bins, or 0, save a look."""
    num_bins = samples_per_bin.shape[0] * bins_per_roi
    if fixed:
        step = max(1, _SAMPLES_AT_ONCE // fixed)
        starts = range(0, num_bins, step)
        return [(a, min(a + step, num_bins), (min(a + step, num_bins) - a) * fixed) for a in starts]
    ends = samples_per_bin.repeat_interleave(bins_per_roi, output_size=num_bins).cumsum(0).cpu()
    runs, start, done = [], 0, 0
    while start < num_bins:
        end = int(torch.searchsorted(ends, done + _SAMPLES_AT_ONCE, right=True))
        end = max(end, start + 1)
        total = int(ends[end - 1])
        runs.append((start, end, total - done))
        start, done = end, total
    return runs


def _bilinear_taps(
    x: torch.Tensor, y: torch.Tensor, size_hw: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The four cells around each sample: row-major places `(4, S)`, weights `(4, S)`, and which count, `(S,)`."""
    height, width = size_hw
    counts = (x >= -1) & (x <= width) & (y >= -1) & (y <= height)
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    x_low, y_low = x.floor(), y.floor()
    x_part, y_part = x - x_low, y - y_low
    x_low, y_low = x_low.to(torch.int64), y_low.to(torch.int64)
    x_high, y_high = (x_low + 1).clamp_(max=width - 1), (y_low + 1).clamp_(max=height - 1)
    y_low, y_high = y_low * width, y_high * width
    places = torch.stack((y_low + x_low, y_low + x_high, y_high + x_low, y_high + x_high))
    x_rest, y_rest = 1 - x_part, 1 - y_part
    weights = torch.stack((y_rest * x_rest, y_rest * x_part, y_part * x_rest, y_part * x_part))
    return places, weights, counts


class _Sampler:
    """Where the samples of regions `(R, 6)` lie; it yields the taps of a portion of the bins at a time."""

    def __init__(
        self,
        rois: torch.Tensor,
        size_hw: tuple[int, int],
        output_hw: tuple[int, int],
        spatial_scale: float,
        sampling_ratio: int,
    ):
        self.size_hw, self.output_hw = size_hw, output_hw
        self.fixed = max(sampling_ratio, 0) ** 2
        boxes = rois[:, 1:]
        usable = torch.isfinite(boxes).all(dim=1, keepdim=True)
        boxes = torch.where(usable, boxes, 0.0)
        theta = torch.deg2rad(torch.fmod(boxes[:, 4], 360.0))
        x, y, width, height = (boxes[:, :4] * spatial_scale).unbind(1)
        scaled = torch.stack((rois[:, 0], x, y, width, height), dim=1)
        self.grid_hw = _bin_grids(scaled, output_hw, sampling_ratio)
        self.samples_per_bin = self.grid_hw.prod(dim=1)
        self.first_cell = rois[:, 0].to(torch.int64) * math.prod(size_hw)
        # Steps between samples, and what makes a weight a mean over the bin.
        grid_height, grid_width = self.grid_hw.clamp(min=1).to(boxes.dtype).unbind(1)
        step_x, step_y = width / output_hw[1] / grid_width, height / output_hw[0] / grid_height
        mean = usable[:, 0] / (grid_height * grid_width)
        self.geometry = torch.stack((x - 0.5, y - 0.5, width, height, step_x, step_y, theta.cos(), theta.sin(), mean))

    def __iter__(self) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield of each portion its bins, cells and weights `(T,)` of their taps, and where each bin begins, `(B,)`."""
        bins_per_roi = math.prod(self.output_hw)
        for first, end, num_samples in _portions(self.samples_per_bin, bins_per_roi, self.fixed):
            bins = torch.arange(first, end, device=self.geometry.device)
            roi_of_bin = bins.div(bins_per_roi, rounding_mode="floor")
            sizes = self.samples_per_bin[roi_of_bin]
            begins = sizes.cumsum(0).sub_(sizes)
            which = torch.arange(end - first, device=bins.device).repeat_interleave(sizes, output_size=num_samples)
            within = torch.arange(num_samples, device=bins.device).sub_(begins[which])
            roi = roi_of_bin[which]
            x, y, mean = self._places_xy(roi, bins[which] - roi * bins_per_roi, within)
            places, weights, counts = _bilinear_taps(x, y, self.size_hw)
            places += self.first_cell[roi]
            weights *= mean
            if self.fixed:
                weights *= counts
            else:
                # A region may reach far out of the map, and then nearly all of its samples are of no use.
                kept_before = F.pad(counts.cumsum(0), (1, 0))
                chosen = counts.nonzero().squeeze(1)
                places, weights, begins = places[:, chosen], weights[:, chosen], kept_before[begins]
            yield slice(first, end), places.t().flatten(), weights.t().flatten(), begins * 4

    def _places_xy(
        self, roi: torch.Tensor, bin_: torch.Tensor, within: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Coordinates of samples on the map, and the weight of each in the mean: sample `within` of a bin of a roi."""
        grid_height, grid_width = self.grid_hw[roi].unbind(1)
        bin_row = bin_.div(self.output_hw[1], rounding_mode="floor")
        row = within.div(grid_width, rounding_mode="floor")
        column = within - row * grid_width + (bin_ - bin_row * self.output_hw[1]) * grid_width
        row += bin_row * grid_height
        x, y, width, height, step_x, step_y, cos, sin, mean = self.geometry[:, roi].unbind(0)
        along = (column + 0.5) * step_x - width / 2
        down = (row + 0.5) * step_y - height / 2
        return x + down * sin + along * cos, y + down * cos - along * sin, mean


class _RotatedPooling(torch.autograd.Function):
    """Pool rotated regions; the backward pass keeps only the regions, and computes their taps again."""

    @staticmethod
    def forward(
        ctx: Any,
        features: torch.Tensor,
        rois: torch.Tensor,
        output_hw: tuple[int, int],
        spatial_scale: float,
        sampling_ratio: int,
    ) -> torch.Tensor:
        """Pool `features (N, C, H, W)` at `rois (R, 6)`: `(R, C, *output_hw)`."""
        ctx.save_for_backward(rois)
        ctx.shape, ctx.arguments = features.shape, (output_hw, spatial_scale, sampling_ratio)
        channels = features.shape[1]
        table = features.permute(0, 2, 3, 1).flatten(0, 2)
        pooled = features.new_zeros((rois.shape[0] * math.prod(output_hw), channels))
        if table.numel() > 0:
            sampler = _Sampler(rois, (features.shape[2], features.shape[3]), *ctx.arguments)
            for bins, cells, weights, begins in sampler:
                pooled[bins] = F.embedding_bag(cells, table, begins, mode="sum", per_sample_weights=weights)
        return pooled.view(rois.shape[0], *output_hw, channels).permute(0, 3, 1, 2).contiguous()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The same sums the other way round: each cell collects the gradients of the bins that it gave to."""
        (rois,) = ctx.saved_tensors
        num_images, channels, height, width = ctx.shape
        num_cells = num_images * height * width
        grad_rows = grad.permute(0, 2, 3, 1).flatten(0, 2)
        total = grad.new_zeros((num_cells, channels))
        if total.numel() > 0:
            for bins, cells, weights, begins in _Sampler(rois, (height, width), *ctx.arguments):
                order = cells.argsort(stable=True)
                touched, uses = torch.unique_consecutive(cells[order], return_counts=True)
                source = torch.bucketize(order, begins, right=True).sub_(1)
                sums = F.embedding_bag(
                    source, grad_rows[bins], uses.cumsum(0) - uses, mode="sum", per_sample_weights=weights[order]
                )
                total.index_add_(0, touched, sums)
        return total.view(num_images, height, width, channels).permute(0, 3, 1, 2), None, None, None, None
