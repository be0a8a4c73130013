"""Lazy configs as text: YAML that can be read again, and Python-like lines for people.

YAML holds numbers, text, lists and dictionaries. A class, a function, a dataclass object or a `functools.partial` is
written as the description of a call that returns it. Reading a file never makes such a call; `instantiate` does. Files
of the published system hold these objects as Python tags, which are read as the same descriptions.
"""

import dataclasses
import enum
import functools
import inspect
import logging
from collections.abc import Mapping
from typing import Any, NoReturn

import yaml
from omegaconf import OmegaConf, SCMode
from omegaconf.errors import OmegaConfBaseException

from detectron2.config.safe_yaml import SafeConfigLoader, UnsafeYamlError, load_yaml
from detectron2.utils.file_io import atomic_write
from detectron2.utils.registry import convert_target_to_string, locate

__all__ = ["load_lazy_yaml", "make_partial", "missing_object", "save_yaml", "to_python", "to_yaml"]

logger = logging.getLogger(__name__)

_SCALARS = (bool, int, float, str, type(None))
_PYTHON = "tag:yaml.org,2002:python/"
# Files that earlier revisions wrote call functions of this module by this name.
_FORMER_MODULE = "detectron2.config._lazy_objects."


# -------------------------------------------------------------------------------------------- descriptions of objects


def make_partial(func: Any, args: list[Any], keywords: dict[str, Any]) -> Any:
    """Build a `functools.partial`; saved configs describe one as a call of this function.

    >>> make_partial(int, ["101"], {"base": 2})()
    5
    """
    return functools.partial(func, *args, **keywords)


def missing_object(description: str) -> NoReturn:
    """Stand for an object that could not be written to YAML: a call raises a `ValueError` that says what to do."""
    raise ValueError(
        f"This config was read from a YAML file that could not hold {description}. "
        "Set the value again, or load the config from the Python file that it came from."
    )


def _describe_name(name: str) -> dict[str, Any]:
    """Describe the class or function with a dotted name; instantiating the description returns it."""
    return {"_target_": convert_target_to_string(locate), "name": name}


def _describe_partial(func: Any, args: list[Any], keywords: dict[str, Any]) -> dict[str, Any]:
    """Describe a `functools.partial` object; its parts are descriptions already."""
    return {
        "_target_": f"{__name__}.make_partial",
        "func": func,
        "args": args,
        "keywords": {"_target_": "builtins.dict", **keywords},
    }


# ------------------------------------------------------------------------------------------------------------ reading


class _LazyYamlLoader(SafeConfigLoader):
    """The safe loader, with tags for objects that become descriptions."""


def _construct_name(loader: _LazyYamlLoader, suffix: str, node: yaml.Node) -> Any:
    return _describe_name(suffix)


def _construct_fields(loader: _LazyYamlLoader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    fields = loader.construct_mapping(node, deep=True) if isinstance(node, yaml.MappingNode) else {}
    return {"_target_": suffix, **{str(k): v for k, v in fields.items()}}


def _construct_partial(loader: _LazyYamlLoader, node: yaml.Node) -> Any:
    content = loader.construct_mapping(node, deep=True) if isinstance(node, yaml.MappingNode) else {}
    state = content.get("state")
    if not isinstance(state, tuple | list) or len(state) != 4:
        raise UnsafeYamlError(None, None, "expected the four-part state of functools.partial", node.start_mark)
    func, args, keywords, _ = state
    return _describe_partial(func, list(args), dict(keywords or {}))


# The first matching prefix counts, and the inherited one refuses every Python tag.
_LazyYamlLoader.yaml_multi_constructors = {
    f"{_PYTHON}name:": _construct_name,
    f"{_PYTHON}object:": _construct_fields,
    **SafeConfigLoader.yaml_multi_constructors,
}
_LazyYamlLoader.add_constructor(f"{_PYTHON}object/apply:functools.partial", _construct_partial)


def load_lazy_yaml(text: str, filename: str) -> dict[str, Any]:
    """Read the text of a saved lazy config as plain values, without importing or calling anything.

    A `ValueError` that names the file says that the text is not valid YAML, asks to run code, or holds keys or links
    ("${...}") that omegaconf cannot read.

    >>> load_lazy_yaml("model: {_target_: torch.nn.ReLU}", "a.yaml")
    {'model': {'_target_': 'torch.nn.ReLU'}}
    """
    content = load_yaml(text.replace(_FORMER_MODULE, f"{__name__}."), filename, loader=_LazyYamlLoader)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{filename} should hold keys and values, but holds a {type(content).__name__}.")
    try:
        OmegaConf.create(content, flags={"allow_objects": True})
    except OmegaConfBaseException as error:
        raise ValueError(f"{filename} has a key or value that a config cannot hold: {error}") from error
    return content


# ------------------------------------------------------------------------------------------------------------ writing


def to_yaml(cfg: Any) -> tuple[str, list[str]]:
    """Return a lazy config as YAML text, and the places with values that YAML cannot hold; a placeholder stands there.

    >>> to_yaml({"lr": 0.1, "act": torch.nn.ReLU})[0]
    'lr: 0.1\\nact: {_target_: detectron2.utils.registry.locate, name: torch.nn.ReLU}\\n'
    """
    lost: list[str] = []
    content = _to_plain(_container(cfg), "", lost)
    return yaml.safe_dump(content, default_flow_style=None, allow_unicode=True, sort_keys=False, width=9999), lost


def save_yaml(cfg: Any, filename: str) -> None:
    """Write an omegaconf config to a YAML file that `LazyConfig.load` reads. It is also called `LazyConfig.save`.

    Classes and functions are written as their dotted names. An object without such a name, e.g. a lambda, becomes a
    placeholder that raises an error when it is built. The whole config is then also written to a `.pkl` file next
    to the YAML file, with a warning in the log.
    """
    filename = str(filename)
    text, lost = to_yaml(cfg)
    with atomic_write(filename) as file:
        file.write(text.encode())
    if lost:
        pickle_name = filename + ".pkl"
        warning = "%s cannot hold %s: the values are missing there. The whole config was pickled to %s."
        logger.warning(warning, filename, "; ".join(lost), pickle_name)
        _save_pickle(cfg, pickle_name)


def _save_pickle(cfg: Any, filename: str) -> None:
    import cloudpickle

    try:
        content = cloudpickle.dumps(cfg)
    except Exception:  # objects may raise anything when they are pickled; the YAML file is written already
        logger.exception("The config cannot be pickled to %s either.", filename)
        return
    with atomic_write(filename) as file:
        file.write(content)


def _container(cfg: Any) -> Any:
    """Return plain dictionaries and lists, with interpolations as text and dataclass objects as themselves."""
    if OmegaConf.is_config(cfg):
        return OmegaConf.to_container(cfg, resolve=False, structured_config_mode=SCMode.INSTANTIATE)
    return cfg


def _to_plain(value: Any, path: str, lost: list[str]) -> Any:
    """Describe everything but numbers, text, lists and dictionaries; add to `lost` what cannot be described."""
    if isinstance(value, _SCALARS):
        return _plain_scalar(value)
    if isinstance(value, Mapping):
        plain = {}
        for k, v in value.items():
            where = f"{path}.{k}" if path else str(k)
            plain[k] = _target_name(v, where, lost) if k == "_target_" else _to_plain(v, where, lost)
        return plain
    if isinstance(value, list | tuple):
        return [_to_plain(v, f"{path}[{i}]", lost) for i, v in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        return _to_plain({"_target_": type(value), **fields}, path, lost)
    if isinstance(value, functools.partial):
        func, args = _to_plain(value.func, path, lost), _to_plain(value.args, path, lost)
        return _describe_partial(func, args, _to_plain(value.keywords, path, lost))
    name = _dotted_name(value)
    if name is not None:
        return _describe_name(name)
    shown = f"{path}, a {type(value).__name__}"
    lost.append(shown)
    return {"_target_": convert_target_to_string(missing_object), "description": shown}


def _plain_scalar(value: Any) -> Any:
    """Convert members of enumerations and NumPy's scalars, classes derived from a number or text, to plain values."""
    if type(value) in _SCALARS:
        return value
    value = value.value if isinstance(value, enum.Enum) else value
    return next(kind for kind in (int, float, str) if isinstance(value, kind))(value)


def _target_name(target: Any, path: str, lost: list[str]) -> Any:
    """Return the dotted name of a target; the description of a call that returns the target stays as it is."""
    if isinstance(target, str):
        return target
    return _dotted_name(target) or _to_plain(target, path, lost)


def _dotted_name(value: Any) -> str | None:
    """Return the name under which a class, function or method can be imported, or None."""
    if not isinstance(value, type) and not inspect.isroutine(value):
        return None
    try:
        name = convert_target_to_string(value)
        found = locate(name)
    except (ImportError, AttributeError):
        return None
    return name if found is value or found == value else None


# ---------------------------------------------------------------------------------------------------------- for people


def to_python(cfg: Any, prefix: str = "cfg.") -> str:
    """Return a config as Python-like text, for reading and comparing. It is also called `LazyConfig.to_py`.

    There is a line for each value, which begins with `prefix`; described objects appear as nested calls.

    >>> to_python({"model": {"_target_": "torch.nn.ReLU", "inplace": True}})
    'cfg.model = torch.nn.ReLU(inplace=True)\\n'
    """
    plain = _container(cfg)
    lines: list[str] = []
    if isinstance(plain, Mapping) and "_target_" not in plain:
        _print_assignments(plain, prefix, lines)
    else:
        lines.append(f"{prefix.rstrip('.')} = {_expression(plain, 0)}")
    return "".join(f"{line}\n" for line in lines)


def _print_assignments(node: Mapping[Any, Any], prefix: str, lines: list[str]) -> None:
    for key, value in node.items():
        if isinstance(value, Mapping) and value and "_target_" not in value and all(map(_is_name, value)):
            _print_assignments(value, f"{prefix}{key}.", lines)
        elif _is_name(key):
            lines.append(f"{prefix}{key} = {_expression(value, 0)}")
        else:
            lines.append(f"{prefix.rstrip('.')}[{_expression(key, 0)}] = {_expression(value, 0)}")


def _is_name(key: Any) -> bool:
    return isinstance(key, str) and key.isidentifier()


def _expression(value: Any, depth: int) -> str:
    """Return Python text for a value; `depth` is the number of brackets around it."""
    if isinstance(value, str):
        escaped = value.encode("unicode_escape").decode().replace('"', '\\"')
        return f'"{escaped}"'
    if isinstance(value, Mapping):
        if "_target_" in value:
            arguments = [(f"{k}=", v) for k, v in value.items() if k != "_target_"]
            return _bracket(f"{_target_text(value['_target_'], depth)}(", arguments, ")", depth)
        return _bracket("{", [(f"{_expression(k, 0)}: ", v) for k, v in value.items()], "}", depth)
    if isinstance(value, list | tuple):
        return _bracket("[", [("", v) for v in value], "]", depth)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [(f"{f.name}=", getattr(value, f.name)) for f in dataclasses.fields(value)]
        return _bracket(f"{_target_text(type(value), depth)}(", fields, ")", depth)
    if isinstance(value, type) or inspect.isroutine(value):
        return _target_text(value, depth)
    return repr(value)


def _target_text(target: Any, depth: int) -> str:
    if isinstance(target, str):
        return target
    if isinstance(target, Mapping):
        return _expression(target, depth)
    return _dotted_name(target) or getattr(target, "__qualname__", repr(target))


def _bracket(opening: str, items: list[tuple[str, Any]], closing: str, depth: int) -> str:
    """Join items on one line if they fit, else one per line, as dictionaries of three and more within others."""
    texts = [f"{label}{_expression(item, depth + 1)}" for label, item in items]
    line = opening + ", ".join(texts) + closing
    is_long = len(line) + 4 * depth > 100 or (opening == "{" and depth > 0 and len(items) > 2)
    if not is_long and "\n" not in line:
        return line
    indent = "    " * (depth + 1)
    return opening + "\n" + "".join(f"{indent}{text},\n" for text in texts) + "    " * depth + closing
