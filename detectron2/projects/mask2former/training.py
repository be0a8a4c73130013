"""How Mask2Former is trained: its data, its optimizer and its schedule."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader
from detectron2.engine import DefaultTrainer
from detectron2.projects.deeplab import build_lr_scheduler
from detectron2.solver import get_default_optimizer_params, maybe_add_gradient_clipping, reduce_param_groups

from .dataset_mapper import MaskFormerDatasetMapper

__all__ = ["MaskFormerTrainer"]

_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {"ADAMW": torch.optim.AdamW, "SGD": torch.optim.SGD}


class MaskFormerTrainer(DefaultTrainer):
    """The default trainer with the data, the optimizer and the schedule of Mask2Former.

    Example::

        cfg = get_cfg()
        add_maskformer2_config(cfg)
        cfg.merge_from_file("projects/Mask2Former/configs/coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml")
        MaskFormerTrainer(cfg).train()
    """

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable:
        """Images with the objects that `INPUT.DATASET_MAPPER_NAME` makes of their annotations."""
        return build_detection_train_loader(cfg, mapper=MaskFormerDatasetMapper(cfg, is_train=True))

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW or SGD: a lower rate for the backbone, no decay of norms, embeddings and positions.

        Another `SOLVER.OPTIMIZER` is a `ValueError`.
        """
        solver = cfg.SOLVER
        name = str(solver.OPTIMIZER).upper()
        if name not in _OPTIMIZERS:
            raise ValueError(f"SOLVER.OPTIMIZER must be one of {sorted(_OPTIMIZERS)}, but is {solver.OPTIMIZER!r}")
        without_decay = {"weight_decay": 0.0}
        groups = get_default_optimizer_params(
            model,
            base_lr=solver.BASE_LR,
            weight_decay=solver.WEIGHT_DECAY,
            weight_decay_norm=solver.WEIGHT_DECAY_NORM,
            overrides={"relative_position_bias_table": without_decay, "absolute_pos_embed": without_decay},
            lr_factor_func=lambda name: solver.BACKBONE_MULTIPLIER if "backbone" in name else 1.0,
        )
        embeddings = [x.weight for x in model.modules() if isinstance(x, nn.Embedding) and x.weight.requires_grad]
        groups = reduce_param_groups([*groups, {"params": embeddings, "weight_decay": solver.WEIGHT_DECAY_EMBED}])
        more: dict[str, Any] = {"momentum": solver.MOMENTUM} if name == "SGD" else {}
        return maybe_add_gradient_clipping(cfg, _OPTIMIZERS[name])(groups, solver.BASE_LR, **more)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        """The polynomial schedule, or another that the config names."""
        return build_lr_scheduler(cfg, optimizer)
