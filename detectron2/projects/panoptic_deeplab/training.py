"""How Panoptic-DeepLab is trained: its targets, its optimizer and its schedule."""

from typing import Any

import torch
from torch import nn

from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import DatasetEvaluators
from detectron2.projects.deeplab import build_lr_scheduler
from detectron2.solver import build_optimizer, get_default_optimizer_params, maybe_add_gradient_clipping

from .dataset_mapper import PanopticDeeplabDatasetMapper

__all__ = ["PanopticDeepLabTrainer"]


class PanopticDeepLabTrainer(DefaultTrainer):
    """The default trainer with the targets, the optimizer and the schedule of Panoptic-DeepLab.

    Example::

        cfg = get_cfg()
        add_panoptic_deeplab_config(cfg)
        cfg.merge_from_file(CONFIG_FILE)
        PanopticDeepLabTrainer(cfg).train()
    """

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        """Images with targets made of their panoptic maps."""
        return build_detection_train_loader(cfg, mapper=PanopticDeeplabDatasetMapper(cfg))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """The evaluators that fit the data set; none when only the speed of the network is measured."""
        if cfg.MODEL.PANOPTIC_DEEPLAB.BENCHMARK_NETWORK_SPEED:
            return DatasetEvaluators([])
        return super().build_evaluator(cfg, dataset_name)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Adam or SGD, as SOLVER.OPTIMIZER says."""
        if cfg.SOLVER.OPTIMIZER == "SGD":
            return build_optimizer(cfg, model)
        if cfg.SOLVER.OPTIMIZER != "ADAM":
            raise ValueError(f'SOLVER.OPTIMIZER must be "ADAM" or "SGD", but is {cfg.SOLVER.OPTIMIZER!r}')
        parameters = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        )
        return maybe_add_gradient_clipping(cfg, torch.optim.Adam)(parameters, cfg.SOLVER.BASE_LR)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        """The polynomial schedule, or another that the config names."""
        return build_lr_scheduler(cfg, optimizer)
