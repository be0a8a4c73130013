"""`Predictor`: one object that predicts on images of any kind, alone or in batches.

Frames come from `detectron2.inference.sources`. Each is made ready in a thread, as the test loader does it; images
that the model pads to one size form a batch; results are put back in order.
"""

import contextlib
import copy
import dataclasses
import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, Metadata
from detectron2.data import transforms as T
from detectron2.data.images import to_chw_tensor
from detectron2.export.artifact import ExportedModel
from detectron2.inference.columns import columns_of, frames_of, table_of
from detectron2.inference.image_check import check_image, plain_image
from detectron2.inference.loading import LoadedModel, available_device, load
from detectron2.inference.results import Result
from detectron2.inference.sources import Frame, is_single, read_frames
from detectron2.inference.tiling import iter_tiles, merge_tile_outputs
from detectron2.modeling.compilation import compile_parts
from detectron2.modeling.optimized import OptimizedForm
from detectron2.modeling.test_time_augmentation import build_model_with_tta
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, ROIMasks

__all__ = ["Predictor"]

logger = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16", "fp16"]
Backend = Literal["torch", "compiled", "onnx", "openvino"]

_BACKENDS = ("torch", "compiled", "onnx", "openvino")
_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_KNOWN_OUTPUTS = ("instances", "sem_seg", "panoptic_seg")
_BATCHES_AHEAD = 4  # how far ahead images are looked for that go into a batch together
_PACKED_BYTES = 1 << 20  # smaller tensors leave the device together


class Predictor:
    """Predicts on images, folders, videos and cameras with a model of any kind.

    Images are made ready as by `detectron2 predict` and the test loader: read with the colour order and EXIF policy of
    the config, and resized by its test mapper. With `batch_size=1` results are the same to the last bit as those of
    `DefaultPredictor`; with `optimize=False`, too, they are those of the model for what the test loader gives.

    Batches hold images that the model pads to one size, so that the other images of a batch change a result by no more
    than rounding does (about 1e-5 of a value; on the CPU usually by nothing). To find them, up to four batches of
    images are read ahead; results come in the order of the images. With `batch_size=1` no image is read before the
    result of the last one is taken: that is for cameras.

    One Predictor may be called from several threads. Images are read and resized in all of them at the same time; the
    model itself runs for one of them at a time.

    Args:
        model: a checkpoint that brings its config along, or has it beside it; a config, its file or its name in the
            model zoo; the folder, or file, of an exported model; or a built `torch.nn.Module` in evaluation mode.
        weights: of a config; by default those it names, or for a name in the model zoo the published ones.
        device: "auto" takes "cuda", then "mps", then "cpu"; a module stays where it is. A GPU that is not there
            becomes the CPU, with a line in the log. None takes the device of the config.
        precision: of the computation: "fp32", or "bf16" or "fp16" where this is safe (`torch.autocast`). Results have
            float32. Exported models have a precision of their own.
        backend: "torch"; "compiled", whose first images take a minute; "onnx" or "openvino" for an exported model,
            which is taken for what it is by default, too.
        batch_size: the most images that the model gets at once.
        tta: whether to predict on the resized and mirrored copies of `cfg.TEST.AUG`; None for what the config says.
        tile: side of the square tiles, or `(height, width)`, in pixels, in which large images are cut; each tile is
            resized as an image is. None for whole images.
        overlap: of tiles, as a share of them (float) or in pixels (int).
        score_threshold: leave out objects with a lower score; None for the threshold of the model.
        workers: threads that read images, and as many that resize them.
        allow_random_weights: whether the model may be random in part or altogether, for tests.
        overrides: changes to the config: `KEY, VALUE, ...` for YAML, `path.key=value` for LazyConfig.
        optimize: whether to run the `detectron2.modeling.optimized.OptimizedForm` of the model: faster on the CPU, with
            the same results up to rounding. Changes of `model`, and hooks on it, count from the next image on. Compiled
            and exported models are optimized in their own way.
        mask_format: "full", boolean masks `pred_masks` of the size of the image; or "rle", run lengths
            `pred_masks_rle`, a hundredth of the memory, to be preferred where results are collected or written. None
            for that of the model, and "rle" with `tile`.
        metadata: names and colours of classes; None for those that come with the model.
        mapper: for a module: makes images ready, a `DatasetMapper` for inference. By default images are resized to
            800 pixels (short edge), at most 1333.
        trusted: modules that the config in a checkpoint may call.

    Attributes:
        model: the model, as loaded or given, in evaluation mode.
        metadata: names and colours of classes.
        image_format: the colour order that the model wants.
        exif: what is done about the EXIF orientation of files, "apply" or "ignore".
        pixel_mean: what the model subtracts from each channel; None where it does not say.
        device: where the model is.
        cfg: the config; None for exported models and modules.
        backend: what runs.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: `model` is of another type; or the model cannot have the augmentation that is asked for.
        ValueError: an argument is impossible, or weights do not fill the model.

    Example:
        >>> import numpy as np
        >>> from detectron2 import Predictor
        >>> name = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
        >>> changes = ["INPUT.MIN_SIZE_TEST", 64, "MODEL.WEIGHTS", ""]
        >>> predictor = Predictor(name, device="cpu", overrides=changes, allow_random_weights=True)
        >>> predictor(np.zeros((48, 64, 3), np.uint8)).instances.image_size
        (48, 64)
        >>> [result.name for result in predictor([np.zeros((48, 64, 3), np.uint8)] * 2)]
        ['image 0', 'image 1']
    """

    def __init__(
        self,
        model: Any,
        *,
        weights: str | os.PathLike | None = None,
        device: str | torch.device | None = "auto",
        precision: Precision = "fp32",
        backend: Backend = "torch",
        batch_size: int = 8,
        tta: bool | None = None,
        tile: int | tuple[int, int] | None = None,
        overlap: float | int = 0.2,
        score_threshold: float | None = None,
        workers: int = 2,
        allow_random_weights: bool = False,
        overrides: Sequence[Any] = (),
        optimize: bool = True,
        mask_format: Literal["full", "rle"] | None = None,
        metadata: Metadata | None = None,
        mapper: Any = None,
        trusted: Sequence[str] = (),
    ) -> None:
        _check_choice("precision", precision, tuple(_DTYPES))
        _check_choice("backend", backend, _BACKENDS)
        for name, number, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {number!r}.")
        if score_threshold is not None and not 0 <= score_threshold <= 1:
            raise ValueError(f"score_threshold must lie in 0..1, got {score_threshold!r}.")
        if tile is not None:
            next(iter_tiles(1, 1, tile, overlap))  # refuses impossible ones
        if isinstance(model, nn.Module):
            loaded = _given_module(model, weights, device, overrides, mapper, metadata)
        else:
            if mapper is not None:
                raise ValueError("mapper is for a torch.nn.Module; a config or an exported model has its own.")
            chosen = None if device is None else available_device(device)
            loaded = load(
                model,
                "" if weights is None else os.fspath(weights),
                device=chosen,
                overrides=[*overrides],
                allow_random_weights=allow_random_weights,
                trusted=trusted,
            )
        self.model, self.cfg = loaded.model, loaded.cfg
        self.metadata = loaded.metadata if metadata is None else metadata
        self.batch_size, self.workers, self.tile, self.overlap = batch_size, workers, tile, overlap
        self.score_threshold, self.precision, self.mask_format = score_threshold, precision, mask_format
        self._mapper = _checked_mapper(loaded.mapper)
        self.image_format: str | None = self._mapper.image_format
        self.exif: str = getattr(self._mapper, "exif", "apply")
        self.pixel_mean: list[float] | None = _pixel_mean(self.model)
        self._lock = threading.Lock()
        if mask_format not in (None, "full", "rle"):
            raise ValueError(f'mask_format must be "full", "rle" or None, got {mask_format!r}.')
        if isinstance(self.model, ExportedModel):
            self.device = torch.device("cpu")
            self.backend = _set_artifact(self.model, backend, precision, device, score_threshold)
        elif backend in ("onnx", "openvino"):
            raise ValueError(
                f"backend={backend!r} runs an exported model, and this is not one. Export it: detectron2 export "
                f"--weights FILE --format {backend} --output exported; then Predictor('exported')."
            )
        else:
            self.device, self.backend = _device_of(self.model), backend
        self._dtype = _checked_dtype(precision, self.device)
        self._form = OptimizedForm(self.model) if self.backend == "torch" and optimize else None
        self._compiled = self._compiled_copy(is_given=loaded.model is model) if self.backend == "compiled" else None
        self._has_tta = self._can_augment(tta)

    def __call__(
        self,
        source: Any,
        *,
        color: Literal["bgr", "rgb"] = "bgr",
        scale: float | None = None,
        on_error: Literal["raise", "keep"] = "raise",
    ) -> Any:
        """Predict on one image, or on each of many.

        Args:
            source: everything that `detectron2.inference.sources.read_frames` takes: a path, an address, bytes, a PIL
                image, an array `(H, W, C)` or `(H, W)`, a tensor `(C, H, W)`; a folder, a pattern, a list or iterator
                of these, a video, or "webcam:0".
            color: the order of channels in arrays and tensors.
            scale: multiplies the values of images. Models for 8-bit images then get whole numbers. For an image of
                0..1 it is 255, for one of 16 bits 1 / 257.
            on_error: for an image that cannot be read or used: "raise" its error, or "keep" its place, with a result
                whose `error` says why.

        Returns:
            A `Result` for one image, else an iterator of results. The iterator reads images when it is asked for
            results, so that the input may be endless; leave it, and what it reads is closed.

        Raises:
            OSError: an image cannot be read.
            TypeError: the source is of another type, or the model gives something else than objects and labels.
            ValueError: an argument or an image is impossible, such as one with values out of 0..255.
        """
        _check_choice("color", color, ("bgr", "rgb"))
        one = is_single(source)
        workers = 0 if one else self.workers
        frames = read_frames(source, image_format=self.image_format, color=color, exif=self.exif, workers=workers)
        results = self.predict_frames(frames, scale=scale, on_error=on_error)
        if not one:
            return results
        with contextlib.closing(results):  # pyright: ignore[reportArgumentType] (a generator)
            return next(results)

    def predict_frames(
        self, frames: Iterable[Frame], *, scale: float | None = None, on_error: Literal["raise", "keep"] = "raise"
    ) -> Iterator[Result]:
        """Predict on what `read_frames` gives, for programs that call it themselves.

        Args:
            frames: images in the colour order of `image_format`, and read according to `exif`.
            scale: as in a call.
            on_error: as in a call.

        Returns:
            An iterator over the result of each frame, in order. It closes the iterator of frames at its end.

        Raises:
            OSError: the error of a frame, as other errors of its image.
        """
        _check_choice("on_error", on_error, ("raise", "keep"))
        if scale is not None and not (np.isfinite(scale) and scale > 0):
            raise ValueError(f"scale must be a number above 0, got {scale!r}.")
        return self._stream(iter(frames), scale, on_error)

    def predict_batch(self, frames: Sequence[Frame]) -> list[Result]:
        """Predict on frames that are in memory, in batches of those of one size.

        Args:
            frames: images in the colour order of `image_format`.

        Returns:
            A result for each frame, in order. Where a frame, or its image, is not usable, the `error` of its result
            says why.
        """
        waiting = [_Item(frame, _done(self._prepare(frame, None))) for frame in frames]
        while todo := deque(item for item in waiting if item.result is None):
            self._predict_some(todo)
        return [item.result for item in waiting if item.result is not None]

    # ------------------------------------------------------------------------------------------------------- images

    def _prepare(self, frame: Frame, scale: float | None) -> "_Prepared":
        """Make a frame ready, in any thread; an error of the image is a part of what is returned."""
        if frame.error is not None:
            return _Prepared(frame)
        try:
            image = self._checked(frame, scale)
            if self.tile is not None:
                return _Prepared(frame, image=image)
            sample = self._resized(image) if self._reads_arrays() else self._mapped(frame)
            return _Prepared(frame, sample, self._padded_hw(sample["image"]))
        except (OSError, TypeError, ValueError) as error:
            return _Prepared(dataclasses.replace(frame, image=None, error=error))

    def _reads_arrays(self) -> bool:
        return type(self._mapper).__call__ is DatasetMapper.__call__ or not callable(self._mapper)

    def _mapped(self, frame: Frame) -> dict[str, Any]:
        """Have a mapper of the user's own read the file."""
        if frame.path is None or frame.time is not None:
            raise ValueError(
                f"{frame.name}: the mapper of this config ({type(self._mapper).__name__}) reads files itself, so that "
                "only files of images can be predicted on."
            )
        sample = dict(self._mapper({"file_name": frame.path}))
        height, width = frame.image.shape[:2]  # pyright: ignore[reportOptionalMemberAccess]
        return {"height": height, "width": width, **sample}

    def _checked(self, frame: Frame, scale: float | None) -> np.ndarray:
        """Return an image `(H, W, C)` with values that the model can take."""
        image: Any = frame.image
        if scale is not None:
            image = image.astype(np.float32) * np.float32(scale)
            if self._is_8_bit and image.min(initial=0) >= -0.5 and image.max(initial=0) <= 255.5:
                image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
        if self.pixel_mean is None:
            return image
        try:
            if text := check_image(image, self.pixel_mean, can_scale=True):
                raise ValueError(text)
        except (TypeError, ValueError) as e:
            raise type(e)(f"{frame.name}: {e}") from None
        return plain_image(image, self.pixel_mean)

    @property
    def _is_8_bit(self) -> bool:
        return self.pixel_mean is None or 1 < max(self.pixel_mean) <= 255

    def _resized(self, image: np.ndarray) -> dict[str, Any]:
        given = T.AugInput(image)
        self._mapper.augmentations(given)
        return {"image": to_chw_tensor(given.image), "height": image.shape[0], "width": image.shape[1]}

    def _padded_hw(self, image: torch.Tensor) -> tuple[int, int]:
        """Height and width to which a model pads an image that is alone."""
        backbone: Any = getattr(self.model, "backbone", None)
        constraints = getattr(backbone, "padding_constraints", None) or {}
        divisor = constraints.get("size_divisibility") or getattr(backbone, "size_divisibility", 0) or 1
        height, width = (-(-side // divisor) * divisor for side in image.shape[-2:])
        square = constraints.get("square_size", 0)
        return (max(square, height), max(square, width)) if square else (height, width)

    # ------------------------------------------------------------------------------------------------------ batches

    def _stream(self, frames: Iterator[Frame], scale: float | None, on_error: str) -> Iterator[Result]:
        """Yield the result of each frame, in order."""
        waiting: deque[_Item] = deque()
        with contextlib.ExitStack() as stack:
            if hasattr(frames, "close"):
                stack.callback(frames.close)  # pyright: ignore[reportAttributeAccessIssue]
            pool = None
            if self.batch_size > 1 and self.workers > 0 and self.tile is None:
                pool = ThreadPoolExecutor(self.workers)  # its threads start with the first image
                stack.callback(pool.shutdown, cancel_futures=True)

            def read(count: int) -> bool:
                """Take that many frames, and say whether there are more."""
                for _ in range(count):
                    if (frame := next(frames, None)) is None:
                        return False
                    job = pool.submit(self._prepare, frame, scale) if pool else _done(self._prepare(frame, scale))
                    waiting.append(_Item(frame, job))
                return True

            more = True
            ahead = _BATCHES_AHEAD * self.batch_size
            while True:
                if waiting and waiting[0].result is not None:
                    result = waiting.popleft().result
                    assert result is not None
                    if result.error is not None and on_error == "raise":
                        raise result.error
                    yield result
                    continue
                if self.batch_size == 1 or self.tile is not None:
                    more = more and (bool(waiting) or read(1))
                else:
                    # One batch to run, and one whose images are made ready in the meantime.
                    more = more and read(2 * self.batch_size - len(waiting))
                    while more and len(self._batch_of_first(waiting)) < self.batch_size and len(waiting) < ahead:
                        more = read(min(self.batch_size, ahead - len(waiting)))
                if not waiting:
                    return
                self._predict_some(waiting)

    def _batch_of_first(self, waiting: Sequence["_Item"]) -> "list[_Item]":
        """Return the first item without a result, and others that the model pads to the same size."""
        todo = [item for item in waiting if item.result is None]
        wanted = todo[0].prepared.padded_hw if todo else None
        if wanted is None:
            return todo[:1]
        same = (item for item in todo if item.prepared.padded_hw == wanted)
        return list(itertools.islice(same, self.batch_size))  # those behind them may still be made ready

    def _predict_some(self, waiting: Sequence["_Item"]) -> None:
        """Set the results of a batch that has the first item without one."""
        batch = self._batch_of_first(waiting)
        start = time.perf_counter()
        first = batch[0].prepared
        if first.frame.error is not None:
            outputs: list[dict[str, Any]] = [{}]
        elif first.sample is None:
            outputs = [self._predict_tiles(first.image)]
        else:
            outputs = self._predict([item.prepared.sample for item in batch])
        seconds = (time.perf_counter() - start) / len(batch)
        for item, output in zip(batch, outputs, strict=True):
            item.result = Result(
                output,
                frame=item.prepared.frame,
                image_format=self.image_format,
                metadata=self.metadata,
                seconds=seconds,
            )

    def _predict_tiles(self, image: Any) -> dict[str, Any]:
        """Predict on the tiles of an image, a batch at a time, and merge what is found."""
        height, width = image.shape[:2]
        tiles = list(iter_tiles(height, width, self.tile, self.overlap))  # pyright: ignore[reportArgumentType]
        outputs: list[dict[str, Any]] = []
        for start in range(0, len(tiles), self.batch_size):
            parts = tiles[start : start + self.batch_size]
            outputs += self._predict([self._resized(image[y1:y2, x1:x2]) for x1, y1, x2, y2 in parts])
        return merge_tile_outputs(outputs, tiles, (height, width))

    def _predict(self, samples: list[Any]) -> list[dict[str, Any]]:
        """Run the model on a batch, and bring the results to the CPU."""
        autocast = torch.autocast(self.device.type, self._dtype, enabled=self._dtype is not None)
        if self.model.training:
            raise ValueError("The model is in training mode, in which it gives losses: call predictor.model.eval().")
        with self._lock, torch.no_grad(), autocast:
            network = self._network()
            run = build_model_with_tta(self.cfg, network, self.metadata) if self._has_tta else network
            with self._settings(network, run):
                outputs = [self._above_threshold(output) for output in run(samples)]
            for output in outputs:
                if not any(name in output for name in _KNOWN_OUTPUTS):
                    raise TypeError(
                        "Predictor is for models that find objects or label pixels; this one "
                        f"({type(self.model).__name__}) returns {', '.join(output)}. Call predictor.model with a list "
                        "of inputs."
                    )
            return outputs if self.device.type == "cpu" and self._dtype is None else _to_cpu(outputs)

    def _above_threshold(self, output: dict[str, Any]) -> dict[str, Any]:
        if self.score_threshold is None or "instances" not in output:
            return output
        found = output["instances"]
        return {**output, "instances": found[found.scores >= self.score_threshold]}

    # -------------------------------------------------------------------------------------------------------- model

    def _network(self) -> Any:
        """Return what runs: the model as it is now, or a faster form of it."""
        if self._compiled is not None:
            return self._compiled
        if self._form is None:
            return self.model
        if self._form.model is not self.model:
            self._form = OptimizedForm(self.model)
        return self._form.current()

    def _compiled_copy(self, *, is_given: bool) -> nn.Module:
        """Return the model with compiled parts; one that was given stays as it is."""
        network = copy.deepcopy(self.model) if is_given else self.model
        compile_parts(network)
        return network

    def _can_augment(self, tta: bool | None) -> bool:
        """Whether there is test-time augmentation; refuse it where it is asked for and impossible."""
        is_yaml = isinstance(self.cfg, CfgNode)
        if not (tta or (tta is None and is_yaml and self.cfg.TEST.AUG.ENABLED)):
            return False
        if isinstance(self.model, ExportedModel):
            raise ValueError("An exported model has no test-time augmentation: leave it out, or give the checkpoint.")
        if not is_yaml:
            raise ValueError("Test-time augmentation (tta=True) is described by TEST.AUG of a YAML config: give one.")
        try:
            build_model_with_tta(self.cfg, self._network(), self.metadata)
        except TypeError as e:
            if tta:
                raise
            logger.warning("TEST.AUG.ENABLED has no effect: %s.", e)
            return False
        return True

    @contextlib.contextmanager
    def _settings(self, network: Any, run: Any) -> Iterator[None]:
        """Within the context a network, and what runs it, have this object's form of masks and a threshold so low."""
        wanted = self.mask_format or ("rle" if self.tile is not None else None)
        changes: list[tuple[Any, str, Any]] = []
        for model in {id(m): m for m in (run, network)}.values():
            if wanted is not None and hasattr(model, "mask_format"):
                changes.append((model, "mask_format", wanted))
        for module in network.modules() if self.score_threshold is not None else ():
            own = getattr(module, "test_score_thresh", None)
            if isinstance(own, float | int) and own > self.score_threshold:  # pyright: ignore[reportOperatorIssue]
                changes.append((module, "test_score_thresh", self.score_threshold))
        before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
        try:
            for owner, name, value in changes:
                setattr(owner, name, value)
            yield
        finally:
            for owner, name, value in before:
                setattr(owner, name, value)

    # --------------------------------------------------------------------------------------------------- for engines

    class for_batches:
        """Predicts on batches in columns: the function for engines that distribute work, such as Ray Data.

        An engine makes one object in each of its workers, and calls it with one batch after the other.

        Args:
            weights: a checkpoint, or whatever else `Predictor` takes as a model.
            config: of a checkpoint that does not bring it along.
            scale: multiplies the values of images, as in a call of `Predictor`.
            as_table: whether results are a `pyarrow.Table` instead of a dictionary. Its columns have the same types in
                each batch, also where nothing was found: choose it if other programs read the files together.
            **options: of `Predictor`; `mask_format` is "rle" by default.

        Raises:
            FileNotFoundError: there is no such file.
            ImportError: `as_table` needs pyarrow.
            ValueError: an option is impossible, or weights do not fill the model; or, in a call, the batch has no
                images.

        Example:
            >>> import numpy as np
            >>> from detectron2 import Predictor
            >>> name = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
            >>> changes = ["INPUT.MIN_SIZE_TEST", 64, "MODEL.WEIGHTS", ""]
            >>> predict = Predictor.for_batches(name, device="cpu", overrides=changes, allow_random_weights=True)
            >>> batch = {"path": np.array(["a.jpg"]), "image": np.zeros((1, 48, 64, 3), np.uint8)}
            >>> predict(batch)["file"]
            array(['a.jpg'], dtype=object)
        """

        def __init__(
            self,
            weights: Any,
            config: Any = None,
            *,
            scale: float | None = None,
            as_table: bool = False,
            **options: Any,
        ) -> None:
            source = weights if config is None else config
            options = {"mask_format": "rle", **options}
            self.predictor = Predictor(source, weights=None if config is None else weights, **options)
            self.scale, self.as_table = scale, as_table

        def __call__(self, batch: dict[str, Any]) -> Any:
            """Predict on the images of a batch.

            Args:
                batch: columns of equal length: `image` (arrays, RGB), or `bytes` (files), or `path`; and any others.
                    See `detectron2.inference.columns.frames_of`.

            Returns:
                Columns of equal length: those that were given, without the images; and `ROW_COLUMNS`, which are the
                keys of `Result.to_dict`. An image that is not usable has an `error`, which is None for the others.
            """
            predictor = self.predictor
            frames = frames_of(
                batch, image_format=predictor.image_format, exif=predictor.exif, workers=predictor.workers
            )
            results = predictor.predict_frames(frames, scale=self.scale, on_error="keep")
            columns = {name: column for name, column in batch.items() if name not in ("image", "bytes")}
            columns |= columns_of(result.to_dict() for result in results)
            return table_of(columns) if self.as_table else columns


@dataclass
class _Prepared:
    """A frame on its way: its input of the model, or the image that will be cut; neither where it has an error."""

    frame: Frame
    sample: dict[str, Any] | None = None
    padded_hw: tuple[int, int] | None = None
    image: np.ndarray | None = None


@dataclass(eq=False)
class _Item:
    """A frame whose result is to come."""

    frame: Frame
    job: "Future[_Prepared]"
    result: Result | None = None

    @property
    def prepared(self) -> _Prepared:
        return self.job.result()


def _done(value: Any) -> "Future[Any]":
    future: Future[Any] = Future()
    future.set_result(value)
    return future


# -------------------------------------------------------------------------------------------------------- arguments


def _check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        *others, last = map(repr, choices)
        raise ValueError(f"{name} must be {', '.join(others)} or {last}, got {value!r}.")


def _given_module(
    model: nn.Module, weights: Any, device: Any, overrides: Sequence[Any], mapper: Any, metadata: Metadata | None
) -> LoadedModel:
    """Return a model that was given, or a copy on another device, with what it does not say itself."""
    if weights is not None or len(overrides) > 0:
        raise ValueError("weights and overrides go with a config; a torch.nn.Module comes with its weights loaded.")
    if model.training:
        raise ValueError("The model is in training mode, in which it gives losses: call model.eval() first.")
    if device not in (None, "auto"):
        wanted = torch.device(available_device(device))
        if wanted != _device_of(model):
            model = copy.deepcopy(model).to(wanted)
    if mapper is None:
        steps: list[Any] = [T.ResizeShortestEdge([800, 800], 1333)]  # INPUT.MIN_SIZE_TEST, INPUT.MAX_SIZE_TEST
        order = getattr(model, "input_format", None) or "BGR"
        mapper = DatasetMapper(is_train=False, augmentations=steps, image_format=order)
    return LoadedModel(model, mapper, Metadata().set(name="unknown") if metadata is None else metadata)


def _checked_mapper(mapper: Any) -> Any:
    if getattr(mapper, "proposal_topk", None) is not None:
        raise ValueError("The model takes precomputed proposals (MODEL.LOAD_PROPOSALS), which images do not have.")
    if not hasattr(mapper, "augmentations") or not hasattr(mapper, "image_format"):
        raise ValueError(
            f"The test mapper of the config is a {type(mapper).__name__} without augmentations and image_format, which "
            "say how images are made ready. Derive it from detectron2.data.DatasetMapper."
        )
    return mapper


def _pixel_mean(model: nn.Module) -> list[float] | None:
    """Return what a model subtracts from each channel, or None where it does not say."""
    if isinstance(model, ExportedModel):
        return list(model.description["preprocessing"]["pixel_mean"]) or None
    mean = getattr(model, "pixel_mean", None)
    return mean.flatten().tolist() if isinstance(mean, torch.Tensor) and mean.numel() else None


def _device_of(model: nn.Module) -> torch.device:
    tensor = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def _set_artifact(model: ExportedModel, backend: str, precision: str, device: Any, threshold: float | None) -> str:
    """Return the backend of an exported model, which is made to use a threshold; refuse what it cannot do."""
    known = model.description
    if backend != "torch" and backend != known["format"]:
        raise ValueError(f"backend={backend!r} does not run this model: it was exported as {known['format']}.")
    if precision != "fp32":
        raise ValueError(
            f"precision={precision!r} is for models of PyTorch; this one was exported in {known['precision']}. Leave "
            "the argument out."
        )
    if device not in (None, "auto") and torch.device(device).type != "cpu":
        raise ValueError(f"device={device!r} is for models of PyTorch; exported ones run on the CPU here.")
    if threshold is not None and known["score_threshold"] is not None:
        known["score_threshold"] = min(threshold, known["score_threshold"])
    return known["format"]


def _checked_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the type for `torch.autocast`, or None; refuse one that a device computes with not at all, or slowly."""
    if device.type == "cpu" and precision == "fp16" and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        raise ValueError(
            "precision='fp16' needs a CPU with AVX512-FP16 or AMX-FP16, which this one has not. Take 'fp32', or 'bf16'."
        )
    if device.type == "cpu" and precision == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        logger.warning("This CPU computes slowly with precision='bf16'; 'fp32' is faster.")
    if device.type == "cuda" and precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError("precision='bf16' needs a newer GPU than this one. Take 'fp16', or 'fp32'.")
    return _DTYPES[precision]


# ---------------------------------------------------------------------------------------------------------- results


def _to_cpu(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Bring results to the CPU, with float32 for shorter types: small tensors of one type in one piece."""
    found: list[torch.Tensor] = []
    _replaced(outputs, lambda tensor: found.append(tensor) or tensor)
    moved: dict[int, torch.Tensor] = {}
    packs: dict[torch.dtype, list[torch.Tensor]] = {}
    for tensor in found:
        if tensor.device.type == "cpu":
            moved[id(tensor)] = tensor
        elif tensor.numel() * tensor.element_size() > _PACKED_BYTES:
            moved[id(tensor)] = tensor.to("cpu")
        else:
            packs.setdefault(tensor.dtype, []).append(tensor)
    for tensors in packs.values():
        pieces = torch.cat([t.flatten() for t in tensors]).to("cpu").split([t.numel() for t in tensors])
        for tensor, piece in zip(tensors, pieces, strict=True):
            moved[id(tensor)] = piece.clone().view(tensor.shape)  # one result does not keep the others in memory

    def on_cpu(tensor: torch.Tensor) -> torch.Tensor:
        result = moved[id(tensor)]
        return result.float() if result.dtype in (torch.float16, torch.bfloat16) else result

    return _replaced(outputs, on_cpu)


def _replaced(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return outputs of a model with changed tensors in them."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, Instances):
        changed = Instances(value.image_size)
        for name, part in value.get_fields().items():
            changed.set(name, _replaced(part, change))
        return changed
    if isinstance(value, dict):
        return {name: _replaced(part, change) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_replaced(part, change) for part in value)
    if isinstance(value, Boxes | ROIMasks | BitMasks | Keypoints):  # made of one tensor
        return type(value)(change(value.tensor))
    return value.to("cpu") if hasattr(value, "to") else value
