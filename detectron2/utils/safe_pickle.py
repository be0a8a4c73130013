"""Read pickles of arrays, tensors, plain containers and settings (`argparse.Namespace`; `CfgNode`, as dictionaries).

A pickle is a program. This interpreter of it looks every global up in a short list, and none of the listed functions
runs code from the file or hands state from the file to NumPy unchecked: arrays and dtypes are first collected in
stand-ins, which only accept plain number and string types. What a file asks for is bounded by its own size.
"""

import argparse
import io
import os
import pickle
import re
import struct
import zipfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy as np
import torch
import torch._utils

__all__ = [
    "EndlessPickleError",
    "UnsafePickleError",
    "load_plain_pickle",
    "read_pickle",
    "refuse_endless",
    "resolve_stand_ins",
    "stand_in_globals",
]


class UnsafePickleError(ValueError, pickle.UnpicklingError):
    """A pickle refers to an object that is not on the list of harmless ones. No code of it was run."""


class EndlessPickleError(pickle.UnpicklingError):
    """A small pickle asks for more than its size allows."""


_PLAIN_DTYPE = re.compile(r"[<>|=]?(\?|[biufcSU]\d+)")


class _Dtype:
    """Stands for a NumPy dtype while a pickle is read; `code` is one such as `f4`."""

    def __init__(self, code: Any, align: Any = False, copy: Any = True):
        code = code.decode("ascii") if isinstance(code, bytes) else code
        if not isinstance(code, str) or not _PLAIN_DTYPE.fullmatch(code):
            raise UnsafePickleError(f"numpy.dtype({code!r}): only plain number and string types are read.")
        self.value = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, sub-array, field names, fields, item size, alignment, flags [, metadata])
        order, *structure = state[1:5]
        if any(part is not None for part in structure):
            raise UnsafePickleError("numpy.dtype with fields: only plain number and string types are read.")
        order = order.decode("ascii") if isinstance(order, bytes) else order
        if order not in ("<", ">", "|", "="):
            raise UnsafePickleError(f"numpy.dtype with the byte order {order!r}.")
        self.value = self.value.newbyteorder(order)


def _array(buffer: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    if not isinstance(dtype, _Dtype):
        raise UnsafePickleError(f"numpy.ndarray of {type(dtype).__name__}, not of a dtype.")
    if isinstance(buffer, str):  # written by Python 2
        buffer = buffer.encode("latin1")
    # A copy: the bytes of a pickle are read-only.
    flat = np.frombuffer(bytearray(buffer), dtype.value)
    array = flat.reshape(shape, order="F" if order == "F" else "C")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


class _Array:
    """Stands for a NumPy array until its state has been read and checked."""

    value: np.ndarray

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        if not isinstance(data, (bytes, bytearray, str)):
            raise UnsafePickleError("numpy.ndarray of objects: only numbers and strings are read.")
        self.value = _array(data, dtype, shape, "F" if is_fortran else "C")


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    if kind is not _Array:
        raise UnsafePickleError(f"numpy array of the class {kind!r}.")
    return _Array()


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> _Array:
    result = _Array()
    result.value = _array(bytes(buffer), dtype, shape, order)
    return result


def _scalar(dtype: Any, data: Any = b"") -> Any:
    return _array(data, dtype, (), "C")[()]


def _encode(text: Any, encoding: Any = "utf-8") -> bytes:
    if encoding not in ("latin1", "latin-1"):  # the codec of bytes in pickles; other codecs may run anything
        raise UnsafePickleError(f"_codecs.encode to {encoding!r}.")
    return str(text).encode("latin1")


class _Namespace:
    """Stands for the arguments of a program, which training programs of the DETR family save beside the weights."""

    value: Mapping[str, Any] = {}  # of one without a state

    def __setstate__(self, state: Any) -> None:
        if type(state) is not dict or not all(type(key) is str for key in state):
            raise UnsafePickleError("argparse.Namespace of something other than names and values.")
        self.value = state


def stand_in_globals() -> dict[str, Any]:
    """Return the full names in pickles of objects that have stand-ins, each with the function to call instead."""
    table: dict[str, Any] = {"numpy.ndarray": _Array, "numpy.dtype": _Dtype, "argparse.Namespace": _Namespace}
    for package in ("numpy.core", "numpy._core"):
        table[f"{package}.multiarray._reconstruct"] = _reconstruct
        table[f"{package}.multiarray.scalar"] = _scalar
        table[f"{package}.numeric._frombuffer"] = _from_buffer
    for module in ("yacs.config", "fvcore.common.config", "detectron2.config.config", "detectron2.config.node"):
        table[f"{module}.CfgNode"] = OrderedDict  # which PyTorch's reader fills, unlike other dictionaries
    return table


def _load_storage(data: Any) -> Any:
    """Load the storage of a tensor that was pickled without `torch.save`."""
    if data[:2] == b"PK":  # as torch.save writes it today
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                if name.endswith("/data.pkl"):
                    refuse_endless(io.BytesIO(archive.read(name)))
    else:
        refuse_endless(io.BytesIO(data))
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _container(kind: type) -> Callable[..., Any]:
    """Return a constructor that fills a container from another, and makes none of a size that the file only names."""

    def build(*args: Any, **named: Any) -> Any:
        if any(isinstance(arg, int | range) for arg in args):
            raise UnsafePickleError(f"{kind.__name__}{args!r}: a container of a size that is only named")
        return kind(*args, **named)

    return build


def _text(*args: Any) -> str:
    if args and not isinstance(args[0], str | bytes | int | float):
        raise UnsafePickleError(f"the text of a {type(args[0]).__name__}")
    return str(*args)


def _pickle_globals() -> dict[str, Any]:
    containers = (bytes, bytearray, list, tuple, dict, set, frozenset)
    return {
        **{f"builtins.{kind.__name__}": kind for kind in (bool, int, float, complex, range, slice)},
        **{f"builtins.{kind.__name__}": _container(kind) for kind in containers},
        "builtins.str": _text,
        # as Python 2 calls them, and Python 3 in the older protocols
        "builtins.long": int,
        "builtins.unicode": _text,
        "builtins.xrange": range,
        "collections.OrderedDict": OrderedDict,
        "collections.Counter": _container(Counter),
        "collections.defaultdict": defaultdict,
        "_codecs.encode": _encode,
        "torch.storage._load_from_bytes": _load_storage,
        "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
        "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,
        "torch.Size": torch.Size,
        **{str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)},
        **stand_in_globals(),
    }


def _trusted_by_user() -> dict[str, Any]:
    """Return what the program declared safe with `torch.serialization.add_safe_globals`."""
    table = {}
    for entry in torch.serialization.get_safe_globals():
        obj, name = entry if isinstance(entry, tuple) else (entry, f"{entry.__module__}.{entry.__qualname__}")
        table[name] = obj
    return table


# The interpreter written in Python, because only there can BUILD (which sets attributes of any object on the stack,
# classes and functions included) be restricted. Its cost does not grow with the size of the arrays.
_PurePythonUnpickler: Any = vars(pickle)["_Unpickler"]
_MAX_NAME = 1000  # characters of the name of a class or function
_MAX_TUPLE = 1_000_000  # items of a tuple, counting those of the tuples inside it


class _BoundedFile:
    """A file that hands out no more bytes than it has left; `file.read(2**40)` would ask for the memory first."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        place = file.tell()
        self._size = file.seek(0, os.SEEK_END)
        file.seek(place)
        self.readline = file.readline

    def read(self, count: int) -> bytes:
        left = self._size - self._file.tell()
        if count > left:
            raise EndlessPickleError(f"it asks for {count} bytes, but only {left} are left")
        return self._file.read(count)


class _BoundedUnpickler(_PurePythonUnpickler):
    """Refuses tuples that hold each other so often that going through them, or hashing them, would not end."""

    dispatch = dict(_PurePythonUnpickler.dispatch)

    def __init__(self, file: IO[bytes]):
        super().__init__(_BoundedFile(file), encoding="latin1")
        self._sizes: dict[int, tuple[int, tuple]] = {}  # of nested ones, by id, which stays theirs as they are kept

    def _check_tuple(self) -> None:
        made = self.stack[-1]
        inner = [item for item in made if isinstance(item, tuple)]
        if not inner:
            return
        size = len(made) + sum(self._sizes[id(t)][0] if id(t) in self._sizes else len(t) for t in inner)
        if size > _MAX_TUPLE:
            raise EndlessPickleError("it holds tuples that repeat each other without end")
        self._sizes[id(made)] = (size, made)

    def _bytearray(self) -> None:
        (count,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(count)))

    dispatch[pickle.BYTEARRAY8[0]] = _bytearray


def _with_check(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def load_and_check(self: Any) -> None:
        load(self)
        self._check_tuple()

    return load_and_check


for _opcode in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
    _BoundedUnpickler.dispatch[_opcode[0]] = _with_check(_PurePythonUnpickler.dispatch[_opcode[0]])


class _Unpickler(_BoundedUnpickler):
    dispatch = dict(_BoundedUnpickler.dispatch)

    def __init__(self, file: IO[bytes], extra: Mapping[str, Callable[..., Any]] | None = None):
        super().__init__(file)
        trusted = _trusted_by_user()
        self._globals = {**trusted, **_pickle_globals(), **(extra or {})}
        self._buildable = (_Array, _Dtype, _Namespace, OrderedDict, torch.nn.Parameter, torch.Tensor)
        self._buildable += tuple(obj for obj in trusted.values() if isinstance(obj, type))

    def find_class(self, module: str, name: str) -> Any:
        full_name = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if full_name not in self._globals:
            raise UnsafePickleError(full_name[:_MAX_NAME])
        return self._globals[full_name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError(f"it refers to {pid!r} outside the file")

    def _build(self) -> None:
        target = self.stack[-2]
        if type(target) not in self._buildable:
            raise UnsafePickleError(f"the state of a {type(target).__name__}")
        _PurePythonUnpickler.load_build(self)

    dispatch[pickle.BUILD[0]] = _build


class _Anything:
    """Stands for any object while only the shape of a pickle is looked at."""

    def __init__(self, *args: Any, **named: Any):
        pass

    __setitem__ = append = extend = __setstate__ = __init__


class _ShapeReader(_BoundedUnpickler):
    def find_class(self, module: str, name: str) -> Any:
        if len(module) + len(name) > _MAX_NAME:
            raise EndlessPickleError(f"it looks up a name of {len(module) + len(name)} characters")
        return _Anything

    def persistent_load(self, pid: Any) -> Any:
        return _Anything()


def refuse_endless(file: IO[bytes]) -> None:
    """Refuse a pickle, before another reader opens it, that is small and takes all memory or time.

    An `EndlessPickleError` says that it claims more bytes than the file has, or tuples that repeat each other without
    end. Nothing that it names is looked up. Files of `torch.save` in the older format hold five pickles in a row.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    for _ in range(5):
        if file.tell() == size:
            return
        try:
            _ShapeReader(file).load()
        except EndlessPickleError:
            raise
        except Exception:  # anything else that is wrong with it is for its reader to say
            return


def load_plain_pickle(
    file: IO[bytes], *, name: str | os.PathLike[str], extra: Mapping[str, Callable[..., Any]] | None = None
) -> Any:
    """Read a pickle like `read_pickle`, with messages that begin with `name`; bytes of Python 2 become text.

    A `ValueError` that is not an `UnsafePickleError` says that the file is not a pickle, or is cut off.
    """
    try:
        return read_pickle(file, extra)
    except UnsafePickleError as e:
        raise UnsafePickleError(
            f"'{name}' was not loaded: it holds {e}, but only numbers, strings, containers and arrays are "
            "allowed, because anything else could run code. Write the file again with plain data."
        ) from None
    except Exception as e:  # the interpreter may raise anything when the bytes make no sense
        raise ValueError(f"'{name}' is not a readable pickle of plain data: {e}") from e


def read_pickle(file: IO[bytes], extra: Mapping[str, Callable[..., Any]] | None = None) -> Any:
    """Read a pickle, from a binary file, that holds arrays, tensors, plain containers and `argparse.Namespace`.

    `extra` are further full names that may occur, each with a harmless function to call in its place. Any other name is
    an `UnsafePickleError`, whose text it is.
    """
    return resolve_stand_ins(_Unpickler(file, extra).load())


def resolve_stand_ins(root: Any) -> Any:
    """Replace the stand-ins in nested containers by arrays, dtypes and namespaces."""
    done: dict[int, tuple[Any, Any]] = {}  # id -> (original, which keeps the id its own; result)

    def resolve(value: Any) -> Any:
        if isinstance(value, (_Array, _Dtype)):
            return value.value
        if id(value) in done:
            return done[id(value)][1]
        if isinstance(value, _Namespace):
            arguments = argparse.Namespace()
            done[id(value)] = (value, arguments)
            vars(arguments).update(resolve(value.value))
            return arguments
        if type(value) is tuple:
            done[id(value)] = (value, tuple(resolve(item) for item in value))
            return done[id(value)][1]
        if isinstance(value, dict):
            done[id(value)] = (value, value)
            for key in list(value):
                value[key] = resolve(value[key])
        elif isinstance(value, list):
            done[id(value)] = (value, value)
            value[:] = [resolve(item) for item in value]
        return value

    return resolve(root)
