"""The polynomial schedule of DeepLab."""

import torch
from torch.optim.lr_scheduler import LRScheduler

from detectron2.solver.lr_scheduler import _get_warmup_factor_at_iter

__all__ = ["WarmupPolyLR"]


class WarmupPolyLR(LRScheduler):
    """Lowers the rate as a power of the training that is left (https://arxiv.org/abs/1706.05587, section 4.1).

    At iteration `i` of `max_iters` the factor on the initial rate is `(1 - i / max_iters) ** power`, times that of the
    warmup. Once the power has fallen below `constant_ending`, and after the warmup, the factor is `constant_ending`.

    Args:
        optimizer: the optimizer whose rates are set.
        max_iters: number of iterations of the whole training.
        warmup_factor: factor at the first iteration.
        warmup_iters: iterations of warmup.
        warmup_method: `"linear"` or `"constant"`.
        last_epoch: index of the last finished iteration; -1 to begin.
        power: the exponent.
        constant_ending: lowest factor; 0 for none.

    Raises:
        ValueError: `max_iters` is not positive.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        max_iters: int,
        warmup_factor: float = 0.001,
        warmup_iters: int = 1000,
        warmup_method: str = "linear",
        last_epoch: int = -1,
        power: float = 0.9,
        constant_ending: float = 0.0,
    ):
        if max_iters < 1:
            raise ValueError(f"max_iters must be at least 1, but is {max_iters}.")
        self.max_iters = max_iters
        self.warmup_factor = warmup_factor
        self.warmup_iters = warmup_iters
        self.warmup_method = warmup_method
        self.power = power
        self.constant_ending = constant_ending
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | torch.Tensor]:
        """The rates of all groups at the current iteration."""
        warmup = _get_warmup_factor_at_iter(self.warmup_method, self.last_epoch, self.warmup_iters, self.warmup_factor)
        # Negative beyond the last iteration, where a fractional power would be a complex number.
        left = max(1.0 - self.last_epoch / self.max_iters, 0.0)
        factor = warmup * left**self.power
        if warmup == 1.0:
            factor = max(factor, self.constant_ending)
        return [base_lr * factor for base_lr in self.base_lrs]

    _compute_values = get_lr
