"""The two config systems: YAML files over a table of defaults, and lazy configs written in Python.

`get_cfg()` returns a `CfgNode` with the defaults, into which YAML files are merged. `LazyConfig` loads
Python files that describe objects with `LazyCall`; `instantiate` builds them.
"""

from detectron2.config.compat import downgrade_config, upgrade_config
from detectron2.config.config import (
    CfgNode,
    ConfigError,
    ConfigTypeError,
    UnknownConfigKeyError,
    configurable,
    get_cfg,
    global_cfg,
    set_global_cfg,
)
from detectron2.config.instantiate import dump_dataclass, instantiate
from detectron2.config.lazy import LazyCall, LazyConfig

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
