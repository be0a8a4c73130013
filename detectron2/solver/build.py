"""From a config to an optimizer and a learning-rate schedule."""

import logging
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, cast

import torch
from fvcore.common.param_scheduler import (
    CosineParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
    StepWithFixedGammaParamScheduler,
)
from torch import nn
from torch.optim import Optimizer

from detectron2.config import CfgNode
from detectron2.solver._clipping import (
    ClipAllByNorm,
    ClipByValue,
    ClipEachByNorm,
    Clipper,
    GradientClipType,
    clipping_class,
)
from detectron2.solver._layer_decay import layer_decay
from detectron2.solver.lr_scheduler import LRMultiplier, LRScheduler, WarmupParamScheduler

__all__ = [
    "GradientClipType",
    "build_lr_scheduler",
    "build_optimizer",
    "get_default_optimizer_params",
    "maybe_add_gradient_clipping",
    "reduce_param_groups",
]

_NORMALIZATION_LAYERS = tuple(
    getattr(nn, name)
    for name in (
        "BatchNorm1d",
        "BatchNorm2d",
        "BatchNorm3d",
        "SyncBatchNorm",
        "GroupNorm",
        "InstanceNorm1d",
        "InstanceNorm2d",
        "InstanceNorm3d",
        "LayerNorm",
        "LocalResponseNorm",
        "RMSNorm",
    )
)


def _create_gradient_clipper(cfg: CfgNode) -> Clipper:
    """The clipper that a `SOLVER.CLIP_GRADIENTS` node describes: a function of one parameter or of several."""
    kind = GradientClipType(cfg.CLIP_TYPE)
    if kind is GradientClipType.VALUE:
        return ClipByValue(cfg.CLIP_VALUE)
    if kind is GradientClipType.FULL_MODEL:
        return ClipAllByNorm(cfg.CLIP_VALUE, cfg.NORM_TYPE)
    return ClipEachByNorm(cfg.CLIP_VALUE, cfg.NORM_TYPE)


def maybe_add_gradient_clipping(cfg: CfgNode, optimizer: Optimizer | type[Optimizer]) -> Any:
    """Make an optimizer clip gradients before each step, where `SOLVER.CLIP_GRADIENTS.ENABLED` asks for it.

    Args:
        cfg: the whole config.
        optimizer: an instance, which is changed in place, or a class, which is left alone.

    Returns:
        The instance, or a class derived from the given one; the argument itself when clipping is off.
    """
    if not cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        return optimizer
    base = type(optimizer) if isinstance(optimizer, Optimizer) else optimizer
    derived = clipping_class(base, _create_gradient_clipper(cfg.SOLVER.CLIP_GRADIENTS.clone()))
    if not isinstance(optimizer, Optimizer):
        return derived
    optimizer.__class__ = derived
    return optimizer


def _sgd_settings(solver: CfgNode) -> dict[str, Any]:
    return {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}


def _adam_settings(solver: CfgNode) -> dict[str, Any]:
    return {"betas": tuple(solver.get("BETAS", (0.9, 0.999)))}


_OPTIMIZERS: dict[str, tuple[type[Optimizer], Callable[[CfgNode], dict[str, Any]]]] = {
    "SGD": (torch.optim.SGD, _sgd_settings),
    "Adam": (torch.optim.Adam, _adam_settings),
    "AdamW": (torch.optim.AdamW, _adam_settings),
}


def build_optimizer(cfg: CfgNode, model: nn.Module) -> Optimizer:
    """An optimizer over the trainable parameters, as the `SOLVER` node describes it; SGD with momentum by default.

    Keys that the default config does not have: `OPTIMIZER` ("SGD", "Adam", "AdamW", in any case), `BETAS` of the
    latter two, `FUSED` (the update of all parameters in one kernel), `LAYER_DECAY` (factor on the learning rate
    from one layer of the backbone to the layer below it).

    Args:
        cfg: the whole config.
        model: the model, on the device where it will be trained.

    Returns:
        The optimizer; it clips gradients where the config says so.

    Raises:
        ValueError: the optimizer is unknown, or the backbone's layers are unknown where `LAYER_DECAY` needs them.
    """
    solver = cfg.SOLVER
    name = solver.get("OPTIMIZER", "SGD")
    found = next((kind for kind in _OPTIMIZERS if kind.lower() == name.lower()), None)
    if found is None:
        raise ValueError(f"SOLVER.OPTIMIZER must be one of {sorted(_OPTIMIZERS)}, but is {name!r}.")
    decay = solver.get("LAYER_DECAY", 1.0)
    params = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=None if decay == 1.0 else layer_decay(model, decay),
    )
    optimizer_class, settings = _OPTIMIZERS[found]
    # None leaves torch its own choice, which False would not.
    fused = True if solver.get("FUSED", False) else None
    arguments: dict[str, Any] = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY, "fused": fused}
    return maybe_add_gradient_clipping(cfg, optimizer_class(params, **arguments, **settings(solver)))


def get_default_optimizer_params(
    model: nn.Module,
    base_lr: float | None = None,
    weight_decay: float | None = None,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float | None = 1.0,
    weight_decay_bias: float | None = None,
    overrides: dict[str, dict[str, float]] | None = None,
    lr_factor_func: Callable[[str], float] | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups of a model, with other settings for normalization layers, biases or named parameters.

    With nothing overridden this equals `model.parameters()`. Frozen parameters are left out and shared ones occur
    once. Later rules win: first the defaults, then `weight_decay_norm`, then `lr_factor_func`, then the names
    (`bias_lr_factor` and `weight_decay_bias` are the name `bias`).

    Example:
        >>> torch.optim.SGD(get_default_optimizer_params(model, weight_decay_norm=0), lr=0.01, weight_decay=1e-4)

    Args:
        model: the model.
        base_lr: learning rate of every group; the optimizer's when None.
        weight_decay: weight decay of every group; the optimizer's when None.
        weight_decay_norm: weight decay of the parameters of normalization layers.
        bias_lr_factor: factor on the rate of parameters named `bias`; needs `base_lr` unless it is 1.
        weight_decay_bias: weight decay of parameters named `bias`.
        overrides: from the last part of a parameter's name to its settings, for instance
            `{"relative_position_bias_table": {"weight_decay": 0.0}}`.
        lr_factor_func: from a parameter's full name to a factor on its rate (layer-wise decay); needs `base_lr`.

    Returns:
        Groups for an optimizer, those with equal settings merged.

    Raises:
        ValueError: `base_lr` is missing where a factor needs it, or `bias` is overridden twice.
    """
    by_name = dict(overrides or {})
    bias = _bias_settings(base_lr, bias_lr_factor, weight_decay_bias)
    if bias:
        if "bias" in by_name:
            raise ValueError("overrides['bias'] contradicts bias_lr_factor or weight_decay_bias; give only one.")
        by_name["bias"] = bias
    if lr_factor_func is not None and base_lr is None:
        raise ValueError("lr_factor_func multiplies base_lr, so base_lr must be given.")
    defaults = {name: value for name, value in (("lr", base_lr), ("weight_decay", weight_decay)) if value is not None}

    groups: list[dict[str, Any]] = []
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        is_norm = isinstance(module, _NORMALIZATION_LAYERS)
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            settings = dict(defaults)
            if is_norm and weight_decay_norm is not None:
                settings["weight_decay"] = weight_decay_norm
            if lr_factor_func is not None:
                full_name = f"{module_name}.{name}" if module_name else name
                settings["lr"] = cast(float, base_lr) * lr_factor_func(full_name)
            settings.update(by_name.get(name, {}))
            groups.append({"params": [parameter], **settings})
    return reduce_param_groups(groups)


def _bias_settings(base_lr: float | None, lr_factor: float | None, weight_decay: float | None) -> dict[str, float]:
    settings: dict[str, float] = {}
    if lr_factor is not None and lr_factor != 1.0:
        if base_lr is None:
            raise ValueError("bias_lr_factor multiplies base_lr, so base_lr must be given.")
        settings["lr"] = base_lr * lr_factor
    if weight_decay is not None:
        settings["weight_decay"] = weight_decay
    return settings


def reduce_param_groups(params: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge parameter groups with equal settings, so that the optimizer updates them together.

    Args:
        params: groups, each with `"params"` and any settings.

    Returns:
        The merged groups, in the order of their first occurrence.
    """
    merged: dict[frozenset[tuple[str, Any]], dict[str, Any]] = {}
    for group in params:
        settings = {key: value for key, value in group.items() if key != "params"}
        target = merged.setdefault(frozenset(settings.items()), {"params": [], **settings})
        members = group["params"]
        target["params"].extend([members] if isinstance(members, torch.Tensor) else members)
    return list(merged.values())


def _multi_step(solver: CfgNode) -> ParamScheduler:
    steps = [step for step in solver.STEPS if step < solver.MAX_ITER]
    if len(steps) != len(solver.STEPS):
        logging.getLogger(__name__).warning(
            "SOLVER.STEPS %s: values from SOLVER.MAX_ITER (%d) on have no effect.", tuple(solver.STEPS), solver.MAX_ITER
        )
    if any(step <= 0 for step in steps) or any(b <= a for a, b in pairwise(steps)):
        raise ValueError(f"SOLVER.STEPS must be positive and rise, but is {tuple(solver.STEPS)}.")
    values = [solver.GAMMA**k for k in range(len(steps) + 1)]
    return MultiStepParamScheduler(values, milestones=steps, num_updates=solver.MAX_ITER)


def _cosine(solver: CfgNode) -> ParamScheduler:
    if not 0.0 <= solver.BASE_LR_END <= solver.BASE_LR or not solver.BASE_LR:
        raise ValueError(
            f"SOLVER.BASE_LR_END {solver.BASE_LR_END} must lie between 0 and a positive BASE_LR {solver.BASE_LR}."
        )
    return CosineParamScheduler(1.0, solver.BASE_LR_END / solver.BASE_LR)


def _fixed_gamma(solver: CfgNode) -> ParamScheduler:
    return StepWithFixedGammaParamScheduler(
        base_value=1.0, gamma=solver.GAMMA, num_decays=solver.NUM_DECAYS, num_updates=solver.MAX_ITER
    )


_SCHEDULES: dict[str, Callable[[CfgNode], ParamScheduler]] = {
    "WarmupMultiStepLR": _multi_step,
    "WarmupCosineLR": _cosine,
    "WarmupStepWithFixedGammaLR": _fixed_gamma,
}


def build_lr_scheduler(cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
    """The schedule that `SOLVER.LR_SCHEDULER_NAME` names, with the warmup of the config.

    Args:
        cfg: the whole config.
        optimizer: the optimizer whose rates it sets; step it once per iteration.

    Returns:
        The scheduler.

    Raises:
        ValueError: the name is unknown or its settings contradict each other.
    """
    solver = cfg.SOLVER
    if solver.MAX_ITER < 1:
        raise ValueError(f"SOLVER.MAX_ITER must be at least 1, but is {solver.MAX_ITER}.")
    if solver.LR_SCHEDULER_NAME not in _SCHEDULES:
        raise ValueError(
            f"SOLVER.LR_SCHEDULER_NAME must be one of {sorted(_SCHEDULES)}, but is {solver.LR_SCHEDULER_NAME!r}."
        )
    multiplier = WarmupParamScheduler(
        _SCHEDULES[solver.LR_SCHEDULER_NAME](solver),
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
        solver.RESCALE_INTERVAL,
    )
    return LRMultiplier(optimizer, multiplier=multiplier, max_iter=solver.MAX_ITER)
