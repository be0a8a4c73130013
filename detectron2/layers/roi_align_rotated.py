"""RoIAlign of rotated regions.

He et al., "Mask R-CNN" (https://arxiv.org/abs/1703.06870), with a sampling grid that turns with the region: Ma et al.,
"Arbitrary-Oriented Scene Text Detection via Rotation Proposals" (https://arxiv.org/abs/1703.01086).

Letters: `N` images, `R` regions, `C` channels.
"""

import torch
from torch import nn

from ._ops.rotated_sampling import RotatedPooling

__all__ = ["ROIAlignRotated", "roi_align_rotated"]


def roi_align_rotated(
    input: torch.Tensor,
    rois: torch.Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
) -> torch.Tensor:
    """Crop rotated regions from a feature map and resize each to one size; see :class:`ROIAlignRotated`.

    Args:
        input: features ``(N, C, H, W)``; the gradient flows to them.
        rois: ``(R, 6)``, each row the index of its image and ``(x_center, y_center, width, height, angle)``.
        output_size: size of each result, ``(height, width)``, or one number for both.
        spatial_scale: feature cells per unit of the region coordinates.
        sampling_ratio: samples along each side of an output cell; 0 takes as many as fit the region.

    Returns:
        ``(R, C, height, width)``, in the type of ``input``.

    Raises:
        ValueError: ``rois`` is not ``(R, 6)``, or ``input`` not ``(N, C, H, W)``.
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
    out = RotatedPooling.apply(input.to(dtype), rois.detach().to(dtype), output_hw, spatial_scale, sampling_ratio)
    return out.to(input.dtype)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]


class ROIAlignRotated(nn.Module):
    """RoIAlign whose grid of samples is turned with the region.

    Row 0 of the result lies along the side that is the upper one before the box is turned, so a box and the same box
    turned by 180 degrees give results that are upside down to each other.  A continuous coordinate ``c`` lies between
    the cells ``floor(c - 0.5)`` and ``ceil(c - 0.5)``, as with ``ROIAlign(aligned=True)``, which gives the same for an
    angle of 0.  Samples further out than one cell beyond the outermost centres count as zero.

    Half-precision features are pooled in float32: a float16 coordinate near 1000 is wrong by half a pixel.

    Args:
        output_size: size of each result, ``(height, width)``, or one number for both.
        spatial_scale: feature cells per unit of the region coordinates; 1/16 for a map of stride 16.
        sampling_ratio: samples along each side of an output cell; 0 takes as many as fit the region.
    """

    def __init__(self, output_size: int | tuple[int, int], spatial_scale: float, sampling_ratio: int):
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio

    def forward(self, input: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        """Pool every region.

        Args:
            input: features ``(N, C, H, W)``.
            rois: ``(R, 6)``, each row the index of its image and ``(x_center, y_center, width, height, angle)``; angle
                in degrees, counter-clockwise.

        Returns:
            ``(R, C, height, width)``, in the type of ``input``.
        """
        return roi_align_rotated(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio)

    def extra_repr(self) -> str:
        """Summarise the arguments for ``repr``."""
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, sampling_ratio={self.sampling_ratio}"
        )
