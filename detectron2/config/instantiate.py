"""Build the objects that a lazy config describes.

A dictionary with `_target_` describes a call: the target is a callable or its dotted name, and the other keys are its
arguments, which may describe calls too.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from detectron2.utils.registry import convert_target_to_string, locate

__all__ = ["dump_dataclass", "instantiate"]

_TARGET = "_target_"


def dump_dataclass(obj: Any) -> dict[str, Any]:
    """Describe a dataclass object, and those in its fields, by a dictionary that `instantiate` turns into an equal one.

    Anything but an instance of a dataclass is a `TypeError`.

    >>> from detectron2.layers import ShapeSpec
    >>> dump_dataclass(ShapeSpec(channels=3))["_target_"]
    'detectron2.layers.ShapeSpec'
    """
    if not dataclasses.is_dataclass(obj) or isinstance(obj, type):
        raise TypeError(f"dump_dataclass() takes an instance of a dataclass, but got {obj!r}.")
    fields = {field.name: _describe(getattr(obj, field.name)) for field in dataclasses.fields(obj)}
    return {_TARGET: convert_target_to_string(type(obj)), **fields}


def _describe(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dump_dataclass(value)
    if isinstance(value, list | tuple):
        return [_describe(v) for v in value]
    return value


def instantiate(cfg: Any) -> Any:
    """Build what a lazy config describes.

    Args:
        cfg: a dictionary or an omegaconf config with `_target_`, or a list of these.

    Returns:
        The object, or a plain list of objects. Anything else, such as a dictionary without `_target_`, is returned
        unchanged.

    Raises:
        TypeError: if a target is not callable.
        ImportError: if a target does not exist.
        Exception: any error of a target, with a note that names the place in the config.

    Example:
        >>> instantiate({"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3})
        Linear(in_features=2, out_features=3, bias=True)
    """
    return _build(cfg, "")


def _build(cfg: Any, path: str) -> Any:
    if isinstance(cfg, ListConfig | list):
        return [_build(item, f"{path}[{i}]") for i, item in enumerate(cfg)]
    if isinstance(cfg, DictConfig) and dataclasses.is_dataclass(cfg._metadata.object_type):
        return OmegaConf.to_object(cfg)  # omegaconf wrapped a dataclass object; this is the object again
    if isinstance(cfg, Mapping) and _TARGET in cfg:
        return _call(cfg, path)
    return cfg


def _call(cfg: Mapping[Any, Any], path: str) -> Any:
    target = _resolve_target(_build(cfg[_TARGET], _join(path, _TARGET)), path)
    arguments = {key: _build(value, _join(path, key)) for key, value in cfg.items() if key != _TARGET}
    try:
        return target(**arguments)
    except Exception as e:
        # One note per level, innermost first: together they lead from the failing call to the root.
        _add_note(e, f"while building {_name(target)!r}, described at {path or 'the root'} of the config")
        raise


def _resolve_target(target: Any, path: str) -> Callable[..., Any]:
    if isinstance(target, str):
        try:
            target = locate(target)
        except ImportError as e:
            _add_note(e, f"named by _target_ at {path or 'the root'} of the config")
            raise
    if not callable(target):
        raise TypeError(f"_target_ at {path or 'the root'} of the config is not callable: {target!r}.")
    return target


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _name(target: Any) -> str:
    return f"{getattr(target, '__module__', '?')}.{getattr(target, '__qualname__', target)}"


def _add_note(error: BaseException, note: str) -> None:
    # BaseException.add_note() exists since Python 3.11.
    if hasattr(error, "add_note"):
        error.add_note(note)  # type: ignore[attr-defined]
