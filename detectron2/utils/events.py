"""Training statistics: where models and hooks put them, and the writers that show them.

Inside ``with EventStorage() as storage:`` any code below may call :func:`put_scalar`; outside, the call does nothing,
so that a model need not know whether it is being trained. Scalars that are tensors stay on their device until something
reads them; then all of them move in one transfer, so that putting a scalar never waits for the accelerator.
"""

from detectron2.utils._event_storage import (
    _CURRENT_STORAGE_STACK,
    EventStorage,
    get_event_storage,
    has_event_storage,
    put_histogram,
    put_image,
    put_scalar,
)
from detectron2.utils._event_writers import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from detectron2.utils._progress_line import ProgressLine
from detectron2.utils._table_writer import CSVWriter
from detectron2.utils._tracking_writers import MLflowWriter, WandbWriter
from detectron2.utils._writer_choice import DEFAULT_WRITERS, make_writers

__all__ = [
    "DEFAULT_WRITERS",
    "_CURRENT_STORAGE_STACK",
    "CSVWriter",
    "CommonMetricPrinter",
    "EventStorage",
    "EventWriter",
    "JSONWriter",
    "MLflowWriter",
    "ProgressLine",
    "TensorboardXWriter",
    "WandbWriter",
    "get_event_storage",
    "has_event_storage",
    "make_writers",
    "put_histogram",
    "put_image",
    "put_scalar",
]
