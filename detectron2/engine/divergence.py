"""Handle a loss that is not finite: find its origin, save the batch, and stop with advice or skip the step."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

import detectron2.utils.comm as comm
from detectron2.engine.random_states import random_states_kept, set_random_states, torch_states
from detectron2.engine.step_losses import LossNotFinite, LossWatch, raise_if_not_finite
from detectron2.modeling.compilation import uncompiled
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks, RotatedBoxes
from detectron2.utils.events import EventStorage, put_scalar
from detectron2.utils.file_io import atomic_write
from detectron2.utils.wrappers import unwrap_model

__all__ = ["DivergencePolicy", "first_nonfinite", "from_plain", "tensors_in", "to_plain"]

logger = logging.getLogger(__name__)

_IMAGES_OF_PUBLISHED_RATES = 16
_NORMS_WITH_STATISTICS = nn.modules.batchnorm._NormBase


class DivergencePolicy:
    """Decide about a step with a loss that is not finite.

    Args:
        policy: `"stop"` raises; `"skip"` leaves the weights unchanged and continues with the next batch.
        max_in_a_row: number of consecutive steps that `"skip"` skips at most.
        folder: folder in which the batch is saved before training ends; "" saves nothing.
        config: returns the config as text, and its kind (`"yaml"` or `"lazy"`), which are saved with the batch.

    Raises:
        ValueError: `policy` is neither of the two, or `max_in_a_row` is less than 1.
    """

    def __init__(
        self,
        policy: str = "stop",
        max_in_a_row: int = 10,
        folder: str = "",
        config: Callable[[], tuple[str, str]] | None = None,
    ) -> None:
        if policy not in ("stop", "skip"):
            raise ValueError(f'The policy for a loss that is not finite must be "stop" or "skip", got {policy!r}.')
        if max_in_a_row < 1:
            raise ValueError(f"max_in_a_row must be at least 1, got {max_in_a_row}.")
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
        """Store what the forward pass is going to change."""
        self._watch = None
        if self.policy == "skip":
            if self._norms is None:
                norms = [m for m in trainer.model.modules() if isinstance(m, _NORMS_WITH_STATISTICS) and m.training]
                self._norms = [buffer for m in norms for buffer in m.buffers(recurse=False)]
            self._norm_statistics = [(buffer, buffer.clone()) for buffer in self._norms]
        if self._folder:
            self._states = torch_states()  # models use no other generators

    def watch(self, total: torch.Tensor) -> None:
        """Start to check the sum of the losses; call this between queueing the forward and the backward pass.

        It raises `FloatingPointError` if another process left the step.
        """
        self._watch = LossWatch(total, total.device)
        self._watch.raise_for_failure()

    def check(self, trainer: Any, losses: Mapping[str, Any]) -> None:
        """Check the losses of a step after queueing its backward pass; this waits for the forward pass.

        If their sum is not finite in some process, all processes raise `FloatingPointError`.
        """
        if self._watch is None:  # a subclass computes its gradients itself
            total = torch.as_tensor(sum(v.detach() if isinstance(v, torch.Tensor) else v for v in losses.values()))
            self._watch = LossWatch(total, next(trainer.model.parameters()).device)
        raise_if_not_finite(trainer.iter, self._watch.totals(), losses)
        self._in_a_row = 0

    def handle(self, trainer: Any, batches: list[Any], error: FloatingPointError) -> None:
        """Return if the step is to be skipped after the error that `check` or the model raised.

        Otherwise training ends with a `FloatingPointError` that has the origin, advice, and the file of the batch.
        """
        for buffer, value in self._norm_statistics:
            buffer.copy_(value)
        # A model that raises the error itself does so in one process, and the others wait for its gradients.
        alone, joint = comm.get_world_size() == 1, error if isinstance(error, LossNotFinite) else None
        if self._watch is None and not alone:
            LossWatch(None, next(trainer.model.parameters()).device)
        is_told = alone or joint is not None or self._watch is None
        is_own = alone or joint is None or comm.get_rank() in joint.ranks
        can_skip = self.policy == "skip" and (alone or (joint is not None and joint.is_joint))
        self._in_a_row += 1
        if can_skip and self._in_a_row <= self.max_in_a_row:
            self.num_skipped += 1
            put_scalar("skipped_steps", self.num_skipped)
            found = _from_all_processes([f"Images: {describe_images(batches)}"] if is_own else [], is_told)
            logger.warning(
                "Step %d is skipped (%d in a row, %d in all): %s %s",
                *(trainer.iter, self._in_a_row, self.num_skipped, error, " ".join(found)),
            )
            return
        lines = [str(error), *([f"Gave up after {self.max_in_a_row} skipped steps in a row."] if can_skip else [])]
        noticed, saved = [str(error)] if joint is None and not alone else [], []
        try:
            if is_own:
                noticed += [self._find(trainer, batches), f"Images of the batch: {describe_images(batches)}."]
                saved = self._save(trainer, batches)
        except Exception as e:  # the first error matters more, and other processes wait for this one
            logger.exception("The search for its origin failed:")
            noticed.append(f"The search for its origin failed: {type(e).__name__}: {e}")
        found = [line for line in _from_all_processes(noticed, is_told) if line != f"Rank {comm.get_rank()}: {error}"]
        lines += [*found, *_advice(trainer, batches), *_from_all_processes(saved, is_told)]
        raise FloatingPointError("\n".join(lines)) from error

    def _find(self, trainer: Any, batches: list[Any]) -> str:
        model = unwrap_model(trainer.model)
        synchronized = any("SyncB" in type(m).__name__ for m in model.modules())
        if comm.get_world_size() > 1 and synchronized:
            return "Its origin is unknown: with synchronized batch norm, one process cannot repeat the step alone."
        with random_states_kept():
            if self._states:
                set_random_states(self._states)
            for batch in batches:
                with trainer._autocast():
                    found = first_nonfinite(model, batch)
                if found:
                    return found
        return "All layers give finite values when the step is repeated; only the loss itself does not."

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


def _from_all_processes(lines: list[str], is_told: bool) -> list[str]:
    """Return the lines of all processes if all of them call this, otherwise those of this process."""
    if comm.get_world_size() == 1 or not is_told:
        return lines
    return [f"Rank {rank}: {line}" for rank, found in enumerate(comm.all_gather(lines)) for line in found]


def describe_images(batches: list[Any]) -> str:
    """Return file names and ids of the images."""
    records = [d for batch in batches if isinstance(batch, (list, tuple)) for d in batch if isinstance(d, Mapping)]
    forms = {"file_name": "{}", "image_id": "(image_id {})"}
    names = [" ".join(form.format(r[key]) for key, form in forms.items() if key in r) for r in records]
    return ", ".join(filter(None, names)) or "unknown"


def _advice(trainer: Any, batches: list[Any]) -> list[str]:
    groups = trainer.optimizer.param_groups
    rate = max((float(g["lr"]) for g in groups), default=0.0)
    base = max((float(g.get("initial_lr", g["lr"])) for g in groups), default=0.0)
    images = sum(len(b) for b in batches if isinstance(b, (list, tuple))) * comm.get_world_size()
    published = _IMAGES_OF_PUBLISHED_RATES
    text = f"Iteration {trainer.iter}. Learning rate: {rate:g}"
    text += f" (of {base:g} after the warm-up)." if base != rate else "."
    if 0 < images < published:
        text += f" The published rates are for {published} images per batch; scaled linearly to the {images} here, "
        text += f"{base:g} would be {base * images / published:g}."
    else:
        text += f" Try {base / 2:g}."
    return [
        text,
        "Usual causes are a learning rate that is too high for the batch size, too short a warm-up "
        "(SOLVER.WARMUP_ITERS), and wrong boxes; clipping gradients (SOLVER.CLIP_GRADIENTS, or train.clip_grad of a "
        "LazyConfig) helps as well.",
    ]


def first_nonfinite(model: nn.Module, batch: Any) -> str | None:
    """Repeat a forward pass in training mode, and describe the first tensor that is not finite, if there is one.

    It is in the input, a parameter, or the output of a layer. Buffers of the model are restored.
    """
    bad = _first_bad(tensors_in(batch, "batch"))
    if bad:
        return f"The first tensor that is not finite is in the input: {bad}."
    bad = _first_bad(model.named_parameters())
    if bad:
        return (
            f"The first tensor that is not finite is a parameter, before this step: {bad}. In the step before, the "
            "loss was finite but the gradients were not."
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
        # The model may raise the error itself; the outputs of its layers are what matters here.
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


_TENSOR_CLASSES = {cls.__name__: cls for cls in (Boxes, RotatedBoxes, BitMasks, Keypoints)}
_TYPE = "__type__"


def to_plain(value: Any) -> Any:
    """Turn a batch into dicts, lists, numbers, text and CPU tensors, which `torch.load(weights_only=True)` can read.

    Objects of unknown types become their `repr`.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return {_TYPE: "ndarray", "tensor": torch.from_numpy(np.ascontiguousarray(value))}
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    if isinstance(value, Instances):
        return {_TYPE: "Instances", "image_size": list(value.image_size), "fields": to_plain(value.get_fields())}
    if isinstance(value, tuple(_TENSOR_CLASSES.values())):
        return {_TYPE: type(value).__name__, "tensor": value.tensor.detach().cpu()}
    if isinstance(value, PolygonMasks):
        return {_TYPE: "PolygonMasks", "polygons": to_plain(value.polygons)}
    return {_TYPE: "text", "repr": repr(value)[:1000]}


def from_plain(value: Any) -> Any:
    """Invert `to_plain`; text of unknown objects stays text, and tuples become lists."""
    if isinstance(value, list):
        return [from_plain(v) for v in value]
    if not isinstance(value, Mapping):
        return value
    kind = value.get(_TYPE)
    if kind == "ndarray":
        return value["tensor"].numpy()
    if kind == "Instances":
        height, width = value["image_size"]
        return Instances((height, width), **{k: from_plain(v) for k, v in value["fields"].items()})
    if kind in _TENSOR_CLASSES:
        return _TENSOR_CLASSES[kind](value["tensor"])
    if kind == "PolygonMasks":
        return PolygonMasks(from_plain(value["polygons"]))
    if kind == "text":
        return value["repr"]
    return {k: from_plain(v) for k, v in value.items()}


def tensors_in(value: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors in batches, outputs of layers, and structures, such as `("[0].instances.gt_boxes", tensor)`."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from tensors_in(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for i, part in enumerate(value):
            yield from tensors_in(part, f"{path}[{i}]")
    elif isinstance(value, Instances):
        yield from tensors_in(value.get_fields(), path)
    elif isinstance(getattr(value, "tensor", None), torch.Tensor):
        yield path, value.tensor
