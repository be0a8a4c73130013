"""Reading and writing the files of checkpoints; a file is read by what it is and not by its name.

Three formats: `torch` (written by `torch.save`), `pickle` (the published weights), and `safetensors`
(https://github.com/huggingface/safetensors): eight bytes with the length of the header; the header, JSON with the type,
shape and place of each tensor; and the tensors. No format runs code from the file.
"""

import importlib.util
import io
import json
import mmap
import os
import pickle
import re
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from detectron2.utils.file_io import atomic_write
from detectron2.utils.foreign_files import recognise
from detectron2.utils.safe_pickle import UnsafePickleError as UnsafeCheckpointError
from detectron2.utils.safe_pickle import read_pickle, refuse_endless, resolve_stand_ins, stand_in_globals

__all__ = [
    "as_checkpoint",
    "file_format",
    "read_header",
    "read_pickle_file",
    "read_torch_file",
    "read_weights",
    "refuse_other_files",
    "require_file",
    "require_safetensors",
    "what_is_beside",
    "write_weights",
]

_MAX_EXPANSION = 20  # how many times larger than the file its parts may be together
# How files of torch.save before PyTorch 1.6 begin: the pickle of a certain large number.
_LEGACY_TORCH_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def file_format(path: str) -> str:
    """Return `"torch"` (written by torch.save), `"safetensors"` or `"pickle"`."""
    if path.endswith(".safetensors"):
        return "safetensors"
    with open(path, "rb") as file:
        head = file.read(32)
    return "torch" if head.startswith(b"PK\x03\x04") or _LEGACY_TORCH_MAGIC in head else "pickle"


def _refused(path: str, what: str) -> UnsafeCheckpointError:
    advice = (
        "If you trust the file and need that type, declare it with torch.serialization.add_safe_globals([...]) before "
        "loading; better, save the weights again as a plain dictionary of tensors."
    )
    if what.startswith(("ultralytics.", "models.yolo.")):
        advice = (
            "It is of Ultralytics, whose models this library does not have; docs/moving.md says what there is instead."
        )
    elif what.startswith("torch.nn.modules."):
        advice = (
            "It holds a whole model in place of weights: in the program that made it, save model.state_dict() instead."
        )
    return UnsafeCheckpointError(
        f"{path} was not loaded: it wants to create {what}, which is not among the plain data that a checkpoint may "
        f"hold, and could run code. {advice}"
    )


def _unreadable(path: str, error: BaseException) -> ValueError:
    try:
        refuse_other_files(path)
    except ValueError as other:
        return other
    size = os.path.getsize(path)
    # PyTorch explains at length what it could be; ours comes next.
    why = str(error).partition("This is an internal miniz error")[0].strip().rstrip(".")[:300] or type(error).__name__
    return ValueError(
        f"{path} ({size} bytes) is not a readable checkpoint: {why}. "
        "It may be cut off (an interrupted download or copy); delete it and fetch it again."
    )


def refuse_other_files(path: str) -> None:
    """Raise a `ValueError` that says what a file is, if it begins unlike all files of weights.

    Args:
        path: of a file.

    Raises:
        ValueError: with what to do.

    Example:
        >>> refuse_other_files(__file__)
        Traceback (most recent call last):
            ...
        ValueError: ...files.py is not a readable checkpoint: it is a text file. Weights are .pth, ...
    """
    with open(path, "rb") as file:
        head = file.read(64)
    found = recognise(path)
    if found is None and (head[:1] in (b"\x80", b"(", b"]", b"}") or head[:2] == b"PK" or head[8:9] == b"{"):
        return
    if found is None and len(head) > 3 and all(32 <= c < 127 or c in b"\t\r\n" for c in head):
        found = "a text file", "A config is given with --config-file."
    if not head:
        found = "an empty file", "A download or copy was cut off: fetch it again."
    what, advice = found or ("of an unknown kind", "It may be damaged, cut off, or of another program.")
    raise ValueError(
        f"{path} is not a readable checkpoint: it is {what}. Weights are .pth, .pkl or .safetensors. {advice}".strip()
    )


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Let `torch.load` use our stand-ins, also where the program has declared the names they stand for safe."""
    declared: list[Any] = torch.serialization.get_safe_globals()
    table = stand_in_globals()
    names = [entry[1] if isinstance(entry, tuple) else f"{entry.__module__}.{entry.__qualname__}" for entry in declared]
    others = [entry for entry, name in zip(declared, names, strict=True) if name not in table]
    torch.serialization.clear_safe_globals()
    try:
        torch.serialization.add_safe_globals([*others, *((obj, name) for name, obj in table.items())])
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(declared)


def read_torch_file(path: str, mapped: bool = False) -> Any:
    """Read a local file of `torch.save` onto the CPU.

    With `mapped`, tensors that are not used are not read, nor compared with their check sums. A file with more than
    tensors, NumPy arrays, plain containers and settings is an `UnsafeCheckpointError`; one that is damaged
    is a `ValueError`.
    """
    try:
        _check_archive(path, with_sums=not mapped)
        with _stand_ins():
            return resolve_stand_ins(torch.load(path, map_location="cpu", weights_only=True, mmap=mapped))
    except UnsafeCheckpointError as error:
        raise _refused(path, str(error)) from error
    except pickle.UnpicklingError as error:
        what = _refused_by_torch(str(error))
        raise (_refused(path, what) if what else _unreadable(path, error)) from error
    except Exception as error:  # torch.load may raise anything when the bytes make no sense
        raise _unreadable(path, error) from error


def _check_archive(path: str, with_sums: bool) -> None:
    """Check what `torch.load` does not: whether the bytes are those that were saved, and what the pickle asks for."""
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):  # an older format
            file.seek(0)
            refuse_endless(file)
            return
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
            if sum(record.file_size for record in records) > _MAX_EXPANSION * len(data):
                raise ValueError("its parts claim to be far larger than the file")
            has_sums = with_sums and any(record.CRC for record in records)  # torch.save can be told to leave them out
            for record in records:
                if record.filename.endswith("/constants.pkl"):
                    raise ValueError("it is an exported TorchScript program")
                is_pickle = record.filename.endswith("/data.pkl")
                if not is_pickle and not has_sums:
                    continue
                with _content(view, record) as content:
                    if is_pickle:
                        refuse_endless(io.BytesIO(content))
                    if has_sums and zlib.crc32(content) != record.CRC:
                        raise ValueError(
                            f"the check sum of {record.filename} is wrong: some bytes are not those that were saved"
                        )


def _content(view: memoryview, record: zipfile.ZipInfo) -> memoryview:
    """Return the bytes of an entry of an archive, without a copy where they are not compressed."""
    head = view[record.header_offset : record.header_offset + 30]
    if len(head) < 30:
        raise ValueError(f"{record.filename} lies behind the end of the file")
    begin = record.header_offset + 30 + sum(struct.unpack("<HH", head[26:30]))
    content = view[begin : begin + record.compress_size]
    if record.compress_type == zipfile.ZIP_STORED:
        return content
    if record.compress_type != zipfile.ZIP_DEFLATED:
        raise ValueError(f"{record.filename} is compressed in a way that torch.save does not use")
    return memoryview(zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, record.file_size))


def _refused_by_torch(message: str) -> str | None:
    """Return what `torch.load` refused to create, from its error; None if the file is damaged rather than unsafe."""
    # Errors of our stand-ins come back inside the text of a new one.
    kinds = r"GLOBAL (\S+)|(numpy\..*: only .* are read)|(numpy array of .*)|(numpy\.ndarray of .*)"
    found = re.search(rf"{kinds}|(argparse\.Namespace of .*)", message)
    if found is not None:
        return next(group for group in found.groups() if group)
    return "an object that torch.load refuses" if "Trying to call" in message or "Can only" in message else None


def read_pickle_file(path: str) -> Any:
    """Read a local pickle, as the published weights are, also one of Python 2; errors are as in `read_torch_file`."""
    try:
        with open(path, "rb") as file:
            return read_pickle(file)
    except UnsafeCheckpointError as error:
        raise _refused(path, str(error)) from error
    except Exception as error:  # the interpreter of pickles may raise anything when the bytes make no sense
        raise _unreadable(path, error) from error


def as_checkpoint(data: Any, path: str, is_pickle: bool) -> dict[str, Any]:
    """Bring the layouts that are found in the wild to `{"model": state_dict, ...}`; another one is a `ValueError`.

    The key `matching_heuristics` is there where names are only the ends of the model's names. A plain pickle of nothing
    but arrays is a Caffe2 file.
    """
    if not isinstance(data, Mapping):
        raise ValueError(
            f"{path} holds a {type(data).__name__}; a checkpoint is a dictionary with the weights, "
            "at its top level or under 'model' or 'state_dict'."
        )
    if isinstance(data.get("model"), Mapping):
        _require_tensors(data["model"], f"{path}, under 'model'")
        return dict(data)
    if isinstance(data.get("model_state"), Mapping):  # pycls
        _require_tensors(data["model_state"], f"{path}, under 'model_state'")
        weights = {k: v for k, v in data["model_state"].items() if not k.endswith("num_batches_tracked")}
        return {"model": weights, "__author__": "pycls", "matching_heuristics": True}
    if isinstance(data.get("state_dict"), Mapping):  # common in classification and self-supervised training code
        _require_tensors(data["state_dict"], f"{path}, under 'state_dict'")
        return {"model": data["state_dict"]}
    if is_pickle:
        blobs = data["blobs"] if isinstance(data.get("blobs"), Mapping) else data
        arrays = {k: v for k, v in blobs.items() if not str(k).endswith("_momentum")}
        if all(isinstance(value, np.ndarray) for value in arrays.values()):
            author = {"__author__": "Caffe2"} if not any("." in str(key) for key in arrays) else {}
            return {"model": arrays, "matching_heuristics": True, **author}
    others = [k for k, v in data.items() if isinstance(v, Mapping) and v and all(map(torch.is_tensor, v.values()))]
    cure = ""
    if others and os.path.isfile(path) and file_format(path) == "torch":
        take = f"import torch; torch.save({{'model': torch.load({path!r})[{others[0]!r}]}}, 'weights.pth')"
        cure = f' There are weights under {others}. To take them out of the file: python -c "{take}".'
    _require_tensors(data, path, ", and there are no weights under 'model' or 'state_dict'", cure)
    return {"model": data}


def _require_tensors(weights: Mapping[Any, Any], where: str, why: str = "", cure: str = "") -> None:
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, (torch.Tensor, np.ndarray)):
            what = f"a {type(value).__name__}, not a tensor" if isinstance(name, str) else "not a name of weights"
            raise ValueError(
                f"{where}: {str(name)[:100]!r} is {what}{why}. The keys are {sorted(map(str, weights))[:10]}.{cure}"
            )


# Types of tensors in `.safetensors` files.
_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.bool: "BOOL",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
}
_VERSIONS = "module_versions"
_SUM = "crc32"  # of the whole file, in eight hexadecimal digits, computed while these are zeros
_NO_SUM = "0" * 8


def require_safetensors(wanted_for: str) -> None:
    """Raise `ImportError` if the package safetensors, without which such files cannot be read, is not installed."""
    if importlib.util.find_spec("safetensors") is None:
        raise ImportError(f"{wanted_for} needs the package safetensors: pip install safetensors")


def write_weights(path: str, weights: Mapping[str, torch.Tensor], header: Mapping[str, str], manager: Any) -> None:
    """Write a state dict as `.safetensors`; the file appears under its name only when it is complete.

    A tensor with several names is written once for each; one at a time is copied to the CPU. A value that is not a
    tensor, or of a type that the format does not know, is a `TypeError`.
    """
    texts = {"format": "pt", **header, _SUM: _NO_SUM}
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
    place = 8 + head.index(f'"{_SUM}":"{_NO_SUM}"'.encode()) + len(_SUM) + 4
    start = struct.pack("<Q", len(head)) + head
    with atomic_write(path, "wb", manager, len(start) + end) as file:
        file.write(start)
        found = zlib.crc32(start)
        for name in names:
            flat = weights[name].detach().cpu().contiguous().reshape(-1)
            content = flat.view(torch.uint8).numpy().data
            found = zlib.crc32(content, found)
            file.write(content)
        if file.seekable():
            file.seek(place)
            file.write(f"{found:08x}".encode())


def _checked(name: str, value: Any) -> torch.Tensor:
    if not isinstance(value, torch.Tensor) or value.dtype not in _TYPES:
        what = f"a tensor of {value.dtype}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
        raise TypeError(f"{name} in the state dict is {what}, which .safetensors cannot hold; save as .pth instead.")
    return value


def read_weights(path: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read the state dict of a local `.safetensors` file onto the CPU, and the texts in its header.

    It raises `ImportError` if the package safetensors is missing, and `ValueError` if the file is damaged.
    """
    require_safetensors(f"Reading {path}")
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            texts = dict(file.metadata() or {})
            weights: dict[str, torch.Tensor] = OrderedDict((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
        _check_sum(path, texts.pop(_SUM, None))
        versions = texts.pop(_VERSIONS, None)
        if versions is not None:  # as in torch.nn.Module.state_dict
            weights._metadata = OrderedDict(json.loads(versions))  # type: ignore[attr-defined]
    except Exception as error:  # the library's own kinds, and what a header that makes no sense raises here
        raise _unreadable(path, error) from error
    return weights, texts


def _check_sum(path: str, given: str | None) -> None:
    """Compare a file with the check sum in its header; files of other programs, and written as a stream, have none."""
    if given in (None, _NO_SUM):
        return
    with open(path, "rb") as file:
        length = file.read(8)
        start = length + file.read(struct.unpack("<Q", length)[0])
        field = f'"{_SUM}":"{given}"'.encode()
        found = zlib.crc32(start.replace(field, field.replace(given.encode(), _NO_SUM.encode()), 1))
        while chunk := file.read(1 << 24):
            found = zlib.crc32(chunk, found)
    if given != f"{found:08x}":
        raise ValueError("the check sum is wrong: some bytes are not those that were saved")


def read_header(path: str) -> dict[str, str]:
    """Read the texts in the header of a `.safetensors` file; a damaged one has none."""
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > os.path.getsize(path):
                return {}
            texts = json.loads(file.read(length)).get("__metadata__", {})
    except (struct.error, ValueError, AttributeError, RecursionError):
        return {}
    return texts if isinstance(texts, dict) else {}


def require_file(path: str) -> None:
    """Raise a `FileNotFoundError` that says what is there instead, if there is no checkpoint at a local path."""
    if os.path.isdir(path):
        kind = "an exported model" if os.path.isfile(os.path.join(path, "model.json")) else "a folder"
        inside = what_is_beside(os.path.join(path, "_"))
        raise FileNotFoundError(f"{path} is {kind}, and a file of weights is needed; {inside}. Give a checkpoint.")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no checkpoint {path}; {what_is_beside(path)}. Check the path.")


def what_is_beside(path: str) -> str:
    """Return which checkpoints the folder of a missing file holds, for a message."""
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        return f"the folder {folder} does not exist"
    endings = (".pth", ".pkl", ".safetensors", ".sharded")
    others = sorted(name for name in os.listdir(folder) if name.endswith(endings))
    return f"the folder {folder} holds {', '.join(others) or 'no checkpoint'}"
