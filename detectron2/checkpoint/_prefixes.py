"""Names of weights without what training wrappers put in front of them (`module.`, `model.`, `_orig_mod.`, …)."""

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["without_wrappers"]

# Parallel training, compilation, training frameworks; attributes in which a wrapper keeps the model.
_LEADING = re.compile(r"^((module|model|net|network|detector|_orig_mod|_forward_module)\.)+")
# Wrappers of parts, anywhere in a name.
_INNER = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def without_wrappers(weights: dict[str, Any], model_keys: Iterable[str]) -> dict[str, Any]:
    """Give weights the model's names where the two differ by what wrappers add to names.

    Args:
        weights: a state dict.
        model_keys: the names in the model's.

    Returns:
        The weights, renamed where that makes more of them fit, and as they are otherwise.
    """
    own = set(model_keys)
    fitting = sum(key in own for key in weights)
    places = {_bare(key): key for key in own}
    if fitting == min(len(weights), len(own)) or len(places) < len(own):
        return weights
    names = {key: key if key in own else places.get(_bare(key), key) for key in weights}
    if sum(name in own for name in names.values()) == fitting == 0:
        # Perhaps they fit the ends of the model's names, and are compared with those next.
        names = {key: _bare(key) for key in weights}
    if list(names) == list(names.values()) or len(set(names.values())) < len(names):
        return weights
    return _renamed(weights, names)


def _bare(key: str) -> str:
    return _LEADING.sub("", _INNER.sub("", key))


def _renamed(weights: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The weights under their new names, with the versions of modules that PyTorch keeps beside them."""
    result = OrderedDict((names[key], value) for key, value in weights.items())
    versions = getattr(weights, "_metadata", None)
    if versions is not None:
        modules = {key.rpartition(".")[0]: name.rpartition(".")[0] for key, name in names.items()}
        # as in torch.nn.Module.state_dict
        result._metadata = OrderedDict(  # type: ignore[attr-defined]
            (modules.get(module, module), version) for module, version in versions.items()
        )
    return result
