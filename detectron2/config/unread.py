"""Settings that are not read: a config from `get_cfg()` records which of its keys were changed, and which were read.

The record lies in the attributes of each group. Copies share what was read, so that reading a copy counts; merging,
copying, pickling, printing and dumping do not.
"""

import logging
from collections.abc import Iterator
from typing import Any

from detectron2.config.defaults import _C
from detectron2.config.merge import CHANGED, READ, iter_leaves
from detectron2.config.optional_keys import OPTIONAL_KEYS

__all__ = ["keep_record", "warn_of_unread"]

logger = logging.getLogger(__name__)

_LATER = ("MODEL.WEIGHTS", "MODEL.LOAD_PROPOSALS", "DATASETS.TEST")  # read by a checkpointer, or with the data


def keep_record(node: Any) -> Any:
    """Begin an empty record in a config, which is returned."""
    node.__dict__.update({READ: set(), CHANGED: set()})
    for child in node.values():
        if isinstance(child, dict):
            keep_record(child)
    return node


def warn_of_unread(cfg: Any, model: Any, *groups: str) -> None:
    """Name, in one warning, the keys of `groups` that the user changed and that have not been read until now.

    Groups are paths, such as `"MODEL"`. Where `model` reads keys of the same last name, they are named as the cure.
    Keys that are not in the default config belong to whoever added them.
    """
    default = {**dict(iter_leaves(_C)), **OPTIONAL_KEYS}
    changed = {path: value for path, value, node, key in _recorded(cfg) if key in node.__dict__[CHANGED]}
    read = {path: value for path, value, node, key in _recorded(cfg) if key in node.__dict__[READ]}
    lines = []
    for path, value, node, key in _recorded(cfg):
        is_later = path in _LATER or (not path.startswith("MODEL.") and path.endswith("_TEST"))
        is_wanted = f"{path}.".startswith(tuple(f"{group}." for group in groups)) and not is_later
        if not is_wanted or path in read or path not in changed or value == default.get(path, value):
            continue
        twins = {p.rpartition(".")[2] for p, v in changed.items() if p in read and v == value}
        if key in twins or ("THRESH" in key and any("THRESH" in name for name in twins)):
            continue  # programs for any model set the same value for each kind of model
        node.__dict__[READ].add(key)  # it is named once
        same = [p for p in read if p.startswith("MODEL.") and p.rpartition(".")[2] == key]
        others = ", ".join(p for p in same if type(read[p]) is type(value))
        name = type(getattr(model, "module", model)).__name__
        lines.append(f"{path} = {value!r}" + (f"; this {name} reads {others}" if others else ""))
    if lines:
        logger.warning("Nothing reads these settings, so they have no effect:%s", "".join(f"\n  {x}" for x in lines))


def _recorded(node: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any, str]]:
    """Yield (path, value, group, last name) of every key with a record."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _recorded(value, f"{prefix}{key}.")
        elif READ in node.__dict__:
            yield f"{prefix}{key}", value, node, key
