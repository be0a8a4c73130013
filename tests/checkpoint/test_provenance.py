"""What is said about the origin and the licence of weights, and where nothing is known."""

import logging

import pytest
import torch
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.provenance import licence_of_card, weights_origin


@pytest.mark.parametrize("path", ["", "model_final.pth", "/a/model.safetensors", "https://example.com/a.pth"])
def test_files_of_which_nothing_is_known(path):
    assert weights_origin(path) is None


@pytest.mark.parametrize(
    "path, said",
    [
        (
            "detectron2://COCO-Detection/retinanet_R_50_FPN_1x/190397773/model_final_bfca0b.pkl",
            "with Detectron2; licence: CC BY-SA 3.0.",
        ),
        (
            "https://dl.fbaipublicfiles.com/detectron2/COCO-Detection/retinanet_R_50_FPN_1x/190397773/"
            "model_final_bfca0b.pkl?matching_heuristics=True",
            "with Detectron2; licence: CC BY-SA 3.0.",
        ),
        ("detectron2://ImageNetPretrained/MSRA/R-50.pkl", "with Detectron2; their licence is not recorded."),
        ("catalog://ImageNetPretrained/MSRA/R-50", "with the first Detectron; their licence is not recorded."),
        ("torchvision://fasterrcnn_resnet50_fpn", "with torchvision; their licence is not recorded."),
        ("torchvision://vit_h_14/IMAGENET1K_SWAG_E2E_V1", "licence: https://github.com/facebookresearch/SWAG/"),
    ],
)
def test_known_sources(path, said):
    origin = weights_origin(path)
    assert origin is not None and said in origin


@pytest.mark.parametrize(
    "text, licence",
    [
        ("", None),
        ("# A model\n", None),
        ("---\nlicense: mit\n---\n# A\n", "mit"),
        ("---\ntags: [a]\n---\n", None),
        ("---\n{\n---\n", None),
        ("---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\n---\n", "other (mine, LICENSE)"),
        ("---\nlicense: [mit, bsd]\n---\n", "['mit', 'bsd']"),
    ],
)
def test_cards(tmp_path, text, licence):
    (tmp_path / "README.md").write_text(text)
    assert licence_of_card(str(tmp_path / "README.md")) == licence


def test_a_line_of_the_log(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    model = nn.Linear(2, 3)
    checkpointer = DetectionCheckpointer(model, str(tmp_path))
    checkpointer.file_format = "safetensors"
    checkpointer.save_aside("model")
    path = str(tmp_path / "model.safetensors")
    checkpointer.load(path)
    assert "licence" not in caplog.text
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    checkpointer.load(path)
    assert f"The weights are from {tmp_path}; licence on their card: cc-by-4.0." in caplog.text
    assert torch.isfinite(model.weight).all()
