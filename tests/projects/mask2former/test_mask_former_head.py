"""The head: names of its parts, and what it refuses."""

import pytest
import torch

from tests.projects.mask2former.models import tiny_config, tiny_model


def test_names_of_parameters():
    """Those of published checkpoints."""
    head = "sem_seg_head."
    names = set(tiny_model().state_dict())
    for name in (
        "pixel_decoder.transformer.encoder.layers.1.self_attn.sampling_offsets.weight",
        "pixel_decoder.transformer.level_embed",
        "pixel_decoder.input_proj.2.1.bias",
        "pixel_decoder.adapter_1.norm.weight",
        "pixel_decoder.layer_1.weight",
        "pixel_decoder.mask_features.bias",
        "predictor.transformer_cross_attention_layers.3.multihead_attn.in_proj_weight",
        "predictor.transformer_self_attention_layers.3.self_attn.out_proj.bias",
        "predictor.transformer_ffn_layers.0.linear2.weight",
        "predictor.decoder_norm.weight",
        "predictor.query_feat.weight",
        "predictor.query_embed.weight",
        "predictor.level_embed.weight",
        "predictor.class_embed.bias",
        "predictor.mask_embed.layers.2.weight",
    ):
        assert head + name in names
    assert {"criterion.empty_weight", "backbone.layers.1.blocks.1.attn.relative_position_index"} <= names
    assert not any(name.startswith("pixel_mean") for name in names)


def test_new_names_without_a_version_stay():
    model = tiny_model(seed=1)
    want = {name: value.clone() for name, value in tiny_model(seed=2).state_dict().items()}  # without metadata
    model.load_state_dict(want, strict=True)
    assert all(torch.equal(value, want[name]) for name, value in model.state_dict().items())


def test_features_of_the_older_model_are_refused():
    with pytest.raises(ValueError, match="must be 'multi_scale_pixel_decoder', got 'res5'"):
        tiny_model({"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "res5"})
    assert tiny_config().MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE == "multi_scale_pixel_decoder"
