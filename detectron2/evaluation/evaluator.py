"""The evaluator interface, and the loop that runs a model over a data set and feeds the evaluators.

The loop holds one batch of inputs and outputs at a time: what survives a batch is what the evaluators keep of it.
"""

import contextlib
import datetime
import logging
import shutil
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from detectron2.utils.comm import get_world_size, is_main_process

from ._coco_diagnosis import score_histogram

__all__ = ["DatasetEvaluator", "DatasetEvaluators", "inference_context", "inference_on_dataset", "lean_masks"]

logger = logging.getLogger(__name__)

_CALLBACK_NAMES = ("on_start", "before_inference", "after_inference", "on_end")
_REPORT_EVERY_SECONDS = 5.0
_DRAW_EVERY_SECONDS = 0.2
_ERASE_LINE = "\r\x1b[K"


class DatasetEvaluator:
    """Accumulates what it needs of each (input, output) pair, then computes metrics.

    A round is `reset()`, any number of `process()` calls, one `evaluate()`.

    Attributes:
        mask_formats: in which forms `process()` takes masks (see
            `detectron2.modeling.postprocessing.detector_postprocess`), the preferred one first; empty if it does
            not look at them. `inference_on_dataset` asks the model for it. A subclass that defines `process()`
            gets whole masks, unless it says otherwise.

    Example:
        >>> class Counter(DatasetEvaluator):
        ...     def reset(self):
        ...         self.count = 0
        ...
        ...     def process(self, inputs, outputs):
        ...         self.count += sum(len(output["instances"]) for output in outputs)
        ...
        ...     def evaluate(self):
        ...         return {"count": self.count}
        >>> evaluator = Counter()
        >>> evaluator.reset()
        >>> evaluator.process([{"image_id": 1}], [{"instances": Instances((100, 100), scores=torch.ones(3))}])
        >>> evaluator.evaluate()
        {'count': 3}
    """

    mask_formats: Sequence[str] = ("full",)

    def reset(self):
        """Forget everything gathered so far; called at the start of each round."""

    def process(self, inputs: Any, outputs: Any):
        """Take in one batch.

        Args:
            inputs: the batch given to the model, usually a list of dictionaries.
            outputs: what the model returned for it, in the same order.
        """

    def evaluate(self) -> Mapping[str, Any] | None:
        """Compute the metrics of the round.

        Returns:
            a dictionary `{task: {metric: number}}` on the main process, for example `{"bbox": {"AP50": 80.0}}`;
            on other processes it may be empty or None.
        """
        return None

    def evaluate_part(self) -> Mapping[str, Any] | None:
        """Compute the metrics though only some images were processed, to see that it can be done.

        Training does so before its first iteration. To be overridden where `evaluate` insists on all images.
        """
        return self.evaluate()


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators behind the interface of one, so that a single pass over the data serves them all.

    Args:
        evaluators: the members; every call goes to each of them in this order.

    Example:
        >>> evaluators = DatasetEvaluators([DatasetEvaluator(), DatasetEvaluator()])
        >>> evaluators.reset()
        >>> evaluators.process([], [])
    """

    def __init__(self, evaluators: Iterable[DatasetEvaluator]):
        super().__init__()
        self._evaluators = list(evaluators)

    def reset(self):
        """Reset every member."""
        for member in self._evaluators:
            member.reset()

    def process(self, inputs: Any, outputs: Any):
        """Give the batch to every member."""
        for member in self._evaluators:
            member.process(inputs, outputs)

    def evaluate(self):
        """Merge the members' results into one dictionary.

        Returns:
            the results of all members, empty on all processes but the main one.

        Raises:
            ValueError: two members report under the same task name, so one would hide the other.
        """
        return self._merged(lambda member: member.evaluate())

    def evaluate_part(self):
        """As `evaluate`, with what the members can tell of some images."""
        return self._merged(lambda member: getattr(member, "evaluate_part", member.evaluate)())

    def _merged(self, results_of: Callable[[DatasetEvaluator], Mapping[str, Any] | None]) -> "OrderedDict[str, Any]":
        merged: OrderedDict[str, Any] = OrderedDict()
        for member in self._evaluators:
            partial = results_of(member)
            if partial is None or not is_main_process():
                continue
            for task, numbers in partial.items():
                if task in merged:
                    raise ValueError(
                        f"{type(member).__name__} reports results for {task!r}, which an evaluator before it already "
                        "reports. Give one of them other `tasks`, or evaluate them separately."
                    )
                merged[task] = numbers
        return merged


@contextlib.contextmanager
def inference_context(model: nn.Module) -> Iterator[None]:
    """Put `model` in evaluation mode for the duration of a `with` block, and restore its mode whatever happens.

    Args:
        model: to be evaluated; its mode is restored afterwards.

    Yields:
        Nothing, with the model in evaluation mode.

    Example:
        >>> model = nn.Dropout()
        >>> with inference_context(model):
        ...     model.training
        False
        >>> model.training
        True
    """
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class _Stopwatch:
    """Seconds spent in the parts of the loop, with the first iterations (lazy initialisation) left out."""

    def __init__(self, warmup: int):
        self.warmup = warmup
        self.begin = time.perf_counter()
        self._restart()

    def _restart(self):
        self.seconds = {"data": 0.0, "inference": 0.0, "eval": 0.0}
        self.images = 0
        self.measured_from = time.perf_counter()
        self.mark = self.measured_from

    def start_iteration(self, index: int):
        if index == self.warmup:
            # the wait for this batch was spent before the restart, so it does not count
            self._restart()

    def lap(self, part: str):
        now = time.perf_counter()
        self.seconds[part] += now - self.mark
        self.mark = now

    def images_per_second(self) -> float:
        """Since the last restart; 0 where it cannot be told."""
        seconds = time.perf_counter() - self.measured_from
        return self.images / seconds if seconds > 0 else 0.0

    def measured(self, done: int) -> int:
        """Number of iterations since the last restart when `done` are complete."""
        return done - self.warmup if done > self.warmup else done

    def breakdown(self, done: int) -> str:
        n = max(self.measured(done), 1)
        parts = ", ".join(f"{name} {seconds / n:.4f}" for name, seconds in self.seconds.items())
        return f"seconds per batch: {parts}, total {(time.perf_counter() - self.measured_from) / n:.4f}"

    def eta(self, done: int, total: int) -> datetime.timedelta:
        per_batch = (time.perf_counter() - self.measured_from) / max(self.measured(done), 1)
        return datetime.timedelta(seconds=round(per_batch * (total - done)))


class _Progress:
    """How far the loop is: one line that is drawn over and over in a terminal, elsewhere a log line now and then."""

    def __init__(self, watch: _Stopwatch, total: int):
        self._watch = watch
        self._total = total
        self._last = watch.begin
        # where the log hides progress messages, the progress line is hidden too
        self._draws = is_main_process() and logger.isEnabledFor(logging.INFO) and _is_terminal(sys.stderr)
        self._drawn = False

    def update(self, done: int) -> None:
        watch = self._watch
        wait = _DRAW_EVERY_SECONDS if self._draws else _REPORT_EVERY_SECONDS
        if watch.mark - self._last < wait or done <= watch.warmup:
            return
        self._last = watch.mark
        speed, eta = f"{watch.images_per_second():.1f} images/s", watch.eta(done, self._total)
        if self._draws:
            width = shutil.get_terminal_size().columns - 1
            line = f"{done}/{self._total} batches, {done / self._total:.0%}, {speed}, ETA {eta}"
            sys.stderr.write(_ERASE_LINE + line[:width])
            sys.stderr.flush()
            self._drawn = True
        else:
            logger.info(f"{done}/{self._total} batches; {speed}; {watch.breakdown(done)}; ETA {eta}")

    def close(self) -> None:
        """Take the line away."""
        if self._drawn:
            sys.stderr.write(_ERASE_LINE)
            sys.stderr.flush()


def _is_terminal(stream: Any) -> bool:
    return bool(getattr(stream, "isatty", lambda: False)())


def _as_evaluator(evaluator: DatasetEvaluator | Sequence[DatasetEvaluator] | None) -> DatasetEvaluator:
    if evaluator is None:
        return DatasetEvaluators([])
    if isinstance(evaluator, Sequence):
        return DatasetEvaluators(evaluator)
    return evaluator


def _synchronize_device() -> None:
    """Wait for the accelerator, so that time is charged to the part of the loop that caused it."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _checked_callbacks(callbacks: Mapping[str, Callable[[], Any]] | None) -> dict[str, Callable[[], Any]]:
    chosen = dict(callbacks or {})
    if unknown := sorted(set(chosen) - set(_CALLBACK_NAMES)):
        raise ValueError(f"inference_on_dataset knows the callbacks {_CALLBACK_NAMES}, not {unknown}.")
    return {name: chosen.get(name, lambda: None) for name in _CALLBACK_NAMES}


def inference_on_dataset(
    model: Callable[[Any], Any],
    data_loader: Iterable,
    evaluator: DatasetEvaluator | Sequence[DatasetEvaluator] | None,
    callbacks: Mapping[str, Callable[[], Any]] | None = None,
) -> dict[str, Any]:
    """Run `model` on every batch of `data_loader`, evaluate the outputs, and log how long each part took.

    Progress (images per second of this process, remaining time) is a line at the bottom of a terminal, where the log of
    this module is on at INFO and standard error is a terminal; otherwise it is logged every few seconds. When something
    fails, the log names the images of the batch. When nothing is found on any image, it says why, as far as the model's
    scores and weights tell.

    A model that can give masks as run lengths does so while evaluators ask for no more: with 100 objects in an image,
    whole masks are a hundred times as large as the image.

    Args:
        model: takes a batch, returns its outputs. An `nn.Module` is switched to evaluation mode for the loop and
            back afterwards, also when the loop fails.
        data_loader: yields batches; it must have a length.
        evaluator: one evaluator, several, or None to measure the speed alone.
        callbacks: functions without arguments to call `on_start` and `on_end` of the loop and
            `before_inference` and `after_inference` of each batch.

    Returns:
        what `evaluator.evaluate()` returns, an empty dictionary in place of None.

    Raises:
        TypeError: `data_loader` has no length.

    Example:
        >>> model = nn.Identity()
        >>> dict(inference_on_dataset(model, [[{"image_id": 1}], [{"image_id": 2}]], None))
        {}
    """
    call = _checked_callbacks(callbacks)
    evaluator = _as_evaluator(evaluator)
    total = _length(data_loader)
    logger.info(f"Inference on {total} batches in each of {get_world_size()} processes")
    evaluator.reset()
    with contextlib.ExitStack() as stack:
        if isinstance(model, nn.Module):
            stack.enter_context(inference_context(model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(lean_masks(model, evaluator))
        silence = Silence(model)
        _run_loop(model, data_loader, evaluator, call, total, silence)
        if is_main_process() and (reasons := silence.explain()) is not None:
            logger.warning(reasons)
    start = time.perf_counter()
    results = evaluator.evaluate()
    logger.info(f"Computed the metrics in {time.perf_counter() - start:.2f} seconds")
    return {} if results is None else results  # pyright: ignore[reportReturnType]  # evaluators' own dictionary type


def _length(data_loader: Any) -> int:
    try:
        return len(data_loader)
    except TypeError as e:
        raise TypeError(
            f"inference_on_dataset needs a data loader with a length, and {type(data_loader).__name__} has none ({e}). "
            "Give the data set a __len__, or evaluate a list of its elements."
        ) from e


def _name_of(evaluator: Any) -> str:
    if isinstance(evaluator, DatasetEvaluators):
        return ", ".join(map(_name_of, evaluator._evaluators)) or "No evaluator"
    return type(evaluator).__name__


def _images_of(inputs: Any) -> str:
    """The images of a batch, for messages."""
    names = []
    for x in inputs if isinstance(inputs, Sequence) else [inputs]:
        if isinstance(x, Mapping) and ("file_name" in x or "image_id" in x):
            names.append(f"{x.get('file_name', 'an image')} (image_id {x.get('image_id')!r})")
    return ", ".join(names)


def _where(stage: str, index: int, inputs: Any, error: Exception) -> str:
    """What failed, and with which images."""
    images = _images_of(inputs)
    return f"{stage} failed on batch {index}{f', {images}' if images else ''}: {type(error).__name__}: {error}"


def _run_loop(model, data_loader, evaluator, call, total, silence):
    watch = _Stopwatch(warmup=min(5, total - 1))
    done = 0
    with contextlib.closing(_Progress(watch, total)) as progress:
        call["on_start"]()
        watch.mark = time.perf_counter()
        for index, inputs in enumerate(data_loader):
            watch.lap("data")
            watch.start_iteration(index)
            stage = "The model"
            try:
                call["before_inference"]()
                outputs = model(inputs)
                _synchronize_device()
                call["after_inference"]()
                watch.lap("inference")
                stage = _name_of(evaluator)
                evaluator.process(inputs, outputs)
            except Exception as e:
                progress.close()  # or the message would begin behind the line
                logger.error(_where(stage, index, inputs, e))
                raise
            silence.look(inputs, outputs)
            watch.lap("eval")
            watch.images += len(inputs) if isinstance(inputs, Sequence) else 1
            done = index + 1
            # the loader prepares its next batch while these two would still be alive
            del inputs, outputs
            progress.update(done)
        call["on_end"]()
    elapsed = datetime.timedelta(seconds=round(time.perf_counter() - watch.begin))
    logger.info(
        f"Inference took {elapsed} for {done} batches ({watch.images_per_second():.1f} images/s); "
        f"{watch.breakdown(done)}"
    )


_METHODS_WITH_OUTPUTS = ("__call__", "forward", "inference", "_postprocess", "_inference_one_image")


@contextlib.contextmanager
def lean_masks(model: Any, evaluator: Any) -> Iterator[None]:
    """Within a `with` block, have a model give masks in the form that an evaluator prefers.

    The model keeps its form if its `mask_format` is not "full", if it is compiled, if a subclass overrides a method
    that may read whole masks without declaring `mask_format` itself, or if the evaluators accept different forms.

    Args:
        model: an `nn.Module`, perhaps in a wrapper for several processes; anything else is left alone.
        evaluator: a `DatasetEvaluator`.

    Example:
        >>> with lean_masks(nn.Identity(), DatasetEvaluator()):  # has no `mask_format`, so nothing changes
        ...     pass
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
        return "roi" if _members(evaluator) else "full"  # no evaluator reads masks, so they need not be pasted
    common = [kind for kind in accepted[0] if all(kind in formats for formats in accepted)]
    return common[0] if common else "full"


def _members(evaluator: Any) -> list[Any]:
    """The evaluators behind one, as far as it just hands on what it gets."""
    if isinstance(evaluator, DatasetEvaluators) and type(evaluator).process is DatasetEvaluators.process:
        return [part for member in evaluator._evaluators for part in _members(member)]
    return [evaluator]


def _accepted(evaluator: Any) -> tuple[str, ...]:
    """The forms of masks that `process` takes; where a subclass defines it without saying so, whole ones only."""
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
    except RuntimeError as e:  # there may be too little memory for this many objects
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
