"""Bring batches to the GPU while it is at work on the one before.

All tensors of a batch go into one buffer of pinned memory and cross the bus in one copy, on a stream of its own: images
as the bytes that they are, with boxes, classes and bitmaps. Polygons stay on the host.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch

from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, RotatedBoxes

__all__ = ["Prefetcher", "batch_to_device"]

_WITH_TENSOR = (Boxes, RotatedBoxes, BitMasks, Keypoints)
_ALIGNMENT = 64  # bytes; views of any type begin at a multiple


def _map_tensors(value: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A copy of nested lists, dictionaries and structures with all tensors replaced; what is not known stays."""
    if type(value) in (torch.Tensor, torch.nn.Parameter):
        return function(value)
    if type(value) in (list, tuple):
        return type(value)(_map_tensors(item, function) for item in value)
    if type(value) is dict:
        return {key: _map_tensors(item, function) for key, item in value.items()}
    if type(value) is Instances:
        return Instances(value.image_size, **{k: _map_tensors(v, function) for k, v in value.get_fields().items()})
    if type(value) in _WITH_TENSOR:
        moved = copy.copy(value)
        moved.tensor = function(value.tensor)
        return moved
    return value


def batch_to_device(batch: Any, device: torch.device) -> Any:
    """Copy the tensors of a batch to a device, all in one copy; on a GPU it is asynchronous.

    Args:
        batch: nested lists, tuples and dictionaries of tensors, `Instances` and their structures. Objects of other
            types, and tensors that are on a device already, stay as they are.
        device: where to.

    Returns:
        The batch with other tensors; those that were copied share memory.

    Example:
        >>> from detectron2.engine.prefetch import batch_to_device
        >>> batch = [{"image": torch.zeros(3, 4, 5, dtype=torch.uint8), "file_name": "a.jpg"}]
        >>> batch_to_device(batch, torch.device("cpu"))[0]["image"].shape
        torch.Size([3, 4, 5])
    """
    found: list[torch.Tensor] = []
    _map_tensors(batch, lambda t: found.append(t) or t)
    packed = [t for t in {id(t): t for t in found}.values() if _can_be_packed(t)]
    begins, size = [], 0
    for tensor in packed:
        begins.append(size)
        size += -(-tensor.numel() * tensor.element_size() // _ALIGNMENT) * _ALIGNMENT
    if not packed:
        return batch
    buffer = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    for tensor, begin in zip(packed, begins, strict=True):
        _part(buffer, begin, tensor).copy_(tensor)
    on_device = buffer.to(device, non_blocking=True)
    places = {id(tensor): begin for tensor, begin in zip(packed, begins, strict=True)}
    return _map_tensors(batch, lambda t: _part(on_device, places[id(t)], t) if id(t) in places else t)


def _can_be_packed(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.layout == torch.strided and not tensor.requires_grad


def _part(buffer: torch.Tensor, begin: int, like: torch.Tensor) -> torch.Tensor:
    """The place of a tensor in a buffer of bytes."""
    size = like.numel() * like.element_size()
    return buffer[begin : begin + size].view(like.dtype).view(like.shape)


class Prefetcher(Iterator):
    """Iterates over batches, and brings one to the device ahead of time when `fetch_ahead` is called.

    Call it when the work of a step is queued: the host reads the next batch, and the bus copies it, while the device
    computes.

    Args:
        batches: the batches.
        device: where to.
        state_of_loader: called before a batch is fetched ahead. `loader_state` has the result until that batch is
            taken: a checkpoint of this time goes on with it.
    """

    def __init__(
        self, batches: Iterator[Any], device: torch.device, state_of_loader: Callable[[], Any] | None = None
    ) -> None:
        self._batches = batches
        self._device = device
        self._state_of_loader = state_of_loader
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ahead: list[Any] = []
        self._error: Exception | None = None
        self.loader_state: Any = None

    def fetch_ahead(self) -> None:
        """Bring the next batch to the device, unless that has been done; an error is raised by the next `next()`."""
        if self._ahead or self._error is not None:
            return
        self.loader_state = None if self._state_of_loader is None else self._state_of_loader()
        try:
            self._ahead.append(self._fetch())
        except Exception as e:
            self._error = e

    def _fetch(self) -> Any:
        batch = next(self._batches)
        if self._stream is None:
            return batch_to_device(batch, self._device)
        with torch.cuda.stream(self._stream):
            return batch_to_device(batch, self._device)

    def __next__(self) -> Any:
        if self._error is not None:
            error, self._error, self.loader_state = self._error, None, None
            raise error
        batch = self._ahead.pop() if self._ahead else self._fetch()
        self.loader_state = None
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            # Their memory is of the other stream, which must not reuse it before this one is through.
            _map_tensors(batch, lambda t: t.record_stream(current) or t if t.is_cuda else t)
        return batch
