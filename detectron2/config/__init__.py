"""The two config systems: YAML files over a table of defaults, and lazy configs written in Python.

``get_cfg()`` returns a :class:`CfgNode` with the defaults, into which YAML files are merged. :class:`LazyConfig` loads
Python files that describe objects by :class:`LazyCall`; :func:`instantiate` builds them.
"""

from .compat import downgrade_config, upgrade_config
from .config import (
    CfgNode,
    ConfigError,
    ConfigTypeError,
    UnknownConfigKeyError,
    configurable,
    get_cfg,
    global_cfg,
    set_global_cfg,
)
from .instantiate import dump_dataclass, instantiate
from .lazy import LazyCall, LazyConfig

__all__ = [
    "CfgNode",
    "ConfigError",
    "ConfigTypeError",
    "LazyCall",
    "LazyConfig",
    "UnknownConfigKeyError",
    "configurable",
    "downgrade_config",
    "dump_dataclass",
    "get_cfg",
    "global_cfg",
    "instantiate",
    "set_global_cfg",
    "upgrade_config",
]
