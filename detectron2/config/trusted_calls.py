"""Which calls a config may describe that comes with a file of weights.

A LazyConfig describes calls by dotted names, so it can describe any program. A user who passes a config file asks to
run it; a user who passes weights does not. Such a config may only build from the tables below: classes of layers,
models and transforms, and the functions named one by one. Nothing is trusted because of the package it lies in.
"""

import functools
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from detectron2.config.lazy_text import make_partial, missing_object
from detectron2.utils.registry import convert_target_to_string, locate

__all__ = ["ForeignCallError", "refuse_foreign_calls", "refuse_foreign_config"]

# ------------------------------------------------------------------------------------------------------------- tables

# Modules whose public classes may be built, if they derive from one of _BASE_CLASSES and are defined in these modules.
_MODULES_OF_CLASSES = (
    "detectron2.data.transforms",
    "detectron2.layers",
    "detectron2.modeling",
    "detectron2.projects",
    "torch.nn",
    "torch.nn.modules",
    "torchvision.models",
    "torchvision.ops",
)
_BASE_CLASSES = ("torch.nn.Module", "detectron2.data.transforms.Augmentation", "detectron2.data.transforms.Transform")
# They build what another library knows by its name, or what its config describes, and may fetch it.
_MODULES_LEFT_OUT = (
    "detectron2.modeling.backbone.timm_backbone",
    "detectron2.modeling.backbone.transformers_backbone",
    "detectron2.modeling.meta_arch.hf_detector",
    "detectron2.modeling.meta_arch.hf_segmenter",
    "detectron2.modeling.mmdet_wrapper",
    "torch.nn.parallel",
)

_ACTIVATIONS = (
    *("celu", "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "logsigmoid", "mish"),
    *("relu", "relu6", "selu", "sigmoid", "silu", "softmax", "softplus", "tanh"),
)
# Classes that derive from none of them, and functions; all may be called, and passed on as arguments.
_OBJECTS = (
    "detectron2.data.DatasetMapper",
    "detectron2.data.detection_utils.get_fed_loss_cls_weights",
    "detectron2.engine.shard_model",
    "detectron2.layers.ShapeSpec",
    "detectron2.layers.get_norm",
    "detectron2.modeling.backbone.get_vit_lr_decay_rate",
    "detectron2.modeling.box_regression.Box2BoxTransform",
    "detectron2.modeling.box_regression.Box2BoxTransformLinear",
    "detectron2.modeling.box_regression.Box2BoxTransformRotated",
    "detectron2.modeling.matcher.Matcher",
    "detectron2.projects.panoptic_deeplab.PanopticDeeplabDatasetMapper",
    *(f"torch.nn.functional.{name}" for name in _ACTIVATIONS),
)
# Static methods of ResNet that describe its stages, and what saved configs call to make plain containers.
_STATIC_METHODS = ("make_default_stages", "make_stage")
_CONTAINERS = ("builtins.dict", "builtins.list", "builtins.tuple")
# Names that earlier revisions wrote.
_FORMER_NAMES = {"detectron2.engine._sharding.shard_model": "detectron2.engine.shard_model"}

# The builders of torchvision's classifiers may be called (not passed on), without these: they fetch or report.
_BUILDERS = "torchvision.models"
_FETCHING = ("file_name", "model_dir", "pretrained", "progress", "url", "weights")

_MAX_VALUES = 100_000
# What would be called to build an object for inference.
_PARTS = ("model", "dataloader.test.mapper")


class ForeignCallError(ValueError):
    """A config that came with weights describes a call that weights have no business to make."""


# ------------------------------------------------------------------------------------------------------------- checks


def refuse_foreign_config(cfg: DictConfig, source: str, trusted: Iterable[str] = ()) -> None:
    """Check what a LazyConfig that came with weights would do when a model for inference is built from it.

    Nothing is called, and nothing is imported before the names of all calls have been checked.

    Args:
        cfg: the whole config.
        source: the file, for the message.
        trusted: names of packages or modules whose public classes and functions may be called too.

    Raises:
        ForeignCallError: `model` or `dataloader.test.mapper` describe a call that is not in the tables of this module,
            or the config reads something from outside, as `${oc.env:HOME}` does.

    Example:
        >>> refuse_foreign_config(OmegaConf.create({"model": {"_target_": "torch.nn.ReLU"}}), "a.pth")
    """
    _refuse_resolvers(OmegaConf.to_container(cfg, resolve=False), source)
    for part in _PARTS:
        try:
            described = OmegaConf.select(cfg, part)
        except OmegaConfBaseException as error:
            raise ForeignCallError(f"The config in {source} cannot be read: {error}") from error
        refuse_foreign_calls(described, source, trusted)


def refuse_foreign_calls(cfg: Any, source: str, trusted: Iterable[str] = ()) -> None:
    """Check the calls that instantiating a part of a config, or plain containers, would make, without making any.

    `source`, `trusted` and the `ForeignCallError` are as in `refuse_foreign_config`. A name that is allowed, but that
    nothing has, is an `ImportError`.

    >>> refuse_foreign_calls({"_target_": "torch.nn.ReLU"}, "a.pth")
    >>> refuse_foreign_calls({"_target_": "os.system", "command": "ls"}, "a.pth")
    Traceback (most recent call last):
    ...
    detectron2.config.trusted_calls.ForeignCallError: The config in a.pth wants to call os.system, ...
    """
    if OmegaConf.is_config(cfg):
        _refuse_resolvers(OmegaConf.to_container(cfg, resolve=False), source)
        try:
            _refuse_endless(cfg, source)
            cfg = OmegaConf.to_container(cfg, resolve=True)
        except (OmegaConfBaseException, RecursionError) as error:
            raise ForeignCallError(f"The config in {source} cannot be read: {error}") from error
    trusted = tuple(trusted)
    calls = list(_find_calls(cfg, source))
    for name, _, _ in calls:  # all names before the first import, because importing a module runs it
        if not _may_be_looked_up(name, trusted):
            raise _refused(name, source)
    for name, arguments, is_called in calls:
        if not (_is_listed(name, trusted) or (is_called and _is_builder(name, arguments, source))):
            raise _refused(name, source)


def _refused(name: str, source: str) -> ForeignCallError:
    package = name.partition(".")[0]
    shown = name if name.isprintable() else repr(name)
    return ForeignCallError(
        f"The config in {source} wants to call {shown}, which is not among the models, layers and transforms that "
        "weights may build. Nothing was called. If you trust the file, pass its config (--config-file); if the class "
        f"is your own, name its package (--import {package if package.isidentifier() else 'PACKAGE'})."
    )


def _refuse_resolvers(value: Any, source: str) -> None:
    """Refuse `${resolver:...}`, and several links in one text; a link to another value, `${a.b}`, is fine."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            _refuse_resolvers(key, source)
            _refuse_resolvers(part, source)
    elif isinstance(value, list | tuple):
        for part in value:
            _refuse_resolvers(part, source)
    elif isinstance(value, str) and (re.search(r"\$\{.*:", value, re.DOTALL) or value.count("${") > 1):
        raise ForeignCallError(
            f"The config in {source} computes a value, {value[:200]!r}, and so could read the environment or fill the "
            "memory, which weights may not. Nothing was read. If you trust the file, pass its config (--config-file)."
        )


def _refuse_endless(cfg: Any, source: str) -> None:
    """Refuse links that repeat each other until nothing can hold the result."""
    sizes: dict[int, int] = {}

    def size(node: Any) -> int:
        if not OmegaConf.is_config(node):
            return 1
        if id(node) not in sizes:
            keys = range(len(node)) if OmegaConf.is_list(node) else list(node)
            sizes[id(node)] = 1 + sum(size(node[key]) for key in keys if not OmegaConf.is_missing(node, key))
        return sizes[id(node)]

    if size(cfg) > _MAX_VALUES:
        raise ForeignCallError(f"The config in {source} has links that make more than {_MAX_VALUES:,} values.")


def _find_calls(value: Any, source: str) -> Iterator[tuple[str, Mapping[Any, Any], bool]]:
    """Yield the name, the arguments, and whether it is called (and not only passed on), of each call described."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            target = value["_target_"]
            if _is_locate(target):
                yield _text(value.get("name"), source), {}, False
            elif isinstance(target, Mapping) and _is_locate(target.get("_target_")):
                yield _text(target.get("name"), source), value, True
            else:
                yield _text(target, source), value, True
        for part in value.values():
            yield from _find_calls(part, source)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _find_calls(part, source)


def _text(name: Any, source: str) -> str:
    if not isinstance(name, str):
        raise ForeignCallError(
            f"The config in {source} computes the target of a call ({name!r}), which cannot be checked. "
            "If you trust it, pass the config file (--config-file)."
        )
    return name


def _may_be_looked_up(name: str, trusted: tuple[str, ...]) -> bool:
    """Whether a name is one public name in a module that may be imported, or in one of the tables; imports nothing."""
    if name in _CONTAINERS or name in _FORMER_NAMES or name in _descriptions() or name in _aliases():
        return True
    parts = name.split(".")
    if not all(part.isidentifier() and not part.startswith("_") for part in parts):
        return False
    module = name.rpartition(".")[0]
    if parts[-2:-1] == ["ResNet"] and parts[-1] in _STATIC_METHODS:
        module = module.rpartition(".")[0]
    packages = (*_MODULES_OF_CLASSES, *(listed.rpartition(".")[0] for listed in _OBJECTS), *trusted)
    return _is_within(module, packages)


def _is_listed(name: str, trusted: tuple[str, ...]) -> bool:
    """Whether a name stands for an object in the tables, or for one that a trusted package defines."""
    if name in _CONTAINERS or name in _descriptions():
        return True
    found = locate(_FORMER_NAMES.get(name, name))
    if any(found is listed for listed in _listed_objects()):
        return True
    defined_in = str(getattr(found, "__module__", ""))
    if _is_within(defined_in, trusted):
        return isinstance(found, type) or inspect.isfunction(found)
    if not isinstance(found, type) or not issubclass(found, tuple(map(locate, _BASE_CLASSES))):
        return False
    if any(part.startswith("_") for part in (*defined_in.split("."), found.__qualname__)):
        return False
    if not inspect.ismodule(locate(name.rpartition(".")[0])):
        return False
    return _is_within(defined_in, _MODULES_OF_CLASSES) and not _is_within(defined_in, _MODULES_LEFT_OUT)


def _is_builder(name: str, arguments: Mapping[Any, Any], source: str) -> bool:
    import torchvision

    if not name.startswith(f"{_BUILDERS}.") or name.rpartition(".")[2] not in torchvision.models.list_models(
        module=torchvision.models
    ):
        return False
    for key, value in arguments.items():
        if str(key).startswith(_FETCHING) and value not in (None, False):
            raise ForeignCallError(
                f"The config in {source} wants to call {name} with {key}={value!r}, which could fetch another file. "
                "Nothing was called. If you trust the file, pass its config (--config-file)."
            )
    return locate(name) is torchvision.models.get_model_builder(name.rpartition(".")[2])


@functools.cache
def _descriptions() -> frozenset[str]:
    """Names of the functions that describe objects; what they describe is checked in its own right."""
    objects = (locate, make_partial, missing_object)
    return frozenset(
        {convert_target_to_string(x) for x in objects} | {f"{x.__module__}.{x.__qualname__}" for x in objects}
    )


def _is_locate(target: Any) -> bool:
    return target in (convert_target_to_string(locate), f"{locate.__module__}.{locate.__qualname__}")


@functools.cache
def _listed_objects() -> tuple[Any, ...]:
    resnet = locate("detectron2.modeling.ResNet")
    return (*map(locate, _OBJECTS), *(getattr(resnet, name) for name in _STATIC_METHODS))


@functools.cache
def _aliases() -> frozenset[str]:
    """Other names of functions in the table: PyTorch defines `gelu` in `torch._C._nn`."""
    return frozenset(convert_target_to_string(locate(name)) for name in _OBJECTS if name.startswith("torch."))


def _is_within(name: str, packages: Iterable[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)
