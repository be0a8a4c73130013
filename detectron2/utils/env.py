"""Seeds, versions, and modules that are imported from a file."""

import importlib
import importlib.util
import logging
import os
import random
import sys
from collections.abc import Iterable, MutableMapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

__all__ = [
    "TORCH_VERSION",
    "fixup_module_metadata",
    "import_file",
    "import_modules",
    "seed_all_rng",
    "setup_environment",
]

TORCH_VERSION: tuple[int, ...] = tuple(int(part) for part in torch.__version__.split(".")[:2])
"""(major, minor) of the running PyTorch."""


def seed_all_rng(seed: int | None = None) -> None:
    """Seed the generators of Python, NumPy and PyTorch.

    Args:
        seed: the seed; if None, it is drawn from the operating system and logged.
    """
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "little")
        logging.getLogger(__name__).info("Using a generated random seed %d", seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  # the global generator is what is seeded here
    torch.manual_seed(seed)
    random.seed(seed)
    os.environ["PYTHONHASHSEED"] = str(seed % 2**32)


def import_file(module_name: str, file_path: str | os.PathLike, make_importable: bool = False) -> ModuleType:
    """Run a `.py` file as a module and return the module.

    With `make_importable`, later `import` statements find the module by its name.
    """
    spec = importlib.util.spec_from_file_location(module_name, file_path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{os.fspath(file_path)!r} cannot be imported as a Python module; is it a .py file?")
    module = importlib.util.module_from_spec(spec)
    if make_importable:
        sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if make_importable:
            sys.modules.pop(module_name, None)
        raise
    return module


_import_file = import_file  # the name that projects import


def import_modules(names: Iterable[str]) -> list[str]:
    """Import modules by their names, or from `.py` files, which are importable afterwards; return their names."""
    found = []
    for name in names:
        if name.endswith(".py"):
            found.append(import_file(Path(name).stem, name, make_importable=True).__name__)
        else:
            found.append(importlib.import_module(name).__name__)
    return found


def setup_environment() -> None:
    """Run `setup_environment()` of the module or `.py` file that `DETECTRON2_ENV_MODULE` names, once per process."""
    custom = os.environ.get("DETECTRON2_ENV_MODULE")
    if not custom or custom in _DONE:
        return
    if custom.endswith(".py"):
        module = import_file("detectron2.utils.env.custom_module", custom)
    else:
        module = importlib.import_module(custom)
    if not callable(getattr(module, "setup_environment", None)):
        raise AttributeError(f"DETECTRON2_ENV_MODULE={custom}: the module must define a function setup_environment().")
    _DONE.add(custom)
    module.setup_environment()


_DONE: set[str] = set()


def fixup_module_metadata(
    module_name: str, namespace: MutableMapping[str, Any], keys: Iterable[str] | None = None
) -> None:
    """Set the module of re-exported classes and functions to the public module, whose `globals()` are `namespace`.

    Documentation and pickles then name `package.Thing` and not `package._impl.Thing`. By default all public names are
    changed.
    """
    todo = [(key, namespace[key]) for key in (list(namespace) if keys is None else keys) if not key.startswith("_")]
    done: set[int] = set()
    while todo:
        qualname, obj = todo.pop()
        if id(obj) in done or not _is_implementation_detail_of(obj, module_name):
            continue
        done.add(id(obj))
        try:
            obj.__module__ = module_name
            obj.__name__ = qualname.rpartition(".")[2]
            obj.__qualname__ = qualname
        except (AttributeError, TypeError):  # built-in objects cannot be changed
            continue
        if isinstance(obj, type):
            todo.extend((f"{qualname}.{name}", member) for name, member in vars(obj).items())


def _is_implementation_detail_of(obj: Any, module_name: str) -> bool:
    """Return whether a class or function was defined in the module or in one below it."""
    home, qualname = getattr(obj, "__module__", None), getattr(obj, "__qualname__", None)
    return isinstance(qualname, str) and isinstance(home, str) and f"{home}.".startswith(f"{module_name}.")
