"""Weights of timm: addresses `timm://NAME`, for a `TimmBackbone` and for ResNets of ours.

`NAME` is an architecture and, after a dot, its weights, such as `resnet50.a1_in1k`; without them those that timm takes
by default. The files are those of the Hugging Face hub. timm is needed to know them.
"""

import difflib
import importlib.util
import re
from collections.abc import Mapping
from typing import Any

from detectron2.utils.file_io import Detectron2Handler, PathManager
from detectron2.utils.hub_files import MODEL_FILE

__all__ = ["TIMM_PREFIX", "TimmHandler", "is_resnet_of_ours", "place_in_model", "timm_licence", "timm_url"]

TIMM_PREFIX = "timm://"
"""How the addresses begin."""

# What these compute, our ResNets compute as well; others have other stems, shortcuts or blocks.
_OUR_RESNETS = re.compile(rf"{TIMM_PREFIX}(resnet(18|34|50|101|152)|resnext\d+_\d+x\d+d|wide_resnet\d+_2)(\.\w+)?")


def _published(address: str) -> Any:
    """What timm knows of the weights of an address."""
    if importlib.util.find_spec("timm") is None:
        raise ImportError(f"{address} needs the package timm: pip install 'detectron2[timm]'")
    import timm

    name = address.removeprefix(TIMM_PREFIX)
    architecture = name.partition(".")[0]
    known = timm.list_pretrained(f"{architecture}.*") if architecture else []
    if known and name in (architecture, *known):
        return timm.get_pretrained_cfg(name)
    if known:
        raise ValueError(f"{address}: timm {timm.__version__} has no such weights; choose one of {', '.join(known)}.")
    close = timm.list_pretrained(f"*{architecture}*")[:5] if architecture else []
    architectures = sorted({entry.partition(".")[0] for entry in timm.list_pretrained()})
    close = close or difflib.get_close_matches(architecture.lower(), architectures, n=5)
    near = f"similar are {', '.join(close)}." if close else "timm.list_pretrained() lists all."
    raise ValueError(f"{address}: timm {timm.__version__} has no weights of {architecture!r}; {near}")


def timm_url(address: str) -> str:
    """Return the address on the Hugging Face hub of weights of timm.

    Args:
        address: `timm://NAME`.

    Returns:
        An address `hf://`.

    Raises:
        ImportError: timm is not installed.
        ValueError: timm has no such weights.

    Example:
        >>> timm_url("timm://resnet50.a1_in1k")
        'hf://timm/resnet50.a1_in1k/model.safetensors'
    """
    published = _published(address)
    return f"hf://{published.hf_hub_id}/{published.hf_hub_filename or MODEL_FILE}"


def timm_licence(address: str) -> str | None:
    """Return the licence that timm records for weights, in small letters; None where it records none.

    Args:
        address: `timm://NAME`.

    Returns:
        The licence.

    Raises:
        ImportError: timm is not installed.
        ValueError: timm has no such weights.

    Example:
        >>> timm_licence("timm://resnet50.a1_in1k")
        'apache-2.0'
    """
    return _published(address).license or None


class TimmHandler(Detectron2Handler):
    """Resolves `timm://NAME` to the weights that timm publishes on the Hugging Face hub."""

    PREFIX = TIMM_PREFIX

    def _url(self, path: str) -> str:
        return timm_url(path)


PathManager.register_handler(TimmHandler())


def is_resnet_of_ours(address: str) -> bool:
    """Whether weights are of a ResNet of timm that computes what ours computes, with torchvision's names."""
    return _OUR_RESNETS.fullmatch(address) is not None


def place_in_model(weights: Mapping[str, Any], model_keys: Mapping[str, Any]) -> str | None:
    """What precedes the names of weights of timm in a model with a `TimmBackbone`; None where it has none."""
    places = sorted({key[: found.end()] for key in model_keys if (found := re.search(r"(^|\.)network\.", key))})
    return next((place for place in places if any(f"{place}{key}" in model_keys for key in weights)), None)
