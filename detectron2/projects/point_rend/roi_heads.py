"""The ROI heads of the first release of PointRend, which its old configs and checkpoints name."""

import logging
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, StandardROIHeads

__all__ = ["PointRendROIHeads"]

# Old and new names of parameters, below `roi_heads.`.
_RENAMED = {"mask_coarse_head.": "mask_head.coarse_head.", "mask_point_head.": "mask_head.point_head."}


@ROI_HEADS_REGISTRY.register()
class PointRendROIHeads(StandardROIHeads):
    """`StandardROIHeads` with a `PointRendMaskHead`, for old configs and checkpoints; new ones need nothing of it.

    In the first release PointRend was a kind of ROI heads; now it is a mask head, to be used with
    `MODEL.ROI_HEADS.NAME: StandardROIHeads`, `MODEL.ROI_MASK_HEAD.NAME: PointRendMaskHead` and an empty
    `MODEL.ROI_MASK_HEAD.POOLER_TYPE`. Here the mask head `CoarseMaskHead` of an old config means just that, and the
    names of parameters in old checkpoints are translated when they are loaded. The arguments are those of
    `StandardROIHeads`.
    """

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        if cfg.MODEL.MASK_ON and cfg.MODEL.ROI_MASK_HEAD.NAME == "CoarseMaskHead":
            logging.getLogger(__name__).warning(
                "Config of the first release of PointRend: MODEL.ROI_MASK_HEAD.NAME CoarseMaskHead is taken for "
                "PointRendMaskHead. Set it, with MODEL.ROI_HEADS.NAME StandardROIHeads and an empty "
                "MODEL.ROI_MASK_HEAD.POOLER_TYPE."
            )
            cfg = cfg.clone()
            cfg.defrost()
            cfg.MODEL.ROI_MASK_HEAD.NAME = "PointRendMaskHead"
            cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE = ""
        return super()._init_mask_head(cfg, input_shape)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for old, new in _RENAMED.items():
            for key in [k for k in state_dict if k.startswith(prefix + old)]:
                state_dict[prefix + new + key.removeprefix(prefix + old)] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
