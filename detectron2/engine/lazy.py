"""Training and evaluation from a LazyConfig, whose sections are instantiated one by one.

A config has `model`, `optimizer`, `lr_multiplier`, `dataloader.{train,test,evaluator}` and `train`, whose
keys are those of `configs/common/train.py`.
"""

import copy
import math
from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from torch.optim import Optimizer

import detectron2.utils.comm as comm
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from detectron2.config.lazy_text import to_yaml
from detectron2.data.resize_later import resize_later
from detectron2.data.validation import validate_class_names
from detectron2.engine.checkpointing import SelfDescription, build_checkpointer, lazy_config, load_or_resume
from detectron2.engine.class_names import has_fixed_classes, match_classes, match_training_classes
from detectron2.engine.defaults import default_writers, iterations_per_epoch
from detectron2.engine.divergence import DivergencePolicy
from detectron2.engine.evaluator_trial import try_lazy_evaluator
from detectron2.engine.hooks.order import default_hooks, with_outer_hooks
from detectron2.engine.model_preparation import create_ddp_model, prepare_model
from detectron2.engine.options import TrainOptions
from detectron2.engine.run_folder import resumes_after_restart
from detectron2.engine.train_loop import AMPTrainer, HookBase, SimpleTrainer
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.inference.loading import available_device
from detectron2.solver import add_clipping
from detectron2.utils.events import EventWriter, make_writers

__all__ = ["lazy_test", "lazy_train"]


def lazy_train(cfg: DictConfig, resume: bool = False) -> nn.Module:
    """Train the model of a LazyConfig, and evaluate it at the end.

    With `resume`, and when torchrun restarts it after a process died, training continues from the last checkpoint in
    `train.output_dir`, if there is one. Returns the model, wrapped for data parallelism where there are several
    processes.
    """
    _check_sections(cfg)
    resume = resume or resumes_after_restart(cfg.train.output_dir)
    options = TrainOptions.from_lazy(cfg.train)
    loader = instantiate(cfg.dataloader.train)
    if options.resize_on_device:
        resize_later(loader)
    cfg = _epochs_to_iterations(cfg, options, loader)
    max_iter = cfg.train.max_iter
    device = available_device(cfg.train.device, "train.device")
    model = instantiate(cfg.model)
    is_strict = has_fixed_classes(model)
    validate_class_names(_dataset_names(cfg, "train"), _dataset_names(cfg, "test"), is_strict=is_strict)
    model = prepare_model(model.to(device), options)
    optimizer_cfg = copy.deepcopy(cfg.optimizer)
    optimizer_cfg.params.model = model
    optimizer = _with_clipping(instantiate(optimizer_cfg), cfg.train.get("clip_grad"))
    model = create_ddp_model(model, **{**cfg.train.ddp, **options.of_ddp})
    trainer_type = AMPTrainer if cfg.train.amp.enabled else SimpleTrainer
    trainer = trainer_type(model, loader, optimizer, **options.of_amp(cfg.train.amp.enabled))
    trainer.accumulation_steps, trainer.prefetch = options.accumulation_steps, options.prefetch
    trainer.divergence = DivergencePolicy(
        options.on_nonfinite_loss, options.max_skipped_in_a_row, cfg.train.output_dir, lambda: (to_yaml(cfg)[0], "lazy")
    )
    checkpointer = build_checkpointer(model, cfg.train.output_dir, options, trainer)
    names, has_average = _dataset_names(cfg, "train"), bool(options.ema_decay)
    describe = SelfDescription(trainer, model, lambda: lazy_config(cfg), names, _image_format(cfg), has_average)
    checkpointer.describe = describe
    trainer.register_hooks(_hooks(cfg, options, trainer, checkpointer, max_iter))
    checkpoint, start = load_or_resume(trainer, optimizer, checkpointer, cfg.train.init_checkpoint, resume)
    match_training_classes(
        trainer, names, _dataset_names(cfg, "test"), lambda: instantiate(cfg.dataloader.train), start is not None
    )
    if start is not None:
        describe.go_on_from(checkpoint, checkpointer.get_checkpoint_file())
    if options.try_evaluator:
        try_lazy_evaluator(cfg, model, _dataset_names(cfg, "test"))
    trainer.train(start or 0, max_iter)
    return model


def _check_sections(cfg: DictConfig) -> None:
    """Raise a `ValueError` that names each section without which nothing can be built, or a text for a number."""
    found = {key: OmegaConf.select(cfg, key) for key in ("train", "model", "dataloader.train", "optimizer")}
    lines = [f"{key} is {x!r}" for key, x in found.items() if x is None or isinstance(x, str | int | float)]
    if not lines and not OmegaConf.is_dict(OmegaConf.select(cfg, "optimizer.params")):
        lines = ["optimizer has no section params, which gets the model"]
    if OmegaConf.is_list(OmegaConf.select(cfg, "dataloader.test")):
        lines.append("dataloader.test is a list, and has to be one loader, or absent")
    if lines:
        raise ValueError(
            "Training needs the sections train, model, optimizer and dataloader of a LazyConfig: "
            f"{'; '.join(lines)}. See configs/common for those that models share."
        )
    numbers = {key: OmegaConf.select(cfg, f"optimizer.{key}") for key in ("lr", "momentum", "weight_decay")}
    if texts := [f"optimizer.{key} must be a number, but is {x!r}" for key, x in numbers.items() if isinstance(x, str)]:
        raise ValueError(f"The config has an impossible value: {'; '.join(texts)}.")


def _with_clipping(optimizer: Optimizer, described: Any) -> Optimizer:
    """Let an optimizer clip gradients as `train.clip_grad` says, if it does."""
    if not described or (OmegaConf.is_dict(described) and not described.get("enabled", True)):
        return optimizer
    try:
        return add_clipping(optimizer, **described["params"])
    except (ValueError, TypeError, KeyError, OmegaConfBaseException) as error:
        raise ValueError(
            "train.clip_grad should look like dict(enabled=True, params=dict(max_norm=0.1, norm_type=2)), "
            f"but is {described}: {error}"
        ) from None


def _hooks(
    cfg: DictConfig, options: TrainOptions, trainer: SimpleTrainer, checkpointer: DetectionCheckpointer, max_iter: int
) -> list[HookBase | None]:
    model, batch_size = trainer.model, OmegaConf.select(cfg, "dataloader.train.total_batch_size")
    images = None if batch_size is None else batch_size * options.accumulation_steps  # in one step of the optimizer
    periods = dict(cfg.train.checkpointer)
    periods["max_to_keep"] = periods.get("max_to_keep") or None
    if "checkpoints_to_keep" in cfg.train:
        periods["max_to_keep"] = options.checkpoints_to_keep or None
    hooks = default_hooks(
        options,
        model,
        checkpointer,
        checkpoint_periods=periods,
        eval_period=cfg.train.eval_period,
        evaluate=lambda: lazy_test(cfg, model),
        build_validation_loader=lambda: _validation_loader(cfg),
        build_writers=lambda: _writers(cfg, max_iter, images),
        log_period=cfg.train.log_period,
        scheduler=instantiate(cfg.lr_multiplier),
    )
    return with_outer_hooks(hooks, model, checkpointer, cfg.train.checkpointer.period, images)


def _writers(cfg: DictConfig, max_iter: int, images: int | None) -> list[EventWriter]:
    if "writers" in cfg.train:
        return make_writers(cfg.train.writers, cfg.train.output_dir, max_iter, images, cfg)
    return default_writers(cfg.train.output_dir, max_iter, images)


def _validation_loader(cfg: DictConfig) -> Iterable:
    if "validation" not in cfg.dataloader:
        raise ValueError(
            "train.validation_loss_period is set, but there is no dataloader.validation: a loader that goes once "
            "through annotated samples, for instance build_detection_test_loader with a DatasetMapper(is_train=True)."
        )
    return instantiate(cfg.dataloader.validation)


def _image_format(cfg: DictConfig) -> str | None:
    """Return the colour order of the model's input, where a config of the usual form has it."""
    keys = ("dataloader.test.mapper.image_format", "dataloader.train.mapper.image_format", "model.input_format")
    return next((str(x) for key in keys if (x := OmegaConf.select(cfg, key)) is not None), None)


def _epochs_to_iterations(cfg: DictConfig, options: TrainOptions, loader: Any) -> DictConfig:
    """Return a config with `train.max_iter` and the steps of the schedule computed from the numbers of epochs."""
    if not options.max_epochs:
        return cfg
    cfg = copy.deepcopy(cfg)
    per_epoch = iterations_per_epoch(loader, options.accumulation_steps)
    cfg.train.max_iter = max(1, math.ceil(options.max_epochs * per_epoch))
    if not options.step_epochs:
        return cfg  # milestones are shares of the whole
    schedule = _find_call(cfg.lr_multiplier, "MultiStepParamScheduler")
    values = () if schedule is None else schedule.get("values", ())
    if schedule is None or len(values) != len(options.step_epochs) + 1:
        raise ValueError(
            "train.step_epochs needs lr_multiplier to be, or to contain, a MultiStepParamScheduler whose 'values' are "
            f"one more than the steps; there are {len(options.step_epochs)} steps, and {len(values) or 'no'} values."
        )
    schedule.milestones = [round(epoch * per_epoch) for epoch in options.step_epochs]
    schedule.num_updates = cfg.train.max_iter
    return cfg


def _find_call(node: Any, name: str) -> Any:
    """Return the first call of a class of this name in a config."""
    if not OmegaConf.is_dict(node):
        return None
    target = node.get("_target_")
    if (target if isinstance(target, str) else getattr(target, "__name__", "")).rpartition(".")[2] == name:
        return node
    return next((found for key in node if (found := _find_call(node[key], name)) is not None), None)


def _dataset_names(cfg: DictConfig, split: str) -> list[str]:
    """Return the data sets of a loader that is made as in `configs/common/data`, otherwise none."""
    names = OmegaConf.select(cfg, f"dataloader.{split}.dataset.names")
    return [names] if isinstance(names, str) else list(names or ())


def lazy_test(cfg: DictConfig, model: nn.Module) -> dict[str, Any]:
    """Evaluate a model on `dataloader.test` of a LazyConfig, with `dataloader.evaluator`.

    Returns `{task: {metric: value}}`; empty where the config has no evaluator, and on all but the main process.
    """
    if "evaluator" not in cfg.dataloader:
        return {}
    loader = instantiate(cfg.dataloader.test)
    if match_classes(model, _dataset_names(cfg, "test")):
        loader = instantiate(cfg.dataloader.test)
    results = inference_on_dataset(model, loader, instantiate(cfg.dataloader.evaluator)) or {}
    if comm.is_main_process():
        print_csv_format(results)
    return results
