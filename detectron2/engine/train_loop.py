"""The training loop: an iterative trainer that calls hooks, and the common single-optimizer step.

One iteration is ``before_step -> run_step -> after_step``.  What happens besides the optimisation itself (schedules,
checkpoints, evaluation, logging) lives in hooks, so the loop stays short enough to be read at a glance.
"""

import logging
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

import detectron2.utils.comm as comm
from detectron2.utils.events import EventStorage, get_event_storage

__all__ = ["AMPTrainer", "HookBase", "SimpleTrainer", "TrainerBase"]

logger = logging.getLogger(__name__)


class HookBase:
    """Something that happens during training; register it with :meth:`TrainerBase.register_hooks`.

    The trainer calls the methods in this order::

        hook.before_train()
        for trainer.iter in range(start_iter, max_iter):
            hook.before_step()
            trainer.run_step()        # calls hook.after_backward() between backward and the optimizer's step
            hook.after_step()
        hook.after_train()

    ``self.trainer`` gives access to the model, the iteration and, with
    :class:`~detectron2.engine.defaults.DefaultTrainer`, the config.  What takes time belongs in ``after_step``: timers
    measure from ``before_step`` to ``after_step``.
    """

    trainer: "TrainerBase" = None  # type: ignore[assignment]
    """The trainer (a weak reference), set when the hook is registered."""

    def before_train(self) -> None:
        """Called once before the first iteration."""

    def after_train(self) -> None:
        """Called once after the last iteration, also when training stops by an exception."""

    def before_step(self) -> None:
        """Called before each iteration."""

    def after_backward(self) -> None:
        """Called between the backward pass and the optimizer's step."""

    def after_step(self) -> None:
        """Called after each iteration."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold to resume this hook; nothing by default."""
        return {}


class TrainerBase:
    """A loop with hooks; subclasses say in :meth:`run_step` what one iteration does.

    Attributes:
        iter: the current iteration, counted from 0.
        start_iter: the first iteration of this run, larger than 0 after a resume.
        max_iter: the iteration at which training ends (exclusive).
        storage: the :class:`~detectron2.utils.events.EventStorage` that is open while training runs.
    """

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter: int = 0
        self.start_iter: int = 0
        self.max_iter: int = 0
        self.storage: EventStorage = None  # type: ignore[assignment]

    def register_hooks(self, hooks: list[HookBase | None]) -> None:
        """Append hooks; they run in the order of registration.

        Args:
            hooks: the hooks; ``None`` entries are left out, which keeps conditional lists short.

        Raises:
            TypeError: an entry is not a :class:`HookBase`.
        """
        kept = [h for h in hooks if h is not None]
        for hook in kept:
            if not isinstance(hook, HookBase):
                raise TypeError(f"Expected a HookBase, got {type(hook).__name__}: {hook!r}")
            hook.trainer = weakref.proxy(self)  # a strong reference would be a cycle trainer <-> hook
        self._hooks.extend(kept)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run the iterations ``start_iter <= iter < max_iter``.

        ``after_train`` of every hook runs also when an iteration raises, so that logs and files are closed.

        Args:
            start_iter: the first iteration.
            max_iter: one more than the last iteration.
        """
        logger.info("Starting training from iteration %d", start_iter)
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                # Hooks in after_train see `iter == max_iter` when, and only when, training came to its end.
                self.iter = max(start_iter, max_iter)
            except Exception:
                logger.exception("Training stopped by an exception in iteration %d:", self.iter)
                raise
            finally:
                self.after_train()

    def before_train(self) -> None:
        """Call ``before_train`` of every hook."""
        for hook in self._hooks:
            hook.before_train()

    def after_train(self) -> None:
        """Call ``after_train`` of every hook."""
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.after_train()

    def before_step(self) -> None:
        """Move the storage to the current iteration and call ``before_step`` of every hook."""
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.before_step()

    def after_backward(self) -> None:
        """Call ``after_backward`` of every hook."""
        for hook in self._hooks:
            hook.after_backward()

    def after_step(self) -> None:
        """Call ``after_step`` of every hook."""
        for hook in self._hooks:
            hook.after_step()

    def run_step(self) -> None:
        """One iteration; a subclass implements it."""
        raise NotImplementedError(f"{type(self).__name__} must implement run_step()")

    def state_dict(self) -> dict[str, Any]:
        """The iteration and the state of every hook that has one, keyed by the hook's class name."""
        state: dict[str, Any] = {"iteration": self.iter}
        hooks: dict[str, Any] = {}
        for hook in self._hooks:
            if not (hook_state := hook.state_dict()):
                continue
            name = type(hook).__qualname__
            if name in hooks:
                logger.warning("Two hooks of type %s keep state; only the first one is saved.", name)
                continue
            hooks[name] = hook_state
        if hooks:
            state["hooks"] = hooks
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; states of hooks that are not registered are skipped."""
        self.iter = state_dict["iteration"]
        for name, hook_state in state_dict.get("hooks", {}).items():
            hook = next((h for h in self._hooks if type(h).__qualname__ == name), None)
            if hook is None:
                logger.warning("The checkpoint holds state of the hook %s, which is not registered; skipped.", name)
            else:
                hook.load_state_dict(hook_state)  # type: ignore[attr-defined]  # whoever saves state can load it


class SimpleTrainer(TrainerBase):
    """One model, one data source, one optimizer, the sum of the losses.

    Args:
        model: takes what ``data_loader`` yields and returns a dict of losses, or one loss tensor.  It is put into
            training mode.
        data_loader: an iterable; one element is one batch.
        optimizer: steps the parameters of ``model``.
        gather_metric_period: record the losses, averaged over all processes, every so many iterations; a larger number
            waits for the device less often.
        zero_grad_before_forward: clear the gradients before the forward pass (least memory) instead of before backward.
        async_write_metrics: record the losses of an iteration during the next one, so that the device is never waited
            for.  Hooks then see the losses one iteration late.
    """

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
        model.train()
        self.model = model
        self.data_loader: Any = data_loader
        self.optimizer = optimizer
        self.gather_metric_period = gather_metric_period
        self.zero_grad_before_forward = zero_grad_before_forward
        self.async_write_metrics = async_write_metrics
        self._data_loader_iter_obj: Any = None
        self._pending_metrics: tuple | None = None

    @property
    def _data_loader_iter(self) -> Iterator:
        """The running iterator; made on first use, because that starts the worker processes."""
        if self._data_loader_iter_obj is None:
            self._data_loader_iter_obj = iter(self.data_loader)
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
            FloatingPointError: a loss is not finite; the message says which, in which iteration, on which images.
        """
        self._check_training_mode()
        data, data_time = self._next_batch()
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        loss_dict = self._forward(data)
        losses = _total_loss(loss_dict)
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        losses.backward()
        self.after_backward()
        self._record(loss_dict, data_time, data)
        self.optimizer.step()

    def _forward(self, data: Any) -> Any:
        """-> the model's losses; to a report of divergence by a part of the model, what is known here is added."""
        try:
            return self.model(data)
        except FloatingPointError as e:
            raise FloatingPointError(f"{e}\n{self._describe_divergence(data)}") from e

    def _check_training_mode(self) -> None:
        if not self.model.training:
            raise RuntimeError(
                f"[{type(self).__name__}] the model was switched to evaluation mode during training; "
                "call model.train() at the end of the hook that did it."
            )

    def _record(self, loss_dict: Any, data_time: float, data: Any) -> None:
        """Write the metrics of this iteration now, or, if asynchronous, those of the last one."""
        losses = {"total_loss": loss_dict} if isinstance(loss_dict, torch.Tensor) else loss_dict
        try:
            if not self.async_write_metrics:
                self._write_metrics(losses, data_time)
            elif (self.iter + 1) % self.gather_metric_period == 0:
                detached = {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in losses.items()}
                pending, self._pending_metrics = self._pending_metrics, (detached, data_time, self.iter, data)
                if pending is not None:
                    data = pending[3]
                    self.write_metrics(*pending[:3])
        except FloatingPointError as e:
            self._pending_metrics = None
            raise FloatingPointError(f"{e}\n{self._describe_divergence(data)}") from None

    def _describe_divergence(self, data: Any) -> str:
        """Learning rate and images of a batch with a non-finite loss."""
        files = (
            [str(d["file_name"]) for d in data if isinstance(d, Mapping) and "file_name" in d] if _is_list(data) else []
        )
        rate = max((float(g["lr"]) for g in self.optimizer.param_groups), default=0.0)
        return (
            f"Learning rate: {rate:g}. Images of the batch: {', '.join(files) or 'unknown'}.\n"
            "Usual causes are a learning rate that is too high for the batch size (scale it by images per batch / 16), "
            "too short a warm-up, and wrong boxes; clipping gradients (SOLVER.CLIP_GRADIENTS) helps as well."
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

        Args:
            loss_dict: name -> scalar tensor.
            data_time: seconds spent waiting for the batch; the slowest process counts.
            cur_iter: the iteration they belong to; default: that of the storage.
            prefix: put before the name of the sum, ``total_loss``.

        Raises:
            FloatingPointError: the sum is not finite.
        """
        storage = get_event_storage()
        names = [k for k, v in loss_dict.items() if isinstance(v, torch.Tensor)]
        # One transfer for all losses: every `.item()` would wait for the device again.
        values = torch.stack([loss_dict[k].detach().float().reshape(()) for k in names]).tolist() if names else []
        metrics = dict(zip(names, values, strict=True))
        metrics.update({k: float(v) for k, v in loss_dict.items() if k not in metrics})
        metrics["data_time"] = data_time
        gathered = comm.gather(metrics)
        if not comm.is_main_process():
            return
        storage.put_scalar("data_time", max(m.pop("data_time") for m in gathered), cur_iter=cur_iter)
        mean = {k: sum(m[k] for m in gathered) / len(gathered) for k in gathered[0]}
        total = sum(mean.values())
        if not _isfinite(total):
            where = storage.iter if cur_iter is None else cur_iter
            parts = ", ".join(f"{k}={v:g}" for k, v in mean.items())
            raise FloatingPointError(f"The loss became infinite or NaN in iteration {where}: {parts}.")
        storage.put_scalar(f"{prefix}total_loss", total, cur_iter=cur_iter)
        for k, v in mean.items():
            if k != "total_loss":
                storage.put_scalar(k, v, cur_iter=cur_iter)

    def after_train(self) -> None:
        """Record losses that are still pending, then call the hooks."""
        pending, self._pending_metrics = self._pending_metrics, None
        try:
            # After a failure of this process the others are elsewhere: averaging with them would wait for ever.
            if pending is not None and (self.iter >= self.max_iter or comm.get_world_size() == 1):
                self.write_metrics(*pending[:3])
        finally:
            super().after_train()

    def state_dict(self) -> dict[str, Any]:
        """The state of the loop, and of the optimizer."""
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the loop and the optimizer."""
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])


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

    def run_step(self) -> None:
        """Forward under autocast, scaled backward, hooks on unscaled gradients, step."""
        self._check_training_mode()
        data, data_time = self._next_batch()
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        with torch.autocast(self.device_type, dtype=self.precision):
            loss_dict = self._forward(data)
            losses = _total_loss(loss_dict)
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        self.grad_scaler.scale(losses).backward()
        if self.log_grad_scaler:
            get_event_storage().put_scalar("grad_scaler", self.grad_scaler.get_scale())
        self.after_backward()
        self._record(loss_dict, data_time, data)
        self.grad_scaler.step(self.optimizer)
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


def _is_list(data: Any) -> bool:
    return isinstance(data, (list, tuple))


def _isfinite(x: float) -> bool:
    return x - x == 0.0
