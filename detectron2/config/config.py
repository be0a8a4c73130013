"""The default config, the global one, and `configurable`, which builds objects from a config or from arguments."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import DictConfig
from yacs.config import CfgNode as YacsNode

import detectron2.config.defaults as defaults
from detectron2.config.merge import ConfigError, ConfigTypeError, UnknownConfigKeyError
from detectron2.config.node import CfgNode
from detectron2.config.unread import keep_record

__all__ = [
    "CfgNode",
    "ConfigError",
    "ConfigTypeError",
    "UnknownConfigKeyError",
    "configurable",
    "get_cfg",
    "global_cfg",
    "set_global_cfg",
]

global_cfg = CfgNode()
"""A config for all modules, filled by `set_global_cfg`; for experiments, not read by the library."""


def get_cfg() -> CfgNode:
    """Return a fresh copy of the default config, which is not frozen.

    >>> cfg = get_cfg()
    >>> cfg.merge_from_list(["SOLVER.BASE_LR", 0.02])
    >>> cfg.SOLVER.BASE_LR
    0.02
    """
    return keep_record(defaults._C.clone())


def set_global_cfg(cfg: CfgNode) -> None:
    """Let `detectron2.config.global_cfg` hold the keys of `cfg`, whose groups are shared, not copied.

    For quick experiments: the values can then be read anywhere without passing the config along.
    """
    global_cfg.clear()
    global_cfg.update(cfg)


def configurable(
    init_func: Callable[..., Any] | None = None, *, from_config: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """Let a class or function be called with a config in place of its arguments.

    A class with a decorated `__init__` has a classmethod `from_config`, which turns a config into arguments. For any
    other function, the decorator gets `from_config`.

    A call uses a config if its first argument, or the argument named `cfg`, is a `CfgNode` or an omegaconf
    `DictConfig`. Further arguments go to `from_config` if it accepts them, and otherwise overwrite what it returns.

    Args:
        init_func: the `__init__` to decorate.
        from_config: turns a config into a dictionary of arguments; its first parameter must be named `cfg`.

    Returns:
        The decorated function, or the decorator if no function is given.

    Raises:
        TypeError: if the decorated function, or `from_config`, does not have the form above.
        AttributeError: if an object is made of a class without `from_config`.

    Example:
        >>> class Head:
        ...     @configurable
        ...     def __init__(self, num_classes, width=256):
        ...         self.size = (num_classes, width)
        ...
        ...     @classmethod
        ...     def from_config(cls, cfg):
        ...         return {"num_classes": cfg.NUM_CLASSES}
        >>> cfg = CfgNode({"NUM_CLASSES": 3})
        >>> Head(num_classes=5).size, Head(cfg).size, Head(cfg, width=64).size
        ((5, 256), (3, 256), (3, 64))
        >>> configurable(from_config=lambda cfg: {"x": cfg.NUM_CLASSES})(lambda x: x + 1)(cfg)
        4
    """
    if init_func is not None:
        if not inspect.isfunction(init_func) or init_func.__name__ != "__init__" or from_config is not None:
            raise TypeError(
                "Write @configurable on a method __init__ of a class that has a classmethod from_config, "
                "or @configurable(from_config=...) on a function."
            )
        return _wrap_init(init_func)
    if from_config is None:
        return configurable  # @configurable()
    if not inspect.isfunction(from_config) and not inspect.ismethod(from_config):
        raise TypeError(f"from_config must be a function, but got {type(from_config).__name__}.")
    _check_from_config(from_config, "the function given as from_config")
    return functools.partial(_wrap_function, from_config=from_config)


def _wrap_init(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        owner = type(self)
        from_config = getattr(owner, "from_config", None)
        if from_config is None:
            raise AttributeError(f"{owner.__name__} is @configurable, so it needs a classmethod from_config(cfg).")
        if not inspect.ismethod(from_config):
            raise TypeError(f"{owner.__name__}.from_config must be a classmethod.")
        if not _has_config(args, kwargs):
            init(self, *args, **kwargs)
            return
        _check_from_config(from_config, f"{owner.__name__}.from_config")
        init(self, **_explicit_arguments(from_config, args, kwargs, init, owner.__name__))

    return wrapped


def _wrap_function(func: Callable[..., Any], from_config: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not _has_config(args, kwargs):
            return func(*args, **kwargs)
        return func(**_explicit_arguments(from_config, args, kwargs, func, func.__name__))

    wrapped.from_config = from_config  # type: ignore[attr-defined]  # published attribute of a function
    return wrapped


def _has_config(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    # A config of another kind named "cfg" is an ordinary argument.
    return any(isinstance(value, YacsNode | DictConfig) for value in (*args[:1], kwargs.get("cfg")))


@functools.lru_cache(maxsize=1024)
def _signature(func: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(func)


def _check_from_config(from_config: Callable[..., Any], name: str) -> None:
    signature = _signature(from_config)
    if next(iter(signature.parameters), None) != "cfg":
        raise TypeError(f"The first parameter of {name} must be named 'cfg', but it takes {signature}.")


def _explicit_arguments(
    from_config: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    target: Callable[..., Any],
    name: str,
) -> dict[str, Any]:
    """Translate a call with a config into keyword arguments of `target`."""
    accepted = _signature(from_config).parameters
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in accepted.values()):
        extra: dict[str, Any] = {}  # from_config accepts everything
    else:
        extra = {k: kwargs[k] for k in kwargs if k not in accepted}
    result = from_config(*args, **{k: v for k, v in kwargs.items() if k not in extra})
    if not isinstance(result, Mapping):
        raise TypeError(f"from_config of {name} must return a dictionary of arguments, but returned {result!r}.")
    arguments = {**result, **extra}
    parameters = _signature(target).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        unknown = [k for k in arguments if k not in parameters]
        if unknown:
            known = [k for k in parameters if k != "self"]
            raise TypeError(f"{name} has no argument {', '.join(map(repr, unknown))}; it takes {', '.join(known)}.")
    return arguments
