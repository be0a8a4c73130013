"""``detectron2 analyze``."""

import base64
import csv
import json
import re

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def predictions(data, tmp_path):
    """A function that writes all annotations as predictions, but for the first ``missing``; -> the file."""
    annotations = json.loads((data / "annotations.json").read_text())["annotations"]

    def write(name: str = "predictions.json", missing: int = 0):
        rows = [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.9} for a in annotations]
        (tmp_path / name).write_text(json.dumps(rows[missing:]))
        return tmp_path / name

    return write


def test_no_predictions(command, data, tmp_path):
    (tmp_path / "none.json").write_text("[]")
    status, out, err = command(
        "analyze", tmp_path / "none.json", "--data", data / "annotations.json", "--output", tmp_path / "o"
    )
    assert status == 0, err
    assert "AP 0.000" in out
    assert len(list((tmp_path / "o").glob("worst_*.png"))) == 4


def test_all_files(command, coco, predictions, tmp_path):
    folder, second = tmp_path / "new" / "analysis", predictions("<b>.json", missing=2)
    status, out, err = command(
        *("analyze", second, "--data", "cli_shapes", *coco, "--output", folder),
        *("--compare", predictions("a.json"), "--resamples", 20),
    )
    assert status == 0, err
    assert "against the other run" in out and f"{folder}/report.html" in out
    pictures = {p.stem for p in folder.glob("*.png")}
    charts = {"comparison", "classes", "precision_recall", "f1", "errors", "confusion", "parts", "calibration"}
    assert charts <= pictures and all(name.startswith("worst_") for name in pictures - charts)
    assert "worst_01" in pictures
    files = {p.name for p in folder.iterdir()}
    assert files == {f"{name}.png" for name in pictures} | {"metrics.json", "per_class.csv", "report.html"}
    page = (folder / "report.html").read_text()
    embedded = {base64.b64decode(e) for e in re.findall(r'src="data:image/png;base64,([^"]+)"', page)}
    assert embedded == {(folder / f"{name}.png").read_bytes() for name in pictures}
    assert "http" not in page and "&lt;b&gt;.json" in page and "<b>.json" not in page
    content = json.loads((folder / "metrics.json").read_text())
    total = content["overall"]["num_objects"]
    assert content["overall"]["at_threshold"]["recall"] == pytest.approx((total - 2) / total)
    assert content["overall"]["at_threshold"]["precision"] == 1.0
    assert content["errors"]["missed"]["count"] == 2
    assert content["comparison"]["metrics"]["AP"]["first"] == pytest.approx(1.0)
    assert content["comparison"]["metrics"]["AP"]["delta"] < 0
    rows = list(csv.DictReader((folder / "per_class.csv").open()))
    assert [r["class"] for r in rows][-1] == "all" and len(rows) == 7
    assert sum(int(r["objects"]) for r in rows[:-1]) == int(rows[-1]["objects"]) == total


def test_colours_tell_right_from_missed(command, data, predictions, tmp_path):
    options = ("--data", data / "annotations.json", "--output", tmp_path / "o", "--worst", 1)
    assert command("analyze", predictions(missing=1), *options)[0] == 0
    drawn = np.asarray(Image.open(tmp_path / "o" / "worst_01.png")).astype(int)
    left, right = drawn[:, : drawn.shape[1] // 2 - 6], drawn[:, drawn.shape[1] // 2 + 6 :]
    red = [int((np.abs(side - (230, 26, 26)).max(-1) < 12).sum()) for side in (left, right)]
    assert red[0] > 50 and red[0] > 5 * red[1]


def test_masks_and_missing_images(command, data, tmp_path):
    annotations = json.loads((data / "annotations.json").read_text())
    (tmp_path / "gt.json").write_text(json.dumps(annotations))
    keys = ("image_id", "category_id", "segmentation")
    rows = [{k: a[k] for k in keys} | {"score": 0.9} for a in annotations["annotations"][1:]]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    options = ("analyze", tmp_path / "p.json", "--data", tmp_path / "gt.json", "--task", "segm", "--output", tmp_path)
    status, _, err = command(*options)
    assert status == 0, err
    assert "1 of 1 images could not be read" in err and "--images" in err
    assert not list(tmp_path.glob("worst_*.png"))
    status, _, err = command(*options, "--images", data / "images")
    assert (status, err) == (0, "")
    assert len(list(tmp_path.glob("worst_*.png"))) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nothing"], "--data: 'nothing' is neither a file"),
        (["--images", "nothing"], "--images: there is no folder nothing"),
        (["--worst", -1], "--worst"),
        (["--iou", 2], "iou_threshold"),
        (["--compare", "nothing.json"], "No such file: nothing.json"),
        (["--task", "segm"], "lacks segmentation"),
    ],
)
def test_mistakes_are_named(command, data, predictions, tmp_path, options, message):
    output = tmp_path / "o"
    status, _, err = command(
        "analyze", predictions(), "--data", data / "annotations.json", "--output", output, *options
    )
    assert status == 1
    assert message in err
    assert not output.exists()


def test_the_wrong_file(command, data, tmp_path):
    status, _, err = command("analyze", data / "annotations.json", "--data", data / "annotations.json")
    assert status == 1 and "is ground truth in COCO format; predictions are a list" in err
