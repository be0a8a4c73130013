"""Which form of masks a model is asked for while it is evaluated, and reading masks of each form.

Whole masks of a hundred objects take a hundred bytes for each pixel of an image, and most evaluators only make run
lengths of them. They say so in ``DatasetEvaluator.mask_formats``; a model whose masks come in several forms has an
attribute ``mask_format``, which is set for the time of an evaluation.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from detectron2.layers.mask_ops import paste_masks_in_boxes
from detectron2.layers.run_lengths import decode_part
from detectron2.structures import Instances, ROIMasks

__all__ = ["lean_masks", "preferred_format", "whole_masks"]

# What a model's outputs go through before an evaluator gets them.
_METHODS_WITH_OUTPUTS = ("__call__", "forward", "inference", "_postprocess", "_inference_one_image")


@contextlib.contextmanager
def lean_masks(model: Any, evaluator: Any) -> Iterator[None]:
    """Within a ``with`` block, have a model give masks in the form that an evaluator prefers.

    Nothing changes for a model that was told to give other than whole masks, that is compiled as a whole, or of whose
    class it is not known that nobody reads whole masks on the way; nor where evaluators do not agree on a form.

    Args:
        model: an ``nn.Module``, perhaps in a wrapper for several processes; anything else is left alone.
        evaluator: a ``DatasetEvaluator``.
    """
    while isinstance(model, (DataParallel, DistributedDataParallel)):
        model = model.module
    chosen = preferred_format(evaluator)
    if chosen == "full" or not _can_choose(model) or model.mask_format != "full":
        yield
        return
    model.mask_format = chosen
    try:
        yield
    finally:
        model.mask_format = "full"


def preferred_format(evaluator: Any) -> str:
    """The form of masks that an evaluator, or all of several, can take, the preferred one first; "full" if in doubt."""
    accepted = [formats for member in _members(evaluator) if (formats := _accepted(member))]
    if not accepted:
        return "roi" if _members(evaluator) else "full"  # nobody looks at them, so they need not be pasted
    common = [kind for kind in accepted[0] if all(kind in formats for formats in accepted)]
    return common[0] if common else "full"


def _members(evaluator: Any) -> list[Any]:
    """The evaluators behind one, as far as it just hands on what it gets."""
    from .evaluator import DatasetEvaluators

    if isinstance(evaluator, DatasetEvaluators) and type(evaluator).process is DatasetEvaluators.process:
        return [part for member in evaluator._evaluators for part in _members(member)]
    return [evaluator]


def _accepted(evaluator: Any) -> tuple[str, ...]:
    """The forms of masks that ``process`` takes; where a subclass defines it without saying so, whole ones only."""
    own = "mask_formats" in getattr(evaluator, "__dict__", ())
    if own or _is_declared_for(type(evaluator), "mask_formats", ("process",)):
        return tuple(evaluator.mask_formats)
    return ("full",)


def _can_choose(model: Any) -> bool:
    if not isinstance(model, nn.Module) or getattr(model, "_compiled_call_impl", None) is not None:
        return False
    return _is_declared_for(type(model), "mask_format", _METHODS_WITH_OUTPUTS)


def _is_declared_for(kind: type, attribute: str, methods: tuple[str, ...]) -> bool:
    """Whether the class that declares an attribute is, or derives from, those that define the methods."""
    for ancestor in kind.__mro__:
        if attribute in vars(ancestor):
            return True
        if any(method in vars(ancestor) for method in methods):
            return False
    return False


def whole_masks(instances: Instances) -> Iterator[np.ndarray]:
    """The masks of instances on the CPU, in whatever form they are, one whole mask after the other.

    Args:
        instances: with ``pred_masks`` (``ROIMasks``, with ``pred_boxes``, are pasted at the threshold 0.5) or
            ``pred_masks_rle``.

    Returns:
        Arrays (height, width) that are not zero where the object is.
    """
    if not instances.has("pred_masks"):
        return _uncropped(map(decode_part, instances.pred_masks_rle), instances)
    masks = instances.pred_masks
    if isinstance(masks, ROIMasks):
        return _uncropped(paste_masks_in_boxes(masks.tensor, instances.pred_boxes, instances.image_size), instances)
    return (mask.numpy() for mask in getattr(masks, "tensor", masks))


def _uncropped(parts: Iterator[tuple[np.ndarray, tuple[int, int]]], instances: Instances) -> Iterator[np.ndarray]:
    for bits, (x, y) in parts:
        mask = np.zeros(instances.image_size, np.bool_)
        mask[y : y + bits.shape[0], x : x + bits.shape[1]] = bits
        yield mask
