"""Weights under the names of the published models, for the 91 numbers that they count as classes of COCO."""

import torch

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.projects.deformable_detr.published_weights import convert_published_weights

from .conftest import tiny_model

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
