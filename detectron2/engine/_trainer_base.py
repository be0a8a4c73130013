"""The loop that calls hooks, and the hook itself: what every trainer is built on."""

import logging
import weakref
from collections.abc import Mapping
from typing import Any

from detectron2.utils.events import EventStorage

# Messages come from the public module.
logger = logging.getLogger("detectron2.engine.train_loop")


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

    stop_requested: bool = False
    """Whether training ends after this iteration; hooks then leave out what takes long."""
    is_evaluating: bool = False
    """Whether a hook is looking at the model, which it will leave as it was."""
    _stop_with: BaseException | None = None

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
        self.stop_requested, self._stop_with = False, None
        with EventStorage(start_iter) as self.storage:
            try:
                self._run(start_iter, max_iter)
            except BaseException as e:
                if isinstance(e, Exception):
                    logger.exception("Training stopped by an exception in iteration %d:", self.iter)
                try:
                    self.after_train()
                except Exception:  # what stopped training is the news, not what followed from it
                    logger.exception("After that, a hook failed in after_train:")
                raise
            self.after_train()

    def _run(self, start_iter: int, max_iter: int) -> None:
        self.before_train()
        if not self.stop_requested:
            for self.iter in range(start_iter, max_iter):
                self.before_step()
                self.run_step()
                self.after_step()
                if self.stop_requested:
                    if self._stop_with is None:
                        self.max_iter = self.iter + 1
                    break
        elif self._stop_with is None:
            self.max_iter = start_iter
        if self._stop_with is not None:
            raise self._stop_with
        # Hooks in after_train see `iter == max_iter` when, and only when, training came to its end.
        self.iter = max(start_iter, self.max_iter)

    def request_stop(self, stop_with: BaseException | None = None) -> None:
        """End training after the current iteration, or at once where a hook asks for it in ``before_train``.

        In distributed training, every process has to ask for it in the same iteration.

        Args:
            stop_with: what :meth:`train` raises then; by default training counts as complete, and ``max_iter`` becomes
                the number of iterations that were done.
        """
        self.stop_requested, self._stop_with = True, stop_with

    def before_train(self) -> None:
        """Call ``before_train`` of every hook."""
        for hook in self._hooks:
            hook.before_train()

    def after_train(self) -> None:
        """Call ``after_train`` of every hook; one that fails does not keep the others from closing."""
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
