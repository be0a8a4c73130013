"""The training loop: an iterative trainer that calls hooks, and the common single-optimizer step.

One iteration is ``before_step -> run_step -> after_step``.  What happens besides the optimisation itself (schedules,
checkpoints, evaluation, logging) lives in hooks, so the loop stays short enough to be read at a glance.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detectron2.engine._divergence import DivergencePolicy
from detectron2.engine._random_states import start_iteration
from detectron2.engine._step_losses import record_losses
from detectron2.engine._trainer_base import HookBase, TrainerBase
from detectron2.utils.events import get_event_storage

__all__ = ["AMPTrainer", "HookBase", "SimpleTrainer", "TrainerBase"]


class SimpleTrainer(TrainerBase):
    """One model, one data source, one optimizer, the sum of the losses.

    Args:
        model: takes what ``data_loader`` yields and returns a dict of losses, or one loss tensor.  It is put into
            training mode.
        data_loader: an iterable; one element is one batch.
        optimizer: steps the parameters of ``model``.
        gather_metric_period: record the losses, averaged over all processes, every so many iterations.  Recording does
            not wait for the device: numbers stay there until a writer asks for them.
        zero_grad_before_forward: clear the gradients before the forward pass (least memory) instead of before backward.
        async_write_metrics: changes nothing: no way of recording waits for the device.

    Attributes:
        accumulation_steps: batches whose gradients are averaged for one step of the optimizer: ``k`` small batches in
            place of one that is ``k`` times as large.
        divergence: what happens when a loss is not finite.
    """

    accumulation_steps: int = 1

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        async_write_metrics: bool = False,
    ) -> None:
        super().__init__()
        self.divergence = DivergencePolicy()
        model.train()
        self.model = model
        self.data_loader: Any = data_loader
        self.optimizer = optimizer
        self.gather_metric_period = gather_metric_period
        self.zero_grad_before_forward = zero_grad_before_forward
        self.async_write_metrics = async_write_metrics
        self._data_loader_iter_obj: Any = None

    @property
    def _data_loader_iter(self) -> Iterator:
        """The running iterator; made on first use, because that starts the worker processes."""
        if self._data_loader_iter_obj is None:
            self._data_loader_iter_obj = start_iteration(self.data_loader)
        return self._data_loader_iter_obj

    def reset_data_loader(self, data_loader_builder: Callable[[], Iterable]) -> None:
        """Replace the data loader; the old one is released first.

        Args:
            data_loader_builder: returns the new loader.
        """
        self._data_loader_iter_obj = None
        self.data_loader = None
        self.data_loader = data_loader_builder()

    def _next_batch(self) -> tuple[Any, float]:
        """-> the next batch, and the seconds it was waited for."""
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        return data, time.perf_counter() - start

    def run_step(self) -> None:
        """Forward, backward, hooks, step.

        Raises:
            FloatingPointError: a loss is not finite; the message says which, in which iteration, on which images, and
                what in the model was not finite first.
        """
        self._check_training_mode()
        batches: list[Any] = []
        self.divergence.before_forward(self)
        try:
            losses, data_time = self._compute_gradients(batches)
            self.divergence.check(self, losses)
            self.after_backward()
            self._write_metrics(losses, data_time)
        except FloatingPointError as e:
            self.divergence.handle(self, batches, e)
            self._skip_update()
        else:
            self._update()

    def _compute_gradients(self, batches: list[Any]) -> tuple[dict[str, Any], float]:
        """Forward and backward of all batches of this step.

        Args:
            batches: gets the batches.

        Returns:
            The losses, averaged over the batches, and the seconds the data were waited for.
        """
        count = self.accumulation_steps
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        mean: dict[str, Any] = {}
        data_time = 0.0
        so_far: torch.Tensor | None = None
        for i in range(count):
            data, waited = self._next_batch()
            data_time += waited
            batches.append(data)
            with self._no_reduction() if i + 1 < count else contextlib.nullcontext():
                with self._autocast():
                    loss_dict = self.model(data)
                    total = _total_loss(loss_dict)
                so_far = total.detach() if so_far is None else so_far + total.detach()
                if i + 1 == count:
                    self.divergence.watch(so_far)
                if i == 0 and not self.zero_grad_before_forward:
                    self.optimizer.zero_grad()
                self._backward(total if count == 1 else total / count)
            losses = {"total_loss": loss_dict} if isinstance(loss_dict, torch.Tensor) else loss_dict
            if count == 1:
                return losses, data_time
            for name, value in losses.items():
                value = value.detach() if isinstance(value, torch.Tensor) else value
                mean[name] = mean.get(name, 0.0) + value / count
        return mean, data_time

    def _no_reduction(self) -> contextlib.AbstractContextManager:
        """Gradients stay in this process, until those of the last batch of the step are averaged with the others."""
        return self.model.no_sync() if isinstance(self.model, DistributedDataParallel) else contextlib.nullcontext()

    def _autocast(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def _backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def _update(self) -> None:
        self.optimizer.step()

    def _skip_update(self) -> None:
        """Leave the weights as they are: a loss was not finite."""

    def _check_training_mode(self) -> None:
        if not self.model.training:
            raise RuntimeError(
                f"[{type(self).__name__}] the model was switched to evaluation mode during training; "
                "call model.train() at the end of the hook that did it."
            )

    def _write_metrics(self, loss_dict: Mapping[str, torch.Tensor], data_time: float, prefix: str = "") -> None:
        """Record the losses of the current iteration; projects override this or call it after their own step."""
        if (self.iter + 1) % self.gather_metric_period == 0:
            self.write_metrics(loss_dict, data_time, self.iter, prefix)

    @staticmethod
    def write_metrics(
        loss_dict: Mapping[str, torch.Tensor], data_time: float, cur_iter: int | None = None, prefix: str = ""
    ) -> None:
        """Average losses over the processes and put them, their sum and the data time into the current storage.

        All processes have to call it.  Losses on a GPU are not waited for: they are read when a writer asks.

        Args:
            loss_dict: name -> scalar tensor.
            data_time: seconds spent waiting for the batch; the slowest process counts.
            cur_iter: the iteration they belong to; default: that of the storage.
            prefix: put before the name of the sum, ``total_loss``.

        Raises:
            FloatingPointError: the sum is not finite in some process; on a GPU a later call raises it, when the number
                has arrived.
        """
        record_losses(loss_dict, data_time, cur_iter, prefix)

    def state_dict(self) -> dict[str, Any]:
        """The state of the loop, of the optimizer, and of the data loader where it knows how far it got."""
        state = {**super().state_dict(), "optimizer": self.optimizer.state_dict()}
        if hasattr(self.data_loader, "state_dict"):
            state["data_loader"] = self.data_loader.state_dict()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the loop, the optimizer and the place in the data."""
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])
        if state_dict.get("data_loader") and hasattr(self.data_loader, "load_state_dict"):
            self._data_loader_iter_obj = None
            self.data_loader.load_state_dict(state_dict["data_loader"])


class AMPTrainer(SimpleTrainer):
    """:class:`SimpleTrainer` with automatic mixed precision.

    On CUDA the default is float16 with a gradient scaler; on the CPU, which has no fast float16, bfloat16 without.

    Args:
        model: as in :class:`SimpleTrainer`.
        data_loader: as in :class:`SimpleTrainer`.
        optimizer: as in :class:`SimpleTrainer`.
        grad_scaler: scales the loss so that float16 gradients do not underflow; default: a new one where needed.
        gather_metric_period: as in :class:`SimpleTrainer`.
        zero_grad_before_forward: as in :class:`SimpleTrainer`.
        precision: the autocast type; default: by device.
        log_grad_scaler: record the scale as ``grad_scaler``.
        async_write_metrics: as in :class:`SimpleTrainer`.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        grad_scaler: "torch.amp.GradScaler | None" = None,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        precision: torch.dtype | None = None,
        log_grad_scaler: bool = False,
        async_write_metrics: bool = False,
    ) -> None:
        super().__init__(
            model, data_loader, optimizer, gather_metric_period, zero_grad_before_forward, async_write_metrics
        )
        self.device_type = next((p.device.type for p in model.parameters()), "cpu")
        self.precision = precision or (torch.bfloat16 if self.device_type == "cpu" else torch.float16)
        if grad_scaler is None:
            needs_scaling = self.precision == torch.float16 and self.device_type == "cuda"
            grad_scaler = torch.amp.GradScaler(self.device_type, enabled=needs_scaling)
        self.grad_scaler = grad_scaler
        self.log_grad_scaler = log_grad_scaler

    def _autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device_type, dtype=self.precision)

    def _backward(self, loss: torch.Tensor) -> None:
        self.grad_scaler.scale(loss).backward()

    def _update(self) -> None:
        if self.log_grad_scaler:
            scale = getattr(self.grad_scaler, "_scale", None)  # get_scale() would wait for the device
            get_event_storage().put_scalar("grad_scaler", self.grad_scaler.get_scale() if scale is None else scale)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _skip_update(self) -> None:
        if self.grad_scaler.is_enabled():
            with contextlib.suppress(RuntimeError):  # a hook has unscaled the gradients already
                self.grad_scaler.unscale_(self.optimizer)
            self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """The state of the loop, the optimizer and the scaler."""
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore loop, optimizer and scaler; a checkpoint of a run without mixed precision has no scaler."""
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def _total_loss(loss_dict: Any) -> torch.Tensor:
    """The sum of a model's losses; ``TypeError`` where they are none, mostly since it ran in evaluation mode."""
    if isinstance(loss_dict, torch.Tensor):
        return loss_dict
    if not isinstance(loss_dict, Mapping) or not loss_dict:
        raise TypeError(
            "Expected the model to return a non-empty dict of losses in training mode, "
            f"got {type(loss_dict).__name__} of length {len(loss_dict) if hasattr(loss_dict, '__len__') else '?'}."
        )
    return sum(loss_dict.values())  # type: ignore[return-value]
