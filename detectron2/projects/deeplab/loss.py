"""The loss of hard pixels.

Letters: `N` images, `K` classes, `H` and `W` height and width in pixels.
"""

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["DeepLabCE"]


class DeepLabCE(nn.Module):
    """Cross entropy averaged over the worst pixels of a batch (https://arxiv.org/abs/1911.10194, section 3).

    Which pixels are hard is decided after weighting. Ignored pixels cost nothing, and therefore lower the average when
    fewer others remain than are asked for.

    Args:
        ignore_label: label of pixels that cost nothing.
        top_k_percent_pixels: part of all pixels to average over, above 0 and up to 1.
        weight: a factor for each class, `Tensor[K]`.

    Raises:
        ValueError: the part is outside its range.
    """

    weight: torch.Tensor | None

    def __init__(self, ignore_label: int = -1, top_k_percent_pixels: float = 1.0, weight: torch.Tensor | None = None):
        super().__init__()
        if not 0.0 < top_k_percent_pixels <= 1.0:
            raise ValueError(
                f"top_k_percent_pixels is a part of all pixels, above 0 and up to 1; got {top_k_percent_pixels}"
            )
        self.ignore_label = ignore_label
        self.top_k_percent_pixels = top_k_percent_pixels
        # Not persistent: it is a setting, and the state dict of a head has no key for it.
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """The loss of logits `Tensor[N, K, H, W]` and int64 labels `Tensor[N, H, W]`.

        `weights`, of the same shape, are factors for each pixel. The result is connected to `logits` even where every
        pixel is ignored.
        """
        per_pixel = F.cross_entropy(
            logits, labels, weight=self.weight, ignore_index=self.ignore_label, reduction="none"
        )
        if weights is not None:
            per_pixel = per_pixel * weights
        if self.top_k_percent_pixels == 1.0:
            return per_pixel.mean()
        count = max(1, int(self.top_k_percent_pixels * per_pixel.numel()))
        return per_pixel.flatten().topk(count, sorted=False).values.mean()
