"""Names that other programs give the weights of a model: a table for each program, and how a table is applied.

A model that reads files of other programs has such tables and the method `convert_weights`; see
`detectron2.projects.deformable_detr.published_weights` and `detectron2.projects.mask2former.published_weights`. The
tables of backbones are here, since these models share them.
"""

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from detectron2.checkpoint.c2_model_loading import resnet_name_from_torchvision

__all__ = ["ATTENTION_LAYERS", "BACKBONES", "Layout", "Rule", "convert_layout", "recognise_layout"]

Rule = tuple[str, str | Callable[[re.Match[str]], str]]
"""A pattern and what replaces it, as `re.sub` takes them. A name that becomes empty is dropped."""


class Layout(NamedTuple):
    """The names of one program."""

    program: str
    """Its name, for messages."""
    mark: str
    """A pattern that a name at the beginning of this program's files, and of no other's, matches."""
    rules: Sequence[Rule]
    """Applied to every name, one after another. Queries, keys and values that the program keeps apart become
    `qkv/q.weight` or `in_proj/q.weight` and so on, which are joined."""


_RESNET: tuple[Rule, ...] = (
    # transformers
    (r"^backbone\.embedder\.embedder\.", "backbone.stem.conv1."),
    (
        r"^backbone\.encoder\.stages\.(\d)\.layers\.(\d+)\.",
        lambda found: f"backbone.res{int(found[1]) + 2}.{found[2]}.",
    ),
    (r"^(backbone\.res.*)\.layer\.(\d)\.", lambda found: f"{found[1]}.conv{int(found[2]) + 1}."),
    (r"^(backbone\..*)\.convolution\.", r"\1."),
    (r"^(backbone\..*)\.normalization\.", r"\1.norm."),
    # torchvision, timm, MMDetection
    (r"^backbone\.(.*)", lambda found: f"backbone.{resnet_name_from_torchvision(found[1])}"),
)
_SWIN: tuple[Rule, ...] = (
    # MMDetection
    (r"^backbone\.stages\.(\d)\.", r"backbone.layers.\1."),
    (r"^backbone\.patch_embed\.projection\.", "backbone.patch_embed.proj."),
    (r"^(backbone\..*)\.attn\.w_msa\.", r"\1.attn."),
    (r"^(backbone\..*)\.ffn\.layers\.0\.0\.", r"\1.mlp.fc1."),
    (r"^(backbone\..*)\.ffn\.layers\.1\.", r"\1.mlp.fc2."),
    # transformers; the names before version 5 are those in published files
    (r"^backbone\.swin\.", "backbone."),
    (r"^backbone\.layernorm\..*", ""),  # of the classifier
    (r"^backbone\.embeddings\.patch_embeddings\.projection\.", "backbone.patch_embed.proj."),
    (r"^backbone\.embeddings\.norm\.", "backbone.patch_embed.norm."),
    (r"^backbone\.encoder\.layers\.", "backbone.layers."),
    (r"^backbone\.hidden_states_norms\.stage(\d)\.", lambda found: f"backbone.norm{int(found[1]) - 1}."),
    (r"\.attention\.(?:self|relative_position_bias)\.(relative_position_\w+)$", r".attn.\1"),
    (r"\.attention\.self\.(query|key|value)\.", lambda found: f".attn.qkv/{found[1][0]}."),
    (r"\.attention\.([qkv])_proj\.", r".attn.qkv/\1."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"^(backbone\..*)\.intermediate\.dense\.", r"\1.mlp.fc1."),
    (r"^(backbone\..*)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"^(backbone\..*)\.layernorm_before\.", r"\1.norm1."),
    (r"^(backbone\..*)\.layernorm_after\.", r"\1.norm2."),
)
BACKBONES: tuple[Rule, ...] = (*_RESNET, *_SWIN)
"""Names of a ResNet or Swin under `backbone.`, in torchvision, timm, MMDetection and transformers."""

ATTENTION_LAYERS: tuple[Rule, ...] = (
    (r"(encoder\.layers\.\d+)\.attentions\.0\.", r"\1.self_attn."),
    (r"(layers\.\d+)\.ffns?(?:\.0)?\.layers\.0\.0\.", r"\1.linear1."),
    (r"(layers\.\d+)\.ffns?(?:\.0)?\.layers\.1\.", r"\1.linear2."),
    (r"(encoder\.layers\.\d+)\.norms\.([01])\.", lambda found: f"{found[1]}.norm{int(found[2]) + 1}."),
)
"""Layers of transformers in detrex and MMDetection; in decoders, the names of attention and norms are left."""


def recognise_layout(weights: Iterable[str], layouts: Sequence[Layout]) -> Layout | None:
    """Return the first layout that has its mark among the names; None when there is none."""
    names = list(weights)
    return next((layout for layout in layouts if any(re.match(layout.mark, name) for name in names)), None)


def convert_layout(weights: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    """Return the weights under our names, and write one line to the log that says what was recognised.

    Counters of batch norm are left out. Swin's steps between stages get our order of inputs where they are of
    MMDetection.

    Args:
        weights: a state dict.
        layout: what its names are.

    Returns:
        The state dict.

    Raises:
        ValueError: one of query, key and value is missing.

    Example:
        >>> layout = Layout("some program", r"net\\.", [(r"^net\\.([qkv])\\.", r"attn.qkv/\\1.")])
        >>> weights = {f"net.{letter}.bias": torch.zeros(2) for letter in "qkv"}
        >>> convert_layout(weights, layout)["attn.qkv.bias"].shape
        torch.Size([6])
    """
    found = {}
    for key, value in weights.items():
        name = key
        for pattern, replacement in layout.rules:
            name = re.sub(pattern, replacement, name)
        if not name or name.endswith("num_batches_tracked"):
            continue
        if key.startswith("backbone.stages.") and ".downsample." in key:
            value = _cells_first(value)
        found[name] = value
    logging.getLogger(__name__).info(f"The weights have the names of {layout.program}, which were converted.")
    return _joined(found)


def _cells_first(value: torch.Tensor) -> torch.Tensor:
    """Bring the inputs of Swin's step between stages, the last axis, from MMDetection's order to ours.

    Each channel has four cells of a square. Theirs go channel by channel, and there row by row; ours cell by cell,
    column by column, and there channel by channel.
    """
    return value.unflatten(-1, (-1, 2, 2)).movedim((-1, -2), (-3, -2)).flatten(-3)


def _joined(weights: dict[str, Any]) -> dict[str, Any]:
    """Join queries, keys and values."""
    for first in [name for name in weights if re.search(r"(qkv|in_proj)/q\.", name)]:
        names = [first.replace("/q.", f"/{letter}.") for letter in "qkv"]
        if absent := [name for name in names if name not in weights]:
            raise ValueError(f"the file has {first}, but not {absent[0]}; it is damaged or cut off")
        joined = torch.cat([torch.as_tensor(weights.pop(name)) for name in names])
        weights[re.sub(r"in_proj/q\.", "in_proj_", first).replace("qkv/q.", "qkv.")] = joined
    return weights
