"""Why a model finds nothing: what can be seen of the model, where an evaluator sees outputs only."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from ._coco_diagnosis import score_histogram

__all__ = ["Silence", "explain_weights"]

_KEYS = "MODEL.ROI_HEADS.SCORE_THRESH_TEST, MODEL.RETINANET.SCORE_THRESH_TEST"


class Silence:
    """Whether a model found nothing on any image; it looks at outputs until there is something.

    Args:
        model: what is asked for reasons; of a function none are known but the outputs.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._images = 0
        self._lasts = True
        self._inputs: Any = None  # the first batch, to be asked again

    def look(self, inputs: Any, outputs: Any) -> None:
        """Take in one batch; outputs in another than the documented form end the watch."""
        if not self._lasts:
            return
        if not isinstance(outputs, list) or not all(_is_empty(output) for output in outputs):
            self._lasts, self._inputs = False, None
            return
        if self._inputs is None:
            self._inputs = inputs
        self._images += len(outputs)

    def explain(self) -> str | None:
        """Say that nothing was found, and why, as far as it can be told.

        It runs the model once more, in the mode in which it is, without its score threshold.

        Returns:
            None where something was found, or no image was seen.
        """
        if not self._lasts or not self._images:
            return None
        sentences = [f"The model found nothing on any of {self._images} images."]
        if isinstance(self._model, nn.Module):
            sentences += _explain_model(self._model, self._inputs)
        return " ".join(sentences)


def _explain_model(model: nn.Module, inputs: Any) -> list[str]:
    from detectron2.utils.wrappers import unwrap_model

    model = unwrap_model(model)  # no other process takes part
    # Also while its weights are together for the evaluation: asking for its state would split them again.
    if hasattr(model, "set_reshard_after_forward") or any(hasattr(p, "full_tensor") for p in model.parameters()):
        return [explain_weights(model)]  # of a sharded one nothing can be seen alone
    found = (_explain_scores(model, inputs), _explain_values(model), explain_weights(model))
    return [sentence for sentence in found if sentence]


def _is_empty(output: Any) -> bool:
    """Whether an output says that there is nothing; semantic segmentation and proposals always say something."""
    if not isinstance(output, dict) or not {"instances", "panoptic_seg"} & set(output):
        return False
    if "instances" in output and len(output["instances"]):
        return False
    panoptic = output.get("panoptic_seg", (None, []))
    # without a list of segments the map would have to be read
    return panoptic[1] is not None and not len(panoptic[1])


def _explain_scores(model: nn.Module, inputs: Any) -> str | None:
    """How the scores of a batch lie below the threshold, or None where the model has none."""
    thresholds = sorted({m.test_score_thresh for m in _with_threshold(model)})
    if not thresholds:
        return None
    try:
        with _without_threshold(model), torch.no_grad():
            outputs = model(inputs)
    except RuntimeError as e:  # of memory there may be too little for so many objects
        return f"(What it finds below its score threshold cannot be seen: {e})"
    scores = [o["instances"].scores.float().cpu().numpy() for o in outputs if "instances" in o]
    scores = np.concatenate([np.zeros(0), *scores])
    limits = ", ".join(f"{t:g}" for t in thresholds)
    if not scores.size:
        return f"Even without the score threshold ({limits}) nothing is found on the first batch."
    return (
        f"On the first batch the highest score is {scores.max():.3g}; the threshold is {limits} ({_KEYS}). Scores "
        f"without it: {score_histogram(scores)}."
    )


def _with_threshold(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(getattr(m, "test_score_thresh", None), float | int)]


@contextlib.contextmanager
def _without_threshold(model: nn.Module) -> Iterator[None]:
    parts = [(part, part.test_score_thresh) for part in _with_threshold(model)]
    try:
        for part, _ in parts:
            part.test_score_thresh = 0.0
        yield
    finally:
        for part, threshold in parts:
            part.test_score_thresh = threshold


def _explain_values(model: nn.Module) -> str | None:
    """Name the tensors of a model that are not numbers any more."""
    wrong = [
        name
        for name, value in model.state_dict().items()
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not torch.isfinite(value).all()
    ]
    if not wrong:
        return None
    return f"{len(wrong)} of its tensors hold NaN or infinite values, such as {wrong[0]}: training has diverged."


def explain_weights(model: nn.Module) -> str:
    """Say how much of a model came from a file; the checkpointer leaves a record on what it fills."""
    # Test-time augmentation is a model around a model.
    record = getattr(model, "_weights_record", None) or getattr(getattr(model, "model", None), "_weights_record", None)
    if record is None:
        return "No checkpoint was loaded into it: without training it is random."
    share, source = record["loaded"] / max(1, record["total"]), record["source"]
    if share >= 1:
        return f"All of its weights were loaded from {source}."
    # rounded down: 100 % means all
    return (
        f"Of its weights {int(1000 * share) / 10:.1f}% were loaded from {source}, the rest began with random values "
        "(see the checkpointer's table in the log)."
    )
