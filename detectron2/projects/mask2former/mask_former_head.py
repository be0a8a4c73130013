"""Pixel decoder and transformer decoder behind one interface, that of a semantic head."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY

from .pixel_decoder import build_pixel_decoder
from .transformer_decoder import build_transformer_decoder

__all__ = ["MaskFormerHead"]

_IN_FEATURE = "multi_scale_pixel_decoder"


@SEM_SEG_HEADS_REGISTRY.register()
class MaskFormerHead(nn.Module):
    """From feature maps of the backbone to classes and masks of queries.

    Args:
        input_shape: stride and channels of each feature map.
        num_classes: classes, without "no object".
        pixel_decoder: see `MSDeformAttnPixelDecoder`.
        transformer_predictor: see `MultiScaleMaskedTransformerDecoder`.
        transformer_in_feature: what the transformer decoder reads: "multi_scale_pixel_decoder".

    Raises:
        ValueError: `transformer_in_feature` is another one.
    """

    _version = 2

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        num_classes: int,
        pixel_decoder: nn.Module,
        transformer_predictor: nn.Module,
        transformer_in_feature: str,
    ):
        super().__init__()
        if transformer_in_feature != _IN_FEATURE:
            raise ValueError(
                f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE must be {_IN_FEATURE!r}, got {transformer_in_feature!r}, "
                "which belongs to the older MaskFormer"
            )
        self.in_features = sorted(input_shape, key=lambda name: input_shape[name].stride or 1)
        self.num_classes = num_classes
        self.pixel_decoder: Any = pixel_decoder
        self.predictor = transformer_predictor
        self.transformer_in_feature = transformer_in_feature

    def forward(self, features: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Classes and masks, see `MultiScaleMaskedTransformerDecoder.forward`, from feature maps by name."""
        return self.layers(features)

    def layers(self, features: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """What `forward` returns."""
        mask_features, _, levels = self.pixel_decoder.forward_features(features)
        return self.predictor(levels, mask_features)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        if local_metadata.get("version") is None or local_metadata["version"] < 2:
            # What is now in the pixel decoder was in the head itself.
            for name in [name for name in state_dict if name.startswith(prefix)]:
                own = name.removeprefix(prefix)
                if not own.startswith(("predictor.", "pixel_decoder.")):
                    state_dict.setdefault(f"{prefix}pixel_decoder.{own}", state_dict.pop(name))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        """Arguments of the constructor from `cfg.MODEL.SEM_SEG_HEAD` and `cfg.MODEL.MASK_FORMER`."""
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": {name: shape for name, shape in input_shape.items() if name in head.IN_FEATURES},
            "num_classes": head.NUM_CLASSES,
            "pixel_decoder": build_pixel_decoder(cfg, input_shape),
            "transformer_predictor": build_transformer_decoder(cfg, head.CONVS_DIM, mask_classification=True),
            "transformer_in_feature": cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE,
        }
