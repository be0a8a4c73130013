"""Writers show the statistics of `detectron2.utils.events`: in the log, in files, in TensorBoard and in services."""

import csv
import datetime
import functools
import importlib
import io
import json
import logging
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from detectron2.utils.events import EventStorage, get_event_storage
from detectron2.utils.file_io import PathManager, atomic_write, full_disk_named
from detectron2.utils.serialize import plain

__all__ = [
    "DEFAULT_WRITERS",
    "CSVWriter",
    "CommonMetricPrinter",
    "EventWriter",
    "JSONWriter",
    "MLflowWriter",
    "ProgressLine",
    "TensorboardXWriter",
    "WandbWriter",
    "make_writers",
]

DEFAULT_WRITERS = ("terminal", "json", "tensorboard")
"""Where metrics go unless a config names other writers."""
"""Names of the writers that a run uses by default; on a terminal `progress` as well."""


class EventWriter:
    """Base class of writers, which read the statistics in the open `EventStorage`."""

    def write(self) -> None:
        """Write what is new since the last call."""
        raise NotImplementedError

    def close(self) -> None:
        """Release files and connections; nothing is written afterwards."""


class _ScalarWriter(EventWriter):
    """Base class of writers that show each new scalar once; noisy ones as the median over `window_size` iterations."""

    def __init__(self, window_size: int):
        self._window_size = window_size
        self._written: dict[str, int] = {}

    def _new_scalars(self, storage: EventStorage) -> dict[int, dict[str, float]]:
        """Return the scalars of each iteration that were not written yet, in the order of iterations."""
        rows: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in storage.latest_with_smoothing_hint(self._window_size).items():
            if iteration > self._written.get(name, -1):
                rows.setdefault(iteration, {})[name] = value
                self._written[name] = iteration
        return dict(sorted(rows.items()))


class JSONWriter(_ScalarWriter):
    """Appends scalars to a file, one JSON object per line and iteration, with the key `iteration` among them.

    Read it line by line, or with `jq -s '.[].loss_mask' metrics.json`. The file is opened at the first write; noisy
    scalars are medians over the last `window_size` iterations.
    """

    def __init__(self, json_file: str | os.PathLike, window_size: int = 20):
        super().__init__(window_size)
        self._json_file = os.fspath(json_file)

    @functools.cached_property
    def _file_handle(self) -> Any:
        return PathManager.open(self._json_file, "a")

    def write(self) -> None:
        """Append one line for each iteration that has new scalars."""
        with full_disk_named(self._json_file):
            for iteration, scalars in self._new_scalars(get_event_storage()).items():
                self._file_handle.write(json.dumps({"iteration": iteration, **scalars}, sort_keys=True) + "\n")
            self._file_handle.flush()
        try:
            os.fsync(self._file_handle.fileno())
        except (AttributeError, OSError):  # a stream without a descriptor
            return

    def close(self) -> None:
        """Close the file, if it was opened."""
        if "_file_handle" in self.__dict__:  # a later training opens it again
            with full_disk_named(self._json_file):
                self.__dict__.pop("_file_handle").close()


class TensorboardXWriter(_ScalarWriter):
    """Writes scalars, images and histograms for TensorBoard. The first write creates the event file in `log_dir`.

    Noisy scalars are medians over the last `window_size` iterations; `kwargs` go to
    `torch.utils.tensorboard.SummaryWriter`.
    """

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs: Any):
        super().__init__(window_size)
        self._writer_args = {"log_dir": log_dir, **kwargs}

    @functools.cached_property
    def _writer(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(**self._writer_args)

    def write(self) -> None:
        """Write new scalars, images and histograms; drop the images and histograms from the storage."""
        with full_disk_named(self._writer_args["log_dir"]):  # also for what a thread could not write before
            self._write(get_event_storage())

    def _write(self, storage: EventStorage) -> None:
        for iteration, scalars in self._new_scalars(storage).items():
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, iteration)
        # Dropping the data here keeps its memory low; it also means that only one writer shows images.
        for name, image, iteration in storage.vis_data:
            self._writer.add_image(name, image, iteration)
        storage.clear_images()
        for arguments in storage.histograms:
            self._writer.add_histogram_raw(**arguments)
        storage.clear_histograms()

    def close(self) -> None:
        """Close the event file, if there is one."""
        if "_writer" in self.__dict__:
            with full_disk_named(self._writer_args["log_dir"]):
                self._writer.close()


_LOG_SECONDS = 60.0  # between two lines in the log, at most


class CommonMetricPrinter(EventWriter):
    """Logs one line with the remaining time, losses, times, learning rate and peak memory.

    Args:
        max_iter: number of iterations of the whole training; None leaves out the remaining time.
        window_size: iterations over which losses and times are smoothed.
        images_per_iter: images in one iteration over all processes; the line then shows images per second.
    """

    def __init__(self, max_iter: int | None = None, window_size: int = 20, images_per_iter: int | None = None):
        self.logger = logging.getLogger("detectron2.utils.events")
        self._max_iter = max_iter
        self._window_size = window_size
        self._images_per_iter = images_per_iter
        self._last_write: tuple[int, float] | None = None  # (iteration, seconds) of the previous line
        self._shown_until, self._shown_at = -1, -math.inf  # iteration and time of the previous line

    @property
    def is_stale(self) -> bool:
        """Whether a line should be logged before its period is over: the first one, and one each minute."""
        return time.monotonic() - self._shown_at > _LOG_SECONDS

    def write(self) -> None:
        """Log the line, except after the last iteration, where no training step follows."""
        storage = get_event_storage()
        if storage.iter == self._max_iter:
            return
        fields = [
            self._eta(storage),
            f"iter: {storage.iter}",
            *self._losses(storage),
            *self._times(storage),
            self._learning_rate(storage),
            f"max_mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}M" if torch.cuda.is_available() else "",
        ]
        self._shown_until, self._shown_at = storage.iter, time.monotonic()
        self.logger.info("  ".join(field for field in fields if field))

    def _eta(self, storage: EventStorage) -> str:
        if self._max_iter is None:
            return ""
        times = storage.histories().get("time")
        now = (storage.iter, time.perf_counter())
        last, self._last_write = self._last_write, now
        remaining = self._max_iter - storage.iter - 1
        if times is not None and times.values():
            seconds = times.global_avg() * remaining
            storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
        elif last is not None and now[0] > last[0]:  # no hook measures the steps: measure between two lines
            seconds = (now[1] - last[1]) / (now[0] - last[0]) * remaining
        else:
            return "eta: N/A"
        return f"eta: {datetime.timedelta(seconds=int(seconds))}" if math.isfinite(seconds) else "eta: N/A"

    def _losses(self, storage: EventStorage) -> list[str]:
        return [
            f"{name}: {buffer.median(storage.count_samples(name, self._window_size)):.4g}"
            for name, buffer in list(storage.histories().items())
            if ("loss" in name or name.startswith("[metric]")) and self._is_news(name, storage)
        ]

    def _is_news(self, name: str, storage: EventStorage) -> bool:
        """Return whether to show a loss: of the validation losses only the total, and only once."""
        if not name.startswith("validation/"):
            return True
        return name == "validation/total_loss" and storage.latest()[name][1] > self._shown_until

    def _times(self, storage: EventStorage) -> list[str]:
        fields = []
        for name in ("time", "data_time"):
            seconds = self._smoothed(name, storage)
            if seconds is not None:
                fields += [f"{name}: {seconds:.4f}", f"last_{name}: {storage.histories()[name].latest():.4f}"]
                if name == "time" and self._images_per_iter and seconds > 0:
                    fields.append(f"images/s: {self._images_per_iter / seconds:.1f}")
        return fields

    def _smoothed(self, name: str, storage: EventStorage) -> float | None:
        """Return the mean of a scalar in the window, if it was recorded."""
        buffer = storage.histories().get(name)
        return None if buffer is None else buffer.avg(storage.count_samples(name, self._window_size))

    def _learning_rate(self, storage: EventStorage) -> str:
        buffer = storage.histories().get("lr")
        return "lr: N/A" if buffer is None else f"lr: {buffer.latest():.5g}"


_ERASE_LINE = "\r\x1b[K"
_BAR_CELLS = 24
_WIDE = 119  # columns; a narrower terminal gets a shorter bar, which leaves room for numbers


_LOGGERS = ("detectron2", "fvcore")  # their messages appear above the line


class ProgressLine(CommonMetricPrinter):
    """Redraws one line with what is done, the remaining time, losses, learning rate, speed and waits for data.

    A number that has no room in the terminal is left out. Log messages appear above the line. If the stream, by default
    standard output, is not a terminal, lines are logged as by `CommonMetricPrinter`, which describes the other
    arguments.
    """

    def __init__(
        self, max_iter: int | None = None, window_size: int = 20, images_per_iter: int | None = None, stream: Any = None
    ):
        super().__init__(max_iter, window_size, images_per_iter)
        self._stream = sys.stdout if stream is None else stream
        self._is_terminal = bool(getattr(self._stream, "isatty", lambda: False)())
        self._is_drawn = False
        self._eraser: logging.Handler | None = None

    @property
    def is_stale(self) -> bool:
        """Whether the line is half a second old; where it is logged, as for `CommonMetricPrinter`."""
        return time.monotonic() - self._shown_at > 0.5 if self._is_terminal else super().is_stale

    def write(self) -> None:
        """Redraw the line."""
        if not self._is_terminal:
            super().write()
            return
        storage = get_event_storage()
        if storage.iter == self._max_iter:  # no training step follows
            return
        if self._eraser is None:
            self._eraser = logging.Handler()
            self._eraser.addFilter(self._erase_before)
            for name in _LOGGERS:  # before the handlers that print
                logging.getLogger(name).handlers.insert(0, self._eraser)
        width = shutil.get_terminal_size().columns - 1
        fields = [field for field in (self._eta(storage), *self._numbers(storage)) if field]
        self._stream.write(_ERASE_LINE + _fit([self._bar(storage.iter + 1, width), *fields], width))
        self._stream.flush()
        self._is_drawn, self._shown_at = True, time.monotonic()

    def _erase_before(self, record: logging.LogRecord) -> bool:
        """Clear the line before another handler prints a message. The next write draws the line again."""
        self._end_line(_ERASE_LINE)
        return False  # this handler has nothing to print

    def _end_line(self, text: str) -> None:
        if self._is_drawn:
            self._stream.write(text)
            self._stream.flush()
            self._is_drawn = False

    def close(self) -> None:
        """End the line, so that later output starts below it."""
        self._end_line("\n")
        if self._eraser is not None:
            for name in _LOGGERS:
                logging.getLogger(name).removeHandler(self._eraser)
            self._eraser = None

    def _bar(self, done: int, width: int) -> str:
        if self._max_iter is None:
            return f"iteration {done}"
        part = min(done / max(self._max_iter, 1), 1.0)
        all_cells = _BAR_CELLS if width >= _WIDE else _BAR_CELLS // 3
        cells = round(part * all_cells)
        return f"[{'#' * cells}{'.' * (all_cells - cells)}] {part:4.0%} {done}/{self._max_iter}"

    def _numbers(self, storage: EventStorage) -> list[str]:
        """Return the fields, most important first."""
        losses, times = self._losses(storage), self._times(storage)
        seconds, of_data = (self._smoothed(name, storage) for name in ("time", "data_time"))
        speed = [] if seconds is None else [f"s/iter: {seconds:.3g}"]
        if seconds and of_data is not None:  # steps contain the wait for their data
            speed.append(f"data: {min(of_data / seconds, 1.0):.0%}")
        return [
            *(field for field in losses if field.startswith("total_loss")),
            *speed,
            self._learning_rate(storage),
            *(field for field in times if field.startswith("images/s")),
            *(field for field in losses if not field.startswith("total_loss")),
        ]


def _fit(fields: list[str], width: int) -> str:
    """Join as many of the first fields as fit. A field is never cut: part of a number would be another number."""
    line = fields[0][:width]
    for field in fields[1:]:
        if len(line) + 2 + len(field) > width:
            break
        line += f"  {field}"
    return line


class CSVWriter(_ScalarWriter):
    """Appends scalars to a table of comma-separated values, with one row per iteration and one column per scalar.

    The first column is `iteration`. A scalar that appears later, such as a metric of the first evaluation, becomes a
    new last column, and the file is rewritten. The table of an earlier part of the run is continued. Noisy scalars are
    medians over the last `window_size` iterations.
    """

    def __init__(self, csv_file: str | os.PathLike, window_size: int = 20):
        super().__init__(window_size)
        self._path = os.fspath(csv_file)

    def write(self) -> None:
        """Append one row for each iteration that has new scalars."""
        rows = self._new_scalars(get_event_storage())
        if not rows:
            return
        names = dict.fromkeys(name for scalars in rows.values() for name in sorted(scalars))
        added = [name for name in names if name not in self._columns]
        if added:
            self._add_columns(added)
        text = io.StringIO()
        table = csv.DictWriter(text, self._columns, restval="", lineterminator="\n")
        table.writerows({"iteration": iteration, **scalars} for iteration, scalars in rows.items())
        file: Any = PathManager.open(self._path, "a")
        with full_disk_named(self._path), file:
            file.write(text.getvalue())

    def _read(self) -> str:
        if not PathManager.exists(self._path):
            return ""
        with PathManager.open(self._path, "r") as file:
            return str(file.read())

    @functools.cached_property
    def _columns(self) -> list[str]:
        """The columns of the file. The first use removes an incomplete last row of an existing file."""
        text = self._read()
        if not text:
            return ["iteration"]
        if not text.endswith("\n"):
            with atomic_write(self._path, "w") as file:
                file.write(text[: text.rfind("\n") + 1])
        columns = next(csv.reader(io.StringIO(text)))
        if columns[:1] != ["iteration"]:
            raise ValueError(
                f"Cannot append to {self._path}: expected 'iteration' as its first column, got {columns[:1]}."
            )
        return columns

    def _add_columns(self, names: list[str]) -> None:
        """Rewrite the file with more columns, which are empty in the existing rows."""
        old = list(csv.DictReader(io.StringIO(self._read())))
        self._columns += names
        with atomic_write(self._path, "w") as file:
            table = csv.DictWriter(file, self._columns, restval="", lineterminator="\n")
            table.writeheader()
            table.writerows(old)


# Characters that MLflow does not allow in the name of a metric.
_NOT_IN_NAMES = re.compile(r"[^\w\-. /]")


def _as_hwc(image: Any) -> np.ndarray:
    """Convert an image of shape (3, height, width) in the storage to uint8 of shape (height, width, 3)."""
    array = image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    if array.dtype != np.uint8:
        array = (array.clip(0.0, 1.0) * 255.0).round().astype(np.uint8)
    return np.ascontiguousarray(array.transpose(1, 2, 0))


class _ServiceWriter(_ScalarWriter):
    """Base class of writers for services. The first write opens a run; a run that is already open stays open."""

    def __init__(self, package: str, window_size: int, config: Mapping[str, Any] | None, arguments: dict[str, Any]):
        super().__init__(window_size)
        try:  # fail before the first iteration
            self._service: Any = importlib.import_module(package)
        except ImportError as e:
            hint = f"pip install 'detectron2[{package}]'"
            raise ImportError(f"{type(self).__name__} needs the package {package}: {hint}") from e
        self._config = None if config is None else plain(config)
        self._arguments = arguments
        self._is_open = self._owns_run = False

    def write(self) -> None:
        """Send what is new; images stay in the storage for the other writers."""
        storage = get_event_storage()
        scalars = self._new_scalars(storage)
        images: dict[int, dict[str, np.ndarray]] = {}
        for name, image, iteration in storage.vis_data:
            images.setdefault(iteration, {})[name] = _as_hwc(image)
        for iteration in sorted({*scalars, *images}):
            if not self._is_open:
                self._open_run()
                self._is_open = True
            self._send(iteration, scalars.get(iteration, {}), images.get(iteration, {}))

    def close(self) -> None:
        """End the run if this writer started it."""
        if self._is_open and self._owns_run:
            self._end_run()
        self._is_open = False

    def _open_run(self) -> None:
        raise NotImplementedError

    def _end_run(self) -> None:
        raise NotImplementedError

    def _send(self, iteration: int, scalars: dict[str, float], images: dict[str, np.ndarray]) -> None:
        raise NotImplementedError


class WandbWriter(_ServiceWriter):
    """Sends scalars, images and the config to Weights & Biases. The first write starts the run.

    Project, entity and mode come from the arguments, which go to `wandb.init`, or from the environment variables of
    wandb, such as `WANDB_PROJECT` and `WANDB_MODE=offline`. A run that is already open is used and stays open. Noisy
    scalars are medians over the last `window_size` iterations. An `ImportError` says that wandb is not installed.
    """

    def __init__(self, window_size: int = 20, config: Mapping[str, Any] | None = None, **kwargs: Any):
        super().__init__("wandb", window_size, config, kwargs)
        self._run: Any = None
        self._last_step = 0

    def _open_run(self) -> None:
        self._owns_run = self._service.run is None
        self._run = self._service.run or self._service.init(config=self._config, **self._arguments)
        self._last_step = int(getattr(self._run, "step", 0) or 0)

    def _end_run(self) -> None:
        self._run.finish()

    def _send(self, iteration: int, scalars: dict[str, float], images: dict[str, np.ndarray]) -> None:
        # wandb drops data for a step before its last one, so the iteration is also part of the data.
        self._last_step = max(self._last_step, iteration)
        pictures = {name: self._service.Image(image) for name, image in images.items()}
        self._run.log({"iteration": iteration, **scalars, **pictures}, step=self._last_step)


class MLflowWriter(_ServiceWriter):
    """Sends scalars and images to MLflow, as `WandbWriter` does to Weights & Biases.

    Server, experiment and run come from the environment variables of MLflow, such as `MLFLOW_TRACKING_URI` and
    `MLFLOW_EXPERIMENT_NAME`, and `kwargs` go to `mlflow.start_run`. The config is stored with the run as `config.yaml`.
    Characters that MLflow does not allow in names become `_`.
    """

    def __init__(self, window_size: int = 20, config: Mapping[str, Any] | None = None, **kwargs: Any):
        super().__init__("mlflow", window_size, config, kwargs)

    def _open_run(self) -> None:
        self._owns_run = self._service.active_run() is None
        if self._owns_run:
            self._service.start_run(**self._arguments)
        if self._config is not None:
            self._service.log_dict(self._config, "config.yaml")

    def _end_run(self) -> None:
        self._service.end_run()

    def _send(self, iteration: int, scalars: dict[str, float], images: dict[str, np.ndarray]) -> None:
        if scalars:
            named = {_NOT_IN_NAMES.sub("_", name): value for name, value in scalars.items()}
            self._service.log_metrics(named, step=iteration)
        for name, image in images.items():
            self._service.log_image(image, f"images/{_NOT_IN_NAMES.sub('_', name)}_{iteration:07d}.png")


class _DropImages(EventWriter):
    """Drops images and histograms in place of the TensorBoard writer, so that they do not fill the memory."""

    def write(self) -> None:
        storage = get_event_storage()
        storage.clear_images()
        storage.clear_histograms()


def make_writers(
    names: Sequence[str],
    output_dir: str,
    max_iter: int | None = None,
    images_per_iter: int | None = None,
    config: Mapping[str, Any] | None = None,
) -> list[EventWriter]:
    """Make writers by name.

    The names are

    - `terminal`: a line in the log every period;
    - `progress`: a line that is redrawn in place; the same as `terminal` where the output is not a terminal;
    - `json`: `metrics.json` in the output folder, one JSON object per line;
    - `csv`: `metrics.csv` in the output folder, a table;
    - `tensorboard`: an event file in the output folder;
    - `wandb`: Weights & Biases, which needs `pip install 'detectron2[wandb]'`;
    - `mlflow`: MLflow, which needs `pip install 'detectron2[mlflow]'`.

    Args:
        names: any of these names in any order, for example `DEFAULT_WRITERS`.
        output_dir: folder of the files; it is created if necessary.
        max_iter: number of iterations of the whole training, for the remaining time.
        images_per_iter: images in one iteration over all processes, for the speed.
        config: config that the services store with the run.

    Returns:
        The writers in the order in which to call them.

    Raises:
        ValueError: a name is unknown.
        ImportError: the package of a service is not installed; the message shows the command that installs it.
    """
    if isinstance(names, str):
        raise ValueError(f"WRITERS must be a list of names, got the string {names!r}.")
    makers: dict[str, Callable[[], EventWriter]] = {
        "terminal": lambda: CommonMetricPrinter(max_iter, images_per_iter=images_per_iter),
        "progress": lambda: ProgressLine(max_iter, images_per_iter=images_per_iter),
        "json": lambda: JSONWriter(os.path.join(output_dir, "metrics.json")),
        "csv": lambda: CSVWriter(os.path.join(output_dir, "metrics.csv")),
        "wandb": lambda: WandbWriter(config=config, dir=output_dir),
        "mlflow": lambda: MLflowWriter(config=config),
        "tensorboard": lambda: TensorboardXWriter(output_dir),  # last, since it drops the images after showing them
    }
    unknown = [name for name in names if name not in makers]
    if unknown:
        raise ValueError(f"Unknown writers {unknown}. Choose from {sorted(makers)}.")
    PathManager.mkdirs(output_dir)
    writers = [make() for name, make in makers.items() if name in names]
    return writers if "tensorboard" in names else [*writers, _DropImages()]
