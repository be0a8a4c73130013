"""Training and evaluation from a LazyConfig, whose sections are instantiated one by one.

A config has ``model``, ``optimizer``, ``lr_multiplier``, ``dataloader.{train,test,evaluator}`` and ``train``, whose
keys are those of ``configs/common/train.py``.
"""

import copy
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

import detectron2.utils.comm as comm
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from detectron2.data.validation import validate_class_names
from detectron2.engine import hooks
from detectron2.engine._setup import create_ddp_model, default_writers
from detectron2.engine.train_loop import AMPTrainer, SimpleTrainer
from detectron2.evaluation import inference_on_dataset, print_csv_format

__all__ = ["lazy_test", "lazy_train"]


def lazy_train(cfg: DictConfig, resume: bool = False) -> nn.Module:
    """Train the model of a LazyConfig; evaluation at the end is part of it.

    Args:
        cfg: see the module's description.
        resume: continue from the last checkpoint in ``train.output_dir``, if there is one.

    Returns:
        The trained model, wrapped for data parallelism where there are several processes.

    Raises:
        ValueError: the checkpoint is already at ``train.max_iter``.
    """
    loader = instantiate(cfg.dataloader.train)
    validate_class_names(_dataset_names(cfg, "train"), _dataset_names(cfg, "test"))
    model = instantiate(cfg.model).to(cfg.train.device)
    optimizer_cfg = copy.deepcopy(cfg.optimizer)
    optimizer_cfg.params.model = model
    optimizer = instantiate(optimizer_cfg)
    model = create_ddp_model(model, **cfg.train.ddp)
    trainer = (AMPTrainer if cfg.train.amp.enabled else SimpleTrainer)(model, loader, optimizer)
    checkpointer = DetectionCheckpointer(model, cfg.train.output_dir, trainer=trainer)
    is_main = comm.is_main_process()
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer) if is_main else None,
            hooks.EvalHook(cfg.train.eval_period, lambda: lazy_test(cfg, model)),
            hooks.PeriodicWriter(default_writers(cfg.train.output_dir, cfg.train.max_iter), cfg.train.log_period)
            if is_main
            else None,
        ]
    )
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    start = trainer.iter + 1 if resume and checkpointer.has_checkpoint() else 0
    if start and start >= cfg.train.max_iter:
        raise ValueError(
            f"The checkpoint in {cfg.train.output_dir} is at iteration {start} and train.max_iter is "
            f"{cfg.train.max_iter}: there is nothing left to train. Raise train.max_iter, or start without resume."
        )
    trainer.train(start, cfg.train.max_iter)
    return model


def _dataset_names(cfg: DictConfig, split: str) -> list[str]:
    """The data sets of a loader that is made as in ``configs/common/data``; none where it is made in another way."""
    names = OmegaConf.select(cfg, f"dataloader.{split}.dataset.names")
    if names is None:
        return []
    return [names] if isinstance(names, str) else list(names)


def lazy_test(cfg: DictConfig, model: nn.Module) -> dict[str, Any]:
    """Evaluate a model on the test data of a LazyConfig.

    Args:
        cfg: reads ``dataloader.test`` and ``dataloader.evaluator``.
        model: put into evaluation mode for the time being.

    Returns:
        ``{task: {metric: value}}``; empty where the config has no evaluator, and on all but the main process.
    """
    if "evaluator" not in cfg.dataloader:
        return {}
    results = inference_on_dataset(model, instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)) or {}
    if comm.is_main_process():
        print_csv_format(results)
    return results
