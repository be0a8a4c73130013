"""Linear layers of transformers: the two after attention, and initial weights."""

from collections.abc import Callable

import torch
from torch import nn


class Mlp(nn.Module):
    """Two linear layers with an activation between, for each token by itself.

    Args:
        channels: of the input and the output.
        hidden_channels: between the two layers.
        act_layer: makes the activation.
        drop_rate: probability of dropping an element after either layer.
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: int,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        drop_rate: float = 0.0,
    ):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden_channels)
        self.act = act_layer()
        self.fc2 = nn.Linear(hidden_channels, channels)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `Tensor[..., channels]` to the same shape."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


def init_linear_and_norm(module: nn.Module) -> None:
    """Draw the weights of a linear layer from a narrow normal distribution; make a layer norm the identity."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
        nn.init.ones_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
