"""Clipping of gradients as part of an optimizer's step."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch.optim import Optimizer

__all__ = ["Clipper", "GradientClipType", "clipping_class"]

Clipper = Callable[[Any], None]
"""Clips, in place, the gradients of one parameter or of several."""


class GradientClipType(Enum):
    """What `SOLVER.CLIP_GRADIENTS.CLIP_TYPE` may say."""

    VALUE = "value"
    NORM = "norm"
    FULL_MODEL = "full_model"


def _gradients(parameters: torch.Tensor | Iterable[torch.Tensor]) -> list[torch.Tensor]:
    parameters = [parameters] if isinstance(parameters, torch.Tensor) else parameters
    return [p.grad for p in parameters if p.grad is not None]


@dataclass(frozen=True)
class ClipByValue:
    """Limits every element of a gradient to [-limit, limit].

    Args:
        limit: greatest magnitude.
    """

    limit: float

    def __call__(self, parameters: torch.Tensor | Iterable[torch.Tensor]) -> None:
        gradients = _gradients(parameters)
        if gradients:
            torch._foreach_clamp_min_(gradients, -self.limit)
            torch._foreach_clamp_max_(gradients, self.limit)


@dataclass(frozen=True)
class ClipEachByNorm:
    """Scales the gradient of every parameter, by itself, down to a norm.

    This is `torch.nn.utils.clip_grad_norm_` called per parameter, in a handful of kernels for all of them.

    Args:
        limit: greatest norm.
        norm_type: the p of the norm; may be infinite.
    """

    limit: float
    norm_type: float

    def __call__(self, parameters: torch.Tensor | Iterable[torch.Tensor]) -> None:
        gradients = _gradients(parameters)
        if not gradients:
            return
        norms = torch._foreach_norm(gradients, self.norm_type)
        if len({norm.device for norm in norms}) == 1:
            factors = (self.limit / (torch.stack(norms) + 1e-6)).clamp_(max=1.0).unbind()
        else:  # a model that is spread over devices
            factors = tuple((self.limit / (norm + 1e-6)).clamp_(max=1.0) for norm in norms)
        torch._foreach_mul_(gradients, factors)


@dataclass(frozen=True)
class ClipAllByNorm:
    """Scales all gradients by one factor, so that their norm, taken over all of them together, stays within a limit.

    Args:
        limit: greatest norm.
        norm_type: the p of the norm; may be infinite.
    """

    limit: float
    norm_type: float

    def __call__(self, parameters: torch.Tensor | Iterable[torch.Tensor]) -> None:
        torch.nn.utils.clip_grad_norm_(parameters, self.limit, self.norm_type)


def clipping_class(base: type[Optimizer], clipper: Clipper) -> type[Optimizer]:
    """A subclass of an optimizer that clips gradients before each step.

    Args:
        base: the optimizer's class.
        clipper: called with all parameters of the optimizer.

    Returns:
        A class whose instances can be pickled, although it has no name in any module.
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
