"""Refusing calls that a config out of a file of weights has no business to make.

A LazyConfig describes calls by dotted names, and so could any program be described.  Who passes a config file asks for
it to be run; who passes weights does not.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf

from detectron2.utils.registry import _convert_target_to_string, locate

from .lazy_text import make_partial, missing_object

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
# Builds what another library's config says, which is another matter.
_EXCEPTIONS = ("detectron2.modeling.mmdet_wrapper",)
_CONTAINERS = ("builtins.dict", "builtins.list", "builtins.tuple")
_SHARD_MODEL = tuple(f"detectron2.engine.{name}shard_model" for name in ("", "_sharding.", "sharding."))


class ForeignCallError(ValueError):
    """A config asks for something that is neither of this library nor declared as trusted."""


def refuse_foreign_calls(cfg: Any, source: str, trusted: Iterable[str] = ()) -> None:
    """Check the calls that instantiating a config would make, without making one.

    Args:
        cfg: a part of a LazyConfig.
        source: the file, for the message.
        trusted: names of further packages or modules whose classes and functions may be called.

    Raises:
        ForeignCallError: one of them is neither part of this library's models and transforms, nor of PyTorch's layers,
            nor trusted.
    """
    packages = (*_PACKAGES, *trusted)
    plain = OmegaConf.to_container(cfg, resolve=True) if OmegaConf.is_config(cfg) else cfg
    for name in _names_of_calls(plain, source):
        if not _is_allowed(name, packages):
            package = name.partition(".")[0]
            raise ForeignCallError(
                f"The config in {source} wants to call {name}, which is no part of this library's models. Nothing was "
                f"called. If it is yours, or you trust it, name its package (--import {package}), or give the config "
                "itself (--config-file)."
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
            f"The config in {source} computes what it calls ({target!r}), which cannot be checked. If you trust it, "
            "give the config itself (--config-file)."
        )
    return target


@functools.cache
def _of_this_module() -> frozenset[str]:
    """Names of what descriptions of objects are made of; neither does anything by itself."""
    objects = (locate, make_partial, missing_object)
    names = {_convert_target_to_string(x) for x in objects} | {f"{x.__module__}.{x.__qualname__}" for x in objects}
    return frozenset(names)


def _is_locate(target: Any) -> bool:
    return target in (_convert_target_to_string(locate), f"{locate.__module__}.{locate.__qualname__}")


def _is_allowed(name: str, packages: tuple[str, ...]) -> bool:
    if name in _CONTAINERS or name in _SHARD_MODEL or name in _of_this_module():
        return True
    # First the text: importing a module runs it.
    if not _is_within(name, tuple(package.partition(".")[0] for package in packages)):
        return False
    # Then the object: a name may lead to anything that a module has imported, and counts by where it was defined.
    found = locate(name)
    module = str(getattr(found, "__module__", None))
    return _is_within(module, packages) and not _is_within(module, _EXCEPTIONS)


def _is_within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)
