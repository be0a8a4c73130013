"""Swin with the names of stages and keys that configs of Mask2Former use.

`N` images, `C` channels of the first stage, `H` and `W` height and width in pixels of the input.
"""

from collections.abc import Sequence
from typing import Any

import torch

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, SwinTransformer

__all__ = ["D2SwinTransformer"]


@BACKBONE_REGISTRY.register()
class D2SwinTransformer(SwinTransformer):
    """`SwinTransformer` whose feature maps are called "res2", "res3" ..., as those of a ResNet.

    Args:
        out_features: names of the maps to return; "res2" has stride 4, "res3" stride 8 and so on.
        **kwargs: arguments of `SwinTransformer`, without `out_indices`.

    Raises:
        ValueError: there is no stage of such a name.

    Example:
        >>> from detectron2.projects.mask2former import D2SwinTransformer
        >>> swin = D2SwinTransformer(out_features=["res2", "res5"], depths=[1, 1, 1, 1])
        >>> {name: tuple(x.shape) for name, x in swin(torch.rand(1, 3, 64, 96)).items()}
        {'res2': (1, 96, 16, 24), 'res5': (1, 768, 2, 3)}
    """

    @configurable
    def __init__(self, *, out_features: Sequence[str], **kwargs: Any):
        names = [f"res{i + 2}" for i in range(len(kwargs.get("depths", (2, 2, 6, 2))))]
        unknown = sorted(set(out_features) - set(names))
        if unknown:
            raise ValueError(f"MODEL.SWIN.OUT_FEATURES has {unknown}; this Swin has the stages {names}")
        super().__init__(out_indices=[names.index(name) for name in out_features], **kwargs)
        self._stage_names = {f"p{i}": names[i] for i in self.out_indices}
        self._out_features = [self._stage_names[name] for name in self._out_features]
        self._out_feature_channels = {self._stage_names[k]: v for k, v in self._out_feature_channels.items()}
        self._out_feature_strides = {self._stage_names[k]: v for k, v in self._out_feature_strides.items()}

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map images `Tensor[N, 3, H, W]` to maps by name: "res2" is `Tensor[N, C, H / 4, W / 4]`."""
        return {self._stage_names[name]: value for name, value in super().forward(x).items()}

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Arguments of the constructor from `cfg.MODEL.SWIN`."""
        swin = cfg.MODEL.SWIN
        return {
            "pretrain_img_size": swin.PRETRAIN_IMG_SIZE,
            "patch_size": swin.PATCH_SIZE,
            "in_chans": input_shape.channels,
            "embed_dim": swin.EMBED_DIM,
            "depths": swin.DEPTHS,
            "num_heads": swin.NUM_HEADS,
            "window_size": swin.WINDOW_SIZE,
            "mlp_ratio": swin.MLP_RATIO,
            "qkv_bias": swin.QKV_BIAS,
            "qk_scale": swin.QK_SCALE,
            "drop_rate": swin.DROP_RATE,
            "attn_drop_rate": swin.ATTN_DROP_RATE,
            "drop_path_rate": swin.DROP_PATH_RATE,
            "ape": swin.APE,
            "patch_norm": swin.PATCH_NORM,
            "out_features": swin.OUT_FEATURES,
            "use_checkpoint": swin.USE_CHECKPOINT,
        }
