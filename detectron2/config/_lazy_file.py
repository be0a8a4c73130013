"""Executing config files, and relative imports between them.

``from ..common.optim import SGD as optimizer`` in a config file means: load ``../common/optim.py`` as a config file and
take ``SGD`` from it. No package is needed. Such statements are rewritten before the file is compiled, so Python's own
import machinery is left alone.
"""

import ast
import copy
import os
from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from .lazy_text import load_lazy_yaml

__all__ = ["load_file", "select_keys"]

_LOADER_NAME = "__import_from_config__"


def load_file(filename: str) -> dict[str, Any]:
    """Load a config file and return everything it defines, by name.

    Args:
        filename: the path or address of a ``.py``, ``.yaml`` or ``.yml`` file.

    Returns:
        Every global name of a Python file, or every key of a YAML file.

    Raises:
        ValueError: if the file is of another type, or YAML whose content is not a dictionary.
        FileNotFoundError: if it does not exist.
    """
    return _Session().load(filename)


def select_keys(names: Mapping[str, Any], keys: str | tuple[str, ...] | None, filename: str) -> Any:
    """Return some values of a loaded file, or all that are configs.

    Args:
        names: what the file defines.
        keys: one name, several, or None for all; of a Python file, all dictionaries and lists with a public name.
        filename: for the error.

    Returns:
        One value, a tuple of them, or a config of all; dictionaries become configs.

    Raises:
        KeyError: if a name is not defined.
    """
    if keys is None:
        is_python = filename.endswith(".py")  # which defines other things as well
        configs = {k: _to_config(v) for k, v in names.items() if not is_python or _is_public_config(k, v)}
        return OmegaConf.create(configs, flags={"allow_objects": True})
    if isinstance(keys, str):
        return _pick(names, keys, filename)
    return tuple(_pick(names, key, filename) for key in keys)


def _pick(names: Mapping[str, Any], key: str, filename: str) -> Any:
    if key not in names:
        known = [k for k, v in names.items() if _is_public_config(k, v)]
        raise KeyError(f"{filename} does not define {key!r}; it defines {', '.join(known) or 'no configs'}.")
    return _to_config(names[key])


def _is_public_config(name: Any, value: Any) -> bool:
    return isinstance(value, DictConfig | ListConfig | dict) and not str(name).startswith("_")


def _to_config(value: Any) -> Any:
    if isinstance(value, dict):
        return DictConfig(value, flags={"allow_objects": True})
    return value


class _Session:
    """One call of ``load``: every file is executed once, and whoever imports from it gets copies of its configs."""

    def __init__(self) -> None:
        self._loaded: dict[str, dict[str, Any]] = {}
        self._loading: list[str] = []

    def load(self, filename: str) -> dict[str, Any]:
        from detectron2.utils.file_io import PathManager

        extension = os.path.splitext(filename)[1]
        if extension not in (".py", ".yaml", ".yml"):
            raise ValueError(f"A lazy config file ends in .py, .yaml or .yml, but got {filename!r}.")
        key = filename if "://" in filename else os.path.realpath(filename)
        if key in self._loaded:
            return self._loaded[key]
        if key in self._loading:
            raise ImportError(f"These config files import each other: {' -> '.join([*self._loading, key])}.")
        with PathManager.open(filename, "r") as file:
            text = str(file.read())
        if extension != ".py":
            names = load_lazy_yaml(text, filename)
        else:
            self._loading.append(key)
            try:
                names = self._execute(text, filename)
            finally:
                self._loading.pop()
        self._loaded[key] = names
        return names

    def _execute(self, text: str, filename: str) -> dict[str, Any]:
        tree = ast.parse(text, filename=filename)
        tree = ast.fix_missing_locations(_RelativeImports(filename).visit(tree))
        stem = os.path.splitext(os.path.basename(filename))[0]
        builtin = {"__file__": filename, "__name__": f"lazy_config.{stem}", _LOADER_NAME: self._importer(filename)}
        names: dict[str, Any] = dict(builtin)
        exec(compile(tree, filename, "exec"), names)
        return {k: v for k, v in names.items() if k not in builtin and k != "__builtins__"}

    def _importer(self, filename: str) -> Callable[[int, str, tuple[str, ...]], tuple[Any, ...]]:
        def import_from(level: int, module: str, names: tuple[str, ...]) -> tuple[Any, ...]:
            path = _relative_path(filename, level, module)
            defined = self.load(path)
            missing = [n for n in names if n not in defined]
            if missing:
                raise ImportError(f"Cannot import {', '.join(missing)} from {path}: not defined there ({filename}).")
            return tuple(_own_copy(defined[n]) for n in names)

        return import_from


def _own_copy(value: Any) -> Any:
    """A config that its importer may edit without an effect on other importers; other objects are shared."""
    return copy.deepcopy(_to_config(value)) if isinstance(value, DictConfig | ListConfig | dict | list) else value


def _relative_path(filename: str, level: int, module: str) -> str:
    """Return the file that ``from ..module`` (``level`` dots) means in ``filename``."""
    from detectron2.utils.file_io import PathManager

    folder = os.path.dirname(filename)
    for _ in range(level - 1):
        folder = os.path.dirname(folder) if "://" in folder else os.path.join(folder, os.pardir)
    base = os.path.join(folder, *module.split("."))
    base = base if "://" in base else os.path.normpath(base)
    for extension in (".py", ".yaml", ".yml"):
        if PathManager.isfile(base + extension):
            return base + extension
    raise ImportError(f"{filename} imports from {'.' * level}{module}, but there is no config file {base}.py.")


class _RelativeImports(ast.NodeTransformer):
    """Turn ``from .module import a, b as c`` into ``a, c = <loader>(1, "module", ("a", "b"))``."""

    def __init__(self, filename: str):
        self._filename = filename

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        if not node.level:
            return node
        names = [alias.name for alias in node.names]
        if not node.module or "*" in names:
            raise ImportError(
                f"{self._filename}, line {node.lineno}: config files can only import names from config files: "
                f"write 'from .file import name', not {ast.unparse(node)!r}."
            )
        targets = [ast.Name(alias.asname or alias.name, ast.Store()) for alias in node.names]
        call = ast.Call(
            ast.Name(_LOADER_NAME, ast.Load()),
            [ast.Constant(node.level), ast.Constant(node.module), ast.Tuple([*map(ast.Constant, names)], ast.Load())],
            [],
        )
        return ast.copy_location(ast.Assign([ast.Tuple(list(targets), ast.Store())], call), node)
