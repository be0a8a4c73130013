"""`detectron2 config`: show a config, compare two, explain what a key means.

detectron2 config show COCO-Detection/retinanet_R_50_FPN_1x.yaml --changed
detectron2 config show output/model_final.pth > again.yaml
detectron2 config diff output/a output/b
detectron2 config explain SOLVER.BASE_LR NMS_THRESH MODEL.RPN
"""

import argparse
import ast
import difflib
import functools
import logging
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from detectron2.checkpoint import read_description
from detectron2.checkpoint.parts import is_parts_folder
from detectron2.config import CfgNode, LazyConfig, get_cfg
from detectron2.config.key_meanings import ConfigKey, config_keys
from detectron2.config.lazy_text import to_yaml
from detectron2.config.merge import iter_leaves
from detectron2.config.optional_keys import OPTIONAL_KEYS
from detectron2.config.safe_yaml import load_yaml
from detectron2.engine.options import TrainOptions
from detectron2.inference.loading import add_keys_of_file, find_config_file, is_lazy_file

__all__ = ["differences", "explain", "find_readers", "read_any_config"]

logger = logging.getLogger(__name__)

_MISSING = object()
_WEIGHTS = (".pth", ".pkl", ".pyth", ".pt", ".safetensors", ".sharded")


def run(args: argparse.Namespace) -> int:
    """Do what the action says."""
    if args.action == "show":
        cfg = read_any_config(args.file, args.opts)
        sys.stdout.write(_changed(cfg, args.file) if args.changed else _text(cfg))
    elif args.action == "diff":
        first, second = read_any_config(args.first), read_any_config(args.second)
        if isinstance(first, CfgNode) != isinstance(second, CfgNode):
            kinds = ["a YAML config" if isinstance(cfg, CfgNode) else "a LazyConfig" for cfg in (first, second)]
            raise ValueError(
                f"{args.first} is {kinds[0]} and {args.second} is {kinds[1]}: their keys have nothing in common. "
                "Compare two of one kind."
            )
        for line in differences(first, second):
            sys.stdout.write(line + "\n")
    else:
        sys.stdout.write(explain(args.key))
    return 0


def read_any_config(source: str, opts: list[str] | None = None) -> Any:
    """Read a config of either kind as it is written; no model is built, and no device is chosen.

    Args:
        source: a YAML or LazyConfig file, its name in the model zoo, a checkpoint that brings its config along, or the
            output folder of a run.
        opts: changes, `KEY VALUE` pairs (YAML) or `path.key=value` (LazyConfig).

    Returns:
        A `CfgNode`, or an omegaconf `DictConfig`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it has no config.
    """
    if os.path.isdir(source) and not is_parts_folder(source):
        file = os.path.join(source, "config.yaml")
        if not os.path.isfile(file):
            raise FileNotFoundError(f"{source} is not the output folder of a run: it has no config.yaml.")
        source = file
    if source.endswith(_WEIGHTS):
        description = read_description(source)
        beside = os.path.join(os.path.dirname(source), "config.yaml")
        if description is not None and description.config:
            return _apply(description.load_config(), opts)
        if not os.path.isfile(beside):
            raise ValueError(f"{source} was not saved with its config, and there is no {beside}.")
        source = beside
    path = find_config_file(source)
    if is_lazy_file(path):
        return _apply(LazyConfig.load(path), opts)
    cfg = get_cfg()
    add_keys_of_file(cfg, path, opts or [])
    cfg.merge_from_file(path)
    return _apply(cfg, opts)


def _apply(cfg: Any, opts: list[str] | None) -> Any:
    if isinstance(cfg, CfgNode):
        cfg.merge_from_list(opts or [])
    else:
        LazyConfig.apply_overrides(cfg, opts or [])
    return cfg


def _text(cfg: Any) -> str:
    """Return a config as YAML that can be read again."""
    if isinstance(cfg, CfgNode):
        return cfg.dump()
    text, lost = to_yaml(cfg)
    for line in lost:
        logger.warning("YAML cannot hold %s.", line)
    return text


def _changed(cfg: Any, name: str) -> str:
    """Return the keys that differ from the defaults, as YAML that can be read again."""
    if not isinstance(cfg, CfgNode):
        raise ValueError(
            f"--changed: {name} is a LazyConfig, which has no defaults. Compare it with another config: "
            f"detectron2 config diff OTHER {name}"
        )
    default = {**dict(iter_leaves(get_cfg())), **OPTIONAL_KEYS}
    found = CfgNode()
    for path, value in iter_leaves(cfg):
        if path not in default or value != default[path]:
            *groups, key = path.split(".")
            node = found
            for group in groups:
                node = node.setdefault(group, CfgNode())
            node[key] = value
    return found.dump() if found else ""


# ----------------------------------------------------------------------------------------------------------------- diff


def differences(first: Any, second: Any) -> list[str]:
    """Compare two configs of one kind; return a line for each key with another value, or that only one of them has.

    >>> differences(CfgNode({"LR": 0.1, "SEED": 1}), CfgNode({"LR": 0.2, "AMP": True}))
    ['  LR    0.1 -> 0.2', '- SEED  1', '+ AMP   True']
    """
    left, right = dict(_plain_leaves(first)), dict(_plain_leaves(second))
    rows = []
    for path in dict.fromkeys([*left, *right]):
        a, b = left.get(path, _MISSING), right.get(path, _MISSING)
        if a is _MISSING:
            rows.append(("+", path, repr(b)))
        elif b is _MISSING:
            rows.append(("-", path, repr(a)))
        elif _comparable(a) != _comparable(b):
            rows.append((" ", path, f"{a!r} -> {b!r}"))
    width = max((len(path) for _, path, _ in rows), default=0)
    return [f"{sign} {path:{width}}  {text}" for sign, path, text in rows]


def _comparable(value: Any) -> Any:
    """Return a value in which tuples are lists, and true is not 1."""
    return [_comparable(x) for x in value] if isinstance(value, (list, tuple)) else (isinstance(value, bool), value)


def _plain_leaves(cfg: Any) -> Iterator[tuple[str, Any]]:
    """Yield the path and value of each key; lists that hold groups are counted from 0."""
    if isinstance(cfg, CfgNode):
        yield from iter_leaves(cfg)
    else:
        yield from _leaves_with_lists(load_yaml(_text(cfg)), "")


def _leaves_with_lists(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves_with_lists(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list) and any(isinstance(item, (Mapping, list)) for item in node):
        for index, value in enumerate(node):
            yield from _leaves_with_lists(value, f"{path}[{index}]")
    else:
        yield path, node


# -------------------------------------------------------------------------------------------------------------- explain


def explain(names: list[str]) -> str:
    """Say what keys of YAML configs mean.

    Args:
        names: full names of keys or groups, in any case, or their last part; `train.ema_decay`, the name of a training
            option in a LazyConfig, is one too. Without any the groups are listed.

    Returns:
        Text for people.

    Raises:
        ValueError: if there is no key of a name; it says which names are near.
    """
    keys = config_keys()
    if not names:
        counts: dict[str, int] = {}
        for name in keys:
            group = name.rpartition(".")[0] or "(top level)"
            counts[group] = counts.get(group, 0) + 1
        return "".join(f"{group:34}{count:4} keys\n" for group, count in sorted(counts.items()))
    blocks: list[str] = []
    for name in names:
        found, is_group = _find_keys(name, keys)
        blocks += [_row(key) for key in found] if is_group else [_block(key) for key in found]
    return "\n".join(blocks)


def _find_keys(name: str, keys: dict[str, ConfigKey]) -> tuple[list[ConfigKey], bool]:
    """Return the keys of a name, and whether it is that of a group."""
    wanted = name.upper()
    if wanted in keys:
        return [keys[wanted]], False
    if option := [keys[key] for key, option in _train_options().items() if option == name]:
        return option, False
    if group := [key for path, key in keys.items() if path.startswith(f"{wanted}.")]:
        return group, True
    last = {path: path.rpartition(".")[2] for path in keys}
    if "." not in wanted and (same := [path for path in keys if f"{last[path]}_".startswith(f"{wanted}_")]):
        return [keys[path] for path in same], False
    word = wanted.rpartition(".")[2]
    phrase = word.replace("_", " ").lower()
    places = {path: key.meaning.lower().find(phrase) for path, key in keys.items() if len(phrase) > 3}
    shown = sorted((path for path in places if places[path] >= 0), key=places.__getitem__)[:4]
    shown += difflib.get_close_matches(wanted, keys, n=3, cutoff=0.7)
    near = difflib.get_close_matches(word, sorted(set(last.values())), n=2, cutoff=0.75)
    shown += [path for path in keys if last[path] in near][:4]
    nearest = (
        f"The nearest are: {', '.join(dict.fromkeys(shown))}." if shown else "Without a KEY, the groups are listed."
    )
    is_lazy = "." in name and name != wanted
    lazy = " Arguments in a LazyConfig are explained by the class that they are for." if is_lazy else ""
    raise ValueError(f"There is no config key {name!r}. {nearest}{lazy}")


def _train_options() -> dict[str, str]:
    """Return the names that keys have in a LazyConfig, of those that the training loop reads."""
    return {row.metadata["key"]: f"train.{row.name}" for row in fields(TrainOptions)}


def _row(key: ConfigKey) -> str:
    default = repr(key.default) if key.is_default_known else "?"
    meaning = textwrap.fill(key.meaning, 100, initial_indent="    ", subsequent_indent="    ")
    return f"{key.name} = {default}{f'  ({key.unit})' if key.unit else ''}\n{meaning}\n"


def _block(key: ConfigKey) -> str:
    facts: list[tuple[str, str]] = []
    if key.is_default_known:
        none = " or None" if key.default is None else ""
        facts += [("type", "number" + none if key.default is None else type(key.default).__name__)]
        facts += [("default", repr(key.default))]
    facts += [("unit", key.unit)] if key.unit else []
    facts += [("must be", key.requirement)] if key.requirement else []
    if option := _train_options().get(key.name):
        facts.append(("lazy", f"{option} in a LazyConfig"))
    if key.kind == "optional":
        facts.append(("set", "not part of the default config; a file or the command line may set it"))
    for adder in key.adders:
        module = adder.rpartition(".")[0]
        facts.append(("added by", f"{module} ({adder.rpartition('.')[2]})"))
    if not key.is_default_known:
        facts.append(("default", "known when the project is installed"))
    readers = find_readers(key.name)
    shown = readers[:6] + ([f"and {len(readers) - 6} more"] if len(readers) > 6 else [])
    facts += [("read by" if i == 0 else "", text) for i, text in enumerate(shown)]
    meaning = textwrap.fill(key.meaning, 100, initial_indent="  ", subsequent_indent="  ")
    lines = [key.name, meaning, *(f"  {label:9} {text}" for label, text in facts)]
    return "\n".join(lines) + "\n"


def find_readers(name: str) -> list[str]:
    """Return the places, as `file:line`, where the library and the projects beside it read a config key.

    Found are `GROUP.KEY`, the key of a node that a module has taken from the config, `get("KEY")`, and the full name as
    a text.
    """
    package = Path(__file__).resolve().parents[1]
    *groups, key = name.split(".")
    group = groups[-1] if groups else ""
    found = []
    for path, text in _sources(package):
        if key in text:
            lines = {line for line, what, owner in _reads_of(path) if _is_read(what, owner, name, key, group, text)}
            found += [f"{path.relative_to(package.parent).as_posix()}:{line}" for line in sorted(lines)]
    return found


@functools.cache
def _sources(package: Path) -> list[tuple[Path, str]]:
    """Return the modules that may read a config, with their text."""
    projects = package.parent / "projects"  # of a source checkout
    folders = [package, projects] if (package.parent / "configs").is_dir() else [package]
    paths = sorted(path for folder in folders for path in folder.rglob("*.py"))
    return [(path, path.read_text(encoding="utf-8")) for path in paths if path.parent != package / "config"]


@functools.cache
def _reads_of(path: Path) -> list[tuple[int, str, str | None]]:
    """Return the line, the name and the owner of what a module reads; the owner of a text is None."""
    found: list[tuple[int, str, str | None]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append((node.lineno, node.value, None))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.append((node.lineno, node.attr, _last_name(node.value)))
        elif isinstance(node, ast.Call) and _last_name(node.func) == "get" and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(node.func, ast.Attribute):
                found.append((node.lineno, str(first.value), _last_name(node.func.value)))
    return found


def _last_name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _is_read(what: str, owner: str | None, name: str, key: str, group: str, text: str) -> bool:
    if owner is None:
        return what == name
    if what != key:
        return False
    if not group:
        return owner in ("cfg", "_C")
    return owner == group if owner.isupper() else f".{group}" in text and owner != "self"
