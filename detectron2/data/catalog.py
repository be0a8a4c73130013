"""Two global tables: how to load a data set by its name, and what is known about it.

`DatasetCatalog` maps a name to a function that returns the data set's `list[dict]`; `MetadataCatalog` maps a name
to a `Metadata` (class names, colours, paths ...). Both only remember: nothing is read before it is asked for.
"""

import difflib
import functools
import logging
import multiprocessing
import reprlib
import types
from collections import UserDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from detectron2.utils import comm

__all__ = ["DatasetCatalog", "Metadata", "MetadataCatalog"]

logger = logging.getLogger(__name__)

_MISSING = object()

# For messages: paths and names in full, long tables in short.
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 300


class CatalogConflictError(ValueError, AssertionError):
    """A name or a metadata key is already taken by something else.

    It is an `AssertionError` too, since code written for the published system catches that.
    """


class MissingMetadataError(AttributeError, ValueError):
    """The metadata of a data set lacks a key; a missing attribute, and a mistake of whoever described the data."""


class UnknownDatasetError(KeyError):
    """No data set of that name is registered."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show the message quoted, with its line breaks escaped


def _of_this_process() -> str:
    """Say, in a process that another one has started, that it does not have the other one's catalogs."""
    if comm.get_world_size() == 1 and multiprocessing.parent_process() is None:
        return ""
    return (
        " Each process has its own catalogs: register in the function that launch() is given, or at the top of the "
        'module, not under `if __name__ == "__main__":`.'
    )


def _cell_values(function: types.FunctionType) -> list[Any]:
    values = []
    for cell in function.__closure__ or ():
        try:
            values.append(cell.cell_contents)
        except ValueError:  # a variable of the enclosing function that has no value yet
            values.append(_MISSING)
    return values


def _equal(a: Any, b: Any) -> bool:
    """Return `a == b` for values of any kind; arrays and others without a truth value are equal only if identical."""
    if a is b:
        return True
    try:
        return type(a) is type(b) and bool(a == b)
    except (ValueError, TypeError, RuntimeError):
        return False


def _same_loader(a: Any, b: Any) -> bool:
    """Whether two loading functions do the same: the same object, the same code on equal values, or equal partials.

    Running a notebook cell twice makes a new function object from the same source; that is not a conflict.
    """
    if a is b:
        return True
    if isinstance(a, functools.partial) and isinstance(b, functools.partial):
        return _equal((a.args, a.keywords), (b.args, b.keywords)) and _same_loader(a.func, b.func)
    if isinstance(a, types.FunctionType) and isinstance(b, types.FunctionType):
        parts = [(f.__code__, f.__defaults__, f.__kwdefaults__, _cell_values(f)) for f in (a, b)]
        return _equal(*parts)
    return _equal(a, b)


def _describe_loader(func: Any) -> str:
    """Write a loading function such that two different ones look different: the call it makes, or where it is from."""
    if isinstance(func, functools.partial):
        values = [_SHORT.repr(a) for a in func.args]
        values += [f"{key}={_SHORT.repr(value)}" for key, value in func.keywords.items()]
        return f"{_describe_loader(func.func).split(' ')[0]}({', '.join(values)})"
    name = getattr(func, "__qualname__", None)
    if name is None:
        return repr(func)
    code = getattr(func, "__code__", None)
    return f"{func.__module__}.{name}" + (f" ({code.co_filename}:{code.co_firstlineno})" if code else "")


class _DatasetCatalog(UserDict):
    """Names of data sets, and for each the function that loads it.

    The function takes nothing and returns a `list[dict]` (or a `torch.utils.data.Dataset`), the same each time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._loaded: set[str] = set()

    def register(self, name: str, func: Callable[[], Any]) -> None:
        """Remember how to load a data set; registering the same function again changes nothing.

        Args:
            name: the name, e.g. `"balloon_train"`.
            func: a function without arguments that returns the data set.

        Raises:
            TypeError: `func` cannot be called.
            ValueError: the name belongs to another function.
        """
        if not callable(func):
            raise TypeError(
                f"DatasetCatalog.register({name!r}, ...) takes a function that returns the data set, not a "
                f"{type(func).__name__}. Wrap the data: DatasetCatalog.register({name!r}, lambda: data)."
            )
        if name in self.data and not _same_loader(self.data[name], func):
            raise CatalogConflictError(
                f"Dataset '{name}' is already registered, with another function or other arguments.\n"
                f"  registered: {_describe_loader(self.data[name])}\n"
                f"  now:        {_describe_loader(func)}\n"
                f"Choose another name, or forget the old one first: DatasetCatalog.remove({name!r}); "
                f"MetadataCatalog.remove({name!r})."
            )
        self.data[name] = func

    def get(self, name: str) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  # no default: see Raises
        """Load the data set of this name by calling its function.

        An unknown name is a KeyError, whose message shows the nearest names.
        """
        if name not in self.data:
            raise UnknownDatasetError(self._unknown(name))
        result = self.data[name]()
        self._loaded.add(name)
        return result

    def _is_waiting(self, name: str) -> bool:
        """Whether a data set is registered, and not loaded yet in this process."""
        return name in self.data and name not in self._loaded

    def list(self) -> list[str]:
        """Return all registered names."""
        return list(self.data)

    def remove(self, name: str) -> None:
        """Forget a data set; its metadata stays (see `MetadataCatalog.remove`)."""
        if name not in self.data:
            raise UnknownDatasetError(self._unknown(name))
        del self.data[name]
        self._loaded.discard(name)

    def _unknown(self, name: str) -> str:
        near = difflib.get_close_matches(str(name), self.list())
        if near:
            hint = "Did you mean " + " or ".join(repr(n) for n in near) + "?"
        else:
            hint = "Register it first: DatasetCatalog.register(name, function) or register_coco_instances(...)."
        return f"Dataset {name!r} is not registered ({len(self.data)} others are). {hint}{_of_this_process()}"

    def __str__(self) -> str:
        return f"DatasetCatalog(registered datasets: {', '.join(self.data)})"

    __repr__ = __str__


# Keys that our own code reads or writes; they serve to recognise a misspelt one.
_WELL_KNOWN_KEYS = (
    "thing_classes",
    "thing_colors",
    "thing_dataset_id_to_contiguous_id",
    "stuff_classes",
    "stuff_colors",
    "stuff_dataset_id_to_contiguous_id",
    "ignore_label",
    "label_divisor",
    "keypoint_names",
    "keypoint_flip_map",
    "keypoint_connection_rules",
    "evaluator_type",
    "json_file",
    "image_root",
    "panoptic_root",
    "panoptic_json",
    "sem_seg_root",
    "image_dir",
    "gt_dir",
    "dirname",
    "split",
    "year",
    "class_image_count",
    "degenerate_boxes",
)

_PRIVATE = ("_suggested", "_sources")

_EXAMPLES = {
    "thing_classes": ["person"],
    "thing_dataset_id_to_contiguous_id": {1: 0},
    "stuff_classes": ["things", "sky"],
    "stuff_dataset_id_to_contiguous_id": {0: 0, 187: 1},
}

_RENAMED_KEYS = {
    "class_names": "thing_classes",
    "dataset_id_to_contiguous_id": "thing_dataset_id_to_contiguous_id",
    "stuff_class_names": "stuff_classes",
}


def _difference(old: Any, new: Any) -> str:
    """Say where two tables differ, since a message shows only how they begin; empty for plain values."""
    if type(old) is not type(new):
        return f" (a {type(old).__name__} and a {type(new).__name__})"
    if not isinstance(old, (Mapping, list, tuple)):
        return ""
    tables = [t if isinstance(t, Mapping) else {f"index {i}": value for i, value in enumerate(t)} for t in (old, new)]
    for key in {**tables[0], **tables[1]}:
        if not all(key in t for t in tables) or not _equal(*(t[key] for t in tables)):
            place = key if not isinstance(old, Mapping) else repr(key)
            values = [_SHORT.repr(t[key]) if key in t else "missing" for t in tables]
            return f" (they differ at {place}: {values[0]} and {values[1]})"
    return ""


class Metadata(types.SimpleNamespace):
    """What is known about one data set, as attributes.

    A key keeps its first value: setting it again to an equal value is fine, to another one is an error, because parts
    of the program may have read it by then.

    Example::

        MetadataCatalog.get("mydataset").thing_classes = ["person", "dog"]
        MetadataCatalog.get("mydataset").thing_classes  # anywhere else
    """

    name: str = "N/A"

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__"):  # asked for by copy, pickle and friends
            raise AttributeError(key)
        why = self._load(key)
        if key in (known := self._known()):
            return known[key]
        current = _RENAMED_KEYS.get(key)
        if current is not None and current in self.__dict__:
            logger.warning("Metadata key '%s' is now called '%s'.", key, current)
            return self.__dict__[current]
        present = [k for k in known if k != "name"]
        hint = ""
        if near := difflib.get_close_matches(key, present):
            hint = f"Did you mean {near[0]!r}? "
        elif key not in _WELL_KNOWN_KEYS and (near := difflib.get_close_matches(key, _WELL_KNOWN_KEYS)):
            hint = f"Did you mean {near[0]!r} (which is not set either)? "
        raise MissingMetadataError(
            f"The metadata of dataset '{self.name}' has no '{key}'. {hint}It has: {', '.join(present) or 'nothing yet'}"
            f". Set it with MetadataCatalog.get({self.name!r}).{key} = ...{why or self._if_not_loaded()}"
        )

    def __setattr__(self, key: str, value: Any) -> None:
        if key in _RENAMED_KEYS:
            logger.warning("Metadata key '%s' is now called '%s'.", key, _RENAMED_KEYS[key])
            key = _RENAMED_KEYS[key]
        old = self.__dict__.get(key, _MISSING)
        if old is _MISSING:
            if key not in _WELL_KNOWN_KEYS and (near := difflib.get_close_matches(key, _WELL_KNOWN_KEYS, cutoff=0.9)):
                logger.warning("Metadata key '%s' of dataset '%s': did you mean '%s'?", key, self.name, near[0])
            if not _equal(self._suggestions().get(key, value), value):
                del self.__dict__["_suggested"]
            super().__setattr__(key, value)
        elif not _equal(old, value):
            raise CatalogConflictError(
                f"The metadata of dataset '{self.name}' has {key} = {_SHORT.repr(old)} and cannot be changed to "
                f"{_SHORT.repr(value)}{_difference(old, value)}. If the old value is wrong, start over: "
                f"MetadataCatalog.remove({self.name!r})."
            )

    def _known(self) -> dict[str, Any]:
        """Return the keys and values that need no file to be read."""
        return {**self._suggestions(), **{k: v for k, v in self.__dict__.items() if k not in _PRIVATE}}

    def as_dict(self) -> dict[str, Any]:
        """Return all keys and values, `name` included, as a new dictionary (the values are not copied)."""
        self._load(*self.__dict__.get("_sources", ()))
        return self._known()

    def derive(self, keys: Iterable[str], function: Callable[[], Any] | None) -> "Metadata":
        """Have `function()` set these keys, from a file, when one is asked for that is not set; return this object.

        What is known of a data set then does not depend on whether it was loaded before. None: nothing is left to set.
        """
        sources = self.__dict__.setdefault("_sources", {})
        sources.update(dict.fromkeys(keys, function))
        return self

    def _load(self, *keys: str) -> str:
        """Have the keys set that are derived and not set; return the sentence that says why it failed, or nothing."""
        sources, known, why = self.__dict__.get("_sources", {}), self._known(), ""
        for function in dict.fromkeys(sources.get(key) for key in keys if key not in known):
            if function is None:
                continue
            derived = [key for key in sources if sources[key] is function]
            self.derive(derived, None)  # the function itself may ask
            try:
                function()
            except (OSError, ValueError, KeyError, TypeError) as e:
                self.derive(derived, function)
                why = f" It cannot be read from the data set's file: {e}"
        return why

    def _if_not_loaded(self) -> str:
        load = f"call DatasetCatalog.get({self.name!r}) first."
        waits = DatasetCatalog._is_waiting(self.name)
        if waits:
            return f" The data set is registered, but not loaded yet: if its function sets it, {load}"
        return "" if self.name in DatasetCatalog else _of_this_process()

    def require(self, keys: Iterable[str], who: str) -> None:
        """Raise one error for all of these keys that are not set, which shows how to set them."""
        keys = list(keys)
        why = self._load(*keys)
        if missing := [key for key in keys if self._known().get(key) is None]:
            example = ", ".join(f"{key}={_EXAMPLES.get(key, '...')}" for key in missing)
            raise MissingMetadataError(
                f"{who} needs {missing} in the metadata of {self.name!r}. Set them, for example "
                f"MetadataCatalog.get({self.name!r}).set({example}), where ids are those of the annotation file and "
                f"labels those of the model.{why or self._if_not_loaded()}"
            )

    def set(self, **kwargs: Any) -> "Metadata":
        """Set several keys at once, and return this object."""
        for key, value in kwargs.items():
            setattr(self, key, value)
        return self

    def suggest(self, **kwargs: Any) -> "Metadata":
        """Give values that hold until others are set, such as what a file says about itself; return this object.

        They belong together: when one of them is set to something else, before or later, none of them holds.
        """
        if all(_equal(self.__dict__.get(key, value), value) for key, value in kwargs.items()):
            self.__dict__["_suggested"] = {**self._suggestions(), **kwargs}
        return self

    def _suggestions(self) -> dict[str, Any]:
        return self.__dict__.get("_suggested", {})

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key, or `default` where it is not set."""
        self._load(key)
        known = self._known()
        return known.get(key if key in known else _RENAMED_KEYS.get(key, key), default)


class _MetadataCatalog(UserDict):
    """Names of data sets, and for each its `Metadata`, made at the first request and the same ever after."""

    def __init__(self) -> None:
        super().__init__()
        self._factories: dict[str, Callable[[], Mapping[str, Any]]] = {}

    def get(self, name: str) -> Metadata:  # pyright: ignore[reportIncompatibleMethodOverride]  # never missing
        """Return the metadata of a data set, the same object each time; an unknown name gets a new, empty one."""
        if not name:
            raise ValueError("MetadataCatalog.get() needs the name of a data set, not an empty string.")
        if name not in self.data:
            metadata = Metadata(name=name)
            if name in self._factories:
                metadata.set(**self._factories[name]())
                del self._factories[name]
            self.data[name] = metadata
        return self.data[name]

    def register_lazy(self, name: str, factory: Callable[[], Mapping[str, Any]]) -> None:
        """Have the metadata filled in at the first `get(name)`, with the keys and values that `factory()` returns."""
        if name in self:
            raise CatalogConflictError(f"Dataset '{name}' already has metadata.")
        self._factories[name] = factory

    def list(self) -> list[str]:
        """Return the names of all data sets that have metadata."""
        return [*self.data, *self._factories]

    def remove(self, name: str) -> None:
        """Forget the metadata of a data set."""
        if name not in self:
            raise UnknownDatasetError(f"Dataset {name!r} has no metadata to remove.")
        self.data.pop(name, None)
        self._factories.pop(name, None)

    def __missing__(self, name: str) -> Metadata:
        if name in self._factories:
            return self.get(name)
        raise UnknownDatasetError(f"Dataset {name!r} has no metadata; MetadataCatalog.get({name!r}) would make it.")

    def __contains__(self, name: object) -> bool:
        return name in self.data or name in self._factories

    def __iter__(self):
        return iter(self.list())

    def __len__(self) -> int:
        return len(self.data) + len(self._factories)

    def __delitem__(self, name: str) -> None:
        self.remove(name)

    def __str__(self) -> str:
        return f"MetadataCatalog(registered metadata: {', '.join(self.list())})"

    __repr__ = __str__


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
