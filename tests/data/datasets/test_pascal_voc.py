"""Loading the Pascal VOC format."""

import pytest
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_voc_instances, register_pascal_voc
from detectron2.data.formats.voc import read_voc
from detectron2.structures import BoxMode

OBJECT = """<object><name>{name}</name><difficult>1</difficult>
<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"""


@pytest.fixture
def voc(tmp_path):
    """Write a data set; ``images`` maps ids to lists of (class, box)."""

    def write(images, split="train", named="{}.jpg"):
        for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{i}\n" for i in images))
        for i, objects in images.items():
            text = "".join(OBJECT.format(name=n, box=b) for n, b in objects)
            size = "<size><width>30</width><height>20.0</height></size>"
            (tmp_path / "Annotations" / f"{i}.xml").write_text(
                f"<annotation><filename>{named.format(i)}</filename>{size}{text}</annotation>"
            )
        return tmp_path

    return write


def test_empty(voc):
    assert load_voc_instances(voc({}), "train", ["cat"]) == []


def test_by_hand(voc):
    root = voc({"b": [("dog", (1, 1, 30, 20)), ("cat", (5.5, 6, 7, 8))], "a": []})
    assert load_voc_instances(root, "train", ["cat", "dog"]) == [
        {
            "file_name": str(root / "JPEGImages" / "b.jpg"),
            "image_id": "b",
            "height": 20,
            "width": 30,
            "annotations": [
                {"category_id": 1, "bbox": [0.0, 0.0, 30.0, 20.0], "bbox_mode": BoxMode.XYXY_ABS},
                {"category_id": 0, "bbox": [4.5, 5.0, 7.0, 8.0], "bbox_mode": BoxMode.XYXY_ABS},
            ],
        },
        {
            "file_name": str(root / "JPEGImages" / "a.jpg"),
            "image_id": "a",
            "height": 20,
            "width": 30,
            "annotations": [],
        },
    ]


def test_second_column_of_the_list(voc):
    root = voc({"a": []})
    (root / "ImageSets/Main/train.txt").write_text("a  1\n\n")
    assert [d["image_id"] for d in load_voc_instances(root, "train", [])] == ["a"]


@pytest.mark.parametrize(("named", "expected"), [("{}.png", "a.png"), ("other.png", "a.jpg"), ("", "a.jpg")])
def test_image_type(voc, named, expected):
    (record,) = load_voc_instances(voc({"a": []}, named=named), "train", [])
    assert record["file_name"].endswith(expected)


def test_unknown_class(voc):
    with pytest.raises(ValueError, match=r"a\.xml: object 1: .*class 'cow'.*\['cat'\]"):
        load_voc_instances(voc({"a": [("cow", (1, 1, 2, 2))]}), "train", ["cat"])


def test_missing_files(voc):
    root = voc({"a": []})
    with pytest.raises(FileNotFoundError, match="ImageSets"):
        load_voc_instances(root, "val", [])
    (root / "Annotations/a.xml").unlink()
    with pytest.raises(FileNotFoundError, match="image 'a'"):
        load_voc_instances(root, "train", [])


SIZE = "<size><width>{}</width><height>{}</height></size>"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not well-formed"),
        ("<annotation>", "not well-formed"),
        ('<?xml version="1.0" encoding="nonsense"?><annotation/>', "not well-formed"),
        ("<annotation/>", "size/height"),
        (f"<a>{SIZE.format(5, ' ')}</a>", "no <size/height> in <a>, or it is empty"),
        (f"<a>{SIZE.format(5, 'x')}</a>", "<size/height> in <a> must be a number of pixels, not 'x'"),
        (f"<a>{SIZE.format(5, 'nan')}</a>", "must be a number of pixels, not 'nan'"),
        (f"<a>{SIZE.format(5, '1e400')}</a>", "must be a number of pixels, not '1e400'"),
        (f"<a>{SIZE.format(0, 5)}</a>", "'width' must be a positive whole number"),
        (f"<a>{SIZE.format(5, 4.5)}</a>", "'height' must be a positive whole number"),
        (f"<a>{SIZE.format(5, 5)}<object/></a>", "object 1: there is no <name>"),
        (f"<a>{SIZE.format(5, 5)}<object><name>cat</name></object></a>", "object 1: there is no <bndbox>"),
        (
            f"<a>{SIZE.format(5, 5)}{OBJECT.format(name='cat', box=(1, 1, 2, 2))}"
            f"{OBJECT.format(name='cat', box=(1, 'inf', 2, 2))}</a>",
            "object 2: <ymin> in <bndbox> must be a number of pixels, not 'inf'",
        ),
    ],
)
def test_malformed(voc, text, message):
    root = voc({"a": []})
    (root / "Annotations/a.xml").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_voc_instances(root, "train", ["cat"])
    assert str(caught.value).startswith(str(root / "Annotations/a.xml"))


def test_an_image_listed_twice_counts_once_in_loading_and_in_the_check(voc, caplog):
    root = voc({"a": [], "b": []})
    (root / "ImageSets/Main/train.txt").write_text("a\nb\na\n")
    assert [d["image_id"] for d in load_voc_instances(root, "train", [])] == ["a", "b"]
    assert "1 listed image has the name of an earlier one" in caplog.text
    data = read_voc(root, "train", [])
    assert [i["file_name"] for i in data.content["images"]] == ["a.jpg", "b.jpg"] and data.splits == {"train": [1, 2]}
    assert [(f.kind, f.count) for f in data.findings] == [("voc-twice", 1)]


def test_the_size_of_the_image_stands_in_for_a_missing_one_in_loading_and_in_the_check(voc, caplog):
    root = voc({"a": []})
    (root / "Annotations/a.xml").write_text("<annotation/>")
    Image.new("RGB", (7, 5)).save(root / "JPEGImages/a.png")
    (record,) = load_voc_instances(root, "train", [])
    assert (record["height"], record["width"], record["file_name"][-5:]) == (5, 7, "a.png")
    assert "no usable <size>" in caplog.text
    data = read_voc(root, "train", [])
    assert data.content["images"] == [{"id": 1, "file_name": "a.png", "width": 7, "height": 5}]
    assert [f.kind for f in data.findings] == ["voc-size-read"]


def test_list_of_images(voc):
    root = voc({"a": []})
    (root / "ImageSets/Main/train.txt").write_text("\ufeffa\r\n", encoding="utf-8")
    assert [d["image_id"] for d in load_voc_instances(root, "train", [])] == ["a"]
    (root / "ImageSets/Main/train.txt").write_bytes(b"a\0b")
    with pytest.raises(ValueError, match=r"train\.txt: image 1: .*no file can be called"):
        load_voc_instances(root, "train", [])
    (root / "ImageSets/Main/train.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"train\.txt: this is not text in UTF-8"):
        load_voc_instances(root, "train", [])


def test_register(voc):
    name, root = "test_voc_register", voc({"a": [("cat", (1, 1, 2, 2))]})
    try:
        for _ in range(2):
            register_pascal_voc(name, root, "train", 2007, ["cat"])
        assert len(DatasetCatalog.get(name)) == 1
        metadata = MetadataCatalog.get(name)
        assert metadata.thing_classes == ["cat"] and metadata.dirname == root
        assert metadata.year == 2007 and metadata.split == "train"
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_real_sample(shared_dir):
    import os

    records = load_voc_instances(shared_dir / "data" / "bccd", "test", ["RBC", "WBC", "Platelets"])
    assert len(records) == 72 and all(os.path.isfile(r["file_name"]) for r in records)
