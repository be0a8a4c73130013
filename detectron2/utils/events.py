"""Training statistics: models and hooks put them into an `EventStorage`, and writers show them.

Inside `with EventStorage() as storage:` any code may call `put_scalar`; outside, the call does nothing, so a model need
not know whether it is being trained. Scalars that are tensors stay on their device until something reads them. Then all
of them move in one transfer, so putting a scalar never waits for the accelerator.

The writers are in `detectron2.utils.writers` and can be imported from here as well.
"""

import importlib
import itertools
import logging
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from fvcore.common.history_buffer import HistoryBuffer

if TYPE_CHECKING:
    from detectron2.utils.writers import *  # noqa: F403
# ruff: noqa: F405  # __all__ names the writers, too

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


def __getattr__(name: str) -> Any:
    # What is listed above and not defined here is a writer. Writers read the storage, so their module imports this one.
    if name in __all__:
        return getattr(importlib.import_module("detectron2.utils.writers"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


logger = logging.getLogger(__name__)

# Number of waiting values after which they are converted even if nothing reads them.
_MAX_PENDING = 4096

_CURRENT_STORAGE_STACK: list["EventStorage"] = []


def get_event_storage() -> "EventStorage":
    """Return the innermost open storage; raise a `RuntimeError` if none is open."""
    if not _CURRENT_STORAGE_STACK:
        raise RuntimeError(
            "No EventStorage is open. Run this inside 'with EventStorage() as storage:', as the trainers do; "
            "code that should also work without one calls detectron2.utils.events.put_scalar instead."
        )
    return _CURRENT_STORAGE_STACK[-1]


def has_event_storage() -> bool:
    """Return whether a storage is open."""
    return bool(_CURRENT_STORAGE_STACK)


def put_scalar(name: str, value: Any, smoothing_hint: bool = True) -> None:
    """Call `EventStorage.put_scalar` on the open storage; do nothing if no storage is open."""
    if _CURRENT_STORAGE_STACK:
        _CURRENT_STORAGE_STACK[-1].put_scalar(name, value, smoothing_hint=smoothing_hint)


def put_image(img_name: str, img_tensor: Any) -> None:
    """Call `EventStorage.put_image` on the open storage; do nothing if no storage is open."""
    if _CURRENT_STORAGE_STACK:
        _CURRENT_STORAGE_STACK[-1].put_image(img_name, img_tensor)


def put_histogram(hist_name: str, hist_tensor: torch.Tensor, bins: int = 1000) -> None:
    """Call `EventStorage.put_histogram` on the open storage; do nothing if no storage is open."""
    if _CURRENT_STORAGE_STACK:
        _CURRENT_STORAGE_STACK[-1].put_histogram(hist_name, hist_tensor, bins)


class EventStorage:
    """Scalars with their history, images and histograms of one training run, which begins at `start_iter`.

    >>> with EventStorage() as storage:
    ...     put_scalar("loss", 0.5)
    ...     storage.latest()
    {'loss': (0.5, 0)}
    """

    def __init__(self, start_iter: int = 0):
        self._iter = int(start_iter)
        self._prefix = ""
        self._buffers: defaultdict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._latest: dict[str, tuple[float, int]] = {}
        self._hints: dict[str, bool] = {}
        self._pending: list[tuple[tuple[str, ...], Any, int]] = []  # names, a number or tensor, iteration
        self._awaited: deque[Any] = deque()  # for the training loop: losses on their way to be checked
        self._vis_data: list[tuple[str, Any, int]] = []
        self._histograms: list[dict[str, Any]] = []

    def put_image(self, img_name: str, img_tensor: Any) -> None:
        """Keep an image until the writers have shown it.

        Args:
            img_name: its name.
            img_tensor: RGB of shape (3, height, width): float in [0, 1] or uint8 in [0, 255].
        """
        self._vis_data.append((self._prefix + img_name, img_tensor, self._iter))

    def put_scalar(self, name: str, value: Any, smoothing_hint: bool = True, cur_iter: int | None = None) -> None:
        """Add a number to the history of `name`.

        Args:
            name: its name; slashes group it in TensorBoard.
            value: a number or a tensor of one element. A tensor is copied on its device and converted when read.
            smoothing_hint: whether the number is noisy, so that writers show a median over a window. Must be the same
                at every call for one name.
            cur_iter: iteration that it belongs to; the current one by default.

        Raises:
            ValueError: the tensor has several elements, or the hint changed.
        """
        if isinstance(value, torch.Tensor):
            if value.numel() != 1:
                raise ValueError(
                    f"Scalar {self._prefix + name!r} must have one element, but its shape is {tuple(value.shape)}."
                )
            value = value.detach().reshape(1).clone()  # later in-place changes must not reach the record
        else:
            value = float(value)
        self._put((name,), value, smoothing_hint, cur_iter)

    def put_scalars(self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs: Any) -> None:
        """Add several numbers by name, such as `put_scalars(loss=0.5, accuracy=0.9)`; the rest as in `put_scalar`."""
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def put_vector(
        self, names: Sequence[str], values: torch.Tensor, smoothing_hint: bool = True, cur_iter: int | None = None
    ) -> None:
        """Add several numbers from one tensor of shape (len(names),), another shape being a `ValueError`.

        This costs as much as adding one. The tensor is kept without a copy and converted when read, so the caller must
        not change it afterwards. The rest is as in `put_scalar`.
        """
        if values.shape != (len(names),):
            raise ValueError(
                f"Expected values of shape ({len(names)},) for {len(names)} names, got {tuple(values.shape)}."
            )
        self._put(tuple(names), values.detach(), smoothing_hint, cur_iter)

    def _put(self, names: tuple[str, ...], value: Any, smoothing_hint: bool, cur_iter: int | None) -> None:
        names = tuple(self._prefix + name for name in names)
        for name in names:
            known = self._hints.setdefault(name, smoothing_hint)
            if known != smoothing_hint:
                raise ValueError(
                    f"Scalar {name!r} was first put with smoothing_hint={known}, now with {smoothing_hint}."
                )
        self._pending.append((names, value, self._iter if cur_iter is None else int(cur_iter)))
        if len(self._pending) >= _MAX_PENDING:
            self._flush()

    def put_histogram(self, hist_name: str, hist_tensor: torch.Tensor, bins: int = 1000) -> None:
        """Keep the histogram of a tensor, with equal bins between its extremes, until the writers have shown it.

        Values that are not finite are left out with a warning.
        """
        given = hist_tensor.detach().float().reshape(-1)
        values = given[given.isfinite()]
        if left_out := given.numel() - values.numel():
            text = "Left out %d of the %d values of histogram %r: they are not finite."
            logger.warning(text, left_out, given.numel(), hist_name)
        low, high = (values.min().item(), values.max().item()) if values.numel() else (0.0, 0.0)
        counts = torch.histc(values, bins=bins, min=low, max=high) if values.numel() else torch.zeros(bins)
        edges = torch.linspace(low, high, steps=bins + 1)
        self._histograms.append(
            {
                "tag": self._prefix + hist_name,
                "min": low,
                "max": high,
                "num": values.numel(),
                "sum": float(values.sum()),
                "sum_squares": float(values.square().sum()),
                "bucket_limits": edges[1:].tolist(),
                "bucket_counts": counts.tolist(),
                "global_step": self._iter,
            }
        )

    def _flush(self) -> None:
        """Move everything that was put into the histories; tensors cross to the host in one transfer per device."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        numbers = _on_host([value for _, value, _ in pending])
        for (names, _, iteration), values in zip(pending, numbers, strict=True):
            for name, number in zip(names, values, strict=True):
                self._buffers[name].update(number, iteration)
                self._latest[name] = (number, iteration)

    def history(self, name: str) -> HistoryBuffer:
        """Return the buffer with all values of one scalar, by its full name; raise a `KeyError` for an unknown name.

        The buffer has the methods `latest`, `median`, `avg`, `global_avg` and `values`.
        """
        self._flush()
        if name not in self._buffers:
            raise KeyError(f"No scalar is named {name!r}. Known names: {sorted(self._buffers)}.")
        return self._buffers[name]

    def histories(self) -> dict[str, HistoryBuffer]:
        """Return the buffers of all scalars by name."""
        self._flush()
        return self._buffers

    def latest(self) -> dict[str, tuple[float, int]]:
        """Return the newest value of every scalar with its iteration."""
        self._flush()
        return self._latest

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """Return what `latest` returns, with noisy scalars replaced by their median over the last iterations."""
        return {
            name: (
                float(self._buffers[name].median(self.count_samples(name, window_size)))
                if self._hints[name]
                else value,
                iteration,
            )
            for name, (value, iteration) in self.latest().items()
        }

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """Count the values of a scalar, by its full name, in the `window_size` iterations up to its newest value."""
        values = self.history(name).values()
        oldest = values[-1][1] - window_size
        return sum(1 for _ in itertools.takewhile(lambda entry: entry[1] > oldest, reversed(values)))

    def recent(self, window_size: int = 20) -> dict[str, list[tuple[float, float]]]:
        """Return the values of every noisy scalar, each with its iteration, in the last `window_size` iterations."""
        noisy = [name for name in self.histories() if self._hints[name]]
        return {name: self._buffers[name].values()[-self.count_samples(name, window_size) :] for name in noisy}

    def add_earlier(self, values: Mapping[str, Sequence[Sequence[Any]]]) -> None:
        """Take values of an earlier run, as from `recent`, into the medians; writers do not show them again."""
        for name, entries in values.items():
            self._hints[name] = True
            for value, iteration in entries:
                self._buffers[name].update(value, iteration)

    def smoothing_hints(self) -> dict[str, bool]:
        """Return whether each scalar is noisy, by name."""
        return self._hints

    def step(self) -> None:
        """Go to the next iteration. Setting `iter` before each iteration has the same effect."""
        self._iter += 1

    @property
    def iter(self) -> int:
        """The current iteration; during training that of the trainer."""
        return self._iter

    @iter.setter
    def iter(self, val: int) -> None:
        self._iter = int(val)

    @property
    def iteration(self) -> int:
        """The current iteration, by its older name."""
        return self._iter

    @property
    def vis_data(self) -> list[tuple[str, Any, int]]:
        """Images that no writer has shown yet, as (name, image, iteration)."""
        return self._vis_data

    @property
    def histograms(self) -> list[dict[str, Any]]:
        """Histograms that no writer has shown yet, as arguments of `SummaryWriter.add_histogram_raw`."""
        return self._histograms

    @contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """Prefix the names of everything put inside with `name/`. An inner scope replaces the outer one."""
        outer, self._prefix = self._prefix, name.rstrip("/") + "/"
        try:
            yield
        finally:
            self._prefix = outer

    def clear_images(self) -> None:
        """Drop the images after a writer has shown them."""
        self._vis_data = []

    def clear_histograms(self) -> None:
        """Drop the histograms after a writer has shown them."""
        self._histograms = []

    def __enter__(self) -> "EventStorage":
        _CURRENT_STORAGE_STACK.append(self)
        return self

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        top = _CURRENT_STORAGE_STACK.pop()
        assert top is self, "EventStorage contexts must be left in the reverse order of entering them"


def _on_host(values: Sequence[Any]) -> list[list[float]]:
    """Convert numbers and one-dimensional tensors to lists; move all tensors of one device together."""
    converted = [[] if isinstance(value, torch.Tensor) else [value] for value in values]
    kinds: defaultdict[torch.device, defaultdict[torch.dtype, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, value in enumerate(values):
        if isinstance(value, torch.Tensor):
            kinds[value.device][value.dtype].append(index)
    for device, by_dtype in kinds.items():
        # As float64 all kinds fit into one transfer, and counts keep their digits. Apple's GPUs do not have it.
        wide = torch.float32 if device.type == "mps" else torch.float64
        order = [index for indices in by_dtype.values() for index in indices]
        parts = [torch.cat([values[index] for index in indices]).to(wide) for indices in by_dtype.values()]
        numbers = iter(torch.cat(parts).tolist())
        for index in order:
            converted[index] = [next(numbers) for _ in range(values[index].numel())]
    return converted
