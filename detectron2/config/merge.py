"""Merge configs: report all problems together, and change nothing if there are any.

A *path* is the full name of a key, such as `MODEL.RPN.NMS_THRESH`.
"""

import copy
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from yacs.config import CfgNode as YacsNode

from detectron2.config.optional_keys import OPTIONAL_KEYS
from detectron2.config.project_keys import PROJECT_FOLDERS, PROJECT_KEYS, adders_of

__all__ = [
    "CHANGED",
    "READ",
    "ConfigError",
    "ConfigTypeError",
    "UnknownConfigKeyError",
    "iter_leaves",
    "merge_config",
    "merge_pairs",
    "nearest",
    "note_change",
]

READ, CHANGED = "__read__", "__changed__"  # attributes of a node that keeps a record; see detectron2.config.unread
_LEAF_TYPES = (tuple, list, str, int, float, bool, type(None))


class UnknownConfigKeyError(KeyError, AssertionError):
    """A file, a list or another config names a key that does not exist.

    It derives from both classes because yacs raises a `KeyError` for files and an `AssertionError` for lists.
    """

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""  # KeyError would print the quoted repr


class ConfigTypeError(ValueError):
    """A value has another type than the default that it would replace."""


class ConfigError(UnknownConfigKeyError, ConfigTypeError):
    """Unknown keys and wrong types in one merge."""


def iter_leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield `(path, value)` for every value that is not itself a mapping; paths begin with `prefix`.

    >>> list(iter_leaves({"LR": 0.1, "MODEL": {"DEPTH": 50}}))
    [('LR', 0.1), ('MODEL.DEPTH', 50)]
    """
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from iter_leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def note_change(node: Any, key: str, before: Any) -> None:
    """Record in a node that a key was set to another value than `before`, if the node keeps a record."""
    if CHANGED in node.__dict__ and dict.get(node, key) != before:
        node.__dict__[CHANGED].add(key)


def nearest(name: str, known: Sequence[str]) -> str | None:
    """Return the known name that is most similar to a given one, or None if none is similar.

    >>> nearest("SOLVER.BASE_LT", ["SOLVER.BASE_LR", "MODEL.WEIGHTS"])
    'SOLVER.BASE_LR'
    """
    by_lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.7)
    return by_lower[close[0]] if close else None


def _nearest_path(path: str, root: YacsNode) -> str | None:
    """Return the known key that `path` most likely means: one of similar spelling, or of the same last name."""
    known = [leaf for leaf, _ in iter_leaves(root)]
    known += [leaf for leaf in OPTIONAL_KEYS if "." not in leaf or leaf.partition(".")[0] in root]
    last = path.rpartition(".")[2]
    same_name = [k for k in known if k.rpartition(".")[2] == last]
    return nearest(path, known) or (same_name[0] if len(same_name) == 1 else None)


class _Transaction:
    """Writes into a config tree that can be undone, and the problems found meanwhile."""

    def __init__(self, root: YacsNode, source: str | None, is_wish: Callable[[str], bool] = lambda path: True):
        self.root = root
        self.source = source
        self.is_wish = is_wish  # whether a path is one that the user sets, rather than a base or a whole config
        self.unknown: dict[str, str] = {}
        self.wrong_type: list[str] = []
        self._undo: list[tuple[YacsNode, str, bool, Any]] = []

    def write(self, node: YacsNode, key: str, value: Any, path: str = "") -> None:
        self._undo.append((node, key, key in node, dict.get(node, key)))
        before = dict.get(node, key, OPTIONAL_KEYS.get(path, value))
        node[key] = value
        if self.is_wish(path):
            note_change(node, key, before)

    def is_retired(self, path: str) -> bool:
        """Return True for a deprecated key, which is ignored; raise an error with the new name for a renamed key."""
        if self.root.key_is_deprecated(path):
            return True
        if self.root.key_is_renamed(path):
            self.root.raise_key_rename_error(path)
        return False

    def report_unknown(self, path: str, hint: str = "") -> None:
        guess = _nearest_path(path, self.root)
        self.unknown[path] = (f": did you mean {guess!r}?" if guess else "") + hint

    def _is_in_added_group(self, path: str) -> bool:
        """Return whether a key is within a group of a project that has been added already: it is a typo, then."""
        groups = [f"{key}." for keys in PROJECT_KEYS.values() for key in keys if path.startswith(f"{key}.")]
        return any(leaf.startswith(group) for group in groups for leaf, _ in iter_leaves(self.root))

    def _describe_unknown(self) -> tuple[list[str], list[str]]:
        """Return a line for each unknown key, and advice about all of them."""
        adders = adders_of([path for path in self.unknown if not self._is_in_added_group(path)])
        of_projects = {path for paths in adders.values() for path in paths}
        lines = [f"unknown key {path!r}" + ("" if path in of_projects else hint) for path, hint in self.unknown.items()]
        advice = []
        for adder, paths in adders.items():
            shown = paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
            folder = PROJECT_FOLDERS.get(adder.partition(".")[0])
            where = f"; it is in {folder} (commands find it with PYTHONPATH={folder})." if folder else "."
            advice.append(f"{shown}: call {adder}(cfg) first{where}")
        if self.unknown.keys() - of_projects:
            advice.append(
                "'detectron2 config explain' lists the keys of this library; a program adds keys of its own before the "
                "merge (cfg.NAME = value)."
            )
        return lines, advice

    def report_type(self, path: str, old: Any, new: Any) -> None:
        expected = "a group of keys" if isinstance(old, YacsNode) else f"{type(old).__name__} (now {old!r})"
        got = "a group of keys" if isinstance(new, Mapping) else f"{type(new).__name__} {new!r}"
        self.wrong_type.append(f"{path} must be {expected}, but got {got}")

    def finish(self) -> None:
        """Raise one error for all problems; its class tells whether keys, types or both are wrong."""
        if not self.unknown and not self.wrong_type:
            return
        lines, advice = self._describe_unknown()
        problems = lines + self.wrong_type
        text = "Cannot merge the config" + (f" from {self.source}" if self.source else "")
        if len(problems) == 1:
            text += f": {problems[0]}"
        else:
            text += f", {len(problems)} problems:" + "".join(f"\n  {p}" for p in problems)
        text = "\n".join([text, *advice])
        if self.unknown and self.wrong_type:
            raise ConfigError(text)
        raise (UnknownConfigKeyError if self.unknown else ConfigTypeError)(text)

    def __enter__(self) -> "_Transaction":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None or self.unknown or self.wrong_type:
            for node, key, existed, value in reversed(self._undo):
                if existed:
                    node[key] = value
                else:
                    del node[key]
        if kind is None:
            self.finish()


_MISFIT = object()


def _fit(new: Any, old: Any) -> Any:
    """Convert `new` to the type of `old` where nothing is lost, else return `_MISFIT`.

    yacs' rules (equal types; None on either side; list <-> tuple) and one more: an int is accepted for a float.
    """
    if type(new) is type(old) or (isinstance(new, YacsNode) and isinstance(old, YacsNode)):
        return new
    if (new is None and isinstance(old, _LEAF_TYPES)) or (old is None and isinstance(new, _LEAF_TYPES)):
        return new
    if isinstance(old, tuple) and type(new) is list:
        return tuple(new)
    if isinstance(old, list) and type(new) is tuple:
        return list(new)
    if type(old) is float and type(new) is int:
        return float(new)
    return _MISFIT


def _assign(node: YacsNode, key: str, raw: Any, path: str, work: _Transaction) -> None:
    """Write `raw` over the existing or optional key `node[key]`, or report that its type is wrong."""
    old = dict.get(node, key, OPTIONAL_KEYS.get(path))  # without reading the key
    value = node._decode_cfg_value(raw)
    fitted = _fit(value, old)
    if fitted is _MISFIT and type(old) is str and type(raw) is str:
        fitted = raw  # text that looks like a number or a list is still text
    if fitted is _MISFIT:
        work.report_type(path, old, value)
    else:
        work.write(node, key, copy.deepcopy(fitted), path)


def _merge_tree(source: Mapping[str, Any], target: YacsNode, prefix: str, work: _Transaction) -> None:
    for key, raw in source.items():
        path = f"{prefix}{key}"
        if key in target:
            if isinstance(raw, Mapping) and isinstance(dict.get(target, key), YacsNode):
                _merge_tree(raw, target[key], f"{path}.", work)
            else:
                _assign(target, key, raw, path, work)
        elif target.is_new_allowed():
            work.write(target, key, copy.deepcopy(target._decode_cfg_value(raw)))
        elif path in OPTIONAL_KEYS:
            _assign(target, key, raw, path, work)
        elif isinstance(raw, Mapping) and any(leaf.startswith(f"{path}.") for leaf in OPTIONAL_KEYS):
            work.write(target, key, type(target)())
            _merge_tree(raw, target[key], f"{path}.", work)
        elif not work.is_retired(path):
            for leaf in [leaf for leaf, _ in iter_leaves({key: raw}, prefix)] or [path]:
                work.report_unknown(leaf)


def merge_config(
    source: YacsNode, target: YacsNode, origin: str | None = None, own: Mapping[str, Any] | None = None
) -> None:
    """Overwrite the values of `target` with those of `source`, all or none; `origin` is the file, for messages.

    The keys of `own` (default: of `source`) are those that the user sets, unless it is a whole config.
    An `UnknownConfigKeyError` names keys that `target` does not have (where new ones are not allowed), a
    `ConfigTypeError` values of another type than those in `target`, and a `ConfigError` both.
    """
    if not isinstance(source, YacsNode):
        raise TypeError(f"Expected a CfgNode to merge from, but got {type(source).__name__}; use CfgNode({{...}}).")
    paths = {path for path, _ in iter_leaves(source if own is None else own)}
    if 2 * len(paths) > sum(1 for _ in iter_leaves(target)):
        paths = set()
    with _Transaction(target, origin, paths.__contains__) as work:
        _merge_tree(source, target, "", work)


def merge_pairs(pairs: Sequence[Any], target: YacsNode) -> None:
    """Overwrite values of `target` with `[path, value, path, value, ...]`, all or none.

    Text values are read as Python literals where possible. The errors are those of `merge_config`, and a `ValueError`
    for a list of odd length.
    """
    if len(pairs) % 2:
        has_equals = any(isinstance(p, str) and "=" in p for p in pairs[::2])
        hint = " Write 'KEY value' with a space, not 'KEY=value'." if has_equals else ""
        raise ValueError(f"Expected pairs of key and value, but got {len(pairs)} items: {list(pairs)}.{hint}")
    with _Transaction(target, None) as work:
        for path, raw in zip(pairs[0::2], pairs[1::2], strict=True):
            _merge_one(str(path), raw, target, work)


def _merge_one(path: str, raw: Any, target: YacsNode, work: _Transaction) -> None:
    if work.is_retired(path):
        return
    *groups, key = path.split(".")
    node: Any = target
    for group in groups:
        if path in OPTIONAL_KEYS and isinstance(node, YacsNode) and group not in node:
            work.write(node, group, type(target)())
        node = node.get(group) if isinstance(node, YacsNode) else None
    if isinstance(node, YacsNode) and (key in node or path in OPTIONAL_KEYS):
        _assign(node, key, raw, path, work)
    else:
        name, equals, _ = path.partition("=")
        work.report_unknown(name, " (write 'KEY value' with a space, not 'KEY=value')" if equals else "")
