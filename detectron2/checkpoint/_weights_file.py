"""Files of weights alone: the format safetensors, https://github.com/huggingface/safetensors.

Eight bytes with the length of the header; the header, JSON that says of each tensor its type, shape and place; and the
tensors.  There is nothing in such a file that could be run, and a part of it can be read without the rest.
"""

import importlib.util
import json
import os
import struct
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch

from detectron2.utils.file_io import atomic_write

__all__ = ["read_header", "read_weights", "require_safetensors", "write_weights"]

_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_VERSIONS = "module_versions"


def require_safetensors(wanted_for: str) -> None:
    """Check that such files can be read back.

    Args:
        wanted_for: who wants it, for the message.

    Raises:
        ImportError: the package is not installed.
    """
    if importlib.util.find_spec("safetensors") is None:
        raise ImportError(f"{wanted_for} needs the package safetensors: pip install safetensors")


def write_weights(path: str, weights: Mapping[str, torch.Tensor], header: Mapping[str, str], manager: Any) -> None:
    """Write a state dict; the file appears under its name only when it is complete.

    A tensor with several names is written once for each.

    Args:
        path: the file.
        weights: on any device; one at a time is copied to the CPU.
        header: texts to keep in the header.
        manager: the path manager.

    Raises:
        TypeError: something in ``weights`` is no tensor, or of a type that the format does not know.
    """
    texts = {"format": "pt", **header}
    versions = getattr(weights, "_metadata", None)
    if versions is not None:
        texts[_VERSIONS] = json.dumps(versions)
    entries: dict[str, Any] = {"__metadata__": texts}
    # Wide types first, so that every tensor begins at a multiple of its element's size.
    names = sorted(weights, key=lambda name: (-_checked(name, weights[name]).element_size(), name))
    end = 0
    for name in names:
        tensor = weights[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    head = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with atomic_write(path, "wb", manager) as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for name in names:
            flat = weights[name].detach().cpu().contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)


def _checked(name: str, value: Any) -> torch.Tensor:
    if not isinstance(value, torch.Tensor) or value.dtype not in _TYPES:
        what = f"a tensor of {value.dtype}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
        raise TypeError(f"{name} in the state dict is {what}, which .safetensors cannot hold; save as .pth instead.")
    return value


def read_weights(path: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read all tensors onto the CPU.

    Args:
        path: a local file.

    Returns:
        The state dict, and the texts in the header.

    Raises:
        ImportError: the package safetensors is missing.
        safetensors.SafetensorError: the file is damaged.
    """
    require_safetensors(f"Reading {path}")
    from safetensors import safe_open

    with safe_open(path, framework="pt", device="cpu") as file:
        texts = dict(file.metadata() or {})
        weights: dict[str, torch.Tensor] = OrderedDict((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
    versions = texts.pop(_VERSIONS, None)
    if versions is not None:
        # as in torch.nn.Module.state_dict
        weights._metadata = OrderedDict(json.loads(versions))  # type: ignore[attr-defined]
    return weights, texts


def read_header(path: str) -> dict[str, str]:
    """Read the texts in the header, and no tensor.

    Args:
        path: a local file.

    Returns:
        The texts; none where the file is damaged.
    """
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > os.path.getsize(path):
                return {}
            texts = json.loads(file.read(length)).get("__metadata__", {})
    except (struct.error, ValueError, AttributeError):
        return {}
    return texts if isinstance(texts, dict) else {}
