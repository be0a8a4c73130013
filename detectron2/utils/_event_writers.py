"""Writers of :mod:`detectron2.utils.events`: to a JSON-lines file, to TensorBoard, to the log."""

import datetime
import functools
import json
import logging
import math
import os
import time
from typing import Any

import torch

from detectron2.utils._event_storage import EventStorage, get_event_storage
from detectron2.utils.file_io import PathManager

__all__ = ["CommonMetricPrinter", "EventWriter", "JSONWriter", "TensorboardXWriter"]


class EventWriter:
    """Base of everything that takes statistics out of the open :class:`EventStorage`."""

    def write(self) -> None:
        """Write what is new since the last call."""
        raise NotImplementedError

    def close(self) -> None:
        """Release files and connections; nothing is written afterwards."""


class _NewScalars:
    """Remembers what was written, and selects what came after.

    Args:
        window_size: iterations over which noisy scalars are smoothed.
    """

    def __init__(self, window_size: int):
        self._window_size = window_size
        self._written: dict[str, int] = {}

    def take(self, storage: EventStorage) -> dict[str, tuple[float, int]]:
        latest = storage.latest_with_smoothing_hint(self._window_size)
        fresh = {name: (value, it) for name, (value, it) in latest.items() if it > self._written.get(name, -1)}
        self._written.update({name: it for name, (_, it) in fresh.items()})
        return fresh


class JSONWriter(EventWriter):
    """Appends scalars to a file, one JSON object per line and iteration, with the key ``iteration`` among them.

    Read it line by line, or with ``jq -s '.[].loss_mask' metrics.json``. The file is opened at the first write.

    Args:
        json_file: path of the file; new lines are appended to an old one.
        window_size: iterations over which noisy scalars are smoothed (median).
    """

    def __init__(self, json_file: str | os.PathLike, window_size: int = 20):
        self._json_file = os.fspath(json_file)
        self._window_size = window_size
        self._new = _NewScalars(window_size)

    @functools.cached_property
    def _file_handle(self) -> Any:
        return PathManager.open(self._json_file, "a")

    def write(self) -> None:
        """Append one line for each iteration that has new scalars."""
        lines: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in self._new.take(get_event_storage()).items():
            lines.setdefault(iteration, {"iteration": iteration})[name] = value
        for iteration in sorted(lines):
            self._file_handle.write(json.dumps(lines[iteration], sort_keys=True) + "\n")
        self._file_handle.flush()
        try:
            os.fsync(self._file_handle.fileno())
        except (AttributeError, OSError):  # a stream without a descriptor
            return

    def close(self) -> None:
        """Close the file, if it was opened."""
        if "_file_handle" in self.__dict__:
            self._file_handle.close()


class TensorboardXWriter(EventWriter):
    """Writes scalars, images and histograms for TensorBoard. The event file is created at the first write.

    Args:
        log_dir: folder of the event file.
        window_size: iterations over which noisy scalars are smoothed (median).
        **kwargs: further arguments of ``torch.utils.tensorboard.SummaryWriter``.
    """

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs: Any):
        self._window_size = window_size
        self._writer_args = {"log_dir": log_dir, **kwargs}
        self._new = _NewScalars(window_size)

    @functools.cached_property
    def _writer(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(**self._writer_args)

    def write(self) -> None:
        """Write new scalars, and all waiting images and histograms, which are then dropped."""
        storage = get_event_storage()
        for name, (value, iteration) in self._new.take(storage).items():
            self._writer.add_scalar(name, value, iteration)
        # Dropping the data here keeps its memory low; it also means that only one writer shows images.
        if storage.vis_data:
            for name, image, iteration in storage.vis_data:
                self._writer.add_image(name, image, iteration)
            storage.clear_images()
        if storage.histograms:
            for arguments in storage.histograms:
                self._writer.add_histogram_raw(**arguments)
            storage.clear_histograms()

    def close(self) -> None:
        """Close the event file, if there is one."""
        if "_writer" in self.__dict__:
            self._writer.close()


class CommonMetricPrinter(EventWriter):
    """Logs one line with the remaining time, the losses, times, learning rate and peak memory.

    Args:
        max_iter: number of iterations of the whole training, for the remaining time; None to leave it out.
        window_size: iterations over which losses and times are smoothed.
        images_per_iter: images in the batches of all processes together; the line then shows images per second.
    """

    def __init__(self, max_iter: int | None = None, window_size: int = 20, images_per_iter: int | None = None):
        self.logger = logging.getLogger("detectron2.utils.events")
        self._max_iter = max_iter
        self._window_size = window_size
        self._images_per_iter = images_per_iter
        self._last_write: tuple[int, float] | None = None  # (iteration, seconds) of the previous line
        self._shown_until = -1  # iteration of the previous line

    def write(self) -> None:
        """Log the line; nothing after the last iteration, which belongs to no training step."""
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
        self._shown_until = storage.iter
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
        elif last is not None and now[0] > last[0]:  # nobody measures the steps: measure between two lines
            seconds = (now[1] - last[1]) / (now[0] - last[0]) * remaining
        else:
            return "eta: N/A"
        return f"eta: {datetime.timedelta(seconds=int(seconds))}" if math.isfinite(seconds) else "eta: N/A"

    def _losses(self, storage: EventStorage) -> list[str]:
        return [
            f"{name}: {buffer.median(storage.count_samples(name, self._window_size)):.4g}"
            for name, buffer in list(storage.histories().items())
            if "loss" in name and self._is_news(name, storage)
        ]

    def _is_news(self, name: str, storage: EventStorage) -> bool:
        """Of the loss on other data the sum is shown, and only once."""
        if not name.startswith("validation/"):
            return True
        at = storage.latest()[name][1]
        return name == "validation/total_loss" and at > self._shown_until

    def _times(self, storage: EventStorage) -> list[str]:
        fields = []
        for name in ("time", "data_time"):
            buffer = storage.histories().get(name)
            if buffer is not None:
                fields.append(f"{name}: {buffer.avg(storage.count_samples(name, self._window_size)):.4f}")
                fields.append(f"last_{name}: {buffer.latest():.4f}")
                if name == "time" and self._images_per_iter:
                    seconds = buffer.avg(storage.count_samples(name, self._window_size))
                    fields.append(f"images/s: {self._images_per_iter / seconds:.1f}" if seconds > 0 else "")
        return fields

    def _learning_rate(self, storage: EventStorage) -> str:
        buffer = storage.histories().get("lr")
        return "lr: N/A" if buffer is None else f"lr: {buffer.latest():.5g}"
