"""``detectron2 export``: from weights to a folder that runs, with the model's own config and class names."""

import json

import torch

from detectron2.cli import arguments
from detectron2.data.datasets.synthetic import SHAPE_CLASSES
from detectron2.export import ExportedModel
from detectron2.export.formats import FORMATS


def test_the_choices_are_the_formats():
    assert tuple(FORMATS) == arguments.EXPORT_FORMATS


def test_weights_become_a_folder(command, trained, tmp_path):
    folder = tmp_path / "exported"
    words = ["export", "--weights", trained / "model_final.pth", "--format", "torchscript", "--output", folder]
    status, out, err = command(*words, "--size", "64", "96", "--score-threshold", "0.01")
    assert status == 0, err
    assert "no detections" in out and "fails" not in out and f"Model: {folder / 'model.ts'}" in out
    description = json.loads((folder / "model.json").read_text())
    assert description["classes"] == list(SHAPE_CLASSES) and description["score_threshold"] == 0.01
    assert description["preprocessing"]["short_edge"] == 64 and len(description["config_sha256"]) == 64
    found = ExportedModel(folder)([{"image": torch.zeros(3, 64, 96), "height": 32, "width": 48}])[0]["instances"]
    assert found.image_size == (32, 48) and found.pred_masks.shape[1:] == (32, 48)


def test_mistakes_are_said_in_one_line(command, trained, tmp_path):
    words = ["export", "--weights", trained / "model_final.pth", "--output", tmp_path / "x"]
    status, _, err = command(*words, "--format", "torchscript", "--dynamic", "none")
    assert status == 1 and "give --size HEIGHT WIDTH" in err and "Traceback" not in err
    status, _, err = command(*words, "--format", "onnx", "--precision", "int8")
    assert status == 1 and "give --calibration DATA" in err
    status, _, err = command(*words, "--format", "tensorrt")
    assert status == 1 and "trtexec --onnx" in err
    assert not (tmp_path / "x").exists()
