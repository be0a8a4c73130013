"""Rename the weights of a checkpoint to the names of a model: the one place where keys are renamed.

Weights of wrappers (`module.`, `_orig_mod.`) and of torchvision's ResNets get our names first. Older weights take two
steps: Caffe2 (Detectron 1) names are rewritten to the ends of our names, and the ends are matched to full names,
so that `res2.0.conv1.weight` of a backbone finds `backbone.bottom_up.res2.0.conv1.weight` of a detector.
"""

import logging
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

__all__ = [
    "Matching",
    "align_and_update_state_dicts",
    "convert_basic_c2_names",
    "convert_c2_detectron_names",
    "match_by_ends",
]

# Applied to every name in this order, after "_" became ".".
_BASIC_RULES: tuple[tuple[str, str], ...] = (
    (r"\.b$", ".bias"),
    (r"\.w$", ".weight"),
    # normalization: scale, shift and running statistics
    (r"\b(bn|gn)\.(s|gamma)$", "norm.weight"),
    (r"\b(bn|gn)\.(bias|beta)$", "norm.bias"),
    (r"\bbn\.(rm|running\.mean)$", "norm.running_mean"),
    (r"\bbn\.(riv|running\.var)$", "norm.running_var"),
    # the residual network
    (r"^res\.conv1\.norm\.", "conv1.norm."),
    (r"^conv1\.", "stem.conv1."),
    (r"\.branch1\.", ".shortcut."),
    (r"\.branch2a\.", ".conv1."),
    (r"\.branch2b\.", ".conv2."),
    (r"\.branch2c\.", ".conv3."),
)

_DETECTOR_RULES: tuple[tuple[str, str], ...] = (
    # region proposals: one set of weights for all levels, stored at the finest (FPN 2)
    (r"^conv\.rpn(\.fpn2)?\.", "proposal_generator.rpn_head.conv."),
    (r"^rpn\.bbox\.pred(\.fpn2)?\.", "proposal_generator.rpn_head.anchor_deltas."),
    (r"^rpn\.cls\.logits(\.fpn2)?\.", "proposal_generator.rpn_head.objectness_logits."),
    # box head
    (r"^bbox\.pred\.", "bbox_pred."),
    (r"^cls\.score\.", "cls_score."),
    (r"^fc6\.", "box_head.fc1."),
    (r"^fc7\.", "box_head.fc2."),
    (r"^head\.conv(\d+)\.", r"box_head.conv\1."),
    # feature pyramid: `res4.5.sum` names the last block of a stage
    (r"^fpn\.inner\.res(\d)\.\d+\.sum(\.lateral)?\.", r"fpn_lateral\1."),
    (r"^fpn\.res(\d)\.\d+\.sum\.", r"fpn_output\1."),
    # mask head
    (r"^\.?\[mask\]\.fcn(\d+)\.", r"mask_head.mask_fcn\1."),
    (r"^mask\.fcn\.logits\.", "mask_head.predictor."),
    (r"^conv5\.mask\.", "mask_head.deconv."),
    # keypoint head
    (r"^conv\.fcn(\d+)\.", r"roi_heads.keypoint_head.conv_fcn\1."),
    (r"^kps\.score\.lowres\.", "roi_heads.keypoint_head.score_lowres."),
)


def _rewrite(name: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def convert_basic_c2_names(original_keys: Iterable[str]) -> list[str]:
    """Rewrite Caffe2 names of a backbone, such as `res2_0_branch2a_w` to `res2.0.conv1.weight`, in the same order."""
    classifier = {"pred_b": "linear_b", "pred_w": "linear_w"}
    return [_rewrite(classifier.get(key, key).replace("_", "."), _BASIC_RULES) for key in original_keys]


def convert_c2_detectron_names(weights: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Rewrite the names of a Detectron 1 model, and put its classes in our order.

    Detectron 1 counts the background as class 0. Here it comes last in the classifier and has neither box regression
    nor masks. The second result maps new names to old ones.
    """
    originals = sorted(weights)
    renamed: dict[str, torch.Tensor] = {}
    origin: dict[str, str] = {}
    for old, basic in zip(originals, convert_basic_c2_names(originals), strict=True):
        new = _rewrite(basic, _DETECTOR_RULES)
        if new in renamed:
            raise ValueError(f"The weights {origin[new]!r} and {old!r} both stand for {new!r}; only one can be loaded.")
        renamed[new] = _without_leading_background(new, weights[old])
        origin[new] = old
    return renamed, origin


def _without_leading_background(name: str, weight: torch.Tensor) -> torch.Tensor:
    if name.startswith("cls_score."):
        return torch.cat([weight[1:], weight[:1]])
    if name.startswith("bbox_pred."):
        return weight[4:]
    if name.startswith("mask_head.predictor."):
        return weight[1:]
    return weight


def _match_by_suffix(model_keys: Iterable[str], checkpoint_keys: Iterable[str]) -> dict[str, str]:
    """For each name of the model the longest name in the checkpoint that equals it or ends it after a dot."""
    available = set(checkpoint_keys)
    matches: dict[str, str] = {}
    for key in model_keys:
        suffix = key
        while suffix and suffix not in available:
            suffix = suffix.partition(".")[2]
        if suffix:
            matches[key] = suffix
    return matches


def align_and_update_state_dicts(
    model_state_dict: Mapping[str, torch.Tensor],
    ckpt_state_dict: Mapping[str, torch.Tensor],
    c2_conversion: bool = True,
) -> dict[str, torch.Tensor]:
    """Give the weights of a checkpoint the names that a model uses, by matching the ends of names.

    With `c2_conversion`, Caffe2 names are rewritten first. Returns a new state dict: matched weights of equal shape
    under the model's names, and unmatched ones under their own. One weight that ends several names of the model, so
    that its place is not certain, is a `ValueError`.
    """
    logger = logging.getLogger(__name__)
    matching = match_by_ends(model_state_dict, ckpt_state_dict, c2_conversion)
    for key, model_key in matching.resized.items():
        shapes = tuple(matching.weights[key].shape), tuple(model_state_dict[model_key].shape)
        logger.warning(
            "%s is not loaded: its shape is %s in the checkpoint (%s) but %s in the model.",
            *(model_key, shapes[0], matching.origin[key], shapes[1]),
        )
    result: dict[str, torch.Tensor] = {}
    for key, model_key in matching.taken.items():
        result[model_key] = matching.weights[key]
    result.update({key: value for key, value in matching.weights.items() if key not in matching.taken})
    return result


def _longest_common_prefix_str(names: list[str]) -> str:
    """The longest beginning that all names share, letter by letter."""
    return os.path.commonprefix(names)  # noqa: RUF071 (letters are wanted here, not parts of paths)


@dataclass
class Matching:
    """Where the weights of a checkpoint belong in a model."""

    weights: Mapping[str, Any]  # the checkpoint's, after the conversion of Caffe2 names
    origin: Mapping[str, str]  # from their names to those in the file
    taken: dict[str, str] = field(default_factory=dict)  # from their names to those in the model
    resized: dict[str, str] = field(default_factory=dict)  # the same, where the shapes differ

    def renamed(self) -> dict[str, Any]:
        """All weights, those that have a place under the model's name."""
        places = {**self.resized, **self.taken}
        return {places.get(key, key): value for key, value in self.weights.items()}

    def covers(self, name: str) -> bool:
        """Whether a tensor of the model lies in the part that the checkpoint is of.

        That part begins where names of the checkpoint are attached, and holds the children that the checkpoint knows:
        with `res2.0.conv1.weight` at `backbone.bottom_up.`, all of `backbone.bottom_up.res2`.
        """
        return any(name.startswith(module) for module in self._modules)

    @cached_property
    def _modules(self) -> tuple[str, ...]:
        pairs = [(place.removesuffix(key), key.partition(".")[0]) for key, place in self.taken.items()]
        return tuple({f"{prefix}{child}." for prefix, child in pairs})


def match_by_ends(
    model_state_dict: Mapping[str, torch.Tensor], ckpt_state_dict: Mapping[str, torch.Tensor], c2_conversion: bool
) -> Matching:
    """Find the place of each weight by the end of the model's names; see `align_and_update_state_dicts`."""
    weights: Mapping[str, Any] = ckpt_state_dict
    origin = {key: key for key in weights}
    if c2_conversion:
        weights, origin = convert_c2_detectron_names(ckpt_state_dict)
    matching = Matching(weights, origin)
    for model_key, key in _match_by_suffix(model_state_dict, weights).items():
        if tuple(weights[key].shape) != tuple(model_state_dict[model_key].shape):
            matching.resized[key] = model_key
            continue
        if key in matching.taken:
            raise ValueError(
                f"The weight {origin[key]!r} matches both {matching.taken[key]!r} and {model_key!r} of the model. "
                "Load the sub-model that it belongs to by itself, or rename the weights in the file."
            )
        matching.taken[key] = model_key
    for key in matching.taken:  # it has its place; names that end like it are of something else
        matching.resized.pop(key, None)
    return matching


# Parallel training, compilation, training frameworks; attributes in which a wrapper keeps the model.
_LEADING = re.compile(r"^((module|model|net|network|detector|_orig_mod|_forward_module)\.)+")
# Wrappers of parts, anywhere in a name.
_INNER = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def without_wrappers(weights: dict[str, Any], model_keys: Iterable[str]) -> dict[str, Any]:
    """Give weights the model's names where these differ by what wrappers add, if that makes more of them fit."""
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


_RULES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^layer(\d)\.", lambda match: f"res{int(match.group(1)) + 1}."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"^fc\.", "linear."),
)


def resnet_from_torchvision(weights: Mapping[str, Any], model_keys: Mapping[str, Any]) -> dict[str, Any] | None:
    """Rename the weights of a torchvision ResNet, perhaps with a prefix, to the ends of our names.

    The result is None when they are not of such a network, or when the model uses those names itself.
    """
    first = "layer1.0.conv1.weight"
    found = {key.removesuffix(first) for key in weights if key == first or key.endswith(f".{first}")}
    # Of the networks of self-supervised training the one that was trained, not its slow copy.
    prefix = next((p for p in ("", "module.", "module.encoder_q.", "encoder_q.") if p in found), None)
    if prefix is None and len(found) == 1:
        prefix = next(iter(found))
    if prefix is None or any(key.endswith(first) for key in model_keys):
        return None
    renamed = {}
    for key, value in weights.items():
        if not key.startswith(prefix) or key.endswith("num_batches_tracked"):
            continue
        renamed[resnet_name_from_torchvision(key[len(prefix) :])] = value
    return renamed


def resnet_name_from_torchvision(name: str) -> str:
    """The name here of a weight of a torchvision ResNet, such as `res2.0.conv1.weight` for `layer1.0.conv1.weight`."""
    for pattern, replacement in _RULES:
        name = re.sub(pattern, replacement, name)
    return name
