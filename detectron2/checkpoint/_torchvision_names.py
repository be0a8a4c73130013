"""Recognizing classification ResNets with torchvision's names (torchvision itself, MoCo and many others)."""

import re
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["resnet_from_torchvision"]

_RULES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^layer(\d)\.", lambda match: f"res{int(match.group(1)) + 1}."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"^fc\.", "linear."),
)


def resnet_from_torchvision(weights: Mapping[str, Any], model_keys: Mapping[str, Any]) -> dict[str, Any] | None:
    """Rename the weights of a torchvision ResNet to the ends of our names.

    Args:
        weights: the state dict of a checkpoint, perhaps with a prefix.
        model_keys: the state dict of the model.

    Returns:
        The renamed weights; None when they are no such network or when the model uses those names itself.
    """
    first = "layer1.0.conv1.weight"
    found = {key.removesuffix(first) for key in weights if key == first or key.endswith(f".{first}")}
    # Of the networks of self-supervised training the one that was trained, not its slow copy.
    prefix = next((p for p in ("", "module.", "module.encoder_q.", "encoder_q.") if p in found), None)
    if prefix is None and len(found) == 1:
        prefix = next(iter(found))
    if prefix is None or any(key.endswith(first) for key in model_keys):
        return None
    renamed = {}
    for key, value in weights.items():
        if not key.startswith(prefix) or key.endswith("num_batches_tracked"):
            continue
        name = key[len(prefix) :]
        for pattern, replacement in _RULES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed
