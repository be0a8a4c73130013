"""Changing a lazy config by texts from the command line, in Hydra's grammar."""

import inspect
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from detectron2.utils.registry import locate

from .merge import nearest
from .optional_keys import OPTIONAL_KEYS

__all__ = ["apply_overrides"]


def apply_overrides(cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """Change ``cfg`` in place; see ``LazyConfig.apply_overrides``."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    changes = [(text, _parse(parser, text, HydraException)) for text in overrides]
    problems: list[str] = []
    for text, change in changes:
        problem = _apply(cfg, change)
        if problem:
            problems.append(f"{text}: {problem}")
    if problems:
        raise KeyError("Cannot apply the override " + "; ".join(problems))
    return cfg


def _parse(parser: Any, text: str, parse_error: type[Exception]) -> Any:
    try:
        change = parser.parse_override(text)
        reason = "" if change.key_or_group else "The key is empty."
    except parse_error as e:
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
        return f"{path!r} is {_child(node, key)!r}, not {expected!r}; write ~{path} to remove it whatever it is"
    del node[int(key) if isinstance(node, ListConfig) else key]
    return None


def _find_obstacle(cfg: DictConfig, path: str, may_add: bool) -> str | None:
    """Walk to the place that ``path`` names, and say why its value cannot be set, if it cannot."""
    node: Any = cfg
    walked: list[str] = []
    for step in path.split("."):
        where = ".".join(walked) or "the config"
        if not OmegaConf.is_config(node):
            return f"{where!r} is {node!r}, which has no parts"
        if not _has(node, step):
            if isinstance(node, ListConfig):
                return f"{where!r} has {len(node)} items, and {step!r} is not the number of one"
            return None if may_add else _why_unknown(node, step, where)
        node = _child(node, step)
        walked.append(step)
    return None


# Keys of the training loop that a config need not have: the lazy names of the optional ones, and some more.
_OPTIONAL = {f"train.{path.rpartition('.')[2].lower()}" for path in OPTIONAL_KEYS} | {"train.ddp.bf16_compression"}


def _why_unknown(node: DictConfig, key: str, where: str) -> str | None:
    """Tell whether a new key is more likely a mistake than meant to be new."""
    if f"{where}.{key}" in _OPTIONAL:
        return None
    accepted = _accepted_arguments(node)
    if accepted is not None:
        if key in accepted:
            return None
        target = node._get_node("_target_")
        return f"{target} at {where!r} takes no argument {key!r}" + _did_you_mean(key, accepted)
    guess = _did_you_mean(key, node)
    return f"{where!r} has no {key!r}{guess} To add it nevertheless, write a + before it." if guess else None


def _accepted_arguments(node: DictConfig) -> list[str] | None:
    """The arguments of the callable that ``node`` will be passed to, if it has one and they can be known."""
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
    """The value at ``step`` with interpolations resolved where they can be, or None."""
    if not _has(node, step):
        return None
    key: Any = int(step) if isinstance(node, ListConfig) else step
    if OmegaConf.is_interpolation(node, key):
        return OmegaConf.select(node, step, default=None)
    return node[key]
