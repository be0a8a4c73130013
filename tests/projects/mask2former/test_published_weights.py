"""Files of MMDetection, MMSegmentation and transformers under their names."""

import re

import pytest
import torch

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.projects.mask2former.published_weights import convert_published_weights
from tests.projects.mask2former.models import (
    NUM_CLASSES,
    RESNET,
    converted,
    noise,
    tiny_config,
    tiny_model,
    transformers_model,
)


def test_no_weights_and_our_own():
    assert convert_published_weights({}) == {}
    own = tiny_model(RESNET).state_dict()
    assert convert_published_weights(own) is own and hasattr(own, "_metadata")


_STEPS = {
    "cross_attention_layers.{}.multihead_attn": "cross_attn.attn",
    "cross_attention_layers.{}.norm": "norms.0",
    "self_attention_layers.{}.self_attn": "self_attn.attn",
    "self_attention_layers.{}.norm": "norms.1",
    "ffn_layers.{}.linear1": "ffn.layers.0.0",
    "ffn_layers.{}.linear2": "ffn.layers.1",
    "ffn_layers.{}.norm": "norms.2",
}
_OTHERS = (
    ("predictor.class_embed", "cls_embed"),
    ("predictor.decoder_norm", "transformer_decoder.post_norm"),
    ("pixel_decoder.transformer.level_embed", "pixel_decoder.level_encoding.weight"),
    ("pixel_decoder.transformer.encoder", "pixel_decoder.encoder"),
    ("pixel_decoder.mask_features", "pixel_decoder.mask_feature"),
    ("adapter_1.weight", "lateral_convs.0.conv.weight"),
    ("adapter_1.norm", "lateral_convs.0.gn"),
    ("layer_1.weight", "output_convs.0.conv.weight"),
    ("layer_1.norm", "output_convs.0.gn"),
    ("predictor.", ""),
)


def as_mmdetection(weights, head="panoptic_head", version=3):
    """Weights of a model with a ResNet under the names of MMDetection or MMSegmentation."""
    found = {}
    for name, value in weights.items():
        if name.startswith(("criterion.", "pixel_")):
            continue
        if name.startswith("backbone."):
            name = name.replace("stem.conv1.norm", "bn1").replace("stem.", "")
            name = name.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")
            name = re.sub(r"conv(\d)\.norm", r"bn\1", name)
            name = re.sub(r"res(\d)", lambda m: f"layer{int(m[1]) - 1}", name)
        name = name.replace("sem_seg_head.", f"{head}.")
        for ours, theirs in _STEPS.items():
            pattern = "predictor.transformer_" + ours.format(r"(\d)")
            name = re.sub(pattern, rf"transformer_decoder.layers.\1.{theirs}", name)
        name = re.sub(r"input_proj\.(\d)\.0", r"input_convs.\1.conv", name)
        name = re.sub(r"input_proj\.(\d)\.1", r"input_convs.\1.gn", name)
        name = re.sub(r"mask_embed\.layers\.(\d)", lambda m: f"mask_embed.{2 * int(m[1])}", name)
        for ours, theirs in _OTHERS:
            name = name.replace(ours, theirs, 1)
        if "pixel_decoder.encoder" in name:
            name = name.replace("linear1", "ffn.layers.0.0").replace("linear2", "ffn.layers.1")
            name = re.sub(r"\.norm(\d)", lambda m: f".norms.{int(m[1]) - 1}", name)
        if version == 2:
            if "pixel_decoder" in name:
                name = name.replace(".self_attn.", ".attentions.0.")
            name = name.replace(".cross_attn.", ".attentions.0.").replace(".self_attn.", ".attentions.1.")
            name = name.replace(".ffn.", ".ffns.0.")
        found[name] = value
    return found


@pytest.mark.parametrize(("head", "version"), [("panoptic_head", 3), ("panoptic_head", 2), ("decode_head", 3)])
def test_file_of_mmdetection(head, version, tmp_path, caplog):
    model, other = tiny_model(RESNET), tiny_model(RESNET, seed=1)
    weights = as_mmdetection(model.state_dict(), head, version)
    assert not [name for name in weights if "sem_seg_head" in name or "predictor" in name]
    torch.save({"meta": {"mmdet_version": "3.3.0"}, "state_dict": weights}, tmp_path / "published.pth")
    with caplog.at_level("INFO"):
        DetectionCheckpointer(other).load_for_inference(str(tmp_path / "published.pth"))
    assert "The weights have the names of MMDetection or MMSegmentation, which were converted." in caplog.messages
    wanted = model.state_dict()
    for name, value in other.state_dict().items():
        assert torch.equal(value, wanted[name]), name


def test_names_of_mmdetection():
    """As its files have them, written down."""
    names = {
        "panoptic_head.pixel_decoder.input_convs.2.conv.bias": "pixel_decoder.input_proj.2.0.bias",
        "panoptic_head.pixel_decoder.input_convs.2.gn.weight": "pixel_decoder.input_proj.2.1.weight",
        "panoptic_head.pixel_decoder.encoder.layers.5.self_attn.output_proj.bias": (
            "pixel_decoder.transformer.encoder.layers.5.self_attn.output_proj.bias"
        ),
        "panoptic_head.pixel_decoder.encoder.layers.5.norms.0.bias": (
            "pixel_decoder.transformer.encoder.layers.5.norm1.bias"
        ),
        "panoptic_head.pixel_decoder.level_encoding.weight": "pixel_decoder.transformer.level_embed",
        "panoptic_head.pixel_decoder.lateral_convs.0.conv.weight": "pixel_decoder.adapter_1.weight",
        "panoptic_head.pixel_decoder.output_convs.0.gn.bias": "pixel_decoder.layer_1.norm.bias",
        "panoptic_head.pixel_decoder.mask_feature.weight": "pixel_decoder.mask_features.weight",
        "panoptic_head.transformer_decoder.layers.8.cross_attn.attn.in_proj_weight": (
            "predictor.transformer_cross_attention_layers.8.multihead_attn.in_proj_weight"
        ),
        "panoptic_head.transformer_decoder.layers.8.self_attn.attn.out_proj.bias": (
            "predictor.transformer_self_attention_layers.8.self_attn.out_proj.bias"
        ),
        "panoptic_head.transformer_decoder.layers.8.ffn.layers.1.weight": (
            "predictor.transformer_ffn_layers.8.linear2.weight"
        ),
        "panoptic_head.transformer_decoder.layers.8.norms.1.weight": (
            "predictor.transformer_self_attention_layers.8.norm.weight"
        ),
        "panoptic_head.transformer_decoder.post_norm.weight": "predictor.decoder_norm.weight",
        "panoptic_head.query_embed.weight": "predictor.query_embed.weight",
        "panoptic_head.query_feat.weight": "predictor.query_feat.weight",
        "panoptic_head.level_embed.weight": "predictor.level_embed.weight",
        "panoptic_head.cls_embed.bias": "predictor.class_embed.bias",
        "panoptic_head.mask_embed.4.weight": "predictor.mask_embed.layers.2.weight",
    }
    found = convert_published_weights({name: torch.ones(1) for name in names})
    assert list(found) == [f"sem_seg_head.{name}" for name in names.values()]


@pytest.mark.parametrize("old", [False, True])
def test_file_of_transformers(old, tmp_path):
    """The whole model computes what that of transformers computes. Files on hubs have names of before version 5."""
    pytest.importorskip("transformers")
    cfg = tiny_config()
    theirs, ours = transformers_model(cfg), tiny_model().eval()
    weights = theirs.state_dict()
    if old:
        pairs = [
            ("encoder.swin.", "encoder."),
            ("attention.relative_position_bias.", "attention.self."),
            ("attention.q_proj", "attention.self.query"),
            ("attention.k_proj", "attention.self.key"),
            ("attention.v_proj", "attention.self.value"),
            ("attention.o_proj", "attention.output.dense"),
            ("mlp.fc1", "intermediate.dense"),
            ("mlp.fc2", "output.dense"),
        ]
        for new, name in pairs:
            weights = {key.replace(new, name): value for key, value in weights.items()}
    torch.save(weights, tmp_path / "pytorch_model.bin")
    DetectionCheckpointer(ours).load_for_inference(str(tmp_path / "pytorch_model.bin"))
    expected = converted(theirs.state_dict())
    assert all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items() if name in expected)
    images = ours.preprocess_image([{"image": noise(64, 96)}])
    with torch.no_grad():
        got, want = ours.sem_seg_head(ours.backbone(images.tensor)), theirs(pixel_values=images.tensor)
    torch.testing.assert_close(got["pred_logits"], want.class_queries_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got["pred_masks"], want.masks_queries_logits, atol=1e-4, rtol=1e-4)


def test_other_classes_are_as_they_should_be(tmp_path, caplog):
    torch.save({"model": tiny_model(RESNET).state_dict()}, tmp_path / "a.pth")
    model = tiny_model({**RESNET, "MODEL.SEM_SEG_HEAD.NUM_CLASSES": NUM_CLASSES - 2})
    with caplog.at_level("WARNING"):
        DetectionCheckpointer(model).load(str(tmp_path / "a.pth"))
    assert caplog.text == "" and model.criterion.empty_weight.shape == (NUM_CLASSES - 1,)
    with pytest.raises(ValueError, match="was trained for other classes"):
        DetectionCheckpointer(model).load_for_inference(str(tmp_path / "a.pth"))
