"""From a config to an optimizer and a learning-rate schedule."""

import functools
import logging
import re
from collections.abc import Callable, Iterable
from enum import Enum
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
from detectron2.solver.lr_scheduler import LRMultiplier, LRScheduler, WarmupParamScheduler

__all__ = [
    "GradientClipType",
    "add_clipping",
    "build_lr_scheduler",
    "build_optimizer",
    "get_default_optimizer_params",
    "maybe_add_gradient_clipping",
    "reduce_param_groups",
]

# Swin counts its blocks anew in every stage. What merges patches after a stage belongs to the last block of it.
_STAGED_BLOCK = re.compile(r"\.layers\.(\d+)\.(?:blocks\.(\d+)\.|downsample\.)")
# ResNet has stem, res2 ... res5; RegNet has stem, s1 ... s4.
_STAGE = re.compile(r"\.(?:(stem)|(?:res|s)(\d+))\.")
_BLOCK = re.compile(r"\.blocks\.(\d+)\.")
# MaskFormer and Mask2Former of transformers have another name for it.
_BACKBONE = re.compile(r"(?:^|\.)(?:backbone|pixel_level_module\.encoder)\.")
_BEFORE_ALL = (".patch_embed", ".pos_embed", ".absolute_pos_embed")


def layer_decay(model: nn.Module, rate: float) -> Callable[[str], float]:
    """Return the `lr_factor_func` of `detectron2.solver.get_default_optimizer_params` for layer-wise decay.

    With `n` layers, layer `i` gets `rate ** (n - i)`; patches, positions or the stem get one factor more, and
    what is not in the backbone, or comes after its layers (a pyramid), gets 1. A layer is a block of a transformer,
    a stage of a ResNet or RegNet, or what a backbone of another library counts as one (its method `layer_groups`), in
    `model.backbone`, by itself or below a pyramid; other backbones, and a rate outside of (0, 1], are a `ValueError`.
    """
    if not 0.0 < rate <= 1.0:
        raise ValueError(f"The factor between two layers must be in (0, 1], but is {rate}.")
    names = [name for name, _ in model.named_parameters() if name.startswith("backbone.")]
    if (groups := _layer_groups(model)) is not None:
        return lambda name: rate ** (max(groups.values()) + 1 - groups[name]) if name in groups else 1.0
    if any(_STAGED_BLOCK.search(name) for name in names):
        return _decay_staged_blocks(names, rate)
    blocks = [int(found[1]) for name in names if (found := _BLOCK.search(name))]
    if blocks:
        from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate  # optimizers alone need no models

        count = max(blocks) + 1
        return lambda name: get_vit_lr_decay_rate(name, rate, count)
    if any(_STAGE.search(name) for name in names):
        return _decay_stages(names, rate)
    raise ValueError(
        "Layer-wise decay needs a backbone with blocks (ViT, MViT, Swin) or stages (ResNet, RegNet) in model.backbone; "
        f"its parameters begin with {names[:3]}. Set SOLVER.LAYER_DECAY to 1.0, or pass your own lr_factor_func to "
        "get_default_optimizer_params."
    )


def _lr_factors(model: nn.Module, decay: float, backbone: float) -> Callable[[str], float] | None:
    """Return the product of layer-wise decay and the factor of the backbone; None where both are 1."""
    of_layers = None if decay == 1.0 else layer_decay(model, decay)
    if backbone == 1.0:
        return of_layers
    if not any(_BACKBONE.search(name) for name, _ in model.named_parameters()):
        raise ValueError(
            f"SOLVER.BACKBONE_LR_FACTOR is {backbone}, but no parameter of {type(model).__name__} is in a backbone; "
            "set it to 1.0."
        )
    return lambda name: (of_layers(name) if of_layers else 1.0) * (backbone if _BACKBONE.search(name) else 1.0)


def _decay_staged_blocks(names: Iterable[str], rate: float) -> Callable[[str], float]:
    found = [match for name in names if (match := _STAGED_BLOCK.search(name))]
    order = sorted({(int(match[1]), int(match[2])) for match in found if match[2]})
    place = {key: index for index, key in enumerate(order)}
    last_of_stage = {stage: index for (stage, _), index in place.items()}

    def factor(name: str) -> float:
        match = _STAGED_BLOCK.search(name)
        if not name.startswith("backbone."):
            return 1.0
        if match:
            index = place[int(match[1]), int(match[2])] if match[2] else last_of_stage[int(match[1])]
            return rate ** (len(order) - index)
        return rate ** (len(order) + 1) if any(part in name for part in _BEFORE_ALL) else 1.0

    return factor


def _decay_stages(names: Iterable[str], rate: float) -> Callable[[str], float]:
    found = [match for name in names if (match := _STAGE.search(name))]
    place = {stage: index for index, stage in enumerate(sorted({int(match[2]) for match in found if match[2]}))}

    def factor(name: str) -> float:
        match = _STAGE.search(name)
        if not name.startswith("backbone.") or not match:
            return 1.0
        return rate ** (len(place) - (-1 if match[1] else place[int(match[2])]))

    return factor


def _layer_groups(model: nn.Module) -> dict[str, int] | None:
    """Return the layer of each parameter of a backbone that numbers them itself: 0 before all blocks, then 1, 2, ..."""
    for prefix, module in model.named_modules():
        if prefix.startswith("backbone") and hasattr(module, "layer_groups"):
            groups: dict[str, int] = module.layer_groups(coarse=False)  # type: ignore[operator]
            return {f"{prefix}.{name}": group for name, group in groups.items()}
    return None


Clipper = Callable[[Any], Any]
"""Clips, in place, the gradients of one parameter or of several."""


class GradientClipType(Enum):
    """What `SOLVER.CLIP_GRADIENTS.CLIP_TYPE` may say."""

    VALUE = "value"
    NORM = "norm"
    FULL_MODEL = "full_model"


def _clip_each_by_norm(parameters: torch.Tensor | Iterable[torch.Tensor], max_norm: float, norm_type: float) -> None:
    """Call `torch.nn.utils.clip_grad_norm_` for each parameter by itself, in a handful of kernels for all of them."""
    parameters = [parameters] if isinstance(parameters, torch.Tensor) else parameters
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    norms = torch._foreach_norm(gradients, norm_type)
    if len({norm.device for norm in norms}) == 1:
        factors = (max_norm / (torch.stack(norms) + 1e-6)).clamp_(max=1.0).unbind()
    else:  # a model that is spread over devices
        factors = tuple((max_norm / (norm + 1e-6)).clamp_(max=1.0) for norm in norms)
    torch._foreach_mul_(gradients, factors)


def clipping_class(base: type[Optimizer], clipper: Clipper) -> type[Optimizer]:
    """Make a subclass of an optimizer that clips gradients before each step.

    Its instances can be pickled, although it has no name in any module.
    """

    def step(self: Any, closure: Callable[[], Any] | None = None) -> Any:
        def clip() -> None:
            clipper([p for group in self.param_groups for p in group["params"]])

        if closure is None:
            clip()
            return base.step(self)

        def closure_then_clip() -> Any:  # the gradients come into being only inside the closure
            loss = closure()
            clip()
            return loss

        return base.step(self, closure_then_clip)

    # PyTorch wraps `step` of each class with profiling and the step hooks; the base's step has that already.
    step.hooked = True  # pyright: ignore[reportFunctionMemberAccess]

    members = {
        "__module__": base.__module__,
        "__doc__": f"{base.__name__} that clips gradients before each step.",
        "step": step,
        "__reduce_ex__": lambda self, protocol: (_rebuild, (base, clipper), self.__getstate__()),
        # A fused optimizer would take over the unscaling of AMP and so undo it after the clipping. Saying that it
        # does not support that makes GradScaler unscale first.
        "_step_supports_amp_scaling": property(lambda self: False, lambda self, value: None),
    }
    return type(base.__name__ + "WithGradientClip", (base,), members)


def _rebuild(base: type[Optimizer], clipper: Clipper) -> Optimizer:
    cls = clipping_class(base, clipper)
    return cls.__new__(cls)


_NORMALIZATION_LAYERS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.LocalResponseNorm),
)


def _create_gradient_clipper(cfg: CfgNode) -> Clipper:
    """Return the clipper that a `SOLVER.CLIP_GRADIENTS` node describes: a function of one parameter or of several."""
    kinds = {kind.value: kind for kind in GradientClipType}
    if cfg.CLIP_TYPE not in kinds:
        names = ", ".join(kinds)
        raise ValueError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE must be one of {names}, but is {cfg.CLIP_TYPE!r}.")
    kind = kinds[cfg.CLIP_TYPE]
    if kind is GradientClipType.VALUE:
        return functools.partial(nn.utils.clip_grad_value_, clip_value=cfg.CLIP_VALUE)
    clip = nn.utils.clip_grad_norm_ if kind is GradientClipType.FULL_MODEL else _clip_each_by_norm
    return functools.partial(clip, max_norm=cfg.CLIP_VALUE, norm_type=cfg.NORM_TYPE)


def maybe_add_gradient_clipping(cfg: CfgNode, optimizer: Optimizer | type[Optimizer]) -> Any:
    """Make an optimizer clip gradients before each step, where `SOLVER.CLIP_GRADIENTS.ENABLED` asks for it.

    An instance is changed in place and returned; for a class, a class derived from it is returned.
    """
    if not cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        return optimizer
    clipper = _create_gradient_clipper(cfg.SOLVER.CLIP_GRADIENTS.clone())
    return _with_clipper(optimizer, clipper) if isinstance(optimizer, Optimizer) else clipping_class(optimizer, clipper)


def add_clipping(optimizer: Optimizer, max_norm: float, norm_type: float = 2.0) -> Optimizer:
    """Make an optimizer scale all gradients down before each step so that their common norm is at most `max_norm`.

    It is what `CLIP_TYPE: full_model` does, for an optimizer that no YAML config describes.

    Args:
        optimizer: is changed in place and returned.
        max_norm: the largest norm.
        norm_type: the p of the p-norm.

    Returns:
        The optimizer.

    Raises:
        ValueError: a number is not positive.

    Example:
        >>> optimizer = add_clipping(torch.optim.SGD(model.parameters(), lr=0.1), max_norm=0.1)
    """
    if not (max_norm > 0 and norm_type > 0):
        raise ValueError(f"max_norm and norm_type must be positive, but are {max_norm} and {norm_type}.")
    return _with_clipper(optimizer, functools.partial(nn.utils.clip_grad_norm_, max_norm=max_norm, norm_type=norm_type))


def _with_clipper(optimizer: Optimizer, clipper: Clipper) -> Optimizer:
    optimizer.__class__ = clipping_class(type(optimizer), clipper)
    return optimizer


def _adam_settings(solver: CfgNode) -> dict[str, Any]:
    return {"betas": tuple(solver.get("BETAS", (0.9, 0.999)))}


_OPTIMIZERS: dict[str, tuple[type[Optimizer], Callable[[CfgNode], dict[str, Any]]]] = {
    "SGD": (torch.optim.SGD, lambda solver: {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}),
    "Adam": (torch.optim.Adam, _adam_settings),
    "AdamW": (torch.optim.AdamW, _adam_settings),
}


def build_optimizer(cfg: CfgNode, model: nn.Module) -> Optimizer:
    """An optimizer over the trainable parameters, as the `SOLVER` node describes it; SGD with momentum by default.

    Keys that the default config does not have: `OPTIMIZER` ("SGD", "Adam", "AdamW", in any case), `BETAS` of the
    latter two, `FUSED` (the update of all parameters in one kernel; by default on the CPU), `LAYER_DECAY` (factor on
    the learning rate from one layer of the backbone to the layer below it), `BACKBONE_LR_FACTOR` (factor on the rate of
    the whole backbone). An unknown optimizer, a model without a backbone where there is such a factor, and a backbone
    of unknown layers where `LAYER_DECAY` needs them, are a `ValueError`.
    """
    solver = cfg.SOLVER
    name = solver.get("OPTIMIZER", "SGD")
    found = next((kind for kind in _OPTIMIZERS if kind.lower() == str(name).lower()), None)
    if found is None:
        raise ValueError(f"SOLVER.OPTIMIZER must be one of {sorted(_OPTIMIZERS)}, but is {name!r}.")
    factors = _lr_factors(model, solver.get("LAYER_DECAY", 1.0), solver.get("BACKBONE_LR_FACTOR", 1.0))
    params = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=factors,
    )
    optimizer_class, settings = _OPTIMIZERS[found]
    is_usual = _can_be_fused_on_the_cpu(model)
    fused = is_usual if solver.get("FUSED") is None else solver.FUSED
    # None leaves torch its own choice, which False would not.
    arguments: dict[str, Any] = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY, "fused": fused or None}
    optimizer = maybe_add_gradient_clipping(cfg, optimizer_class(params, **arguments, **settings(solver)))
    if fused:
        optimizer.register_load_state_dict_post_hook(_check_state)
    if fused and is_usual:
        optimizer.register_step_pre_hook(lambda optimizer, *_: match_memory_formats(optimizer))
    return optimizer


def _check_state(optimizer: Optimizer) -> None:
    """Refuse a state of other parameters: a fused optimizer would read and write beyond its memory."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if name == "step" or value is None:
                continue
            if not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
                found = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
                raise ValueError(f"{name} of a parameter of shape {tuple(parameter.shape)} is {found}")


def _can_be_fused_on_the_cpu(model: nn.Module) -> bool:
    """Whether all parameters are usual ones, on the CPU, with gradients that are not sparse."""
    usual = all(
        type(p) is nn.Parameter and p.device.type == "cpu" and p.is_floating_point() for p in model.parameters()
    )
    return usual and not any(getattr(module, "sparse", False) for module in model.modules())


def match_memory_formats(optimizer: Optimizer) -> None:
    """Let gradients and the state of an optimizer lie in memory as the parameters do, in place.

    A checkpoint may hold the state in another order, and a program may have set the gradients. Fused optimizers on the
    CPU take all as if they were in the same order (seen in PyTorch 2.15) and would mix up the elements; others would be
    slower.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                state[name] = _laid_like(value, parameter)
            if parameter.grad is not None:
                parameter.grad = _laid_like(parameter.grad, parameter)


def _laid_like(value: Any, parameter: torch.Tensor) -> Any:
    """A value of the same shape, copied if its order in memory is another one."""
    if not isinstance(value, torch.Tensor) or value.shape != parameter.shape or value.layout != torch.strided:
        return value
    if all(n == 1 or a == b for n, a, b in zip(value.shape, value.stride(), parameter.stride(), strict=True)):
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


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
    factor = bias_lr_factor if bias_lr_factor is not None and bias_lr_factor != 1.0 else None
    if base_lr is None and (factor is not None or lr_factor_func is not None):
        raise ValueError("bias_lr_factor and lr_factor_func multiply base_lr, so base_lr must be given.")
    if factor is not None or weight_decay_bias is not None:
        if "bias" in by_name:
            raise ValueError("overrides['bias'] contradicts bias_lr_factor or weight_decay_bias; give only one.")
        rate = None if factor is None else cast(float, base_lr) * factor
        by_name["bias"] = _given(lr=rate, weight_decay=weight_decay_bias)
    defaults = _given(lr=base_lr, weight_decay=weight_decay)

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


def _given(**settings: float | None) -> dict[str, float]:
    return {name: value for name, value in settings.items() if value is not None}


def reduce_param_groups(params: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge parameter groups with equal settings, so that the optimizer updates them together.

    The groups are in the order of their first occurrence. A parameter of several groups gets the settings of all, of
    equal ones the last.
    """
    merged: dict[frozenset[tuple[str, Any]], dict[str, Any]] = {}
    for group in _expand_param_groups(params):
        members = group.pop("params")
        merged.setdefault(frozenset(group.items()), {"params": [], **group})["params"].extend(members)
    return list(merged.values())


def _expand_param_groups(params: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A group for each parameter, with the settings of all groups that it is in; the last of each counts."""
    settings: dict[Any, dict[str, Any]] = {}
    for group in params:
        members = group["params"]
        for parameter in [members] if isinstance(members, torch.Tensor) else members:
            settings.setdefault(parameter, {}).update({k: v for k, v in group.items() if k != "params"})
    return [{"params": [parameter], **given} for parameter, given in settings.items()]


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
    return StepWithFixedGammaParamScheduler(1.0, solver.NUM_DECAYS, solver.GAMMA, solver.MAX_ITER)


_SCHEDULES: dict[str, Callable[[CfgNode], ParamScheduler]] = {
    "WarmupMultiStepLR": _multi_step,
    "WarmupCosineLR": _cosine,
    "WarmupStepWithFixedGammaLR": _fixed_gamma,
}


def build_lr_scheduler(cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
    """The schedule that `SOLVER.LR_SCHEDULER_NAME` names, with the warmup of the config; step it once per iteration.

    An unknown name, and settings that contradict each other, are a `ValueError`.
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
