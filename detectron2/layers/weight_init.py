"""Initial weights of convolutions, as fvcore's functions of the same names set them.

Written out here because importing `fvcore.nn` compiles four losses with TorchScript, which takes time and warns.
"""

from torch import nn

__all__ = ["c2_msra_fill", "c2_xavier_fill"]


def c2_xavier_fill(module: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> None:
    """Uniform weights with variance `1 / fan_in`, and no bias (Caffe2's `XavierFill`)."""
    nn.init.kaiming_uniform_(module.weight, a=1)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def c2_msra_fill(module: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> None:
    """Normal weights with variance `2 / fan_out`, and no bias (Caffe2's `MSRAFill`)."""
    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if module.bias is not None:
        nn.init.zeros_(module.bias)
