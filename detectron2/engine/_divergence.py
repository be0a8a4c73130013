"""What happens when a loss is not finite: find where it began, say what to do, keep the batch, and stop or go on."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

import detectron2.utils.comm as comm
from detectron2.engine._batch_file import tensors_in, to_plain
from detectron2.engine._compilation import uncompiled
from detectron2.engine._random_states import random_states_kept, set_random_states, torch_states
from detectron2.engine._step_losses import LossNotFinite, LossWatch, not_finite_message
from detectron2.utils.events import EventStorage, put_scalar
from detectron2.utils.file_io import atomic_write
from detectron2.utils.wrappers import unwrap_model

logger = logging.getLogger(__name__)

_IMAGES_OF_PUBLISHED_RATES = 16
_NORMS_WITH_STATISTICS = nn.modules.batchnorm._NormBase


class DivergencePolicy:
    """Decides about a step whose loss is not finite.

    Args:
        policy: ``"stop"`` raises; ``"skip"`` leaves the weights as they are, counts, and goes on with the next batch.
        max_in_a_row: with ``"skip"``, so many such steps one after the other are the end.
        folder: where the batch is saved before training ends; "" saves nothing.
        config: returns the config as text, and its kind (``"yaml"`` or ``"lazy"``), to be saved along.

    Raises:
        ValueError: there is no such policy.
    """

    def __init__(
        self,
        policy: str = "stop",
        max_in_a_row: int = 10,
        folder: str = "",
        config: Callable[[], tuple[str, str]] | None = None,
    ) -> None:
        if policy not in ("stop", "skip"):
            raise ValueError(f'What to do about a loss that is not finite must be "stop" or "skip", got {policy!r}.')
        if max_in_a_row < 1:
            raise ValueError(f"At least 1 step in a row must be allowed to be skipped, got {max_in_a_row}.")
        self.policy = policy
        self.max_in_a_row = max_in_a_row
        self.num_skipped = 0
        self._in_a_row = 0
        self._folder = folder
        self._config = config
        self._states: dict[str, Any] = {}
        self._norm_statistics: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._norms: list[torch.Tensor] | None = None
        self._watch: LossWatch | None = None

    def before_forward(self, trainer: Any) -> None:
        """Remember what the forward pass is going to change."""
        self._watch = None
        if self.policy == "skip":
            if self._norms is None:
                self._norms = _statistics(trainer.model)
            self._norm_statistics = [(buffer, buffer.clone()) for buffer in self._norms]
        if self._folder:
            self._states = torch_states()  # models draw from no others

    def watch(self, total: torch.Tensor) -> None:
        """Begin to look at the loss; to be called when the forward pass is queued and the backward pass is not.

        Args:
            total: the sum of all losses of the step.

        Raises:
            FloatingPointError: another process has left the step.
        """
        self._watch = LossWatch(total, total.device)
        self._watch.raise_for_failure()

    def check(self, trainer: Any, losses: Mapping[str, Any]) -> None:
        """Look at the loss when the backward pass is queued; the forward pass is waited for.

        Args:
            trainer: its iteration.
            losses: those of this step, by name.

        Raises:
            FloatingPointError: the sum of the losses is not finite, in this or another process; all raise it.
        """
        if self._watch is None:  # a subclass computes its gradients in its own way
            self._watch = LossWatch(_sum_of(losses), next(trainer.model.parameters()).device)
        ranks = self._watch.ranks()
        if ranks:
            raise LossNotFinite(not_finite_message(trainer.iter, ranks, losses), ranks)
        self._in_a_row = 0

    def handle(self, trainer: Any, batches: list[Any], error: FloatingPointError) -> None:
        """Return if the step shall be skipped, else raise.

        Args:
            trainer: its model, optimizer and iteration.
            batches: the batches of the step.
            error: what was noticed.

        Raises:
            FloatingPointError: with all that could be found out.
        """
        for buffer, value in self._norm_statistics:
            buffer.copy_(value)
        # A model that notices by itself does so in one process: the others wait for its gradients.
        alone = comm.get_world_size() == 1
        is_told = alone or isinstance(error, LossNotFinite)
        is_joint = alone or (isinstance(error, LossNotFinite) and error.is_joint)
        if self._watch is None and not alone:
            LossWatch(None, next(trainer.model.parameters()).device)
            is_told = True
        is_own = alone or not isinstance(error, LossNotFinite) or comm.get_rank() in error.ranks
        self._in_a_row += 1
        if self.policy == "skip" and is_joint and self._in_a_row <= self.max_in_a_row:
            self.num_skipped += 1
            put_scalar("skipped_steps", self.num_skipped)
            found = _of_all([f"Images: {describe_images(batches)}"] if is_own else [], is_told)
            logger.warning(
                "Step %d is skipped (%d in a row, %d in all): %s %s",
                *(trainer.iter, self._in_a_row, self.num_skipped, error, " ".join(found)),
            )
            return
        lines = [str(error)]
        if self.policy == "skip" and is_joint:
            lines.append(f"Gave up after {self.max_in_a_row} skipped steps in a row.")
        noticed, saved = ([], []) if not is_own else self._details(trainer, batches, error)
        found = [line for line in _of_all(noticed, is_told) if line != f"Rank {comm.get_rank()}: {error}"]
        lines += [*found, *_advice(trainer, batches), *_of_all(saved, is_told)]
        raise FloatingPointError("\n".join(lines)) from error

    def _details(self, trainer: Any, batches: list[Any], error: FloatingPointError) -> tuple[list[str], list[str]]:
        """What a process knows about its own batch, for the messages of all processes, and where it saved it."""
        own_words = comm.get_world_size() > 1 and not isinstance(error, LossNotFinite)
        lines = [str(error)] if own_words else []
        try:
            lines.append(self._find(trainer, batches))
            lines.append(f"Images of the batch: {describe_images(batches)}.")
            return lines, self._save(trainer, batches)
        except Exception as e:  # what led here is the news, and other processes wait for what this one says
            logger.exception("Looking for the beginning of it failed:")
            return [*lines, f"Looking for the beginning of it failed: {type(e).__name__}: {e}"], []

    def _find(self, trainer: Any, batches: list[Any]) -> str:
        model = unwrap_model(trainer.model)
        synchronized = any("SyncB" in type(m).__name__ for m in model.modules())
        if comm.get_world_size() > 1 and synchronized:
            return "Where it began is not known: with synchronized batch norm one process cannot repeat the step alone."
        with random_states_kept():
            if self._states:
                set_random_states(self._states)
            for batch in batches:
                with trainer._autocast():
                    found = first_nonfinite(model, batch)
                if found:
                    return found
        return "No layer gives a value that is not finite when the step is repeated: the loss itself does."

    def _save(self, trainer: Any, batches: list[Any]) -> list[str]:
        if not self._folder:
            return []
        text, kind = self._config() if self._config else ("", "")
        rank = f"_rank{comm.get_rank()}" if comm.get_rank() else ""
        path = os.path.join(self._folder, f"nonfinite_{trainer.iter:07d}{rank}.pth")
        content = {
            "iteration": trainer.iter,
            "batches": to_plain(batches),
            "random_states": self._states,
            "model": unwrap_model(trainer.model).state_dict(),
            "config": text,
            "config_kind": kind,
            "autocast": str(getattr(trainer, "precision", "")).removeprefix("torch."),
        }
        try:
            with atomic_write(path, "wb") as file:
                torch.save(content, file)
        except OSError as e:
            return [f"The batch could not be saved to {path}: {e}."]
        return [f"The batch is saved. To repeat the step: python -m detectron2.engine.replay {path}"]


def _statistics(model: nn.Module) -> list[torch.Tensor]:
    """Running statistics that a forward pass in training mode changes."""
    norms = [m for m in model.modules() if isinstance(m, _NORMS_WITH_STATISTICS) and m.training]
    return [b for m in norms for b in m.buffers(recurse=False)]


def _sum_of(losses: Mapping[str, Any]) -> torch.Tensor:
    return torch.as_tensor(sum(v.detach() if isinstance(v, torch.Tensor) else v for v in losses.values()))


def _of_all(lines: list[str], is_told: bool) -> list[str]:
    """What each process has to say, if all of them come here; else what this one has."""
    if comm.get_world_size() == 1 or not is_told:
        return lines
    return [f"Rank {rank}: {line}" for rank, found in enumerate(comm.all_gather(lines)) for line in found]


def describe_images(batches: list[Any]) -> str:
    """-> which images these are: file names and ids."""
    records = [d for batch in batches if isinstance(batch, (list, tuple)) for d in batch if isinstance(d, Mapping)]
    names = []
    for record in records:
        known = [str(record[key]) for key in ("file_name",) if key in record]
        if "image_id" in record:
            known.append(f"(image_id {record['image_id']})")
        names.append(" ".join(known))
    return ", ".join(name for name in names if name) or "unknown"


def _advice(trainer: Any, batches: list[Any]) -> list[str]:
    groups = trainer.optimizer.param_groups
    rate = max((float(g["lr"]) for g in groups), default=0.0)
    base = max((float(g.get("initial_lr", g["lr"])) for g in groups), default=0.0)
    images = sum(len(b) for b in batches if isinstance(b, (list, tuple))) * comm.get_world_size()
    text = f"Iteration {trainer.iter}. Learning rate: {rate:g}"
    text += f" (of {base:g} after the warm-up)." if base != rate else "."
    if 0 < images < _IMAGES_OF_PUBLISHED_RATES:
        text += (
            f" The published rates are for {_IMAGES_OF_PUBLISHED_RATES} images per batch; scaled linearly to the "
            f"{images} here, {base:g} would be {base * images / _IMAGES_OF_PUBLISHED_RATES:g}."
        )
    else:
        text += f" Try {base / 2:g}."
    return [
        text,
        "Usual causes are a learning rate that is too high for the batch size, too short a warm-up "
        "(SOLVER.WARMUP_ITERS), and wrong boxes; clipping gradients (SOLVER.CLIP_GRADIENTS) helps as well.",
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Where it began
# ---------------------------------------------------------------------------------------------------------------------


def first_nonfinite(model: nn.Module, batch: Any) -> str | None:
    """Repeat a forward pass and find the first tensor that is not finite.

    Args:
        model: in training mode; running statistics of its normalization layers are put back afterwards.
        batch: what it takes.

    Returns:
        A sentence: an input, a parameter, or the first layer whose output is not finite.  None if there is none.
    """
    bad = _first_bad(tensors_in(batch, "batch"))
    if bad:
        return f"The first tensor that is not finite is in the input: {bad}."
    bad = _first_bad(model.named_parameters())
    if bad:
        return (
            f"The first tensor that is not finite is a parameter, before this step: {bad}. The step before spoiled it "
            "with gradients that were not finite, although its loss was."
        )
    return _first_bad_layer(model, batch)


def _first_bad_layer(model: nn.Module, batch: Any) -> str | None:
    found: list[str] = []
    modules = dict(model.named_modules())

    def hook_of(name: str, module: nn.Module) -> Callable[..., None]:
        def look(_: nn.Module, args: Any, output: Any) -> None:
            if found:
                return
            bad = _first_bad(tensors_in(output, "output"))
            if bad:
                inputs = _first_bad(tensors_in(args, "input"))
                state = "its inputs are finite"
                if inputs:
                    parent = name.rpartition(".")[0]
                    within = f"{parent or 'the model itself'} ({type(modules[parent]).__name__})"
                    state = f"its {inputs} already, computed within {within}"
                found.append(
                    f"The first tensor that is not finite comes from {name or 'the model itself'} "
                    f"({type(module).__name__}): {bad}; {state}."
                )

        return look

    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    handles = [m.register_forward_hook(hook_of(name, m)) for name, m in modules.items()]
    try:
        # The model may notice by itself; what its layers gave is what is looked for.
        with torch.no_grad(), EventStorage(), uncompiled(model), contextlib.suppress(FloatingPointError):
            model(batch)
    except (RuntimeError, ValueError, TypeError, LookupError, AssertionError) as e:
        logger.warning("The step could not be repeated to the end: %s: %s", type(e).__name__, e)
    finally:
        for handle in handles:
            handle.remove()
        for buffer, value in kept:
            buffer.copy_(value)
    return found[0] if found else None


def _first_bad(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    for name, tensor in tensors:
        if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.is_meta:
            continue
        nan, infinite = int(tensor.isnan().sum()), int(tensor.isinf().sum())
        if nan or infinite:
            kind = str(tensor.dtype).removeprefix("torch.")
            shape = ", ".join(map(str, tensor.shape))
            return f"{name}, {kind}[{shape}] with {nan} NaN and {infinite} infinite of {tensor.numel()} values"
    return None
