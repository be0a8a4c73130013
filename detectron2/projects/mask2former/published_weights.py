"""Names of Mask2Former's weights in other programs; those of the published program are those of this package."""

from typing import Any

from detectron2.checkpoint.layouts import ATTENTION_LAYERS, BACKBONES, Layout, Rule, convert_layout, recognise_layout

__all__ = ["LAYOUTS", "convert_published_weights"]

_PIXELS, _QUERIES = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."
# Of a layer of the decoder: cross-attention, self-attention and the two linear layers, in this order.
_STEPS = {"0": "cross_attention", "1": "self_attention", "2": "ffn"}
_CROSS, _SELF, _FFN = (rf"{_QUERIES}transformer_{step}_layers.\1." for step in _STEPS.values())

_MMDETECTION: tuple[Rule, ...] = (
    (r"^(panoptic_head|decode_head)\.pixel_decoder\.", _PIXELS),
    (r"^(panoptic_head|decode_head)\.", _QUERIES),
    (rf"^{_PIXELS}input_convs\.(\d)\.conv\.", rf"{_PIXELS}input_proj.\1.0."),
    (rf"^{_PIXELS}input_convs\.(\d)\.gn\.", rf"{_PIXELS}input_proj.\1.1."),
    (rf"^{_PIXELS}lateral_convs\.(\d)\.", lambda found: f"{_PIXELS}adapter_{int(found[1]) + 1}."),
    (rf"^{_PIXELS}output_convs\.(\d)\.", lambda found: f"{_PIXELS}layer_{int(found[1]) + 1}."),
    (rf"^({_PIXELS}(?:adapter|layer)_\d)\.conv\.", r"\1."),
    (rf"^({_PIXELS}(?:adapter|layer)_\d)\.gn\.", r"\1.norm."),
    (rf"^{_PIXELS}mask_feature\.", f"{_PIXELS}mask_features."),
    (rf"^{_PIXELS}level_encoding\.weight$", f"{_PIXELS}transformer.level_embed"),
    (rf"^{_PIXELS}encoder\.", f"{_PIXELS}transformer.encoder."),
    (rf"^{_QUERIES}decoder_input_projs\.", f"{_QUERIES}input_proj."),
    (rf"^{_QUERIES}cls_embed\.", f"{_QUERIES}class_embed."),
    # rectifiers lie between the layers
    (rf"^{_QUERIES}mask_embed\.(\d)\.", lambda found: f"{_QUERIES}mask_embed.layers.{int(found[1]) // 2}."),
    (rf"^{_QUERIES}transformer_decoder\.post_norm\.", f"{_QUERIES}decoder_norm."),
    *ATTENTION_LAYERS,
    # version 2 counts the attentions
    (rf"^{_QUERIES}transformer_decoder\.layers\.(\d+)\.(attentions\.0|cross_attn)\.attn\.", f"{_CROSS}multihead_attn."),
    (rf"^{_QUERIES}transformer_decoder\.layers\.(\d+)\.(attentions\.1|self_attn)\.attn\.", f"{_SELF}self_attn."),
    (rf"^{_QUERIES}transformer_decoder\.layers\.(\d+)\.linear(\d)\.", rf"{_FFN}linear\2."),
    (
        rf"^{_QUERIES}transformer_decoder\.layers\.(\d+)\.norms\.(\d)\.",
        lambda found: f"{_QUERIES}transformer_{_STEPS[found[2]]}_layers.{found[1]}.norm.",
    ),
    *BACKBONES,
)
_DECODER = r"^(?:model\.)?transformer_module\.decoder\.layers\.(\d+)\."
_TRANSFORMERS: tuple[Rule, ...] = (
    (r"^(model\.)?pixel_level_module\.encoder\.", "backbone."),
    (r"^(model\.)?pixel_level_module\.decoder\.", _PIXELS),
    (rf"^{_PIXELS}input_projections\.", f"{_PIXELS}input_proj."),
    (rf"^{_PIXELS}mask_projection\.", f"{_PIXELS}mask_features."),
    (rf"^({_PIXELS}(?:adapter|layer)_\d)\.0\.", r"\1."),
    (rf"^({_PIXELS}(?:adapter|layer)_\d)\.1\.", r"\1.norm."),
    (rf"^({_PIXELS}encoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.norm1."),
    (rf"^({_PIXELS}encoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm2."),
    (rf"^({_PIXELS}encoder\.layers\.\d+)\.fc(\d)\.", r"\1.linear\2."),
    (rf"^{_PIXELS}(encoder\.|level_embed$)", rf"{_PIXELS}transformer.\1"),
    (rf"{_DECODER}self_attn\.([qkv])_proj\.", rf"{_SELF}self_attn.in_proj/\2."),
    (rf"{_DECODER}self_attn\.", f"{_SELF}self_attn."),
    (rf"{_DECODER}cross_attn\.", f"{_CROSS}multihead_attn."),
    (rf"{_DECODER}self_attn_layer_norm\.", f"{_SELF}norm."),
    (rf"{_DECODER}cross_attn_layer_norm\.", f"{_CROSS}norm."),
    (rf"{_DECODER}final_layer_norm\.", f"{_FFN}norm."),
    (rf"{_DECODER}fc(\d)\.", rf"{_FFN}linear\2."),
    (r"^(model\.)?transformer_module\.decoder\.layernorm\.", f"{_QUERIES}decoder_norm."),
    (
        r"^(?:model\.)?transformer_module\.decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.",
        rf"{_QUERIES}mask_embed.layers.\1.",
    ),
    (r"^(model\.)?transformer_module\.queries_embedder\.", f"{_QUERIES}query_embed."),
    (r"^(model\.)?transformer_module\.queries_features\.", f"{_QUERIES}query_feat."),
    (r"^(model\.)?transformer_module\.input_projections\.", f"{_QUERIES}input_proj."),
    (r"^(model\.)?transformer_module\.level_embed\.", f"{_QUERIES}level_embed."),
    (r"^class_predictor\.", f"{_QUERIES}class_embed."),
    *BACKBONES,
)
LAYOUTS = (
    Layout("MMDetection or MMSegmentation", r"(panoptic_head|decode_head)\.pixel_decoder\.input_convs\.", _MMDETECTION),
    Layout("Hugging Face transformers", r"(model\.)?pixel_level_module\.", _TRANSFORMERS),
)
"""The programs whose files load, beside those with our own names."""


def convert_published_weights(weights: dict[str, Any]) -> dict[str, Any]:
    """Return a state dict of one of the `LAYOUTS` under our names; another one as it is."""
    layout = recognise_layout(weights, LAYOUTS)
    return weights if layout is None else convert_layout(weights, layout)
