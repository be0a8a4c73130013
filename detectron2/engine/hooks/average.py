"""A moving average of the weights, which often evaluates better than the weights themselves.

Polyak & Juditsky, "Acceleration of stochastic approximation by averaging", SIAM J. Control Optim. 30 (1992).
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from detectron2.engine.sharding import local_part, split_like
from detectron2.engine.train_loop import HookBase
from detectron2.utils.file_io import atomic_write
from detectron2.utils.wrappers import unwrap_model

__all__ = ["WeightAverage"]

logger = logging.getLogger("detectron2.engine.hooks")

_Place = tuple[Mapping[str, torch.Tensor | None], str]  # of a tensor: the dictionary that holds it, and its key there


class WeightAverage(HookBase):
    """Keep `average = d * average + (1 - d) * weights` after each iteration; `d` rises to `decay` from 0.1.

    With `t` iterations done, `d = min(decay, (1 + t) / (10 + t))`: early weights are forgotten soon. Averaged are
    parameters that are trained, and buffers of floating-point numbers (statistics of batch norm).

    Register it before the hooks that save or evaluate. The average is part of checkpoints; at the end it is saved as
    `<output_dir>/model_final_ema.pth`, which is loaded like any other weights.

    Args:
        model: the model in training.
        decay: the largest `d`, e.g. 0.9998.
        output_dir: where the average is saved at the end; "" does not save it.
    """

    def __init__(self, model: nn.Module, decay: float, output_dir: str = "") -> None:
        if not 0.0 < decay < 1.0:
            raise ValueError(f"The decay of the average must lie in (0, 1), got {decay}.")
        self._model = unwrap_model(model)
        self._decay = decay
        self._output_dir = output_dir
        self._places: dict[str, _Place] = {}
        self._average: dict[str, torch.Tensor] = {}
        self._local_average: list[torch.Tensor] = []
        self._loaded: Mapping[str, torch.Tensor] = {}

    def before_train(self) -> None:
        """Begin with the weights, or with the average of the checkpoint."""
        self._places = _averaged(self._model)
        tensors = self._tensors()
        missing = [name for name in tensors if name not in self._loaded]
        if self._loaded and missing:
            logger.warning("The checkpoint has no average of %s; it begins with the weights.", ", ".join(missing[:5]))
        self._average = {
            name: split_like(self._loaded[name].to(t.device, t.dtype, copy=True), t)
            if name in self._loaded
            else t.detach().clone()
            for name, t in tensors.items()
        }
        # Of a sharded model, each process averages its part.
        self._local_average = [local_part(t) for t in self._average.values()]
        self._loaded = {}

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors that are averaged, as they are now; to walk through the model takes longer."""
        return {name: owner[key] for name, (owner, key) in self._places.items()}  # type: ignore[misc]

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the average towards the weights."""
        t = self.trainer.iter
        decay = min(self._decay, (1 + t) / (10 + t))
        weights = [local_part(w) for w in self._tensors().values()]
        torch._foreach_lerp_(self._local_average, weights, 1.0 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Within a `with` block, the model has the average as its weights."""
        tensors = self._tensors()
        own = {name: tensors[name].detach().clone() for name in self._average}
        self._copy(self._average, tensors)
        try:
            yield
        finally:
            self._copy(own, tensors)

    @staticmethod
    @torch.no_grad()
    def _copy(source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]) -> None:
        for name, value in source.items():
            local_part(target[name]).copy_(local_part(value))

    def after_train(self) -> None:
        """Save the average if training came to its end."""
        if not self._output_dir or self.trainer.iter < self.trainer.max_iter:
            return
        with self.in_place():
            path = os.path.join(self._output_dir, "model_final_ema.pth")
            with atomic_write(path, "wb") as file:
                torch.save({"model": self._model.state_dict(), "iteration": self.trainer.iter - 1}, file)
        logger.info("The average of the weights is in %s", path)

    def state_dict(self) -> dict[str, Any]:
        """Return the average."""
        return {"average": self._average} if self._average else {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the average of a checkpoint; used when training starts."""
        self._loaded = state_dict["average"]


def _averaged(model: nn.Module) -> dict[str, _Place]:
    """Parameters that are trained, then saved buffers of floating-point numbers; what is shared comes once."""
    parameters: dict[str, _Place] = {}
    buffers: dict[str, _Place] = {}
    seen: set[torch.Tensor] = set()
    for path, module in model.named_modules():
        for own, found in ((module._parameters, parameters), (module._buffers, buffers)):
            for key, tensor in own.items():
                if tensor is None or tensor in seen or key in module._non_persistent_buffers_set:
                    continue
                is_wanted = tensor.requires_grad if found is parameters else tensor.is_floating_point()
                if is_wanted:
                    seen.add(tensor)
                    found[f"{path}.{key}" if path else key] = (own, key)
    return parameters | buffers
