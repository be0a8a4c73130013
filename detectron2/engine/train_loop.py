"""The training loop: an iterative trainer that calls hooks, and the usual step with one optimizer.

One iteration is `before_step -> run_step -> after_step`. Everything beside the optimization (schedules, checkpoints,
evaluation, logging) happens in hooks, which keeps the loop short.
"""

import contextlib
import itertools
import logging
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detectron2.data.resize_later import resize_stored
from detectron2.engine.divergence import DivergencePolicy
from detectron2.engine.prefetch import Prefetcher
from detectron2.engine.random_states import random_states_kept
from detectron2.engine.step_losses import record_losses
from detectron2.solver.build import match_memory_formats
from detectron2.utils.events import EventStorage, get_event_storage

__all__ = ["AMPTrainer", "HookBase", "SimpleTrainer", "TrainerBase"]

logger = logging.getLogger(__name__)


class HookBase:
    """Base class of what happens during training beside the step; register hooks with `TrainerBase.register_hooks`.

    The trainer calls the methods in this order::

        hook.before_train()
        for trainer.iter in range(start_iter, max_iter):
            hook.before_step()
            trainer.run_step()        # calls hook.after_backward() between backward and the optimizer's step
            hook.after_step()
        hook.after_train()

    `self.trainer` gives access to the model, the iteration and, with `DefaultTrainer`, the config. Work that takes time
    belongs in `after_step`, because timers measure from `before_step` to `after_step`.
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
        """Return what a checkpoint must hold to resume this hook; nothing by default."""
        return {}


class TrainerBase:
    """A loop with hooks; a subclass defines one iteration in `run_step`.

    Attributes:
        iter: the current iteration, counted from 0.
        start_iter: the first iteration of this run, larger than 0 after a resume.
        max_iter: the number of iterations, one more than the last.
        storage: the `EventStorage` that is open while training runs.
    """

    stop_requested: bool = False
    """Whether training ends after this iteration; hooks then skip what takes long."""
    is_evaluating: bool = False
    """Whether a hook is evaluating the model, which it leaves unchanged."""
    _stop_with: BaseException | None = None

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter: int = 0
        self.start_iter: int = 0
        self.max_iter: int = 0
        self.storage: EventStorage = None  # type: ignore[assignment]

    def register_hooks(self, hooks: list[HookBase | None]) -> None:
        """Append hooks, which run in the order of registration; entries that are `None` are skipped."""
        kept = [h for h in hooks if h is not None]
        for hook in kept:
            if not isinstance(hook, HookBase):
                raise TypeError(f"Expected a HookBase, got {type(hook).__name__}: {hook!r}")
            hook.trainer = weakref.proxy(self)  # a strong reference would be a cycle trainer <-> hook
        self._hooks.extend(kept)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run the iterations `start_iter <= iter < max_iter`.

        A training that is resumed after its last iteration runs none: hooks then write what is missing, and evaluate.
        `after_train` of every hook runs also when an iteration raises, so that logs and files are closed.
        """
        logger.info("Starting training from iteration %d", start_iter)
        if 0 < start_iter >= max_iter:
            logger.warning(
                f"This training has had {start_iter} iterations and is to have {max_iter}: none is left. What is "
                "missing is saved, and the model is evaluated as after training. To train longer, raise "
                "SOLVER.MAX_ITER or MAX_EPOCHS (train.max_iter or max_epochs); to train anew, do not resume, and use "
                "another folder."
            )
        self.iter = self.start_iter = start_iter
        self.max_iter = max(start_iter, max_iter)
        self.stop_requested, self._stop_with = False, None
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                done = start_iter
                while done < max_iter and not self.stop_requested:
                    self.iter = done
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    done += 1
                if self._stop_with is not None:
                    raise self._stop_with
                if self.stop_requested:
                    self.max_iter = done
                # In after_train, `iter == max_iter` if and only if training is complete.
                self.iter = self.max_iter
            except BaseException as e:
                self.max_iter = max(self.max_iter, self.iter + 1)
                if isinstance(e, Exception):
                    logger.exception("Training stopped by an exception in iteration %d:", self.iter)
                try:
                    self.after_train()
                except Exception:  # the first exception is the one to raise
                    logger.exception("After that, a hook failed in after_train:")
                raise
            self.after_train()

    def request_stop(self, stop_with: BaseException | None = None) -> None:
        """End training after the current iteration, or before the first one if called in `before_train`.

        In distributed training, every process must call it in the same iteration. `train` raises `stop_with`; without
        it training counts as complete, and `max_iter` becomes the number of completed iterations.
        """
        self.stop_requested, self._stop_with = True, stop_with

    def before_train(self) -> None:
        """Call `before_train` of every hook."""
        for hook in self._hooks:
            hook.before_train()

    def after_train(self) -> None:
        """Call `after_train` of every hook, also after one of them fails."""
        self.storage.iter = self.iter
        failure: BaseException | None = None
        for hook in self._hooks:
            try:
                hook.after_train()
            except BaseException as e:
                logger.error("%s failed in after_train: %s: %s", type(hook).__name__, type(e).__name__, e)
                failure = failure or e
        if failure is not None:
            raise failure

    def before_step(self) -> None:
        """Move the storage to the current iteration and call `before_step` of every hook."""
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.before_step()

    def after_backward(self) -> None:
        """Call `after_backward` of every hook."""
        for hook in self._hooks:
            hook.after_backward()

    def after_step(self) -> None:
        """Call `after_step` of every hook."""
        for hook in self._hooks:
            hook.after_step()

    def run_step(self) -> None:
        """Run one iteration; a subclass implements it."""
        raise NotImplementedError(f"{type(self).__name__} must implement run_step()")

    def state_dict(self) -> dict[str, Any]:
        """Return the iteration and the state of every hook that has one, by the class name of the hook."""
        hooks: dict[str, Any] = {}
        for hook in self._hooks:
            name = type(hook).__qualname__
            if (state := hook.state_dict()) and hooks.setdefault(name, state) is not state:
                logger.warning("Two hooks of type %s keep state; only the first one is saved.", name)
        return {"iteration": self.iter, **({"hooks": hooks} if hooks else {})}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; states of hooks that are not registered are skipped."""
        self.iter = state_dict["iteration"]
        for name, hook_state in state_dict.get("hooks", {}).items():
            hook = next((h for h in self._hooks if type(h).__qualname__ == name), None)
            if hook is None:
                logger.warning("The checkpoint holds state of the hook %s, which is not registered; skipped.", name)
            else:
                hook.load_state_dict(hook_state)  # type: ignore[attr-defined]


class SimpleTrainer(TrainerBase):
    """Train one model with one data source and one optimizer on the sum of its losses.

    Args:
        model: takes what `data_loader` yields and returns a dict of losses, or one loss tensor. It is put into
            training mode.
        data_loader: an iterable; one element is one batch.
        optimizer: steps the parameters of `model`.
        gather_metric_period: iterations between two records of the losses, averaged over all processes. Recording does
            not wait for the device: the numbers stay there until a writer reads them.
        zero_grad_before_forward: clear the gradients before the forward pass (least memory) instead of before backward.
        async_write_metrics: has no effect, because recording never waits for the device.

    Attributes:
        accumulation_steps: number of batches whose gradients are averaged for one step of the optimizer.
        divergence: decides what happens when a loss is not finite.
        prefetch: on a GPU, bring the next batch there while the model is at work on this one. The model is then given
            tensors that are on the GPU already.
    """

    accumulation_steps: int = 1
    prefetch: bool = False

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
        """The running iterator, created on first use because that starts the worker processes."""
        if self._data_loader_iter_obj is None:
            batches = _start_iteration(self.data_loader)
            device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
            if self.prefetch and _prefetches_to(device):
                batches = Prefetcher(batches, device, getattr(self.data_loader, "state_dict", None))
            self._data_loader_iter_obj = batches
        return self._data_loader_iter_obj

    def reset_data_loader(self, data_loader_builder: Callable[[], Iterable]) -> None:
        """Replace the data loader by what the builder returns; the old one is released first."""
        self._data_loader_iter_obj = None
        self.data_loader = None
        self.data_loader = data_loader_builder()

    def run_step(self) -> None:
        """Run forward, backward, hooks and the step of the optimizer.

        Raises:
            FloatingPointError: a loss is not finite; the message names the loss, the iteration, the images, and the
                first tensor in the model that is not finite.
        """
        if not self.model.training:
            raise RuntimeError(
                f"[{type(self).__name__}] the model was switched to evaluation mode during training; "
                "call model.train() at the end of the hook that did it."
            )
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
        """Run forward and backward on all batches of this step, which are appended to `batches`.

        Returns the losses, averaged over the batches, and the seconds spent waiting for data.
        """
        count = self.accumulation_steps
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        mean: dict[str, Any] = {}
        data_time = 0.0
        so_far: torch.Tensor | None = None
        for i in range(count):
            start = time.perf_counter()
            data = self._next_batch()
            data_time += time.perf_counter() - start
            batches.append(data)
            is_last = i + 1 == count
            # Gradients stay in this process until the last batch.
            keeps = not is_last and isinstance(self.model, DistributedDataParallel)
            with self.model.no_sync() if keeps else contextlib.nullcontext():  # type: ignore[operator]
                with self._autocast():
                    loss_dict = self.model(data)
                    total = _total_loss(loss_dict)
                so_far = total.detach() if so_far is None else so_far + total.detach()
                if is_last:
                    self.divergence.watch(so_far)
                if i == 0 and not self.zero_grad_before_forward:
                    self.optimizer.zero_grad()
                self._backward(total if count == 1 else total / count)
            if isinstance(self._data_loader_iter_obj, Prefetcher):
                self._data_loader_iter_obj.fetch_ahead()
            losses = {"total_loss": loss_dict} if isinstance(loss_dict, torch.Tensor) else loss_dict
            if count == 1:
                return losses, data_time
            for name, value in losses.items():
                value = value.detach() if isinstance(value, torch.Tensor) else value
                mean[name] = mean.get(name, 0.0) + value / count
        return mean, data_time

    def _next_batch(self) -> Any:
        try:
            return resize_stored(next(self._data_loader_iter))
        except StopIteration:
            raise StopIteration(
                f"The training data ended in iteration {self.iter}, before the training did. The loader must go on "
                "without end, as with TrainingSampler, or have a batch for each iteration and accumulation step."
            ) from None

    def _autocast(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def _backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def _update(self) -> None:
        self.optimizer.step()

    def _skip_update(self) -> None:
        """Leave the weights unchanged, because a loss is not finite."""

    def _write_metrics(self, loss_dict: Mapping[str, torch.Tensor], data_time: float, prefix: str = "") -> None:
        """Record the losses of the current iteration; projects override this or call it after their own step."""
        if (self.iter + 1) % self.gather_metric_period == 0:
            self.write_metrics(loss_dict, data_time, self.iter, prefix)

    @staticmethod
    def write_metrics(
        loss_dict: Mapping[str, torch.Tensor], data_time: float, cur_iter: int | None = None, prefix: str = ""
    ) -> None:
        """Record the losses averaged over all processes; the arguments are those of `step_losses.record_losses`.

        All processes must call it. It does not wait for losses on a GPU: they are read when a writer asks, and a sum
        that is not finite raises a `FloatingPointError` in a later call, when the number has arrived.
        """
        record_losses(loss_dict, data_time, cur_iter, prefix)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the loop, the optimizer and, if it has one, the data loader."""
        state = {**super().state_dict(), "optimizer": self.optimizer.state_dict()}
        if hasattr(self.data_loader, "state_dict"):
            ahead = getattr(self._data_loader_iter_obj, "loader_state", None)
            state["data_loader"] = self.data_loader.state_dict() if ahead is None else ahead
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the loop, the optimizer and the position in the data."""
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])
        match_memory_formats(self.optimizer)
        if state_dict.get("data_loader") and hasattr(self.data_loader, "load_state_dict"):
            self._data_loader_iter_obj = None
            self.data_loader.load_state_dict(state_dict["data_loader"])


class AMPTrainer(SimpleTrainer):
    """`SimpleTrainer` with automatic mixed precision.

    Arguments are those of `SimpleTrainer` and three more. `precision` is the autocast type: by default float16 on CUDA,
    and bfloat16 on the CPU. `grad_scaler` scales the loss so that float16 gradients do not underflow, by default a new
    scaler if that is needed. `log_grad_scaler` records its scale as `grad_scaler`.
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
        """Return the state of the loop, the optimizer and the scaler."""
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the loop, the optimizer and, if the checkpoint has one, the scaler."""
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def _prefetches_to(device: torch.device) -> bool:
    return device.type == "cuda"  # elsewhere a copy is not asynchronous, or there is none


def _total_loss(loss_dict: Any) -> torch.Tensor:
    """Return the sum of the losses; raise `TypeError` if the output is not losses, as in evaluation mode."""
    if not isinstance(loss_dict, (Mapping, torch.Tensor)) or (isinstance(loss_dict, Mapping) and not loss_dict):
        raise TypeError(
            "Expected the model to return a non-empty dict of losses in training mode, "
            f"got {type(loss_dict).__name__} of length {len(loss_dict) if hasattr(loss_dict, '__len__') else '?'}."
        )
    total: Any = loss_dict
    if isinstance(loss_dict, Mapping):
        try:
            total = sum(loss_dict.values())
        except (TypeError, RuntimeError):  # not numbers, or of shapes that do not fit each other
            total = None
    is_loss = isinstance(total, torch.Tensor) and total.numel() == 1 and total.requires_grad and not total.is_complex()
    if not is_loss or (isinstance(loss_dict, Mapping) and not all(isinstance(name, str) for name in loss_dict)):
        raise TypeError(_explain_losses(loss_dict if isinstance(loss_dict, Mapping) else {"loss": loss_dict}))
    return total


def _explain_losses(losses: Mapping[Any, Any]) -> str:
    """Say what is wrong with losses that cannot be summed, or whose sum cannot be trained on."""
    wrong = []
    for name, value in losses.items():
        if not isinstance(name, str):
            wrong.append(f"the name {name!r} ({type(name).__name__})")
        elif isinstance(value, torch.Tensor):
            if value.numel() != 1 or value.is_complex():
                wrong.append(f"{name!r} of type {value.dtype} and shape {tuple(value.shape)}")
        elif not isinstance(value, (int, float)):
            wrong.append(f"{name!r} of type {type(value).__name__}")
    if wrong:
        return (
            "Each loss that the model returns in training mode must have a text as its name and be one real number, "
            f"such as a mean; got {', '.join(wrong)}."
        )
    return (
        f"None of the losses ({', '.join(losses)}) has a gradient, so there is nothing to train: they do not depend on "
        "a parameter with requires_grad=True, were detached, or were computed within torch.no_grad()."
    )


def _start_iteration(loader: Iterable) -> Iterator:
    """Return `iter(loader)`; a loader that can be positioned leaves the random number generators unchanged.

    PyTorch draws a number when it starts an iteration, which a resumed run does once more than an uninterrupted one.
    """
    if not hasattr(loader, "set_position"):
        return iter(loader)
    with random_states_kept():  # generators start with the first batch
        iterator = iter(loader)
        first = list(itertools.islice(iterator, 1))
    return itertools.chain(first, iterator)
