"""Folders in YOLO format: shares of the image become pixels and back; lines that are wrong become findings."""

import pytest
from PIL import Image

from detectron2.data.formats.yolo import read_yolo, write_yolo


@pytest.fixture
def folder(tmp_path):
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    Image.new("RGB", (60, 40)).save(tmp_path / "images" / "a.png")
    (tmp_path / "classes.txt").write_text("cat\ndog")
    return tmp_path


def test_no_labels(folder):
    data = read_yolo(folder)
    assert data.content["annotations"] == [] and data.splits == {"train": [1]}
    assert [(f.kind, f.level) for f in data.findings] == [("yolo-unlabelled", "note")]


def test_boxes_and_outlines(folder):
    (folder / "labels" / "a.txt").write_text("1 0.5 0.5 0.2 0.1\n0 0.1 0.1 0.6 0.1 0.6 0.6\n")
    data = read_yolo(folder)
    box, outline = data.content["annotations"]
    assert [c["name"] for c in data.content["categories"]] == ["cat", "dog"] and data.findings == []
    assert (box["category_id"], box["bbox"], box["area"]) == (2, [24, 18, 12, 4], 48)
    assert outline["segmentation"] == [[6, 4, 36, 4, 36, 24]] and outline["bbox"] == [6, 4, 30, 20]
    assert outline["area"] == 300
    assert write_yolo(data, folder / "new", "copy") == {}
    assert read_yolo(folder / "new").content == {**data.content, "images": read_yolo(folder / "new").content["images"]}


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("0 0.5 0.5", "yolo-line"),
        ("cat 1 2 3 4", "yolo-line"),
        ("7 0.5 0.5 0.2 0.2", "yolo-class"),
        ("0 30 20 10 10", "yolo-range"),
    ],
)
def test_mistakes(folder, line, kind):
    (folder / "labels" / "a.txt").write_text(line)
    assert [f.kind for f in read_yolo(folder).findings] == [kind]
