"""Weights under the names of the published models, for the 91 numbers that they count as classes of COCO."""

import re

import pytest
import torch

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.modeling import build_model
from detectron2.projects.deformable_detr.published_weights import convert_published_weights

from .conftest import tiny_config, tiny_model

IDS = [category["id"] for category in COCO_CATEGORIES if category["isthing"]]


def published(model):
    """The weights of a model of 80 classes as the published program writes them, with random rows for other numbers."""
    weights = {}
    for name, value in model.state_dict().items():
        if name.startswith("backbone."):
            name = name.replace("backbone.", "backbone.0.body.").replace("stem.conv1.norm", "bn1")
            name = (
                name.replace("stem.", "").replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")
            )
            for conv in "123":
                name = name.replace(f"conv{conv}.norm", f"bn{conv}")
            for stage in range(2, 6):
                name = name.replace(f"res{stage}", f"layer{stage - 1}")
        elif "class_embed" in name:
            rows = torch.full((91, *value.shape[1:]), 7.0)
            is_objectness = getattr(model.transformer, "two_stage", False) and "class_embed.3." in name
            rows[[0, *IDS[1:]] if is_objectness else IDS] = value
            value = rows
        elif name == "label_enc.weight":
            rows = torch.full((92, value.shape[1]), 7.0)
            rows[[*IDS, 91]] = value
            value = rows
        weights[name] = value
    return weights


def test_no_weights_and_those_of_others():
    assert convert_published_weights({}) == {}
    own = {"backbone.res2.0.conv1.weight": 1, "class_embed.0.bias": torch.zeros(91)}
    assert convert_published_weights(own, IDS) == own


def test_names_and_rows():
    weights = {
        "backbone.0.body.layer1.0.bn1.running_mean": torch.ones(1),
        "backbone.0.body.bn1.num_batches_tracked": torch.ones(1),
        "backbone.0.layers.0.blocks.0.norm1.weight": torch.ones(2),
        "class_embed.0.bias": torch.arange(91),
        "transformer.decoder.class_embed.1.bias": torch.arange(91),
        "transformer.enc_out_class_embed.bias": torch.arange(91),
        "label_enc.weight": torch.arange(92)[:, None],
    }
    found = convert_published_weights(weights, IDS, last_is_objectness=True)
    assert set(found) == {
        "backbone.res2.0.conv1.norm.running_mean",
        "backbone.layers.0.blocks.0.norm1.weight",
        *list(weights)[3:],
    }
    assert found["class_embed.0.bias"].tolist() == found["transformer.enc_out_class_embed.bias"].tolist() == IDS
    assert found["transformer.decoder.class_embed.1.bias"].tolist() == [0, *IDS[1:]]
    assert found["label_enc.weight"].flatten().tolist() == [*IDS, 91]
    assert len(convert_published_weights(weights)["class_embed.0.bias"]) == 91


def check_file(kind, path):
    model = tiny_model(kind, "MODEL.DEFORMABLE_DETR.NUM_CLASSES", 80).eval()
    torch.save({"model": published(model)}, path)
    other = tiny_model(kind, "MODEL.DEFORMABLE_DETR.NUM_CLASSES", 80).eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    DetectionCheckpointer(other).load_for_inference(str(path))
    wanted = model.state_dict()
    for name, value in other.state_dict().items():
        assert torch.equal(value, wanted[name]), name


def test_file_of_deformable_detr(tmp_path):
    check_file("plain", tmp_path / "r50_deformable_detr.pth")


def test_file_of_two_stages(tmp_path):
    check_file("two_stage", tmp_path / "r50_deformable_detr_plus_two_stage.pth")


def test_file_of_dino(tmp_path):
    check_file("DINO", tmp_path / "checkpoint0011_4scale.pth")


def in_torchvision(name):
    """The name of a weight of the backbone in torchvision, without a prefix."""
    name = name.removeprefix("backbone.").replace("stem.conv1.norm", "bn1").replace("stem.", "")
    name = name.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")
    name = re.sub(r"conv(\d)\.norm", r"bn\1", name)
    return re.sub(r"res(\d)", lambda found: f"layer{int(found[1]) - 1}", name)


def in_layers(name, version):
    """The name of a weight in a layer of detrex or MMDetection 2 (`version` 2) or of MMDetection 3."""
    self_attention, cross_attention = ("attentions.0", "attentions.1") if version == 2 else ("self_attn", "cross_attn")
    ffn = "ffns.0" if version == 2 else "ffn"
    name = re.sub(r"(encoder\.layers\.\d)\.self_attn", rf"\1.{self_attention}", name)
    name = re.sub(r"(encoder\.layers\.\d)\.norm(\d)", lambda m: f"{m[1]}.norms.{int(m[2]) - 1}", name)
    name = re.sub(r"(decoder\.layers\.\d)\.self_attn", rf"\1.{self_attention}.attn", name)
    name = re.sub(r"(decoder\.layers\.\d)\.cross_attn", rf"\1.{cross_attention}", name)
    name = re.sub(r"(decoder\.layers\.\d)\.norm(\d)", lambda m: f"{m[1]}.norms.{'102'[int(m[2]) - 1]}", name)
    return name.replace("linear1", f"{ffn}.layers.0.0").replace("linear2", f"{ffn}.layers.1")


def in_neck(name, norm):
    """Three maps of the backbone, of which the last is made into a fourth level."""
    where = {"0": "convs.0", "1": "convs.1", "2": "convs.2", "3": "extra_convs.0"}
    part = {"0": "conv", "1": norm}
    return re.sub(r"^input_proj\.(\d)\.(\d)", lambda m: f"neck.{where[m[1]]}.{part[m[2]]}", name)


def with_heads_at_the_end(weights, layers):
    """Heads of DINO's proposals come after those of the layers; labels have no row for none."""
    name = rf"\g<1>_embed.{layers}."
    found = {re.sub(r"^transformer\.enc_out_(class|bbox)_embed\.", name, k): v for k, v in weights.items()}
    if "label_enc.weight" in found:
        found["label_enc.weight"] = found["label_enc.weight"][:-1]
    return found


def as_detrex(weights):
    found = {}
    for name, value in with_heads_at_the_end(weights, 3).items():
        name = in_neck(in_layers(name, 2), "norm").replace("level_embed", "level_embeds")
        name = name.replace("query_embed.", "query_embedding.")
        found[name] = value
        if name.startswith(("class_embed.", "bbox_embed.")):
            found[f"transformer.decoder.{name}"] = value
    return found


def as_mmdetection(weights, version):
    theirs = {
        "transformer.reference_points.": "reference_points_fc.",
        "transformer.enc_output.": "memory_trans_fc.",
        "transformer.enc_output_norm.": "memory_trans_norm.",
        "transformer.pos_trans.": "pos_trans_fc.",
        "transformer.pos_trans_norm.": "pos_trans_norm.",
        "transformer.tgt_embed.": "query_embedding.",
        "query_embed.": "query_embedding.",
        "label_enc.": "dn_query_generator.label_embedding.",
        "transformer.": "",
    }
    found = {}
    for name, value in with_heads_at_the_end(weights, 3).items():
        if re.fullmatch(r"input_proj\.\d\.0\.bias", name) or re.match(
            r"transformer\.decoder\.(class|bbox)_embed", name
        ):
            continue
        if name.startswith("backbone."):
            name = f"backbone.{in_torchvision(name)}"
        name = re.sub(r"^class_embed", "bbox_head.cls_branches", name)
        name = re.sub(
            r"^bbox_embed\.(\d)\.layers\.(\d)", lambda m: f"bbox_head.reg_branches.{m[1]}.{2 * int(m[2])}", name
        )
        name = in_neck(in_layers(name, version), "gn")
        if version == 3:
            ours = next((ours for ours in theirs if name.startswith(ours)), "")
            name = name.replace(ours, theirs.get(ours, ""), 1) if ours else name
        else:
            name = re.sub(r"^(transformer\.|query_embed)", r"bbox_head.\1", name)
            name = name.replace("level_embed", "level_embeds").replace("query_embed.", "query_embedding.")
        found[name] = value
    return found


PROGRAMS = {
    "detrex": as_detrex,
    "MMDetection 3": lambda weights: as_mmdetection(weights, 3),
    "MMDetection 2": lambda weights: as_mmdetection(weights, 2),
}
OWN_HEADS = {"DINO": ["MODEL.DINO.SHARE_HEADS", False]}


def without_aliases(weights):
    """Names under which the parameters of the heads are found again are not those of a file."""
    return {k: v for k, v in weights.items() if not re.match(r"transformer\.decoder\.(class|bbox)_embed", k)}


@pytest.mark.parametrize("kind", ["plain", "refined", "two_stage", "DINO"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_file_of_another_program(kind, program, tmp_path, caplog):
    if (kind, program) == ("DINO", "MMDetection 2"):
        pytest.skip("MMDetection has DINO since version 3")
    changes = ["MODEL.DEFORMABLE_DETR.NUM_CLASSES", 80, *OWN_HEADS.get(kind, [])]
    model = tiny_model(kind, *changes).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if program != "detrex" and re.fullmatch(r"input_proj\.\d\.0\.bias", name):
                value.zero_()  # there is a norm instead
        if kind == "DINO":
            model.label_enc.weight[-1] = 0
    weights = PROGRAMS[program](without_aliases(model.state_dict()))
    assert not any("encoder.layers" in name for name in set(weights) & set(model.state_dict()))
    path = tmp_path / "published.pth"
    torch.save({"state_dict": weights}, path)
    other = tiny_model(kind, *changes).eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.fill_(0.5)
    with caplog.at_level("INFO"):
        DetectionCheckpointer(other).load_for_inference(str(path))
    assert sum("which were converted" in text for text in caplog.messages) == 1
    assert f"names of {program.split()[0]}" in caplog.text
    wanted = model.state_dict()
    for name, value in other.state_dict().items():
        assert torch.equal(value, wanted[name]), name


def test_names_of_detrex():
    """As its files have them, written down."""
    expected = {
        "transformer.encoder.layers.0.attentions.0.sampling_offsets.weight": (
            "transformer.encoder.layers.0.self_attn.sampling_offsets.weight"
        ),
        "transformer.encoder.layers.0.norms.1.bias": "transformer.encoder.layers.0.norm2.bias",
        "transformer.decoder.layers.5.attentions.0.attn.in_proj_weight": (
            "transformer.decoder.layers.5.self_attn.in_proj_weight"
        ),
        "transformer.decoder.layers.5.attentions.1.value_proj.bias": (
            "transformer.decoder.layers.5.cross_attn.value_proj.bias"
        ),
        "transformer.decoder.layers.5.ffns.0.layers.0.0.weight": "transformer.decoder.layers.5.linear1.weight",
        "transformer.decoder.layers.5.ffns.0.layers.1.bias": "transformer.decoder.layers.5.linear2.bias",
        "transformer.decoder.layers.5.norms.0.weight": "transformer.decoder.layers.5.norm2.weight",
        "transformer.decoder.layers.5.norms.1.weight": "transformer.decoder.layers.5.norm1.weight",
        "transformer.decoder.layers.5.norms.2.weight": "transformer.decoder.layers.5.norm3.weight",
        "transformer.decoder.ref_point_head.layers.1.bias": "transformer.decoder.ref_point_head.layers.1.bias",
        "transformer.level_embeds": "transformer.level_embed",
        "neck.convs.0.conv.weight": "input_proj.0.0.weight",
        "neck.convs.0.norm.bias": "input_proj.0.1.bias",
        "neck.extra_convs.0.conv.weight": "input_proj.1.0.weight",
        "class_embed.5.bias": "class_embed.5.bias",
        "class_embed.6.bias": "transformer.enc_out_class_embed.bias",
        "transformer.decoder.bbox_embed.6.layers.2.bias": "transformer.enc_out_bbox_embed.layers.2.bias",
        "backbone.res2.0.conv1.norm.running_var": "backbone.res2.0.conv1.norm.running_var",
    }
    found = convert_published_weights({name: torch.ones(1, 1) for name in expected})
    biases = {"input_proj.0.0.bias", "input_proj.1.0.bias"}  # of convolutions in whose place a norm adds one
    assert set(found) == {*expected.values(), *biases}
    assert all(found[name].tolist() == [0] for name in biases)


def test_names_of_timm_in_transformers():
    names = {
        "model.encoder.layers.0.self_attn.sampling_offsets.bias": (
            "transformer.encoder.layers.0.self_attn.sampling_offsets.bias"
        ),
        "model.backbone.conv_encoder.model.bn1.running_mean": "backbone.stem.conv1.norm.running_mean",
        "model.backbone.conv_encoder.model.layer1.0.bn3.weight": "backbone.res2.0.conv3.norm.weight",
        "model.backbone.model.layer4.0.downsample.0.weight": "backbone.res5.0.shortcut.weight",
        "model.backbone.conv_encoder.model._backbone.layer2.1.conv1.weight": "backbone.res3.1.conv1.weight",
    }
    assert list(convert_published_weights(dict.fromkeys(names, torch.ones(1)))) == list(names.values())


def test_heads_of_each_layer_in_a_model_that_shares_them(tmp_path):
    own = {"DINO": "MODEL.DINO.SHARE_HEADS False", "plain": "MODEL.DEFORMABLE_DETR.WITH_BOX_REFINE True"}
    for kind, cure in own.items():
        other = tiny_model("refined") if kind == "plain" else tiny_model("DINO", *OWN_HEADS["DINO"])
        torch.save({"model": other.state_dict()}, tmp_path / "other.pth")
        with pytest.raises(ValueError, match=rf"other\.pth: each layer of the decoder has heads of its own.*{cure}"):
            DetectionCheckpointer(tiny_model(kind)).load(str(tmp_path / "other.pth"))


def test_shared_heads_in_a_model_that_refines_boxes(caplog):
    weights = {kind: tiny_model(kind).state_dict() for kind in ("plain", "refined", "two_stage")}
    for kind, own in weights.items():
        tiny_model(kind).convert_weights(own)
    new = build_model(tiny_config("refined"))  # whose heads of classes are the same until it is trained
    new.convert_weights(new.state_dict())
    assert not caplog.records
    tiny_model("refined").convert_weights(weights["plain"])
    assert "set MODEL.DEFORMABLE_DETR.WITH_BOX_REFINE False" in caplog.text


def test_positions_of_detrex(tmp_path, caplog):
    weights = as_detrex(without_aliases(tiny_model("DINO").state_dict()))
    text = "MODEL.DINO.POSITION_TEMPERATURE 10000.0 and MODEL.DINO.POSITION_OFFSET -0.5"
    tiny_model("DINO").convert_weights(weights)
    assert text in caplog.text
    caplog.clear()
    as_there = tiny_model("DINO", "MODEL.DINO.POSITION_TEMPERATURE", 10000.0, "MODEL.DINO.POSITION_OFFSET", -0.5)
    as_there.convert_weights(weights)
    assert text not in caplog.text
    assert (as_there.position_embedding.temperature, as_there.position_embedding.offset) == (10000.0, -0.5)


def test_other_classes_are_as_they_should_be(tmp_path, caplog):
    """Fine-tuning a published file on data of one's own begins with new classifiers, and no warning."""
    for kind in ("plain", "two_stage", "DINO"):
        torch.save({"model": published(tiny_model(kind, "MODEL.DEFORMABLE_DETR.NUM_CLASSES", 80))}, tmp_path / "a.pth")
        model = tiny_model(kind)
        with caplog.at_level("WARNING"):
            DetectionCheckpointer(model).load(str(tmp_path / "a.pth"))
        assert [record.message for record in caplog.records if record.levelname != "INFO"] == []
        with pytest.raises(ValueError, match="was trained for other classes"):
            DetectionCheckpointer(model).load_for_inference(str(tmp_path / "a.pth"))


def test_names_of_no_program(tmp_path):
    torch.save({"model": {f"detr.{part}.{i}.w": torch.ones(2) for part in "ab" for i in range(3)}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="another architecture") as e:
        DetectionCheckpointer(tiny_model()).load(str(tmp_path / "a.pth"))
    assert "The file has detr.a.0.w and 2 more, detr.b.0.w and 2 more; the model has" in str(e.value)
    assert "reads those of the published Deformable DETR or DINO, detrex, MMDetection, Hugging Face" in str(e.value)


@pytest.mark.parametrize("kind", ["plain", "two_stage"])
@pytest.mark.parametrize("old", [False, True])
def test_file_of_transformers(kind, old, tmp_path):
    """The whole model computes what that of transformers computes. Files on hubs have names of before version 5."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    is_two_stage = kind == "two_stage"
    backbone = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 32, 64],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = transformers.DeformableDetrConfig(
        use_timm_backbone=False,
        backbone_config=backbone,
        d_model=64,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=40,
        decoder_ffn_dim=40,
        num_queries=12,
        num_labels=5,
        dropout=0.0,
        with_box_refine=is_two_stage,
        two_stage=is_two_stage,
        two_stage_num_proposals=12,
    )
    theirs = transformers.DeformableDetrForObjectDetection(config).eval()
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if not name.endswith("sampling_offsets.bias"):
                value.add_(0.1 * torch.randn_like(value))
    weights = theirs.state_dict()
    if old:
        pairs = [(".o_proj.", ".out_proj."), (".mlp.fc", ".fc"), ("backbone.model.", "backbone.conv_encoder.model.")]
        for new, name in pairs:
            weights = {key.replace(new, name): value for key, value in weights.items()}
    torch.save(weights, tmp_path / "pytorch_model.bin")
    model = tiny_model(kind, "MODEL.RESNETS.NORM", "BN").eval()
    DetectionCheckpointer(model).load_for_inference(str(tmp_path / "pytorch_model.bin"))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = theirs(pixel_values=images, pixel_mask=torch.ones(1, 64, 96, dtype=torch.long))
        layers, _ = model.predict(model.backbone(images), torch.zeros(1, 64, 96, dtype=torch.bool))
    torch.testing.assert_close(layers[-1].logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(layers[-1].boxes, expected.pred_boxes, atol=1e-4, rtol=1e-4)
