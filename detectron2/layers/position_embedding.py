"""Positions in an image as sines and cosines.

Vaswani et al., "Attention Is All You Need" (https://arxiv.org/abs/1706.03762), section 3.5, for two coordinates:
Carion et al., "End-to-End Object Detection with Transformers" (https://arxiv.org/abs/2005.12872), appendix A.4.
"""

import math

import torch
from torch import nn

__all__ = ["SinePositionEmbedding", "sine_embedding"]


def sine_embedding(values: torch.Tensor, num_channels: int, temperature: float = 10000.0) -> torch.Tensor:
    """Sines and cosines of numbers at `num_channels / 2` frequencies.

    Channel `2i` is `sin(value / temperature ** (2i / num_channels))`, channel `2i + 1` the cosine of the same.

    Args:
        values: angles in radians, any shape.
        num_channels: even number of channels for each value.
        temperature: ratio of the highest frequency to the one beyond the lowest.

    Returns:
        The shape of `values`, and `num_channels`.

    Raises:
        ValueError: `num_channels` is odd.

    Example:
        >>> from detectron2.layers import sine_embedding
        >>> sine_embedding(torch.tensor([0.0, 1.0]), 4)
        tensor([[0.0000, 1.0000, 0.0000, 1.0000],
                [0.8415, 0.5403, 0.0100, 0.9999]])
    """
    if num_channels % 2:
        raise ValueError(f"num_channels must be even, got {num_channels}")
    powers = torch.arange(0, num_channels, 2, dtype=values.dtype, device=values.device) / num_channels
    angles = values[..., None] / temperature**powers
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class SinePositionEmbedding(nn.Module):
    """Embeds the row and the column of each pixel of a feature map, counted within what is not padding.

    Args:
        num_channels: channels for each coordinate; the result has twice as many, rows before columns.
        temperature: see `sine_embedding`.
        normalize: whether coordinates run from 0 to 2π within the image; else they are whole numbers from 1.
        offset: added to normalized coordinates before they are divided by their largest; -0.5 for the middle of pixels.

    Example:
        >>> from detectron2.layers import SinePositionEmbedding
        >>> padding = torch.zeros(1, 4, 6, dtype=torch.bool)
        >>> SinePositionEmbedding(num_channels=128)(padding).shape
        torch.Size([1, 256, 4, 6])
    """

    def __init__(
        self, num_channels: int = 128, temperature: float = 10000.0, normalize: bool = True, offset: float = 0.0
    ):
        super().__init__()
        self.num_channels = num_channels
        self.temperature = temperature
        self.normalize = normalize
        self.offset = offset

    def forward(self, padding_mask: torch.Tensor) -> torch.Tensor:
        """Embed positions, `[N, 2 * num_channels, H, W]`; `padding_mask` is bool `[N, H, W]`, True for padding."""
        inside = ~padding_mask
        embedded = []
        for dim in (1, 2):
            place = inside.cumsum(dim, dtype=torch.float32)
            if self.normalize:
                largest = place.narrow(dim, -1, 1)
                place = (place + self.offset) / (largest + 1e-6) * (2 * math.pi)
            embedded.append(sine_embedding(place, self.num_channels, self.temperature))
        return torch.cat(embedded, dim=3).permute(0, 3, 1, 2)
