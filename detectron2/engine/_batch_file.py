"""Batches as plain containers of tensors, so that they can be written to a file and read again without running code."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks, RotatedBoxes

_OF_TENSOR = {cls.__name__: cls for cls in (Boxes, RotatedBoxes, BitMasks, Keypoints)}
_TYPE = "__type__"


def to_plain(value: Any) -> Any:
    """Turn a batch into dicts, lists, numbers, text and CPU tensors.

    Args:
        value: what a data loader yields; objects of unknown types become their ``repr``.

    Returns:
        What ``torch.load(weights_only=True)`` can read once it is saved, and :func:`from_plain` can turn back.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return {_TYPE: "ndarray", "tensor": torch.from_numpy(np.ascontiguousarray(value))}
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    if isinstance(value, Instances):
        return {_TYPE: "Instances", "image_size": list(value.image_size), "fields": to_plain(value.get_fields())}
    if isinstance(value, tuple(_OF_TENSOR.values())):
        return {_TYPE: type(value).__name__, "tensor": value.tensor.detach().cpu()}
    if isinstance(value, PolygonMasks):
        return {_TYPE: "PolygonMasks", "polygons": to_plain(value.polygons)}
    return {_TYPE: "text", "repr": repr(value)[:1000]}


def from_plain(value: Any) -> Any:
    """The inverse of :func:`to_plain`; what became text stays text, and tuples have become lists."""
    if isinstance(value, list):
        return [from_plain(v) for v in value]
    if not isinstance(value, Mapping):
        return value
    kind = value.get(_TYPE)
    if kind == "ndarray":
        return value["tensor"].numpy()
    if kind == "Instances":
        height, width = value["image_size"]
        return Instances((height, width), **{k: from_plain(v) for k, v in value["fields"].items()})
    if kind in _OF_TENSOR:
        return _OF_TENSOR[kind](value["tensor"])
    if kind == "PolygonMasks":
        return PolygonMasks(from_plain(value["polygons"]))
    if kind == "text":
        return value["repr"]
    return {k: from_plain(v) for k, v in value.items()}


def tensors_in(value: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Find the tensors in batches, outputs of layers, and structures.

    Args:
        value: any object.
        path: its own name, which the names of its parts begin with.

    Yields:
        ``(path, tensor)``, such as ``("[0].instances.gt_boxes", tensor)``.
    """
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from tensors_in(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for i, part in enumerate(value):
            yield from tensors_in(part, f"{path}[{i}]")
    elif isinstance(value, Instances):
        yield from tensors_in(value.get_fields(), path)
    elif isinstance(getattr(value, "tensor", None), torch.Tensor):
        yield path, value.tensor
