"""`CfgNode`, the config of the YAML system: a tree of settings, read from files and merged."""

import copy
import logging
import os
from ast import literal_eval
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from fvcore.common.config import BASE_KEY
from fvcore.common.config import CfgNode as _FvcoreNode

from detectron2.config.compat import downgrade_config, guess_version, upgrade_config
from detectron2.config.merge import READ, ConfigTypeError, iter_leaves, merge_config, merge_pairs, note_change
from detectron2.config.safe_yaml import load_yaml
from detectron2.utils.file_io import PathManager

__all__ = ["CfgNode", "config_folder"]

logger = logging.getLogger(__name__)


class CfgNode(_FvcoreNode):
    """A tree of settings with attribute access, e.g. `cfg.MODEL.RPN.NMS_THRESH`.

    The differences from `fvcore.common.config.CfgNode`: files are read without running code, even with `allow_unsafe`;
    files of an older `VERSION` are translated; a merge reports all problems at once, with the file and the nearest
    known key, and then changes nothing; an int is accepted where a float is expected.

    Example:
        >>> cfg = CfgNode({"LR": 0.1, "MODEL": {"DEPTH": 50}})
        >>> cfg.merge_from_list(["MODEL.DEPTH", "101"])
        >>> print(cfg.dump())
        LR: 0.1
        MODEL:
          DEPTH: 101
        <BLANKLINE>
    """

    @classmethod
    def _open_cfg(cls, filename: str) -> IO[str] | IO[bytes]:
        return PathManager.open(filename, "r")

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        """Read a YAML file and the files that its `_BASE_` key names.

        Args:
            filename: the path or address of the file. `_BASE_` is one path or a list of paths, each relative to this
                file, absolute, an address, starting with `~`, or a name in the model zoo. Later bases win, and the file
                itself wins over all.
            allow_unsafe: has no effect; kept for callers of fvcore's method.

        Returns:
            The merged content, as plain dictionaries and values.

        Raises:
            FileNotFoundError: if there is no such file or base.
            ValueError: if a file is not valid YAML, asks to run code, or is its own base.
        """
        return cls._load_chain(str(filename), ())

    @classmethod
    def _load_chain(cls, filename: str, opened: tuple[str, ...], own: dict[str, Any] | None = None) -> dict[str, Any]:
        """Read `filename` and its bases; `opened` lists the files that name it as a base; `own` gets its own keys."""
        if filename in opened:
            raise ValueError(f"The {BASE_KEY} keys of these files form a circle: {' -> '.join((*opened, filename))}.")
        try:
            opened_file = cls._open_cfg(filename)
        except FileNotFoundError as error:
            if not opened:
                raise
            raise FileNotFoundError(
                f"{BASE_KEY} in {opened[-1]} means {filename}, and there is no such file, nor a config of that name in "
                "the model zoo."
            ) from error
        with opened_file as file:
            content = load_yaml(file, filename)
        if content is None:
            content = {}
        if not isinstance(content, dict):
            raise ValueError(f"{filename} should hold keys and values, but holds a {type(content).__name__}.")
        bases = content.pop(BASE_KEY, [])
        merged: dict[str, Any] = {}
        for base in bases if isinstance(bases, list) else [bases]:
            path = _resolve_base(base, filename)
            _overlay(cls._load_chain(path, (*opened, filename)), merged, path)
        _overlay(content, merged, filename)
        if own is not None:
            own.update(content)
        return merged

    @classmethod
    def _load_cfg_from_yaml_str(cls, str_obj: str) -> "CfgNode":
        return cls(load_yaml(str_obj))

    @classmethod
    def _decode_cfg_value(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return value if isinstance(value, cls) else cls(value)
        if not isinstance(value, str):
            return value
        try:
            return literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return value  # text

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = True) -> None:
        """Overwrite values by those of a YAML file, at a path or address, and its bases.

        A file of an older version, by its `VERSION` or by the keys in it, is translated. Unknown keys are a `KeyError`;
        values of a wrong type, and a file that is not valid YAML, a `ValueError`. `allow_unsafe` has no effect.
        """
        filename = str(cfg_filename)
        own: dict[str, Any] = {}
        content = self._load_chain(filename, (), own)
        if os.path.basename(filename).startswith("Base"):
            own = {}  # not what a user sets
        _check_leaves(content, filename)
        loaded = type(self)(content)
        current = self.get("VERSION")
        if current is None:
            merge_config(loaded, self, filename, own)
            return
        version = loaded.get("VERSION")
        if version is None:
            version = guess_version(loaded, filename, known=self)
        if version > current:
            raise ValueError(f"{filename} has VERSION {version}, newer than the {current} of this config.")
        if version == current:
            merge_config(loaded, self, filename, own)
            return
        logger.warning("%s is of config version %s and is translated to version %s.", filename, version, current)
        old = downgrade_config(self, to_version=version)
        merge_config(loaded, old, filename, {})
        upgraded = upgrade_config(old)
        self.clear()
        self.update(upgraded)

    def merge_from_other_cfg(self, cfg_other: Mapping[str, Any]) -> None:
        """Overwrite values by those of another config, which may be partial; the errors are those of a file."""
        _refuse_base(cfg_other)
        merge_config(cfg_other, self)  # type: ignore[arg-type]  # other mappings get a TypeError with advice

    def merge_from_list(self, cfg_list: list[Any]) -> None:
        """Overwrite values by `[key, value, key, value, ...]`, as from a command line.

        Text is read as a Python literal where possible. A key that does not exist is a `KeyError`, a value of a wrong
        type or a list of odd length a `ValueError`.
        """
        _refuse_base([key for key in cfg_list[0::2] if isinstance(key, str)])
        merge_pairs(cfg_list, self)

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """Return the config as YAML text, with tuples as lists; the arguments are those of `yaml.safe_dump`."""
        return _FvcoreNode.dump(_unshared(self), *args, **kwargs)

    def __getitem__(self, name: str) -> Any:
        if READ in self.__dict__:
            self.__dict__[READ].add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of a key, or `default` if there is no such key."""
        self.__dict__.get(READ, set()).add(name)
        return dict.get(self, name, default)

    def __setattr__(self, name: str, value: Any) -> None:
        before = dict.get(self, name, value)  # a new key has not changed
        super().__setattr__(name, value)
        note_change(self, name, before)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"The config has no key {name!r} here; it has: {', '.join(map(str, self))}") from None

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, _as_sequence(key, value, dict.__getitem__(self, key)) if key in self else value)

    def __deepcopy__(self, memo: dict[int, Any]) -> "CfgNode":
        clone = type(self).__new__(type(self))
        memo[id(self)] = clone
        clone.__dict__.update(copy.deepcopy(self.__dict__, memo))
        if READ in self.__dict__:
            clone.__dict__[READ] = self.__dict__[READ]  # what reads a copy reads this config
        for key, value in self.items():
            clone[key] = copy.deepcopy(value, memo)
        return clone


def _as_sequence(key: str, value: Any, old: Any) -> Any:
    """Put a text or number that is set where a tuple or list was into one: `("my_val")` lacks a comma."""
    if not isinstance(old, (tuple, list)) or not isinstance(value, (str, int, float)):
        return value
    if any(isinstance(item, str) != isinstance(value, str) for item in old):
        example = type(old)(old[:1]) if old else type(old)([value])
        raise ConfigTypeError(f"{key} must be a {type(old).__name__}, e.g. {example!r}, not {value!r}.")
    return type(old)([value])


def config_folder() -> Path:
    """Return the folder of the model zoo: inside an installed package, or beside the package in a source checkout."""
    here = Path(__file__).resolve().parents[1]
    installed = here / "model_zoo" / "configs"
    return installed if installed.is_dir() else here.parent / "configs"


def _unshared(value: Any) -> Any:
    """Return a copy in which every list occurs once; YAML writes `&id001` and `*id001` for repeated ones.

    Tuples become lists, because all empty tuples are the same object.
    """
    if isinstance(value, CfgNode):
        clone = copy.copy(value)
        for key, item in value.items():
            dict.__setitem__(clone, key, _unshared(item))
        return clone
    if isinstance(value, (list, tuple)):
        return [_unshared(item) for item in value]
    return value


def _refuse_base(keys: Any) -> None:
    if BASE_KEY in keys:
        raise ValueError(f"{BASE_KEY} is allowed only in files: merge the file that it names first.")


def _resolve_base(base: Any, filename: str) -> str:
    if not isinstance(base, str):
        raise ValueError(f"{BASE_KEY} in {filename} should be a file name or a list of them, but is {base!r}.")
    base = os.path.expanduser(base)
    if "://" in base or os.path.isabs(base):
        return base
    joined = os.path.join(os.path.dirname(filename), base)
    if "://" in joined:
        return joined
    beside, in_zoo = os.path.normpath(joined), config_folder() / base
    if os.path.isfile(beside) or not in_zoo.is_file():
        return beside
    return str(in_zoo)


def _overlay(upper: dict[str, Any], lower: dict[str, Any], filename: str, prefix: str = "") -> None:
    """Write `upper`, read from `filename`, over `lower` key by key."""
    for key, value in upper.items():
        if isinstance(value, dict) and key in lower:
            if not isinstance(lower[key], dict):
                raise ValueError(f"{filename}: {prefix}{key} is a group of keys here, but a value in the base.")
            _overlay(value, lower[key], filename, f"{prefix}{key}.")
        else:
            lower[key] = value


def _check_leaves(content: dict[str, Any], filename: str) -> None:
    """Refuse values that a config cannot hold, e.g. the dates that YAML makes of `2024-01-31`."""
    bad = [
        f"{path} is a {type(value).__name__} ({value!r})"
        for path, value in iter_leaves(content)
        if value is not None and type(value) not in (bool, int, float, str, list, tuple)
    ]
    if bad:
        raise ConfigTypeError(f"{filename}: {'; '.join(bad)}. Put quotes around text.")
