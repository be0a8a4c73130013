"""What the keys of a YAML config mean: reads the table `key_meanings.yaml`, for the command line and the documentation.

The table has the keys of `get_cfg()`, those of `detectron2.config.optional_keys` and those of projects.
"""

import functools
import importlib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config.config import get_cfg
from detectron2.config.merge import iter_leaves
from detectron2.config.optional_keys import OPTIONAL_KEYS
from detectron2.config.project_keys import PROJECT_KEYS
from detectron2.config.safe_yaml import load_yaml
from detectron2.config.values import requirement

__all__ = ["ConfigKey", "config_keys", "read_meanings"]


@dataclass(frozen=True)
class ConfigKey:
    """A key of a YAML config.

    Args:
        name: the full name, such as `MODEL.RPN.NMS_THRESH`.
        meaning: what the key does, and when to change it.
        unit: the unit of the value, such as "pixels"; empty where there is none.
        kind: `"default"` for a key of `get_cfg()`, `"optional"` for one that a config may have beside those, or
            `"project"`.
        default: the value without a setting; None for a key of a project that is not installed.
        requirement: what a value must be, such as "a number above 0"; empty where only its type is given.
        adders: of a key of projects, the functions that add it to a config; the first is the one that adds least.
        is_default_known: false for a key of a project that is not installed, or not imported.
    """

    name: str
    meaning: str
    unit: str
    kind: str
    default: Any
    requirement: str = ""
    adders: tuple[str, ...] = ()
    is_default_known: bool = True


@functools.cache
def read_meanings() -> dict[str, tuple[str, str]]:
    """Return the table: the full name of a key -> its unit, which may be empty, and its meaning.

    >>> read_meanings()["INPUT.MAX_SIZE_TEST"][0]
    'pixels'
    """
    path = Path(__file__).with_suffix(".yaml")
    groups = load_yaml(path.read_text(encoding="utf-8"), str(path))
    texts = {f"{group}.{key}".lstrip("."): text for group, keys in groups.items() for key, text in keys.items()}
    found = {name: re.fullmatch(r"(?:\((.+?)\) )?(.+)", text) for name, text in texts.items()}
    return {name: (match[1] or "", match[2]) for name, match in found.items() if match}


def config_keys(projects: bool = True) -> dict[str, ConfigKey]:
    """Describe all keys that a YAML config may have.

    Args:
        projects: whether to import the projects that are installed, for the defaults of their keys.

    Returns:
        Full name -> key: those of `get_cfg()` first, then optional ones, then those of projects.

    Example:
        >>> key = config_keys(projects=False)["SOLVER.EMA_DECAY"]
        >>> key.kind, key.default, key.requirement
        ('optional', 0.0, 'a number in [0, 1)')
    """
    defaults = dict(iter_leaves(get_cfg()))
    of_projects = _project_defaults() if projects else {}
    keys = {}
    for name, (unit, meaning) in read_meanings().items():
        if name in defaults:
            keys[name] = ConfigKey(name, meaning, unit, "default", defaults[name], requirement(name, defaults[name]))
        elif name in OPTIONAL_KEYS:
            value = OPTIONAL_KEYS[name]
            keys[name] = ConfigKey(name, meaning, unit, "optional", value, requirement(name, value))
        else:
            adders = tuple(adder for adder, added in PROJECT_KEYS.items() if _is_within(name, added))
            default, is_known = of_projects.get(name), name in of_projects
            keys[name] = ConfigKey(name, meaning, unit, "project", default, adders=adders, is_default_known=is_known)
    order = {"default": 0, "optional": 1, "project": 2}
    return dict(sorted(keys.items(), key=lambda item: order[item[1].kind]))


def _project_defaults() -> dict[str, Any]:
    """Return the values of the keys that projects add to a config, of those that are installed."""
    found: dict[str, Any] = {}
    for adder in PROJECT_KEYS:
        module, _, function = adder.rpartition(".")
        if importlib.util.find_spec(module.partition(".")[0]) is not None:
            cfg = get_cfg()
            getattr(importlib.import_module(module), function)(cfg)
            found = {**dict(iter_leaves(cfg)), **found}  # of two projects that add a key, the first is the simpler one
    return found


def _is_within(name: str, keys: tuple[str, ...]) -> bool:
    return any(name == key or name.startswith(f"{key}.") for key in keys)
