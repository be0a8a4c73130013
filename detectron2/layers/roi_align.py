"""RoIAlign (He et al., "Mask R-CNN", https://arxiv.org/abs/1703.06870).

Letters: `R` regions, `C` channels.
"""

import torch
from torch import nn
from torchvision.ops import roi_align

__all__ = ["ROIAlign", "roi_align"]


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
        in float32: a float16 coordinate near 1000 is wrong by half a pixel.
        """
        if rois.dim() != 2 or rois.shape[1] != 5:
            raise ValueError(
                "ROIAlign expects regions of shape (R, 5), rows of (image index, x1, y1, x2, y2); "
                f"got {tuple(rois.shape)}."
            )
        dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        out = roi_align(
            input.to(dtype), rois.to(dtype), self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned
        )
        return out.to(input.dtype)

    def extra_repr(self) -> str:
        """Summarise the arguments for `repr`."""
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}"
        )
