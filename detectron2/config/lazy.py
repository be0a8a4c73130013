"""Lazy configs: Python files that describe objects without building them.

`LazyCall(cls)(a=1)` is a dictionary that describes the call `cls(a=1)`. It can be edited, and `instantiate` makes the
call. `LazyConfig` loads, saves, prints and overrides such configs.

Between config files, `from ..common.optim import SGD as optimizer` means: load `../common/optim.py` as a config file
and take `SGD` from it. No package is needed. These statements are rewritten before the file is compiled; Python's own
import system is not touched.
"""

import ast
import copy
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from detectron2.config.lazy_text import load_lazy_yaml, save_yaml, to_python
from detectron2.config.merge import nearest
from detectron2.config.optional_keys import OPTIONAL_KEYS
from detectron2.utils.file_io import PathManager
from detectron2.utils.registry import convert_target_to_string, locate

__all__ = ["LazyCall", "LazyConfig"]

_LOADER_NAME = "__import_from_config__"


class LazyCall:
    """Wrap a callable: a call of the wrapper describes a call of the callable.

    Args:
        target: a callable, its dotted name, or the description of a call that returns one.

    Raises:
        TypeError: if the target is none of these.

    Example:
        >>> layer_cfg = LazyCall(torch.nn.Conv2d)(in_channels=32, out_channels=32, kernel_size=1)
        >>> layer_cfg.out_channels = 64
        >>> instantiate(layer_cfg)
        Conv2d(32, 64, kernel_size=(1, 1), stride=(1, 1))
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
                f"LazyCall({name}) takes only named arguments, so that they can be edited by name. "
                f"Name the positional argument{'s' * (len(args) > 1)} {', '.join(map(repr, args))}."
            )
        target = self._target
        if isinstance(target, type) and (is_dataclass(target) or target in (dict, list, tuple)):
            # omegaconf would read such a class as the schema of a value
            target = convert_target_to_string(target)
        return DictConfig(content={**kwargs, "_target_": target}, flags={"allow_objects": True})


class LazyConfig:
    """Load, save, print and change configs that may describe objects."""

    @staticmethod
    def load_rel(filename: str, keys: str | tuple[str, ...] | None = None) -> Any:
        """Do what `load` does for a path that is relative to the calling file."""
        caller = sys._getframe(1).f_code.co_filename
        if caller.startswith("<"):
            raise ValueError(f"LazyConfig.load_rel() was called from {caller}, not from a file; use LazyConfig.load().")
        return LazyConfig.load(os.path.join(os.path.dirname(caller), filename), keys)

    @staticmethod
    def load(filename: str, keys: str | tuple[str, ...] | None = None) -> Any:
        """Load a config file. A Python file is executed; a YAML file is only read.

        Args:
            filename: the path or address of a `.py`, `.yaml` or `.yml` file.
            keys: the names to return: one value for a single name, a tuple of values for several. By default, one
                config with everything; for a Python file, with all dictionaries and lists with a public name.

        Returns:
            A `DictConfig`, or the requested values.

        Raises:
            ValueError: if the file is of another type, or YAML whose content is not a dictionary.
            KeyError: if it does not define one of the keys.
            FileNotFoundError: if it does not exist.

        Example:
            >>> _ = Path("lazy.py").write_text("train = dict(max_iter=10)")
            >>> LazyConfig.load("lazy.py").train.max_iter
            10
        """
        filename = str(filename)
        names = _Session().load(filename)
        if isinstance(keys, str):
            return _pick(names, keys, filename)
        if keys is not None:
            return tuple(_pick(names, key, filename) for key in keys)
        is_python = filename.endswith(".py")  # a Python file also defines functions and imports modules
        configs = {k: _to_config(v) for k, v in names.items() if not is_python or _is_public_config(k, v)}
        return OmegaConf.create(configs, flags={"allow_objects": True})

    save = staticmethod(save_yaml)
    to_py = staticmethod(to_python)

    @staticmethod
    def apply_overrides(cfg: DictConfig, overrides: list[str]) -> DictConfig:
        """Change a config in place with overrides from the command line.

        `a.b=1` sets a value, `+a.b=1` adds one, `~a.b` removes one; the values follow the grammar of Hydra.
        An unknown name is an error if it resembles a known one, or if it would be passed to a callable that does not
        accept it.

        Args:
            cfg: an omegaconf config.
            overrides: overrides such as `"train.max_iter=1000"`.

        Returns:
            The same config.

        Raises:
            KeyError: if a name does not exist.
            ValueError: if an override cannot be parsed.

        Example:
            >>> cfg = OmegaConf.create({"train": {"max_iter": 10}})
            >>> LazyConfig.apply_overrides(cfg, ["train.max_iter=1000"])
            {'train': {'max_iter': 1000}}
        """
        from hydra.core.override_parser.overrides_parser import OverridesParser

        parser = OverridesParser.create()
        changes = [(text, _parse(parser, text)) for text in overrides]
        problems = [f"{text}: {problem}" for text, change in changes if (problem := _apply(cfg, change))]
        if problems:
            raise KeyError("Cannot apply the override " + "; ".join(problems))
        return cfg


# Config files


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
    """One call of `load`: every file is executed once, and every importer gets copies of its configs."""

    def __init__(self) -> None:
        self._loaded: dict[str, dict[str, Any]] = {}
        self._loading: list[str] = []

    def load(self, filename: str) -> dict[str, Any]:
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
    """Return a copy of a config, so that its importer may edit it; other objects are shared."""
    return copy.deepcopy(_to_config(value)) if isinstance(value, DictConfig | ListConfig | dict | list) else value


def _relative_path(filename: str, level: int, module: str) -> str:
    """Return the file that `from ..module` (`level` dots) means in `filename`."""
    folder = os.path.dirname(filename)
    for _ in range(level - 1):
        folder = os.path.dirname(folder) if "://" in folder else os.path.join(folder, os.pardir)
    base = os.path.join(folder, *module.split("."))
    base = base if "://" in base else os.path.normpath(base)
    for extension in (".py", ".yaml", ".yml"):
        if PathManager.isfile(base + extension):
            return base + extension
    raise ImportError(f"{filename} imports from {'.' * level}{module}, but the config file {base}.py does not exist.")


class _RelativeImports(ast.NodeTransformer):
    """Turn `from .module import a, b as c` into `a, c = <loader>(1, "module", ("a", "b"))`."""

    def __init__(self, filename: str):
        self._filename = filename

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        if not node.level:
            return node
        names = [alias.name for alias in node.names]
        if not node.module or "*" in names:
            raise ImportError(
                f"{self._filename}, line {node.lineno}: a relative import takes names from a config file: "
                f"write 'from .file import name', not {ast.unparse(node)!r}."
            )
        targets = [ast.Name(alias.asname or alias.name, ast.Store()) for alias in node.names]
        call = ast.Call(
            ast.Name(_LOADER_NAME, ast.Load()),
            [ast.Constant(node.level), ast.Constant(node.module), ast.Tuple([*map(ast.Constant, names)], ast.Load())],
            [],
        )
        return ast.copy_location(ast.Assign([ast.Tuple(list(targets), ast.Store())], call), node)


# Overrides


def _parse(parser: Any, text: str) -> Any:
    from hydra.errors import HydraException

    try:
        change = parser.parse_override(text)
        reason = "" if change.key_or_group else "The key is empty."
    except HydraException as e:
        change, reason = None, str(e).splitlines()[0]
    if reason:
        raise ValueError(f"Cannot read {text!r}; expected KEY=VALUE, +KEY=VALUE or ~KEY. {reason}")
    return change


def _apply(cfg: DictConfig, change: Any) -> str | None:
    """Apply one parsed override, or return what is wrong with it."""
    path = change.key_or_group
    if change.is_sweep_override():
        return "give one value, not several to try"
    if change.is_delete():
        return _delete(cfg, path, change.value())
    problem = _find_obstacle(cfg, path, may_add=change.is_add() or change.is_force_add())
    if problem is None:
        OmegaConf.update(cfg, path, change.value(), merge=True)
    return problem


def _delete(cfg: DictConfig, path: str, expected: Any) -> str | None:
    *groups, key = path.split(".")
    node: Any = cfg
    for group in groups:
        node = _child(node, group)
    if not _has(node, key):
        return f"there is no {path!r} to remove" + _did_you_mean(key, node)
    if expected is not None and _child(node, key) != expected:
        return f"{path!r} is {_child(node, key)!r}, not {expected!r}; write ~{path} to remove any value"
    del node[int(key) if isinstance(node, ListConfig) else key]
    return None


def _find_obstacle(cfg: DictConfig, path: str, may_add: bool) -> str | None:
    """Walk to the place that `path` names, and say why its value cannot be set, if it cannot."""
    node: Any = cfg
    walked: list[str] = []
    for step in path.split("."):
        where = repr(".".join(walked)) if walked else "the config"
        if not OmegaConf.is_config(node):
            return f"{where} is {node!r}, which has no parts"
        if not _has(node, step):
            if isinstance(node, ListConfig):
                return f"{where} has {len(node)} items, and {step!r} is not the number of one"
            return None if may_add else _why_unknown(node, step, where)
        node = _child(node, step)
        walked.append(step)
    return None


# Keys of the training loop that a config may lack: the lazy names of the optional keys, and one more.
_OPTIONAL = {f"train.{path.rpartition('.')[2].lower()}" for path in OPTIONAL_KEYS} | {"train.ddp.bf16_compression"}


def _why_unknown(node: DictConfig, key: str, where: str) -> str | None:
    """Tell whether a new key is more likely a mistake than meant to be new."""
    if where.strip("'") + f".{key}" in _OPTIONAL:
        return None
    accepted = _accepted_arguments(node)
    if accepted is not None:
        if key in accepted:
            return None
        target = node._get_node("_target_")
        return f"{target} at {where} takes no argument {key!r}" + _did_you_mean(key, accepted)
    guess = _did_you_mean(key, node)
    return f"{where} has no {key!r}{guess} To add it nevertheless, write a + before it." if guess else None


def _accepted_arguments(node: DictConfig) -> list[str] | None:
    """Return the arguments of the callable that gets `node`, or None if there is none or they are unknown."""
    target = node.get("_target_")
    try:
        target = locate(target) if isinstance(target, str) else target
        parameters = inspect.signature(target).parameters  # type: ignore[arg-type]  # a TypeError if not callable
    except (ImportError, TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    return list(parameters)


def _did_you_mean(key: str, known: Any) -> str:
    guess = nearest(key, [str(k) for k in known]) if known is not None else None
    return f"; did you mean {guess!r}?" if guess else ""


def _has(node: Any, step: str) -> bool:
    if isinstance(node, ListConfig):
        return step.lstrip("-").isdigit() and -len(node) <= int(step) < len(node)
    return isinstance(node, DictConfig) and step in node.keys()  # noqa: SIM118 -- "in node" hides unresolved values


def _child(node: Any, step: str) -> Any:
    """Return the value at `step`, or None; interpolations are resolved where possible."""
    if not _has(node, step):
        return None
    key: Any = int(step) if isinstance(node, ListConfig) else step
    if OmegaConf.is_interpolation(node, key):
        return OmegaConf.select(node, step, default=None)
    return node[key]
