"""Choose a backbone by its name in the config."""

from typing import Any

from detectron2.layers import ShapeSpec
from detectron2.utils.registry import PartRegistry, build_part

from .backbone import Backbone

__all__ = ["BACKBONE_REGISTRY", "build_backbone"]

BACKBONE_REGISTRY = PartRegistry("BACKBONE")
BACKBONE_REGISTRY.__doc__ = """
Backbones by name.

An entry is called as `entry(cfg, input_shape)`, where `input_shape` is the `ShapeSpec` of the input image, and
returns a `Backbone`.
"""


def build_backbone(cfg: Any, input_shape: ShapeSpec | None = None) -> Backbone:
    """Build the backbone that `cfg.MODEL.BACKBONE.NAME` names, on the CPU.

    By default the image has as many channels as `cfg.MODEL.PIXEL_MEAN` has entries.
    """
    if input_shape is None:
        input_shape = ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
    backbone = build_part(BACKBONE_REGISTRY, "MODEL.BACKBONE.NAME", cfg, input_shape=input_shape)
    if not isinstance(backbone, Backbone):
        raise TypeError(
            f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME!r} built a {type(backbone).__name__}; "
            "a backbone must derive from detectron2.modeling.Backbone"
        )
    return backbone
