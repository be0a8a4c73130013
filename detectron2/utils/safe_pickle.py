"""Reading pickles that hold numbers, strings, plain containers and NumPy arrays, and refusing everything else.

A pickle is a program that names the functions it wants to call.  Here each name is looked up in a short table, and what
the table holds are our own stand-ins, made anew for each file: so nothing of the file runs, and nothing that the file
does to them outlives it.
"""

import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy as np

__all__ = ["UnsafePickleError", "load_plain_pickle"]

# Booleans, numbers, strings of fixed length: kinds whose bytes mean nothing but values.
_PLAIN_DTYPE = re.compile(r"[<>|=]?(\?|[biufcSU]\d+)")


class UnsafePickleError(ValueError, pickle.UnpicklingError):
    """A pickle refers to something other than plain data. Nothing of it was run."""


class _Constructor:
    """Stands for a class or function that a pickle may name."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)


class _Dtype:
    """Stands for a NumPy dtype."""

    def __init__(self, code: Any, align: Any = False, copy: Any = True) -> None:
        code = code.decode("ascii", "replace") if isinstance(code, bytes) else str(code)
        if not _PLAIN_DTYPE.fullmatch(code):
            raise UnsafePickleError(f"a NumPy array of dtype {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        # (version, byte order, sub-array, names, fields, item size, alignment, flags)
        order = state[1].decode("ascii", "replace") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise UnsafePickleError("a NumPy array with a structured dtype")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands for a NumPy array."""

    array: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        self.fill(data, dtype, shape, "F" if is_fortran else "C")

    def fill(self, data: Any, dtype: Any, shape: Any, order: Any) -> "_Array":
        if isinstance(data, str):  # as Python 2 wrote bytes
            data = data.encode("latin1")
        if not isinstance(dtype, _Dtype) or not isinstance(data, (bytes, bytearray)):
            raise UnsafePickleError("a NumPy array of objects")
        # A bytearray, so that the array can be written to.
        array = np.frombuffer(bytearray(data), dtype.dtype).reshape(shape, order="F" if order == "F" else "C")
        self.array = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
        return self


def _scalar(dtype: Any, data: Any = b"") -> Any:
    return _Array().fill(data, dtype, (), "C").array[()]


def _bytes_of_text(text: Any, encoding: Any = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):  # the one that pickle uses for bytes
        raise UnsafePickleError(f"text encoded as {encoding!r}")
    return str(text).encode("latin1")


def _table() -> dict[str, Callable[..., Any]]:
    table: dict[str, Callable[..., Any]] = {
        "numpy.ndarray": _Array,
        "numpy.dtype": _Dtype,
        "collections.OrderedDict": OrderedDict,
        "_codecs.encode": _bytes_of_text,
    }
    for core in ("numpy.core", "numpy._core"):
        table[f"{core}.multiarray._reconstruct"] = lambda *_: _Array()
        table[f"{core}.multiarray.scalar"] = _scalar
        table[f"{core}.numeric._frombuffer"] = lambda data, dtype, shape, order: _Array().fill(
            data, dtype, shape, order
        )
    for kind in (bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset):
        table[f"builtins.{kind.__name__}"] = table[f"__builtin__.{kind.__name__}"] = kind
    return table


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], extra: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__(file, encoding="latin1", fix_imports=False)
        self._globals = {name: _Constructor(make) for name, make in {**_table(), **extra}.items()}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._globals[f"{module}.{name}"]
        except KeyError:
            raise UnsafePickleError(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise UnsafePickleError("an object that is kept elsewhere")


def _resolve(value: Any) -> Any:
    """Put the arrays in the place of their stand-ins, in nested containers."""
    if isinstance(value, _Array):
        return value.array
    if isinstance(value, _Dtype):
        return value.dtype
    if isinstance(value, dict):
        return type(value)((key, _resolve(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(_resolve(item) for item in value)
    return value


def load_plain_pickle(
    file: IO[bytes], *, name: str | os.PathLike[str], extra: Mapping[str, Callable[..., Any]] | None = None
) -> Any:
    """Read a pickle that holds plain data. Files written by Python 2 are read as well.

    Args:
        file: open for reading in binary mode.
        name: the file's name, for messages.
        extra: further names that may occur, each with a harmless function to call in its place.

    Returns:
        what the pickle holds, with bytes of Python 2 as text.

    Raises:
        UnsafePickleError: the pickle refers to anything else.
        ValueError: the file is not a pickle, or is cut off.
    """
    try:
        return _resolve(_PlainUnpickler(file, extra or {}).load())
    except UnsafePickleError as e:
        raise UnsafePickleError(
            f"'{name}' was not loaded: it holds {e}, where only numbers, strings, containers and NumPy arrays are "
            "allowed, because anything else could run code. Write the file again with plain data."
        ) from None
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, TypeError, RecursionError) as e:
        raise ValueError(f"'{name}' is not a readable pickle of plain data: {e}") from e
