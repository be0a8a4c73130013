"""Learning rates as functions of training progress.

A fvcore `ParamScheduler` maps progress (0 at the first iteration, 1 behind the last) to a factor;
`LRMultiplier` applies the factor to an optimizer. `WarmupMultiStepLR` and `WarmupCosineLR` are the older
classes that count iterations themselves.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import torch
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["LRMultiplier", "LRScheduler", "WarmupCosineLR", "WarmupMultiStepLR", "WarmupParamScheduler"]

# Some fvcore schedulers are undefined at a progress of exactly 1, which is reached after the last iteration, when
# nothing is trained any more. They add 1e-6 to the progress, so the end lies a little further below 1 than that.
_END = 1.0 - 2e-6


class WarmupParamScheduler(CompositeParamScheduler):
    """Another schedule with a warmup in front.

    Args:
        scheduler: the schedule to warm up.
        warmup_factor: value at the very start, relative to the first value of `scheduler`.
        warmup_length: part of the training that the warmup takes, in [0, 1].
        warmup_method: `"linear"` rises steadily to the value that `scheduler` continues with; `"constant"` stays
            at the starting value and then jumps.
        rescale_interval: squeeze `scheduler` into the rest of the training; otherwise its beginning is replaced.

    Raises:
        ValueError: the method is unknown or the length is outside [0, 1].
    """

    def __init__(
        self,
        scheduler: ParamScheduler,
        warmup_factor: float,
        warmup_length: float,
        warmup_method: str = "linear",
        rescale_interval: bool = False,
    ):
        if not 0.0 <= warmup_length <= 1.0:
            raise ValueError(f"warmup_length is a part of the training in [0, 1], but is {warmup_length}.")
        start = warmup_factor * scheduler(0.0)
        if warmup_method == "constant":
            warmup: ParamScheduler = ConstantParamScheduler(start)
        elif warmup_method == "linear":
            joined_at = 0.0 if rescale_interval else min(warmup_length, _END)
            warmup = LinearParamScheduler(start, scheduler(joined_at))
        else:
            raise ValueError(
                f"warmup_method (SOLVER.WARMUP_METHOD) must be 'linear' or 'constant', but is {warmup_method!r}."
            )
        super().__init__(
            [warmup, scheduler],
            lengths=[warmup_length, 1.0 - warmup_length],
            interval_scaling=["rescaled", "rescaled" if rescale_interval else "fixed"],
        )


class LRMultiplier(LRScheduler):
    """Multiplies the initial learning rate of every parameter group by the value of a schedule.

    Groups may have different rates, as long as their ratios stay what they are.

    Example:
        >>> schedule = MultiStepParamScheduler([1, 0.1, 0.01], milestones=[60000, 80000], num_updates=90000)
        >>> LRMultiplier(optimizer, WarmupParamScheduler(schedule, 0.001, 100 / 90000), max_iter=90000)

    Args:
        optimizer: the optimizer whose rates are set.
        multiplier: from progress in [0, 1] to the factor.
        max_iter: number of iterations of the whole training.
        last_iter: index of the last finished iteration; -1 to begin.

    Raises:
        TypeError: `multiplier` is not a `ParamScheduler`, for instance a PyTorch scheduler.
        ValueError: `max_iter` is not positive.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, multiplier: ParamScheduler, max_iter: int, last_iter: int = -1
    ):
        if not isinstance(multiplier, ParamScheduler):
            raise TypeError(
                "LRMultiplier needs a schedule of fvcore.common.param_scheduler (a function of progress), "
                f"but got {type(multiplier).__name__}."
            )
        if max_iter < 1:
            raise ValueError(f"max_iter must be at least 1, but is {max_iter}.")
        self._multiplier = multiplier
        self._max_iter = max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def state_dict(self) -> dict[str, Any]:
        """Initial rates and the iteration. The schedule itself comes from the config, also when resuming."""
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def get_lr(self) -> list[float | torch.Tensor]:
        """The rates of all groups at the current iteration."""
        factor = self._multiplier(min(self.last_epoch / self._max_iter, _END))
        return [base_lr * factor for base_lr in self.base_lrs]


class WarmupMultiStepLR(LRScheduler):
    """Drops the rate by a factor at given iterations, after a warmup.

    Args:
        optimizer: the optimizer whose rates are set.
        milestones: iterations at which the rate drops, in rising order.
        gamma: factor of each drop.
        warmup_factor: factor at the first iteration.
        warmup_iters: iterations of warmup.
        warmup_method: `"linear"` or `"constant"`.
        last_epoch: index of the last finished iteration; -1 to begin.

    Raises:
        ValueError: the milestones do not rise.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        milestones: Sequence[int],
        gamma: float = 0.1,
        warmup_factor: float = 0.001,
        warmup_iters: int = 1000,
        warmup_method: str = "linear",
        last_epoch: int = -1,
    ):
        if list(milestones) != sorted(milestones):
            raise ValueError(f"milestones must rise, but are {list(milestones)}.")
        self.milestones = milestones
        self.gamma = gamma
        self.warmup_factor = warmup_factor
        self.warmup_iters = warmup_iters
        self.warmup_method = warmup_method
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | torch.Tensor]:
        """The rates of all groups at the current iteration."""
        warmup = _get_warmup_factor_at_iter(self.warmup_method, self.last_epoch, self.warmup_iters, self.warmup_factor)
        drops = bisect_right(self.milestones, self.last_epoch)
        return [base_lr * warmup * self.gamma**drops for base_lr in self.base_lrs]

    _compute_values = get_lr


class WarmupCosineLR(LRScheduler):
    """Half a cosine from the initial rate to zero (Loshchilov and Hutter, SGDR, 2016), after a warmup.

    `max_iters` is the number of iterations of the whole training; the rest is as in `WarmupMultiStepLR`.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        max_iters: int,
        warmup_factor: float = 0.001,
        warmup_iters: int = 1000,
        warmup_method: str = "linear",
        last_epoch: int = -1,
    ):
        self.max_iters = max_iters
        self.warmup_factor = warmup_factor
        self.warmup_iters = warmup_iters
        self.warmup_method = warmup_method
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | torch.Tensor]:
        """The rates of all groups at the current iteration."""
        warmup = _get_warmup_factor_at_iter(self.warmup_method, self.last_epoch, self.warmup_iters, self.warmup_factor)
        cosine = 0.5 * (1.0 + math.cos(math.pi * self.last_epoch / self.max_iters))
        return [base_lr * warmup * cosine for base_lr in self.base_lrs]

    _compute_values = get_lr


def _get_warmup_factor_at_iter(method: str, iter: int, warmup_iters: int, warmup_factor: float) -> float:
    """Factor of the warmup at an iteration: 1 from `warmup_iters` on."""
    if iter >= warmup_iters:
        return 1.0
    if method == "constant":
        return warmup_factor
    if method == "linear":
        progress = iter / warmup_iters
        return warmup_factor * (1.0 - progress) + progress
    raise ValueError(f"warmup method must be 'linear' or 'constant', but is {method!r}.")
