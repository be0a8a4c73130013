"""Find objects by name: registries of building blocks, and dotted import paths.

`Registry` is the class of fvcore, so `isinstance` and subclasses in other projects agree with ours.
"""

import difflib
import functools
import importlib
import traceback
from typing import Any

from fvcore.common.registry import Registry

__all__ = ["PartRegistry", "Registry", "build_part", "convert_target_to_string", "locate", "lookup"]


class PartRegistry(Registry):
    """A registry of parts of models, which says whose names collide.

    Example:
        >>> from detectron2.utils.registry import PartRegistry
        >>> registry = PartRegistry("HEADS")
        >>> registry.register(type("MyHead", (), {"__module__": "mine"}))
        >>> registry.get("MyHead").__name__
        'MyHead'
    """

    _additions: frozenset[str] = frozenset()

    def register_addition(self, obj: Any) -> Any:
        """Register a part that the published system does not have: one of a project, of the same name, replaces it.

        Returns `obj`, so that this is a decorator.
        """
        if obj.__name__ not in self:
            self.register(obj)
            self._additions |= {obj.__name__}
        return obj

    def _do_register(self, name: str, obj: Any) -> None:
        if name in self._additions:
            self._additions -= {name}
            del self._obj_map[name]
        if name in self:  # an AssertionError, as the base class raises
            before, now = (f"{x.__module__}.{x.__qualname__}" for x in (self.get(name), obj))
            raise AssertionError(
                f"An object named '{name}' was already registered in '{self._name}' registry! It is {before}, and now "
                f"{now} comes. One process can use only one of the two: import either package, not both, or give one "
                "another name."
            )
        super()._do_register(name, obj)


def lookup(registry: Registry, name: str, key: str) -> Any:
    """Return the registered object that a config names.

    If it is not registered, the message of the `KeyError` has the config key, `key`, and similar names.
    """
    if name in registry:
        return registry.get(name)
    names = sorted(registered for registered, _ in registry)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise KeyError(
        f"{key} is {name!r}, which is not registered. {hint}Registered are: {', '.join(names) or 'none'}. A class of "
        f"your own is registered once the module that defines it has been imported (commands: --import MODULE)."
    )


def build_part(registry: Registry, key: str, cfg: Any, **arguments: Any) -> Any:
    """Call the registered object that a config names under `key`, with the config and `arguments`, by their places.

    The names of the arguments are for the message of the `TypeError` that says that it takes others; see also `lookup`.
    """
    name = functools.reduce(getattr, key.split("."), cfg)
    part = lookup(registry, name, key)
    try:
        return part(cfg, *arguments.values())
    except TypeError as error:
        frames = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
        # Between a call and the constructor that is meant lie `configurable` and PyTorch's modules.
        if not all(name.startswith(("detectron2.config.config", "torch.")) for name in frames[1:]):
            raise  # it was called, and made an error itself
        called = f"{part.__module__}.{part.__qualname__}({', '.join(['cfg', *arguments])})"
        raise TypeError(f"{key} is {name!r}, which is built by {called}, and this failed: {error}") from error


def locate(name: str) -> Any:
    """Import the object that a dotted path names, such as `"torch.optim.SGD"` or `"package.module.Class.method"`.

    An `ImportError` says that no module along the path can be imported, or that the module lacks the attribute.
    """
    parts = name.split(".")
    if not all(parts):
        raise ImportError(f"{name!r} is not a dotted path like 'package.module.Name'.")
    # The longest prefix that is a module wins: a sub-module may hide behind an attribute of the same name
    # (`detectron2.model_zoo.model_zoo`), and only importing it tells.
    for depth in range(len(parts), 0, -1):
        module_name = ".".join(parts[:depth])
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
                continue  # this prefix is not a module, so the rest are attributes of a shorter one
            raise ImportError(f"Cannot import {name!r}: module {module_name!r} needs {error.name!r}.") from error
        try:
            return functools.reduce(getattr, parts[depth:], module)
        except AttributeError as error:
            raise ImportError(f"Cannot import {name!r}: {error}. Check the spelling of the last part.") from error
    raise ImportError(f"Cannot import {name!r}: module {parts[0]!r} does not exist.")


def convert_target_to_string(t: Any) -> str:
    """Return the shortest dotted path to a class or function.

    `package.sub._impl.Thing` becomes `package.sub.Thing` if that names the same object, so that stored paths stay
    valid when the implementation moves.
    """
    module, qualname = t.__module__, t.__qualname__
    parts = module.split(".")
    for depth in range(1, len(parts)):
        candidate = ".".join([*parts[:depth], qualname])
        try:
            if locate(candidate) is t:
                return candidate
        except ImportError:
            continue
    return f"{module}.{qualname}"
