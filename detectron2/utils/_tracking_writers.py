"""Writers for services that track experiments: Weights & Biases, MLflow. Their packages are extras."""

import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from detectron2.utils._event_storage import EventStorage, get_event_storage
from detectron2.utils._event_writers import EventWriter, _NewScalars

__all__ = ["MLflowWriter", "WandbWriter"]

# What MLflow does not allow in the name of a metric.
_NOT_IN_NAMES = re.compile(r"[^\w\-. /]")


def _import_extra(name: str, writer: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise ImportError(f"{writer} needs the package {name}: pip install 'detectron2[{name}]'") from e


def _by_iteration(new: _NewScalars, storage: EventStorage) -> dict[int, dict[str, float]]:
    """-> the new scalars of every iteration, in rising order."""
    rows: dict[int, dict[str, float]] = {}
    for name, (value, iteration) in new.take(storage).items():
        rows.setdefault(iteration, {})[name] = value
    return {iteration: rows[iteration] for iteration in sorted(rows)}


def _as_hwc(image: Any) -> np.ndarray:
    """-> an image of the storage, (3, height, width), as uint8 of shape (height, width, 3)."""
    array = image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    if array.dtype != np.uint8:
        array = (array.clip(0.0, 1.0) * 255.0).round().astype(np.uint8)
    return np.ascontiguousarray(array.transpose(1, 2, 0))


def _plain(value: Any) -> Any:
    """-> a config as dicts, lists, numbers and text, which the services can write down."""
    if isinstance(value, Mapping):
        return {str(key): _plain(value[key]) for key in value}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


class WandbWriter(EventWriter):
    """Sends scalars and images to Weights & Biases. The run is begun by the first write.

    Project, entity and mode are taken from the arguments or from the variables that wandb reads, such as
    ``WANDB_PROJECT`` and ``WANDB_MODE=offline``. A run that is already open is used and not closed.

    Args:
        window_size: iterations over which noisy scalars are smoothed (median).
        config: shown with the run.
        **kwargs: further arguments of ``wandb.init``.

    Raises:
        ImportError: wandb is not installed.
    """

    def __init__(self, window_size: int = 20, config: Mapping[str, Any] | None = None, **kwargs: Any):
        self._wandb = _import_extra("wandb", "WandbWriter")  # now: not after the first iterations
        self._new = _NewScalars(window_size)
        self._arguments = {"config": None if config is None else _plain(config), **kwargs}
        self._run: Any = None
        self._owns_run = False
        self._last_step = 0

    def _open_run(self) -> Any:
        if self._run is None:
            self._owns_run = self._wandb.run is None
            self._run = self._wandb.init(**self._arguments) if self._owns_run else self._wandb.run
            self._last_step = int(getattr(self._run, "step", 0) or 0)
        return self._run

    def write(self) -> None:
        """Send what is new; images stay in the storage for the other writers."""
        storage = get_event_storage()
        rows: dict[int, dict[str, Any]] = dict(_by_iteration(self._new, storage))
        for name, image, iteration in storage.vis_data:
            rows.setdefault(iteration, {})[name] = self._wandb.Image(_as_hwc(image))
        for iteration in sorted(rows):
            run = self._open_run()
            # wandb drops what comes for a step before its last one. The iteration is in the data as well.
            self._last_step = max(self._last_step, iteration)
            run.log({"iteration": iteration, **rows[iteration]}, step=self._last_step)

    def close(self) -> None:
        """End the run, if this writer began it."""
        if self._run is not None and self._owns_run:
            self._run.finish()
        self._run = None


class MLflowWriter(EventWriter):
    """Sends scalars and images to MLflow. The run is begun by the first write.

    Server, experiment and run are taken from the variables that MLflow reads, such as ``MLFLOW_TRACKING_URI`` and
    ``MLFLOW_EXPERIMENT_NAME``. A run that is already open is used and not closed. Characters that MLflow does not allow
    in names become ``_``.

    Args:
        window_size: iterations over which noisy scalars are smoothed (median).
        config: kept with the run as ``config.yaml``.
        **kwargs: arguments of ``mlflow.start_run``.

    Raises:
        ImportError: MLflow is not installed.
    """

    def __init__(self, window_size: int = 20, config: Mapping[str, Any] | None = None, **kwargs: Any):
        self._mlflow = _import_extra("mlflow", "MLflowWriter")
        self._new = _NewScalars(window_size)
        self._config = config
        self._arguments = kwargs
        self._is_open = self._owns_run = False

    def _open_run(self) -> None:
        if not self._is_open:
            self._is_open = True
            self._owns_run = self._mlflow.active_run() is None
            if self._owns_run:
                self._mlflow.start_run(**self._arguments)
            if self._config is not None:
                self._mlflow.log_dict(_plain(self._config), "config.yaml")

    def write(self) -> None:
        """Send what is new; images stay in the storage for the other writers."""
        storage = get_event_storage()
        for iteration, values in _by_iteration(self._new, storage).items():
            self._open_run()
            named = {_NOT_IN_NAMES.sub("_", name): value for name, value in values.items()}
            self._mlflow.log_metrics(named, step=iteration)
        for name, image, iteration in storage.vis_data:
            self._open_run()
            self._mlflow.log_image(_as_hwc(image), f"images/{_NOT_IN_NAMES.sub('_', name)}_{iteration:07d}.png")

    def close(self) -> None:
        """End the run, if this writer began it."""
        if self._is_open and self._owns_run:
            self._mlflow.end_run()
        self._is_open = False
