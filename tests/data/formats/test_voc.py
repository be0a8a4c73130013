"""Folders in Pascal VOC format: boxes count pixels from 1, and mistakes become findings or stop the loading."""

import pytest

from detectron2.data.datasets import load_voc_instances
from detectron2.data.formats.coco import read_content
from detectron2.data.formats.voc import read_voc, write_voc

SIZE = "<size><width>60</width><height>40</height></size>"
OBJECT = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object>"


@pytest.fixture
def folder(tmp_path):
    for part in ("Annotations", "ImageSets/Main"):
        (tmp_path / part).mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    return tmp_path


def write(folder, *content):
    (folder / "Annotations" / "a.xml").write_text(f"<annotation>{''.join(content)}</annotation>")


def test_no_images(folder):
    (folder / "ImageSets" / "Main" / "train.txt").write_text("")
    data = read_voc(folder)
    assert data.content == {"images": [], "annotations": [], "categories": []} and data.findings == []
    assert load_voc_instances(folder, "train", ["cat"]) == []


def test_same_boxes_as_loading(folder, tmp_path):
    write(folder, SIZE, OBJECT.format("dog", 1), OBJECT.format("cat", 5.5))
    data = read_voc(folder, "train", ["cat", "dog"])
    reader = read_content(data)
    (image,) = reader.records.values()
    assert list(reader.categories.values()) == ["cat", "dog"] and data.findings == reader.report.findings == []
    (loaded,) = load_voc_instances(folder, "train", ["cat", "dog"])
    assert [loaded[k] for k in ("file_name", "height", "width")] == [image[k] for k in ("file_name", "height", "width")]
    assert [a["category_id"] for a in loaded["annotations"]] == [a["category_id"] for a in image["annotations"]]
    assert [a["bbox"] for a in loaded["annotations"]] == [[0, 1, 30, 40], [4.5, 1, 30, 40]]
    assert [a["bbox"] for a in image["annotations"]] == [[0, 1, 30, 39], [4.5, 1, 25.5, 39]]
    assert write_voc(data, tmp_path / "new", "none") == {}
    assert load_voc_instances(tmp_path / "new", "train", ["cat", "dog"])[0]["annotations"] == loaded["annotations"]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ((SIZE, "<object>"), "voc-xml"),
        ((SIZE, OBJECT.format("", 1)), "voc-object"),
        ((SIZE, OBJECT.format("cat", "x")), "voc-object"),
        ((SIZE, OBJECT.format("bird", 1)), "voc-class"),
        (None, "voc-missing"),
    ],
)
def test_what_is_an_error_stops_loading(folder, content, kind):
    if content is not None:
        write(folder, *content)
    assert [(f.kind, f.level) for f in read_voc(folder, "train", ["cat"]).findings] == [(kind, "error")]
    with pytest.raises((ValueError, FileNotFoundError), match=r"a\.xml"):
        load_voc_instances(folder, "train", ["cat"])


def test_namespaces(folder):
    write(folder, SIZE, OBJECT.format("cat", 1))
    text = (folder / "Annotations" / "a.xml").read_text()
    (folder / "Annotations" / "a.xml").write_text(text.replace("<annotation>", '<annotation xmlns="http://a.b/voc">'))
    data = read_voc(folder)
    assert [a["bbox"] for a in data.content["annotations"]] == [[0, 1, 30, 39]] and data.findings == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"<annotations><annotation>{SIZE}{OBJECT}</annotation></annotations>", "<annotations>, not <annotation>"),
        (f"<annotation>{SIZE}<objects>{OBJECT}</objects></annotation>", "<object> is not"),
        (f"<annotation>{SIZE}{OBJECT.replace('object>', 'Object>')}</annotation>", "<Object> is not"),
        ("<html><body/></html>", "<html>, not <annotation>"),
    ],
)
def test_objects_are_not_overlooked(folder, text, said):
    (folder / "Annotations" / "a.xml").write_text(text.format("cat", 1))
    (finding,) = read_voc(folder).findings
    assert finding.kind == "voc-xml" and said in finding.text


def test_blanks_and_columns_in_a_list(folder):
    for name in ("my photo 1", " c", "b"):
        (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{SIZE}</annotation>")
    (folder / "ImageSets" / "Main" / "train.txt").write_text("my photo 1\n c\nb  -1\n")
    data = read_voc(folder)
    assert [i["file_name"] for i in data.content["images"]] == ["my photo 1.jpg", " c.jpg", "b.jpg"]
    assert not any(f.level == "error" for f in data.findings)


def test_lists_of_single_classes_are_no_splits(folder):
    write(folder, SIZE)
    for name in ("cat_train", "my_val"):
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text("a\n")
    assert read_voc(folder).splits == {"train": [1], "my_val": [1]}


def test_missing_list(folder):
    with pytest.raises(FileNotFoundError, match="no list"):
        read_voc(folder, "val")
