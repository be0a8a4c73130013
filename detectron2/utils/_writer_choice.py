"""From names of writers to writers."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.utils._event_storage import get_event_storage
from detectron2.utils._event_writers import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from detectron2.utils._progress_line import ProgressLine
from detectron2.utils._table_writer import CSVWriter
from detectron2.utils._tracking_writers import MLflowWriter, WandbWriter
from detectron2.utils.file_io import PathManager

__all__ = ["DEFAULT_WRITERS", "make_writers"]

DEFAULT_WRITERS = ("terminal", "json", "tensorboard")
"""The writers of a run that does not choose."""


@dataclass(frozen=True)
class _Run:
    """What the writers want to know about the run."""

    output_dir: str
    max_iter: int | None
    images_per_iter: int | None
    config: Mapping[str, Any] | None

    def file(self, name: str) -> str:
        return os.path.join(self.output_dir, name)


_WRITERS: dict[str, Callable[[_Run], EventWriter]] = {
    "terminal": lambda run: CommonMetricPrinter(run.max_iter, images_per_iter=run.images_per_iter),
    "progress": lambda run: ProgressLine(run.max_iter, images_per_iter=run.images_per_iter),
    "json": lambda run: JSONWriter(run.file("metrics.json")),
    "csv": lambda run: CSVWriter(run.file("metrics.csv")),
    "wandb": lambda run: WandbWriter(config=run.config, dir=run.output_dir),
    "mlflow": lambda run: MLflowWriter(config=run.config),
    # Last: it drops the images when it has shown them.
    "tensorboard": lambda run: TensorboardXWriter(run.output_dir),
}


class _DropImages(EventWriter):
    """Stands in for TensorBoard, which drops the images and histograms that it has shown; else they would pile up."""

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

    ======================= ===================================================================
    ``terminal``            a line in the log every period
    ``progress``            a line that is drawn over and over; as ``terminal`` where there is no terminal
    ``json``                ``metrics.json`` in the output folder, a JSON object per line
    ``csv``                 ``metrics.csv`` in the output folder, a table
    ``tensorboard``         an event file in the output folder
    ``wandb``               Weights & Biases; needs ``pip install 'detectron2[wandb]'``
    ``mlflow``              MLflow; needs ``pip install 'detectron2[mlflow]'``
    ======================= ===================================================================

    Args:
        names: some of these, in any order; :data:`DEFAULT_WRITERS` is the usual choice.
        output_dir: folder of the files; it is made if necessary.
        max_iter: the last iteration, for the estimate of the remaining time.
        images_per_iter: images in one iteration over all processes, for the speed.
        config: the config as plain containers, kept by the services.

    Returns:
        The writers, in the order in which they have to be called.

    Raises:
        ValueError: a name is unknown.
        ImportError: the package of a service is not installed; the message has the command that installs it.
    """
    if isinstance(names, str):
        raise ValueError(f"WRITERS must be a list of names, but is the text {names!r}.")
    unknown = [name for name in names if name not in _WRITERS]
    if unknown:
        raise ValueError(f"There are no writers named {unknown}; choose among {sorted(_WRITERS)}.")
    PathManager.mkdirs(output_dir)
    run = _Run(output_dir, max_iter, images_per_iter, config)
    writers = [make(run) for name, make in _WRITERS.items() if name in names]
    return writers if "tensorboard" in names else [*writers, _DropImages()]
