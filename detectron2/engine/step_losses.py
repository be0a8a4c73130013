"""Read, check and record the losses of a step in all processes, without waiting for the device to finish its work.

Letters: `P` processes, `L` losses.
"""

import contextlib
import functools
import logging
import math
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

import detectron2.utils.comm as comm
from detectron2.distributed.exchange import tracked
from detectron2.utils.events import EventStorage, get_event_storage
from detectron2.utils.logger import log_first_n

__all__ = ["HostCopy", "LossNotFinite", "LossWatch", "raise_if_not_finite", "record_losses"]

logger = logging.getLogger("detectron2.engine.train_loop")

# Numbers in a message about losses. The size is fixed, so that processes with different losses do not wait for each
# other; a model with more losses sends a multiple of this size.
_MESSAGE = 128
_HEAD = 2  # key of the names of the losses, seconds spent waiting for data
_KEYS = 1 << 24  # integers that float32 holds exactly


class LossNotFinite(FloatingPointError):
    """A loss is infinite or NaN in the processes `ranks`, and all processes know it.

    If `is_joint`, all processes raise this at the same point of the same step.
    """

    def __init__(self, message: str, ranks: Sequence[int] = (0,), is_joint: bool = True):
        super().__init__(message)
        self.ranks = tuple(ranks)
        self.is_joint = is_joint


class HostCopy:
    """A copy of a few numbers, which must not be changed afterwards, from the device to the host."""

    def __init__(self, values: torch.Tensor):
        self._values, self._arrival = _start_copy(values.detach())

    def has_arrived(self) -> bool:
        """Return whether `numbers` returns at once."""
        return self._arrival is None or self._arrival.query()

    def numbers(self) -> Any:
        """Return the numbers as nested lists; this waits for work queued before the copy, not after it."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._values.tolist()


def _start_copy(values: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """Return the values in host memory, and the event after which they are valid; None if they are valid now."""
    if values.device.type != "cuda":
        return values, None
    # Only a copy to pinned memory is asynchronous; a blocking event lets the host sleep while it waits.
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    arrival = torch.cuda.Event(blocking=True)
    arrival.record()
    return host, arrival


@functools.lru_cache(maxsize=16)
def _side_stream(device: torch.device) -> torch.cuda.Stream:  # one for each device
    return torch.cuda.Stream(device)


@contextlib.contextmanager
def _on_side_stream(value: torch.Tensor) -> Iterator[None]:
    """Queue work within a `with` block after `value` is computed, on a stream that later work does not wait for."""
    if value.device.type != "cuda":
        yield
        return
    stream = _side_stream(value.device)
    stream.wait_stream(torch.cuda.current_stream(value.device))
    value.record_stream(stream)  # keeps its memory while this stream reads it
    with torch.cuda.stream(stream):
        yield


def _gather_rows(row: torch.Tensor) -> torch.Tensor:
    """Return the rows of all processes, `Tensor[P, ...]`; on a GPU this is queued, on the CPU it waits."""
    world_size = comm.get_world_size()
    if world_size == 1:
        return row[None]
    device = row.device
    if device.type != "cpu" and dist.get_backend() == dist.Backend.GLOO:
        row = row.cpu()
    rows = row.new_empty(world_size * row.numel())
    if row.device.type == "cpu":
        group = comm._get_global_gloo_group()
        with tracked("gathering losses", group):
            dist.all_gather_into_tensor(rows, row, group=group)
    else:
        # An asynchronous call and a wait, so that the exchange is in one queue with those of the gradients.
        work: Any = dist.all_gather_into_tensor(rows, row, async_op=True)
        work.wait()  # makes the stream wait, not the host
    return rows.view(world_size, -1).to(device, non_blocking=True)


class LossWatch:
    """Exchange the sum of the losses between processes while the device works; all processes make one in every step.

    It is made after the forward pass is queued, and read after the backward pass is queued. The device then computes
    gradients while the host waits for the loss, and the weights are unchanged. A process that could not compute the sum
    of its losses gives None for it.
    """

    def __init__(self, total: torch.Tensor | None, device: torch.device):
        has_failed = total is None
        total = torch.full((), math.inf, device=device) if total is None else total.detach().float().reshape(())
        self._is_alone = comm.get_world_size() == 1
        if self._is_alone:
            self._copy = HostCopy(total)
            return
        with _on_side_stream(total):
            row = torch.stack([total, torch.full((), float(has_failed), device=total.device)])
            self._copy = HostCopy(_gather_rows(row))

    def raise_for_failure(self) -> None:
        """Raise `LossNotFinite` if another process left the step, because its gradients would never arrive."""
        if not self._is_alone and self._copy.has_arrived():
            failed = [rank for rank, (_, has_failed) in enumerate(self._copy.numbers()) if has_failed]
            if failed:
                text = f"{_ranks(failed)} found numbers that are not finite and left the step."
                raise LossNotFinite(text, failed, is_joint=False)

    def totals(self) -> list[float]:
        """Return the sum of the losses in each process, or raise as `raise_for_failure` does."""
        found = self._copy.numbers()
        if self._is_alone:
            return [found]
        self.raise_for_failure()
        return [total for total, _ in found]


def _ranks(ranks: Sequence[int]) -> str:
    return f"{'Rank' if len(ranks) == 1 else 'Ranks'} {', '.join(map(str, ranks))}"


def raise_if_not_finite(iteration: int, totals: Sequence[float], losses: Mapping[str, Any]) -> None:
    """Raise `LossNotFinite` if the sum of the losses is not finite in some process.

    This is the one place that decides, and words the message, which shows the losses of this process.
    """
    ranks = [rank for rank, total in enumerate(totals) if not math.isfinite(total)]
    if not ranks:
        return
    text = f"The loss became infinite or NaN in iteration {iteration}"
    if comm.get_world_size() > 1:
        text += f" on {_ranks(ranks).lower()}"
    if comm.get_rank() in ranks:
        text += f": {', '.join(f'{k}={float(torch.as_tensor(v).detach()):g}' for k, v in losses.items())}"
    raise LossNotFinite(f"{text}.", ranks)


def record_losses(
    loss_dict: Mapping[str, Any], data_time: float, cur_iter: int | None = None, prefix: str = ""
) -> None:
    """Record the means of losses over all processes, their sum and the data time in the storage of the main process.

    If the losses are on a GPU, this does not wait for it. The means are computed there and read when a writer needs
    them, and a later call detects numbers that are not finite, when they have arrived.

    Args:
        loss_dict: maps names to scalar tensors or numbers. Processes with other names are left out of the means.
        data_time: seconds spent waiting for the batch; the largest value of all processes is recorded.
        cur_iter: iteration of the losses; default: that of the storage.
        prefix: prefix of the name of the sum, `total_loss`.

    Raises:
        LossNotFinite: the sum is not finite in some process, now or in an earlier call; all processes raise it.
    """
    storage = get_event_storage()
    names = tuple(loss_dict)
    at = storage.iter if cur_iter is None else cur_iter
    own = _as_vector(loss_dict)
    if comm.get_world_size() == 1 and _is_at_hand(own):
        _record_at_once(storage, dict(zip(names, own.tolist(), strict=True)), data_time, at, prefix)
        return
    mean, longest, same, totals = own, data_time, own.new_ones(1), own.sum()[None]
    if comm.get_world_size() > 1:
        rows = _gather_rows(_message(names, own, data_time))
        is_same = rows[:, 0] == _key(names)
        same = is_same.sum()[None]
        mean = torch.where(is_same[:, None], rows[:, _HEAD : _HEAD + len(names)], 0.0).sum(dim=0) / same
        longest = rows[:, 1].max()
        totals = rows[:, _HEAD:].sum(dim=1)
    if comm.is_main_process():
        storage.put_scalar("data_time", longest, cur_iter=at)
        # The model may return one loss, or the sum beside its losses, under the name of the sum.
        kept = {name: value for name, value in zip(names, mean.unbind(), strict=True) if name != "total_loss"}
        storage.put_vector((f"{prefix}total_loss", *kept), torch.stack([mean.sum(), *kept.values()]), cur_iter=at)
    storage._awaited.append((HostCopy(torch.cat([same, totals, own])), at, names))
    _raise_for_arrived(storage._awaited)


def _is_at_hand(values: torch.Tensor) -> bool:
    return values.device.type == "cpu"


def _record_at_once(storage: EventStorage, losses: dict[str, float], data_time: float, at: int, prefix: str) -> None:
    """Record the losses of a single process that can be read without waiting."""
    total = sum(losses.values())
    for name, value in {"data_time": data_time, f"{prefix}total_loss": total}.items():
        storage.put_scalar(name, value, cur_iter=at)
    raise_if_not_finite(at, [total], losses)
    for name, value in losses.items():
        if name != "total_loss":
            storage.put_scalar(name, value, cur_iter=at)


def _as_vector(loss_dict: Mapping[str, Any]) -> torch.Tensor:
    """Return the losses as float32 `Tensor[L]`, on the device of the first tensor among them."""
    device = next((v.device for v in loss_dict.values() if isinstance(v, torch.Tensor)), torch.device("cpu"))
    values = [
        v.detach().to(device, torch.float32, non_blocking=True).reshape(())
        if isinstance(v, torch.Tensor)
        else torch.full((), float(v), device=device)
        for v in loss_dict.values()
    ]
    return torch.stack(values) if values else torch.zeros(0)


def _key(names: Sequence[str]) -> float:
    return float(zlib.crc32("\n".join(names).encode()) % _KEYS)


def _message(names: Sequence[str], own: torch.Tensor, data_time: float) -> torch.Tensor:
    """Return the message for other processes: key of the names, seconds, losses, zeros."""
    message = own.new_zeros(math.ceil((_HEAD + len(names)) / _MESSAGE) * _MESSAGE)
    message[0], message[1] = _key(names), data_time
    message[_HEAD : _HEAD + len(names)] = own
    return message


def _raise_for_arrived(awaited: deque[tuple[HostCopy, int, tuple[str, ...]]]) -> None:
    """Check the losses that have arrived: copies, their iteration and their names; oldest first.

    A copy has the number of processes with these losses, the sum in each process, and the losses of this one.
    """
    world_size = comm.get_world_size()
    while awaited and awaited[0][0].has_arrived():
        copy, at, names = awaited.popleft()
        same, *numbers = copy.numbers()
        if same < world_size:
            text = (
                f"In iteration {at} only {same:.0f} of {world_size} processes have the losses {', '.join(names)}; the "
                "others are left out of the means. A model should return the same losses for every batch, with zero "
                "where there is nothing to learn."
            )
            log_first_n(logging.WARNING, text, name=logger.name)
        totals, own = numbers[:world_size], numbers[world_size:]
        try:
            raise_if_not_finite(at, totals, dict(zip(names, own, strict=True)))
        except LossNotFinite:
            awaited.clear()
            raise
