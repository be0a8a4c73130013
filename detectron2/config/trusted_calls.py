"""Refuse calls of unknown functions in a config that comes with a file of weights.

A LazyConfig describes calls by dotted names, so it can describe any program. A user who passes a config file asks to
run it; a user who passes weights does not.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf

from detectron2.config.lazy_text import make_partial, missing_object
from detectron2.utils.registry import convert_target_to_string, locate

__all__ = ["ForeignCallError", "refuse_foreign_calls"]

# Packages that define parts of models and transforms of images, and nothing that runs text or files.
_PACKAGES = (
    "detectron2.layers",
    "detectron2.structures",
    "detectron2.modeling",
    "detectron2.data.transforms",
    "detectron2.data.dataset_mapper",
    "detectron2.data.detection_utils",
    "detectron2.projects",
    "fvcore.nn",
    "fvcore.transforms",
    "torch.nn",
    "torchvision.models",
    "torchvision.ops",
)
# The first builds whatever the config of another library describes, the second trains and starts processes.
_EXCEPTIONS = ("detectron2.modeling.mmdet_wrapper", "detectron2.projects.training")
_CONTAINERS = ("builtins.dict", "builtins.list", "builtins.tuple")
_SHARD_MODEL = tuple(f"detectron2.engine.{name}shard_model" for name in ("", "_sharding.", "sharding."))


class ForeignCallError(ValueError):
    """A config describes a call of something that is neither part of this library nor trusted."""


def refuse_foreign_calls(cfg: Any, source: str, trusted: Iterable[str] = ()) -> None:
    """Check the calls that instantiating a config would make, without making any.

    Args:
        cfg: a part of a LazyConfig.
        source: the file, for the message.
        trusted: names of further packages or modules whose classes and functions may be called.

    Raises:
        ForeignCallError: if a call is neither one of this library's models and transforms, nor of PyTorch's layers,
            nor trusted.

    Example:
        >>> refuse_foreign_calls({"_target_": "torch.nn.ReLU"}, "a.pth")
        >>> refuse_foreign_calls({"_target_": "os.system", "command": "ls"}, "a.pth")
        Traceback (most recent call last):
        ...
        detectron2.config.trusted_calls.ForeignCallError: The config in a.pth wants to call os.system, ...
    """
    packages = (*_PACKAGES, *trusted)
    plain = OmegaConf.to_container(cfg, resolve=True) if OmegaConf.is_config(cfg) else cfg
    for name in _names_of_calls(plain, source):
        if not _is_allowed(name, packages):
            package = name.partition(".")[0]
            raise ForeignCallError(
                f"The config in {source} wants to call {name}, which is not part of this library's models. Nothing was "
                f"called. If it is yours, or you trust it, name its package (--import {package}) or pass the config "
                "file (--config-file)."
            )


def _names_of_calls(value: Any, source: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield _name_of_target(value["_target_"], source)
            if _is_locate(value["_target_"]):  # stands for the class or function of that name
                yield str(value.get("name"))
        for part in value.values():
            yield from _names_of_calls(part, source)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _names_of_calls(part, source)


def _name_of_target(target: Any, source: str) -> str:
    if isinstance(target, Mapping) and _is_locate(target.get("_target_")):
        target = target.get("name")
    if not isinstance(target, str):
        raise ForeignCallError(
            f"The config in {source} computes the target of a call ({target!r}), which cannot be checked. "
            "If you trust it, pass the config file (--config-file)."
        )
    return target


@functools.cache
def _describing_functions() -> frozenset[str]:
    """Return the names of the functions that describe objects; none of them has an effect by itself."""
    objects = (locate, make_partial, missing_object)
    names = {convert_target_to_string(x) for x in objects} | {f"{x.__module__}.{x.__qualname__}" for x in objects}
    return frozenset(names)


def _is_locate(target: Any) -> bool:
    return target in (convert_target_to_string(locate), f"{locate.__module__}.{locate.__qualname__}")


def _is_allowed(name: str, packages: tuple[str, ...]) -> bool:
    if name in _CONTAINERS or name in _SHARD_MODEL or name in _describing_functions():
        return True
    # Check the text first: importing a module runs it.
    if not _is_within(name, tuple(package.partition(".")[0] for package in packages)):
        return False
    # Then check where the object was defined: its name may belong to a module that only imported it.
    found = locate(name)
    module = str(getattr(found, "__module__", None))
    return _is_within(module, packages) and not _is_within(module, _EXCEPTIONS)


def _is_within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)
