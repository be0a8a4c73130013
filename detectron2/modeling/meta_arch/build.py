"""Building a whole model from a config."""

import logging

import torch
from torch import nn

from detectron2.config import CfgNode
from detectron2.config.values import changed_keys_in, check_values
from detectron2.utils.registry import PartRegistry, build_part

__all__ = ["META_ARCH_REGISTRY", "build_model"]

logger = logging.getLogger(__name__)

# Entries are called as `model(cfg)` and return the whole model.
META_ARCH_REGISTRY = PartRegistry("META_ARCH")


def build_model(cfg: CfgNode) -> nn.Module:
    """The model that `cfg.MODEL.META_ARCHITECTURE` names, with random weights, on `cfg.MODEL.DEVICE`.

    Args:
        cfg: a full config. `cfg.MODEL.WEIGHTS` is not read: `DetectionCheckpointer(model).load(...)` does that.

    Returns:
        The model, in training mode.

    Raises:
        ValueError: when the device is not there, or a value in the config is impossible; the message names the keys.
    """
    check_values(cfg, "MODEL.* INPUT.* TEST.*")
    device = _available_device(cfg.MODEL.DEVICE)
    try:
        model = build_part(META_ARCH_REGISTRY, "MODEL.META_ARCHITECTURE", cfg)
    except (ValueError, RuntimeError) as e:
        keys = changed_keys_in(cfg, str(e)) if type(e) in (ValueError, RuntimeError) else []
        if not keys:  # or it is an error of the device
            raise
        raise ValueError(f"{str(e).rstrip('.')}. Keys of the config with such values: {', '.join(keys)}.") from e
    if not isinstance(model, torch.nn.Module):
        raise TypeError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE!r} built a {type(model).__name__}; a model must "
            "derive from torch.nn.Module."
        )
    wanted = cfg.TEST.get("MASK_FORMAT", "full")
    if cfg.MODEL.MASK_ON and wanted != getattr(model, "mask_format", "full"):
        logger.warning(
            f"TEST.MASK_FORMAT is {wanted!r}, but {type(model).__name__} gives whole masks: it has no such choice, or "
            "its from_config() does not pass mask_format on"
        )
    return model.to(device)


def _available_device(name: str) -> torch.device:
    """`torch.device(name)`, or an error that tells how to choose another: asked before the minutes a model takes."""
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if not torch.cuda.is_available() or (device.index or 0) >= count:
            found = f"only {count} of them" if torch.cuda.is_available() else "no usable GPU"
            raise ValueError(
                f"MODEL.DEVICE is {name!r}, but PyTorch {torch.__version__} finds {found}; to run on the processor set "
                'cfg.MODEL.DEVICE = "cpu" (on the command line: MODEL.DEVICE cpu), or install a build of PyTorch '
                "that fits the driver"
            )
    return device
