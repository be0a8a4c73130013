"""Writing lazy configs: as YAML that can be read again, and as Python-like text for people."""

import dataclasses
import enum
import functools
import inspect
import io
import logging
import os
from collections.abc import Mapping
from typing import Any

import yaml
from omegaconf import OmegaConf, SCMode

from detectron2.utils.registry import _convert_target_to_string, locate

from ._lazy_objects import describe_object, describe_partial, missing_object

__all__ = ["save_yaml", "to_python", "to_yaml"]

logger = logging.getLogger(__name__)

_SCALARS = (bool, int, float, str, type(None))


def save_yaml(cfg: Any, filename: str) -> None:
    """Write ``cfg`` to ``filename``; see ``LazyConfig.save``."""
    text, lost = to_yaml(cfg)
    _write(filename, text.encode())
    if lost:
        pickle_name = os.path.splitext(filename)[0] + ".pkl"
        logger.warning(
            "%s cannot hold %s: the values are missing there. All of the config was pickled to %s.",
            filename,
            "; ".join(lost),
            pickle_name,
        )
        _save_pickle(cfg, pickle_name)


def to_yaml(cfg: Any) -> tuple[str, list[str]]:
    """Return ``cfg`` as the text of a YAML file, and the places whose values no text can hold."""
    lost: list[str] = []
    content = _to_plain(_container(cfg), "", lost)
    return yaml.safe_dump(content, default_flow_style=None, allow_unicode=True, sort_keys=False, width=9999), lost


def _container(cfg: Any) -> Any:
    """Plain dictionaries and lists, with interpolations as text and dataclass objects as themselves."""
    if OmegaConf.is_config(cfg):
        return OmegaConf.to_container(cfg, resolve=False, structured_config_mode=SCMode.INSTANTIATE)
    return cfg


def _to_plain(value: Any, path: str, lost: list[str]) -> Any:
    """Describe everything that is not a number, text, list or dictionary; note in ``lost`` what cannot be."""
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
        return describe_partial(func, args, _to_plain(value.keywords, path, lost))
    name = _dotted_name(value)
    if name is not None:
        return describe_object(name)
    shown = f"{path}, a {type(value).__name__}"
    lost.append(shown)
    return {"_target_": _convert_target_to_string(missing_object), "description": shown}


def _plain_scalar(value: Any) -> Any:
    """The number or text itself, where its class is derived from one: members of enumerations, NumPy's scalars."""
    if type(value) in _SCALARS:
        return value
    value = value.value if isinstance(value, enum.Enum) else value
    return next(kind for kind in (int, float, str) if isinstance(value, kind))(value)


def _target_name(target: Any, path: str, lost: list[str]) -> Any:
    """The dotted name of a target; other descriptions, e.g. of a call that returns the target, stay as they are."""
    if isinstance(target, str):
        return target
    return _dotted_name(target) or _to_plain(target, path, lost)


def _dotted_name(value: Any) -> str | None:
    """The name by which an importable class, function or method is found again, or None."""
    if not isinstance(value, type) and not inspect.isroutine(value):
        return None
    try:
        name = _convert_target_to_string(value)
        found = locate(name)
    except (ImportError, AttributeError):
        return None
    return name if found is value or found == value else None


def _save_pickle(cfg: Any, filename: str) -> None:
    import cloudpickle

    buffer = io.BytesIO()
    try:
        cloudpickle.dump(cfg, buffer)
    except Exception:  # whatever the objects raise that refuse to be pickled: the YAML is there, and the log tells
        logger.exception("The config cannot be pickled to %s either.", filename)
        return
    _write(filename, buffer.getvalue())


def _write(filename: str, content: bytes) -> None:
    from detectron2.utils.file_io import atomic_write

    with atomic_write(filename) as file:
        file.write(content)


def to_python(cfg: Any, prefix: str = "cfg.") -> str:
    """Return ``cfg`` as Python-like text; see ``LazyConfig.to_py``."""
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
    """Python text for a value; ``depth`` is the number of brackets around it."""
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
    """Join items on one line if they fit, else one per line."""
    texts = [f"{label}{_expression(item, depth + 1)}" for label, item in items]
    line = opening + ", ".join(texts) + closing
    if len(line) + 4 * depth <= 100 and "\n" not in line:
        return line
    indent = "    " * (depth + 1)
    return opening + "\n" + "".join(f"{indent}{text},\n" for text in texts) + "    " * depth + closing
