"""Lazy configs: Python files that describe objects without building them.

``LazyCall(cls)(a=1)`` is a dictionary that describes the call ``cls(a=1)``. It can be edited, and
:func:`detectron2.config.instantiate` performs it. :class:`LazyConfig` loads, saves, prints and overrides such configs.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

from omegaconf import DictConfig

from detectron2.utils.registry import _convert_target_to_string

from ._lazy_file import load_file, select_keys
from ._overrides import apply_overrides as _apply_overrides
from .lazy_text import save_yaml, to_python

__all__ = ["LazyCall", "LazyConfig"]


class LazyCall:
    """Wrap a callable, so that calling it describes the call in place of making it.

    Example::

        layer_cfg = LazyCall(nn.Conv2d)(in_channels=32, out_channels=32, kernel_size=1)
        layer_cfg.out_channels = 64
        layer = instantiate(layer_cfg)

    Args:
        target: a callable, its dotted name, or a lazy call that will return one.

    Raises:
        TypeError: if the target is none of these.
    """

    def __init__(self, target: Any):
        if not (callable(target) or isinstance(target, str | Mapping)):
            raise TypeError(f"LazyCall takes a callable or its dotted name, but got {target!r}.")
        self._target = target

    def __call__(self, *args: Any, **kwargs: Any) -> DictConfig:
        """Return the dictionary that describes the call."""
        if args:
            name = getattr(self._target, "__qualname__", self._target)
            raise TypeError(
                f"LazyCall({name}) takes named arguments only, so that they can be edited by name; "
                f"give names to the {len(args)} positional one(s): {', '.join(map(repr, args))}."
            )
        target = self._target
        if isinstance(target, type) and (is_dataclass(target) or target in (dict, list, tuple)):
            # omegaconf would take such a class for the schema of a value
            target = _convert_target_to_string(target)
        return DictConfig(content={**kwargs, "_target_": target}, flags={"allow_objects": True})


class LazyConfig:
    """Load, save, print and change configs that may describe objects."""

    @staticmethod
    def load_rel(filename: str, keys: str | tuple[str, ...] | None = None) -> Any:
        """Load a config file, given relative to the file that makes this call.

        As a relative import does, but with any file name.

        Args:
            filename: the path relative to the caller's file.
            keys: as for :meth:`load`.

        Returns:
            As :meth:`load`.

        Raises:
            ValueError: if the call does not come from a file.
        """
        caller = sys._getframe(1).f_code.co_filename
        if caller.startswith("<"):
            raise ValueError(f"LazyConfig.load_rel() was called from {caller}, which is no file; use load().")
        return LazyConfig.load(os.path.join(os.path.dirname(caller), filename), keys)

    @staticmethod
    def load(filename: str, keys: str | tuple[str, ...] | None = None) -> Any:
        """Load a config file. A Python file is executed; a YAML file is only read.

        Args:
            filename: the path or address of a ``.py``, ``.yaml`` or ``.yml`` file.
            keys: the names to return: one value for one name, a tuple for several. Without, one config of all; of a
                Python file, of all dictionaries and lists whose names do not begin with an underscore.

        Returns:
            A ``DictConfig``, or the values asked for.

        Raises:
            ValueError: if the file is of another type.
            KeyError: if it does not define one of the keys.
        """
        return select_keys(load_file(str(filename)), keys, str(filename))

    @staticmethod
    def save(cfg: Any, filename: str) -> None:
        """Write a config to a YAML file that :meth:`load` reads.

        Classes and functions are written by their dotted names. What has none, such as a lambda, is replaced by a
        placeholder that fails when it is built, and the whole config is written to a ``.pkl`` file beside it as well;
        the log says so.

        Args:
            cfg: an omegaconf config.
            filename: the file to write.
        """
        save_yaml(cfg, str(filename))

    @staticmethod
    def apply_overrides(cfg: DictConfig, overrides: list[str]) -> DictConfig:
        """Change a config in place by texts from the command line.

        ``a.b=1`` sets a value, ``+a.b=1`` adds one, ``~a.b`` removes one; the values follow the grammar of Hydra.
        A name that does not exist is an error if it resembles one that does, or if the callable that it would be
        passed to does not accept it.

        Args:
            cfg: an omegaconf config.
            overrides: texts such as ``"train.max_iter=1000"``.

        Returns:
            The same config.

        Raises:
            KeyError: if a name does not exist.
            ValueError: if a text cannot be parsed.
        """
        return _apply_overrides(cfg, overrides)

    @staticmethod
    def to_py(cfg: Any, prefix: str = "cfg.") -> str:
        """Return a config as Python-like text, for reading and comparing.

        Args:
            cfg: an omegaconf config.
            prefix: what every line begins with.

        Returns:
            One assignment for each value; nested calls where objects are described.
        """
        return to_python(cfg, prefix)
