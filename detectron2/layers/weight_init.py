"""Initial weights of convolutions, as fvcore's functions of the same names set them.

Written out here because importing `fvcore.nn` compiles four losses with TorchScript, which takes time and warns.
"""

from torch import nn

__all__ = ["c2_msra_fill", "c2_xavier_fill"]


def c2_xavier_fill(module: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> None:
    """Set uniform weights of variance `1 / fan_in`, and a bias of zero (Caffe2's `XavierFill`).

    Args:
        module: the layer, changed in place.

    Example:
        >>> from detectron2.layers.weight_init import c2_xavier_fill
        >>> conv = nn.Conv2d(64, 8, 3)
        >>> c2_xavier_fill(conv)
        >>> conv.bias.abs().max().item()
        0.0
    """
    nn.init.kaiming_uniform_(module.weight, a=1)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def c2_msra_fill(module: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> None:
    """Set normal weights of variance `2 / fan_out`, and a bias of zero (Caffe2's `MSRAFill`).

    Args:
        module: the layer, changed in place.

    Example:
        >>> from detectron2.layers.weight_init import c2_msra_fill
        >>> conv = nn.Conv2d(64, 256, 3)
        >>> c2_msra_fill(conv)
        >>> bool((conv.weight.std() / (2 / (256 * 9)) ** 0.5 - 1).abs() < 0.1)
        True
    """
    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if module.bias is not None:
        nn.init.zeros_(module.bias)
