"""How Deformable DETR and DINO are trained: augmentations and learning rates of the papers."""

from typing import Any

import torch
from torch import nn

import detectron2.data.transforms as T
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.data.detection_utils import build_augmentation
from detectron2.engine import DefaultTrainer
from detectron2.solver import get_default_optimizer_params, maybe_add_gradient_clipping

__all__ = ["DeformableTrainer", "with_crops"]


def with_crops(cfg: CfgNode) -> list[T.Augmentation | T.Transform]:
    """The augmentations of a config, and for half of the images a resizing and a crop before them.

    Sizes are those of DETR (400 to 600 pixels, crops of 384 to 600) when images are 800 pixels high.
    """
    largest = max(cfg.INPUT.MIN_SIZE_TRAIN)
    sizes = [largest * eighths // 8 for eighths in (4, 5, 6)]
    crop = T.AugmentationList(
        [
            T.ResizeShortestEdge(sizes, sample_style="choice"),
            T.RandomCrop("absolute_range", (largest * 12 // 25, sizes[-1])),
        ]
    )
    return [T.RandomApply(crop, prob=0.5), *build_augmentation(cfg, is_train=True)]


class DeformableTrainer(DefaultTrainer):
    """The default trainer with crops and a lower learning rate where attention chooses its points.

    Example::

        cfg = get_cfg()
        add_deformable_detr_config(cfg)
        cfg.merge_from_file("projects/DeformableDETR/configs/deformable_detr_R_50_50ep.yaml")
        DeformableTrainer(cfg).train()
    """

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        """Images of which half are cropped."""
        mapper = DatasetMapper(cfg, is_train=True, augmentations=with_crops(cfg))
        return build_detection_train_loader(cfg, mapper=mapper)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW; the backbone has its own rate and, in Deformable DETR, the places of points have a tenth."""
        solver, is_slow = cfg.SOLVER, cfg.MODEL.META_ARCHITECTURE == "DeformableDETR"

        def factor(name: str) -> float:
            if name.startswith("backbone."):
                return solver.get("BACKBONE_LR_FACTOR", 1.0)
            return 0.1 if is_slow and ("sampling_offsets." in name or "reference_points." in name) else 1.0

        if solver.get("OPTIMIZER") != "AdamW":
            found = f"is {solver.OPTIMIZER!r}" if "OPTIMIZER" in solver else "is not set"
            raise ValueError(
                f'SOLVER.OPTIMIZER must be "AdamW" for these models, but {found}. Set it, and a SOLVER.BASE_LR that '
                "suits it, as the configs of the project do."
            )
        parameters = get_default_optimizer_params(
            model, base_lr=solver.BASE_LR, weight_decay_norm=solver.WEIGHT_DECAY_NORM, lr_factor_func=factor
        )
        optimizer = torch.optim.AdamW(parameters, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY)
        return maybe_add_gradient_clipping(cfg, optimizer)
