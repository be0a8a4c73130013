"""Layer-wise decay of the learning rate: the nearer a layer is to the image, the smaller its rate.

Clark et al., "ELECTRA", arXiv:2003.10555, and Li et al., "Exploring Plain Vision Transformer Backbones for Object
Detection", arXiv:2203.16527.
"""

import re
from collections.abc import Callable, Iterable

from torch import nn

__all__ = ["layer_decay"]

# Swin counts its blocks anew in every stage. What merges patches after a stage belongs to the last block of it.
_STAGED_BLOCK = re.compile(r"\.layers\.(\d+)\.(?:blocks\.(\d+)\.|downsample\.)")
# ResNet has stem, res2 ... res5; RegNet has stem, s1 ... s4.
_STAGE = re.compile(r"\.(?:(stem)|(?:res|s)(\d+))\.")
_BLOCK = re.compile(r"\.blocks\.(\d+)\.")
_BEFORE_ALL = (".patch_embed", ".pos_embed", ".absolute_pos_embed")


def layer_decay(model: nn.Module, rate: float) -> Callable[[str], float]:
    """Factors for `lr_factor_func` of `detectron2.solver.get_default_optimizer_params`.

    With `n` layers, layer `i` gets `rate ** (n - i)`; patches, positions or the stem get one factor more, and
    what is not in the backbone, or comes after its layers (a pyramid), gets 1. A layer is a block of a transformer, or
    a stage of a ResNet or RegNet.

    Args:
        model: its attribute `backbone` holds one of those backbones, by itself or below a pyramid.
        rate: factor from one layer to the one below it, in (0, 1].

    Returns:
        From the full name of a parameter to its factor.

    Raises:
        ValueError: the rate is out of range, or the backbone has no layers that are known here.
    """
    if not 0.0 < rate <= 1.0:
        raise ValueError(f"The factor between two layers must be in (0, 1], but is {rate}.")
    names = [name for name, _ in model.named_parameters() if name.startswith("backbone.")]
    if any(_STAGED_BLOCK.search(name) for name in names):
        return _decay_staged_blocks(names, rate)
    blocks = [int(found[1]) for name in names if (found := _BLOCK.search(name))]
    if blocks:
        from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate  # optimizers alone need no models

        count = max(blocks) + 1
        return lambda name: get_vit_lr_decay_rate(name, rate, count)
    if any(_STAGE.search(name) for name in names):
        return _decay_stages(names, rate)
    raise ValueError(
        "Layer-wise decay needs a backbone with blocks (ViT, MViT, Swin) or stages (ResNet, RegNet) in model.backbone; "
        f"its parameters begin with {names[:3]}. Set SOLVER.LAYER_DECAY to 1.0, or pass your own lr_factor_func to "
        "get_default_optimizer_params."
    )


def _decay_staged_blocks(names: Iterable[str], rate: float) -> Callable[[str], float]:
    found = [match for name in names if (match := _STAGED_BLOCK.search(name))]
    order = sorted({(int(match[1]), int(match[2])) for match in found if match[2]})
    place = {key: index for index, key in enumerate(order)}
    last_of_stage = {stage: index for (stage, _), index in place.items()}

    def factor(name: str) -> float:
        match = _STAGED_BLOCK.search(name)
        if not name.startswith("backbone."):
            return 1.0
        if match:
            index = place[int(match[1]), int(match[2])] if match[2] else last_of_stage[int(match[1])]
            return rate ** (len(order) - index)
        return rate ** (len(order) + 1) if any(part in name for part in _BEFORE_ALL) else 1.0

    return factor


def _decay_stages(names: Iterable[str], rate: float) -> Callable[[str], float]:
    found = [match for name in names if (match := _STAGE.search(name))]
    place = {stage: index for index, stage in enumerate(sorted({int(match[2]) for match in found if match[2]}))}

    def factor(name: str) -> float:
        match = _STAGE.search(name)
        if not name.startswith("backbone.") or not match:
            return 1.0
        return rate ** (len(place) - (-1 if match[1] else place[int(match[2])]))

    return factor
