"""Weights of Deformable DETR and DINO from other programs: their names, and classes by the ids of COCO.

The names of the transformers and heads of the published programs are those of this package.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch

from detectron2.checkpoint.layouts import ATTENTION_LAYERS, BACKBONES, Layout, Rule, convert_layout, recognise_layout

__all__ = ["DETREX", "LAYOUTS", "convert_published_weights"]

# The published layer has the norm of cross-attention, which comes second, as its first.
_NORM_OF_STEP = {"0": "norm2", "1": "norm1", "2": "norm3"}
_DECODER_LAYERS: tuple[Rule, ...] = (
    (r"(decoder\.layers\.\d+)\.attentions\.0\.attn\.", r"\1.self_attn."),
    (r"(decoder\.layers\.\d+)\.attentions\.1\.", r"\1.cross_attn."),
    (r"(decoder\.layers\.\d+)\.self_attn\.attn\.", r"\1.self_attn."),
    (r"(decoder\.layers\.\d+)\.norms\.([012])\.", lambda found: f"{found[1]}.{_NORM_OF_STEP[found[2]]}."),
)
_NECK: tuple[Rule, ...] = (
    (r"^neck\.convs\.(\d)\.conv\.", r"input_proj.\1.0."),
    (r"^neck\.convs\.(\d)\.(norm|gn)\.", r"input_proj.\1.1."),
    (r"^neck\.extra_convs\.(\d)\.conv\.", r"input_proj.+\1.0."),
    (r"^neck\.extra_convs\.(\d)\.(norm|gn)\.", r"input_proj.+\1.1."),
)
_COMMON: tuple[Rule, ...] = (*ATTENTION_LAYERS, *_DECODER_LAYERS, *_NECK, *BACKBONES)
_OF_THE_TRANSFORMER = "level_embed|reference_points|enc_output|enc_output_norm|pos_trans|pos_trans_norm"

DETREX = Layout(
    "detrex",
    r"transformer\.encoder\.layers\.0\.attentions\.",
    (
        (r"^transformer\.level_embeds$", "transformer.level_embed"),
        (r"^query_embedding\.", "query_embed."),
        *_COMMON,
    ),
)
"""The names in detrex, whose DINO embeds positions otherwise than the published one."""
LAYOUTS = (
    Layout(
        "the published Deformable DETR or DINO",
        r"backbone\.0\.",
        ((r"^backbone\.0\.(body\.)?", "backbone."), *BACKBONES),
    ),
    DETREX,
    Layout(
        "MMDetection",
        r"bbox_head\.(cls_branches|transformer)\.",
        (
            # version 2 has the transformer in the head
            (r"^bbox_head\.(transformer|query_embedding)\.", r"\1."),
            (r"^transformer\.level_embeds$", "transformer.level_embed"),
            (r"^(encoder|decoder)\.", r"transformer.\1."),
            (r"^level_embed$", "transformer.level_embed"),
            (r"^reference_points_fc\.", "transformer.reference_points."),
            (r"^memory_trans_fc\.", "transformer.enc_output."),
            (r"^memory_trans_norm\.", "transformer.enc_output_norm."),
            (r"^pos_trans_fc\.", "transformer.pos_trans."),
            (r"^pos_trans_norm\.", "transformer.pos_trans_norm."),
            (r"^query_embedding\.", "query_embed."),
            (r"^dn_query_generator\.label_embedding\.", "label_enc."),
            (r"^bbox_head\.cls_branches\.", "class_embed."),
            # rectifiers lie between the layers
            (
                r"^bbox_head\.reg_branches\.(\d+)\.(\d)\.",
                lambda found: f"bbox_embed.{found[1]}.layers.{int(found[2]) // 2}.",
            ),
            *_COMMON,
        ),
    ),
    Layout(
        "Hugging Face transformers",
        r"(model\.)?encoder\.layers\.0\.self_attn\.sampling_offsets\.",
        (
            (r"^(model\.)?backbone\.(conv_encoder\.)?model\.(_backbone\.)?", "backbone."),
            (r"^(model\.)?(encoder|decoder)\.", r"transformer.\2."),
            (rf"^(model\.)?({_OF_THE_TRANSFORMER})(?=\.|$)", r"transformer.\2"),
            (r"^model\.input_proj\.", "input_proj."),
            (r"^(model\.)?query_position_embeddings\.", "query_embed."),
            (r"(encoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.norm1."),
            (r"(encoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm2."),
            (r"(decoder\.layers\.\d+)\.encoder_attn_layer_norm\.", r"\1.norm1."),
            (r"(decoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.norm2."),
            (r"(decoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm3."),
            (r"(decoder\.layers\.\d+)\.encoder_attn\.", r"\1.cross_attn."),
            (r"(layers\.\d+)\.(?:mlp\.)?fc([12])\.", r"\1.linear\2."),
            (r"(decoder\.layers\.\d+)\.self_attn\.o_proj\.", r"\1.self_attn.out_proj."),
            (r"(decoder\.layers\.\d+)\.self_attn\.([qkv])_proj\.", r"\1.self_attn.in_proj/\2."),
            *BACKBONES,
        ),
    ),
)
"""The programs whose files load, beside those with our own names."""

_CLASSIFIER = re.compile(r"(^|\.)class_embed\.(\d+)\.|\.enc_out_class_embed\.")


def convert_published_weights(
    weights: dict[str, Any], coco_ids: Sequence[int] = (), last_is_objectness: bool = False
) -> dict[str, Any]:
    """Rename weights, and keep the outputs of classes that the data have.

    Published models, also those in transformers, have an output for each of the numbers 0 to 90, of which 80 are ids of
    classes of COCO.

    Args:
        weights: a state dict; one that is of none of the `LAYOUTS` is returned as it is.
        coco_ids: the id of each class; empty to keep all outputs.
        last_is_objectness: whether the last classifier is the encoder's in two stages, in which output 0 means any
            object.

    Returns:
        The state dict.
    """
    layout = recognise_layout(weights, LAYOUTS)
    if layout is None:
        return weights
    converted = _with_all_levels(convert_layout(weights, layout))
    if any(key.startswith("transformer.decoder.ref_point_head.") for key in converted):
        converted = _names_of_dino(converted)
    last = max((int(found[2]) for key in converted if (found := _CLASSIFIER.search(key)) and found[2]), default=-1)
    for key, value in converted.items():
        found, rows = _CLASSIFIER.search(key), list(coco_ids)
        if found and coco_ids and len(value) == 91:
            if last_is_objectness and found[2] and int(found[2]) == last:
                rows[0] = 0
            converted[key] = value[rows]
        elif key == "label_enc.weight" and coco_ids and len(value) == 92:
            converted[key] = value[[*rows, 91]]
    return converted


def _with_all_levels(weights: dict[str, Any]) -> dict[str, Any]:
    """Number the levels that are made of the last feature map after those of the maps, and add biases that are zero."""
    levels = [key for key in weights if re.fullmatch(r"input_proj\.\d\.0\.weight", key)]
    found = {}
    for key, value in weights.items():
        if extra := re.match(r"input_proj\.\+(\d)", key):
            key = f"input_proj.{len(levels) + int(extra[1])}{key[extra.end() :]}"
        found[key] = value
        if re.fullmatch(r"input_proj\.\d\.0\.weight", key):
            found.setdefault(f"{key.removesuffix('weight')}bias", torch.zeros(len(value)))
    return found


def _names_of_dino(weights: dict[str, Any]) -> dict[str, Any]:
    """Move the encoder's heads from the end of the lists of heads, and add a row, which is not used, to labels."""
    numbers = [re.match(r"transformer\.decoder\.layers\.(\d+)\.", key) for key in weights]
    layers = 1 + max((int(number[1]) for number in numbers if number), default=0)
    found = {}
    for key, value in weights.items():
        name = re.sub(
            rf"^(transformer\.decoder\.)?(class|bbox)_embed\.{layers}\.", r"transformer.enc_out_\2_embed.", key
        )
        found["transformer.tgt_embed.weight" if name == "query_embed.weight" else name] = value
    outputs, labels = found.get("class_embed.0.bias"), found.get("label_enc.weight")
    if outputs is not None and labels is not None and len(outputs) == len(labels):
        found["label_enc.weight"] = torch.cat([labels, labels.new_zeros(1, labels.shape[1])])
    return found
