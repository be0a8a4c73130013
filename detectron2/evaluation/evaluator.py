"""The evaluator interface, and the loop that runs a model over a data set and feeds the evaluators.

The loop holds one batch of inputs and outputs at a time: what survives a batch is what the evaluators keep of it.
"""

import contextlib
import datetime
import logging
import shutil
import sys
import time
from collections import Counter, OrderedDict
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
_METHODS_WITH_OUTPUTS = ("__call__", "forward", "inference", "_postprocess", "_inference_one_image")
_REPORT_EVERY_SECONDS = 5.0
_DRAW_EVERY_SECONDS = 0.2
_ERASE_LINE = "\r\x1b[K"


class DatasetEvaluator:
    """Collects what it needs from each pair of input and output, then computes metrics.

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
        """Compute the metrics though only some images were processed, as training does before its first iteration.

        Override this if `evaluate` insists on all images.
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
        """Merge the members' results, of which no two may have the same task, into one dictionary."""
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


def paired(
    evaluator: Any, inputs: Any, outputs: Any, input_key: str, output_key: str | None = None
) -> Iterator[tuple[Any, Any]]:
    """Each input, which must have a key, with its output, which must have one, too, if it is a dictionary."""
    name = type(evaluator).__name__
    if len(inputs) != len(outputs):
        raise ValueError(
            f"{name} got {len(outputs)} outputs of the model for {len(inputs)} inputs; expected one for each, in the "
            "same order."
        )
    for input_, output in zip(inputs, outputs, strict=True):
        if input_key not in input_:
            raise KeyError(f"An input of the evaluation needs {input_key!r}; it has {sorted(map(str, input_))}.")
        if output_key is not None and isinstance(output, Mapping) and output_key not in output:
            raise ValueError(
                f"{name} needs {output_key!r} in the model's outputs; there is {sorted(output)}. Use a model that "
                "predicts it, or the evaluator of what this one predicts."
            )
        yield input_, output


def warn_of_repeated(evaluator: Any, images: Iterable[Any], key: str, effect: str) -> None:
    """Warn of images, by their value of `key`, that were given more than once in a round."""
    if twice := [image for image, count in Counter(images).items() if count > 1]:
        logger.warning(
            f"{len(twice)} images were given to {type(evaluator).__name__} more than once, such as {key} "
            f"{twice[0]!r}: {effect}. Give each image once, and call reset() before another round."
        )


def without_infinite(instances: Any, image_id: Any, warns: bool) -> Any:
    """The detections without those that are not finite, which overlap with everything or nothing."""
    usable = ~instances.scores.isnan()
    if instances.has("pred_boxes"):
        usable &= instances.pred_boxes.tensor.isfinite().all(dim=1)
    if usable.all():
        return instances
    if warns:
        text = f"{int((~usable).sum())} of {len(usable)} detections on image {image_id!r} are NaN or infinite."
        logger.warning(f"{text} Such detections are left out. Has the model diverged?")
    return instances[usable]


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


class _Progress:
    """Speed of the loop without its first iterations, as a line that is redrawn in a terminal, else in the log."""

    def __init__(self, total: int):
        self._total = total
        self._warmup = min(5, total - 1)  # lazy initialisation takes its time in these
        self._done = 0
        self._begin = self._last_report = time.perf_counter()
        # where the log hides progress messages, the progress line is hidden too
        is_terminal = getattr(sys.stderr, "isatty", lambda: False)()
        self._draws = is_main_process() and logger.isEnabledFor(logging.INFO) and is_terminal
        self._drawn = False
        self.restart()

    def restart(self) -> None:
        """Measure from now on."""
        self._seconds = {"data": 0.0, "inference": 0.0, "eval": 0.0}
        self._images = 0
        self._measured_after = self._done
        self._measured_from = self._mark = time.perf_counter()

    def lap(self, part: str) -> None:
        """Charge the time since the last lap to a part of the loop."""
        now = time.perf_counter()
        self._seconds[part] += now - self._mark
        self._mark = now
        if part == "data" and self._done == self._warmup:
            self.restart()  # without the wait for this batch

    def end_iteration(self, images: int) -> None:
        """Report from time to time."""
        self.lap("eval")
        self._images += images
        self._done += 1
        wait = _DRAW_EVERY_SECONDS if self._draws else _REPORT_EVERY_SECONDS
        if self._mark - self._last_report < wait or self._done <= self._warmup:
            return
        self._last_report = self._mark
        batches, per_batch = f"{self._done}/{self._total} batches", self._per_batch(self._elapsed())
        eta = datetime.timedelta(seconds=round(per_batch * (self._total - self._done)))
        if self._draws:
            line = f"{batches}, {self._done / self._total:.0%}, {self._speed()}, ETA {eta}"
            sys.stderr.write(_ERASE_LINE + line[: shutil.get_terminal_size().columns - 1])
            sys.stderr.flush()
            self._drawn = True
        else:
            logger.info(f"{batches}; {self._speed()}; {self._breakdown()}; ETA {eta}")

    def close(self) -> None:
        """Take the line away."""
        if self._drawn:
            sys.stderr.write(_ERASE_LINE)
            sys.stderr.flush()

    def summary(self) -> str:
        """What the loop took in all."""
        took = datetime.timedelta(seconds=round(time.perf_counter() - self._begin))
        return f"Inference took {took} for {self._done} batches ({self._speed()}); {self._breakdown()}"

    def _elapsed(self) -> float:
        return time.perf_counter() - self._measured_from

    def _per_batch(self, seconds: float) -> float:
        return seconds / max(self._done - self._measured_after, 1)

    def _speed(self) -> str:
        return f"{self._images / max(self._elapsed(), 1e-9):.1f} images/s"

    def _breakdown(self) -> str:
        seconds = {**self._seconds, "total": self._elapsed()}
        return "seconds per batch: " + ", ".join(f"{part} {self._per_batch(s):.4f}" for part, s in seconds.items())


def _synchronize_device() -> None:
    """Wait for the accelerator, so that time is charged to the part of the loop that caused it."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def inference_on_dataset(
    model: Callable[[Any], Any],
    data_loader: Iterable,
    evaluator: DatasetEvaluator | Sequence[DatasetEvaluator] | None,
    callbacks: Mapping[str, Callable[[], Any]] | None = None,
) -> dict[str, Any]:
    """Run `model` on every batch of `data_loader`, evaluate the outputs, and log how long each part took.

    Progress is a line at the bottom of a terminal, elsewhere a log line every few seconds. When something fails, the
    log names the images of the batch. When nothing is found on any image, it says why, as far as the model's scores and
    weights tell. A model that can give masks as run lengths does so if that is enough for the evaluators: with 100
    objects in an image, whole masks are a hundred times as large as the image.

    A model of this package on the CPU runs in its optimized form, whose outputs are equal up to rounding; the model
    itself is not changed. `detectron2.modeling.optimized.OptimizedForm` says which models have one.

    Args:
        model: takes a batch, returns its outputs. An `nn.Module` is in evaluation mode during the loop.
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
    from detectron2.modeling.optimized import OptimizedForm

    callbacks = callbacks or {}
    if unknown := sorted(set(callbacks) - set(_CALLBACK_NAMES)):
        raise ValueError(f"inference_on_dataset knows the callbacks {_CALLBACK_NAMES}, not {unknown}.")
    several = evaluator is None or isinstance(evaluator, Sequence)
    if isinstance(evaluator, (type, str)) or not (several or hasattr(evaluator, "process")):
        raise TypeError(f"inference_on_dataset needs a DatasetEvaluator, several, or None, not {evaluator!r}.")
    if evaluator is None or isinstance(evaluator, Sequence):
        evaluator = DatasetEvaluators(evaluator or [])
    try:
        total = len(data_loader)  # pyright: ignore[reportArgumentType]
    except TypeError as e:
        raise TypeError(
            f"inference_on_dataset needs a data loader with a length, and {type(data_loader).__name__} has none ({e}). "
            "Give the data set a __len__, or evaluate a list of its elements."
        ) from e
    logger.info(f"Inference on {total} batches in each of {get_world_size()} processes")
    evaluator.reset()
    with contextlib.ExitStack() as stack:
        if isinstance(model, nn.Module):
            stack.enter_context(inference_context(model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(lean_masks(model, evaluator))
        functions = [callbacks.get(name, lambda: None) for name in _CALLBACK_NAMES]
        _run_loop(OptimizedForm(model), data_loader, evaluator, functions, total)
    start = time.perf_counter()
    results = evaluator.evaluate()
    logger.info(f"Computed the metrics in {time.perf_counter() - start:.2f} seconds")
    return {} if results is None else results  # pyright: ignore[reportReturnType]  # evaluators' own dictionary type


def _run_loop(form, data_loader, evaluator, callbacks, total):
    on_start, before_inference, after_inference, on_end = callbacks
    silent_inputs, silent_images = None, 0  # the first batch, while nothing has been found; -1 afterwards
    with contextlib.closing(_Progress(total)) as progress:
        on_start()
        progress.restart()
        for index, inputs in enumerate(data_loader):
            progress.lap("data")
            stage = "The model"
            try:
                before_inference()
                outputs = form.current()(inputs)
                _synchronize_device()
                after_inference()
                progress.lap("inference")
                stage = _name_of(evaluator)
                evaluator.process(inputs, outputs)
            except Exception as e:
                progress.close()  # or the message would begin behind the line
                logger.error(f"{stage} failed on batch {index}{_images_of(inputs)}: {type(e).__name__}: {e}")
                raise
            if silent_images >= 0 and isinstance(outputs, list) and all(map(_is_empty, outputs)):
                silent_inputs = inputs if silent_inputs is None else silent_inputs
                silent_images += len(outputs)
            else:
                silent_inputs, silent_images = None, -1
            count = len(inputs) if isinstance(inputs, Sequence) else 1
            # the loader prepares its next batch while these two would still be alive
            del inputs, outputs
            progress.end_iteration(count)
        on_end()
    logger.info(progress.summary())
    if silent_images > 0 and is_main_process():
        logger.warning(_explain_silence(form.model, silent_inputs, silent_images))


def _name_of(evaluator: Any) -> str:
    if isinstance(evaluator, DatasetEvaluators):
        return ", ".join(map(_name_of, evaluator._evaluators)) or "No evaluator"
    return type(evaluator).__name__


def _images_of(inputs: Any) -> str:
    """The images of a batch, for messages."""
    return "".join(
        f", {x.get('file_name', 'an image')} (image_id {x.get('image_id')!r})"
        for x in (inputs if isinstance(inputs, Sequence) else [inputs])
        if isinstance(x, Mapping) and ("file_name" in x or "image_id" in x)
    )


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


def _explain_silence(model: Any, inputs: Any, images: int) -> str:
    """Say that nothing was found, and why, as far as the model tells, which runs once more without its threshold."""
    sentences = [f"The model found nothing on any of {images} images."]
    if isinstance(model, nn.Module):
        from detectron2.utils.wrappers import unwrap_model

        model = unwrap_model(model)  # no other process takes part
        # Of a sharded model nothing can be seen alone, and to ask for its state would split its weights again.
        if not hasattr(model, "set_reshard_after_forward") and not any(
            hasattr(p, "full_tensor") for p in model.parameters()
        ):
            sentences += [_explain_scores(model, inputs), _explain_values(model)]
        sentences.append(explain_weights(model))
    return " ".join(filter(None, sentences))


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
    parts: list[Any] = [m for m in model.modules() if isinstance(getattr(m, "test_score_thresh", None), float | int)]
    if not parts:
        return None
    thresholds = [part.test_score_thresh for part in parts]
    try:
        for part in parts:
            part.test_score_thresh = 0.0
        with torch.no_grad():
            outputs = model(inputs)
    except RuntimeError as e:  # there may be too little memory for this many objects
        return f"(What it finds below its score threshold cannot be seen: {e})"
    finally:
        for part, threshold in zip(parts, thresholds, strict=True):
            part.test_score_thresh = threshold
    scores = [o["instances"].scores.float().cpu().numpy() for o in outputs if "instances" in o]
    scores = np.concatenate([np.zeros(0), *scores])
    limits = ", ".join(f"{t:g}" for t in sorted(set(thresholds)))
    if not scores.size:
        return f"Even without the score threshold ({limits}) nothing is found on the first batch."
    return (
        f"On the first batch the highest score is {scores.max():.3g}; the threshold is {limits} "
        "(MODEL.ROI_HEADS.SCORE_THRESH_TEST, MODEL.RETINANET.SCORE_THRESH_TEST). Scores without it: "
        f"{score_histogram(scores)}."
    )


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
