"""``detectron2 predict``: pictures, a JSON file, and no file of the user's overwritten."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from detectron2.data.datasets.synthetic import SHAPE_CLASSES


@pytest.mark.parametrize("kind", ["yaml", "lazy"])
def test_file_and_folder(command, trained, lazy_trained, data, tmp_path, kind):
    """The config and the class names that training left beside the weights are found."""
    folder = {"yaml": trained, "lazy": lazy_trained}[kind]
    many, one = data / "images", data / "voc" / "JPEGImages" / "00000.jpg"
    status, out, err = command(
        *("predict", "--weights", folder / "model_final.pth", "--input", one, many),
        *("--output", tmp_path, "--confidence", "0"),
    )
    assert status == 0, err
    records = json.loads((tmp_path / "predictions.json").read_text())
    assert f"{len(records)} objects in 5 images" in out
    assert {r["file_name"] for r in records} == {str(one), *(str(p) for p in many.iterdir())}
    for record in records:
        assert set(record) == {"file_name", "category_id", "bbox", "score", "segmentation"}
        assert 0 <= record["category_id"] < len(SHAPE_CLASSES)
        x, y, w, h = record["bbox"]  # in the resolution of the file, 96 x 64
        assert x >= 0 and y >= 0 and x + w <= 96.01 and y + h <= 64.01
        assert record["segmentation"]["size"] == [64, 96]
    # Two images have the same name.
    assert sorted(p.name for p in tmp_path.glob("*.png")) == [
        *("00000.png", "00000_2.png", "00001.png", "00002.png", "00003.png")
    ]
    with Image.open(tmp_path / "00001.png") as picture:
        assert picture.size == (96, 64)


def test_confidence(command, trained, data, tmp_path):
    status, out, err = command(
        *("predict", "--weights", trained / "model_final.pth", "--input", data / "images" / "00000.png"),
        *("--output", tmp_path, "--confidence", "1.1"),
    )
    assert status == 0, err
    assert out.startswith("0 objects in 1 images")
    assert json.loads((tmp_path / "predictions.json").read_text()) == []
    assert (tmp_path / "00000.png").is_file()


def test_images_are_not_overwritten(command, trained, data, tmp_path):
    shutil.copy(data / "images" / "00000.png", tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    status, _, err = command(
        "predict", "--weights", trained / "model_final.pth", "--input", tmp_path, "--output", tmp_path
    )
    assert status == 0, err
    assert (tmp_path / "a.png").read_bytes() == before
    assert (tmp_path / "a_2.png").is_file()


def test_grey_image_and_one_with_transparency(command, trained, tmp_path):
    images = tmp_path / "in"
    images.mkdir()
    Image.fromarray(np.full((40, 50), 99, np.uint8)).save(images / "grey.png")
    Image.fromarray(np.full((40, 50, 4), 99, np.uint8)).save(images / "rgba.png")
    status, _, err = command(
        "predict", "--weights", trained / "model_final.pth", "--input", images, "--output", tmp_path / "out"
    )
    assert status == 0, err
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


def test_config_file_and_changes(command, yaml_file, trained, data, tmp_path):
    status, _, err = command(
        *("predict", "--config-file", yaml_file, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.999"),
        *("--weights", trained / "model_final.pth", "--confidence", "0"),
        *("--input", data / "images" / "00000.png", "--output", tmp_path),
    )
    assert status == 0, err
    assert json.loads((tmp_path / "predictions.json").read_text()) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--input", "{image}"], "Give --config-file, or --weights of a training run"),
        (["--input", "{image}", "--weights", "/no/model.pth"], "There is no /no/config.yaml"),
        (["--input", "{image}", "--weights", "{folder}/model_0.pth"], "holds model_final.pth"),
        (["--input", "/no/a.jpg", "--weights", "{folder}/model_final.pth"], "No such image or folder: /no/a.jpg"),
        (["--input", "{empty}", "--weights", "{folder}/model_final.pth"], "No images (.jpg, "),
        (["--input", "{text}", "--weights", "{folder}/model_final.pth"], "notes.png"),
    ],
)
def test_errors(command, trained, data, tmp_path, args, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.png").write_text("no image")
    places = {
        "image": data / "images" / "00000.png",
        "folder": trained,
        "empty": tmp_path / "empty",
        "text": tmp_path / "notes.png",
    }
    status, _, err = command("predict", "--output", tmp_path / "out", *[a.format(**places) for a in args])
    assert status == 1
    assert message in err


def test_model_without_objects(command, yaml_file, data, tmp_path):
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.cli._common import load_config
    from detectron2.modeling import build_model

    opts = ["MODEL.META_ARCHITECTURE", "ProposalNetwork"]
    DetectionCheckpointer(build_model(load_config(yaml_file, opts)), str(tmp_path)).save("model")
    status, _, err = command(
        *("predict", "--config-file", yaml_file, *opts, "--weights", tmp_path / "model.pth"),
        *("--input", data / "images" / "00000.png", "--output", tmp_path),
    )
    assert status == 1
    assert "This command is for models that find objects; this one returns proposals" in err
