"""A line at the bottom of a terminal that shows how far training is."""

import logging
import shutil
import sys
from typing import Any

from detectron2.utils._event_storage import EventStorage, get_event_storage
from detectron2.utils._event_writers import CommonMetricPrinter

__all__ = ["ProgressLine"]

_ERASE_LINE = "\r\x1b[K"
_BAR_CELLS = 24
_WIDE = 79  # columns; a narrower terminal gets a shorter bar


class _EraseBeforeMessages(logging.Handler):
    """Clears the line before another handler prints a message in its place.

    Args:
        line: the progress line.
    """

    def __init__(self, line: "ProgressLine"):
        super().__init__(logging.NOTSET)
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        """Clear the line; the next write draws it again."""
        self._line.erase()


class ProgressLine(CommonMetricPrinter):
    """One line that is drawn over and over: iterations done, remaining time, speed, loss, learning rate.

    Where the stream is no terminal (a file, a pipe, a batch system) it logs lines as :class:`CommonMetricPrinter` does.
    Log messages appear above the line.

    Args:
        max_iter: number of iterations of the whole training; None leaves out bar and remaining time.
        window_size: iterations over which losses and times are smoothed.
        images_per_iter: images in the batches of all processes together; the line then shows images per second.
        stream: where to draw; default: standard output, where the log goes too.
    """

    def __init__(
        self,
        max_iter: int | None = None,
        window_size: int = 20,
        images_per_iter: int | None = None,
        stream: Any = None,
    ):
        super().__init__(max_iter, window_size, images_per_iter)
        self._stream = sys.stdout if stream is None else stream
        self._is_terminal = bool(getattr(self._stream, "isatty", lambda: False)())
        self._is_drawn = False
        self._eraser: _EraseBeforeMessages | None = None

    def write(self) -> None:
        """Draw the line anew."""
        if not self._is_terminal:
            super().write()
            return
        storage = get_event_storage()
        if storage.iter == self._max_iter:  # belongs to no training step
            return
        if self._eraser is None:
            self._eraser = _EraseBeforeMessages(self)
            for name in ("detectron2", "fvcore"):  # in front of the handlers that print
                logging.getLogger(name).handlers.insert(0, self._eraser)
        width = shutil.get_terminal_size().columns - 1
        fields = [self._bar(storage.iter + 1, width), self._eta(storage), *self._speed_and_loss(storage)]
        self._stream.write(_ERASE_LINE + _fit([field for field in fields if field], width))
        self._stream.flush()
        self._is_drawn = True

    def erase(self) -> None:
        """Clear the line, if it is drawn."""
        if self._is_drawn:
            self._stream.write(_ERASE_LINE)
            self._stream.flush()
            self._is_drawn = False

    def close(self) -> None:
        """Leave the last line on the screen, and what comes later below it."""
        if self._is_drawn:
            self._stream.write("\n")
            self._stream.flush()
            self._is_drawn = False
        if self._eraser is not None:
            for name in ("detectron2", "fvcore"):
                logging.getLogger(name).removeHandler(self._eraser)
            self._eraser = None

    def _bar(self, done: int, width: int) -> str:
        if self._max_iter is None:
            return f"iteration {done}"
        part = min(done / max(self._max_iter, 1), 1.0)
        all_cells = _BAR_CELLS if width >= _WIDE else _BAR_CELLS // 3
        cells = round(part * all_cells)
        return f"[{'#' * cells}{'.' * (all_cells - cells)}] {part:4.0%} {done}/{self._max_iter}"

    def _speed_and_loss(self, storage: EventStorage) -> list[str]:
        """The most important one first."""
        known = [*self._losses(storage), *self._times(storage), self._learning_rate(storage)]
        return [f for wanted in ("total_loss", "images/s", "lr", "time") for f in known if f.startswith(wanted)]


def _fit(fields: list[str], width: int) -> str:
    """-> as many of the first fields as there is room for: a number that is cut off would be another number."""
    line = fields[0][:width]
    for field in fields[1:]:
        if len(line) + 2 + len(field) > width:
            break
        line += f"  {field}"
    return line
