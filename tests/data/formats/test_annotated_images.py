"""Formats are told apart, images are found and put in place, and a folder appears when it is complete."""

import pytest
from PIL import Image

from detectron2.data.formats import annotated_images
from detectron2.data.formats.annotated_images import AnnotatedImages, flat_names, guess_format, upright_xywh


def test_guess_format(tmp_path):
    for name, expected in (("a.json", "coco"), ("data.yaml", "yolo")):
        (tmp_path / name).touch()
        assert guess_format(tmp_path / name) == expected
    (tmp_path / "voc" / "Annotations").mkdir(parents=True)
    (tmp_path / "yolo" / "labels").mkdir(parents=True)
    assert guess_format(tmp_path / "voc") == "voc" and guess_format(tmp_path / "yolo") == "yolo"
    (tmp_path / "other" / "annotations").mkdir(parents=True)
    (tmp_path / "other" / "annotations" / "a.json").touch()
    with pytest.raises(ValueError, match=r"not clear.*a\.json"):
        guess_format(tmp_path / "other")
    with pytest.raises(FileNotFoundError):
        guess_format(tmp_path / "none")


def test_select():
    content = {"images": [{"id": 1}, {"id": 2}], "annotations": [{"image_id": 2}], "categories": []}
    data = AnnotatedImages("a", "coco", content, "", {"train": [1], "val": [2]})
    assert data.select("train").content == {"images": [{"id": 1}], "annotations": [], "categories": []}
    assert data.select("val").content["annotations"] == [{"image_id": 2}]
    with pytest.raises(ValueError, match="train, val"):
        data.select("test")


def test_sizes_and_places(tmp_path):
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    data = AnnotatedImages("a", "coco", {"images": [{"id": 1, "file_name": "a.png"}]}, str(tmp_path))
    annotated_images.fill_sizes(data)
    assert data.content["images"] == [{"id": 1, "file_name": "a.png", "height": 4, "width": 6}]
    annotated_images.place_images([(str(tmp_path / "a.png"), tmp_path / "new" / "b.png")], "copy")
    assert (tmp_path / "new" / "b.png").read_bytes() == (tmp_path / "a.png").read_bytes()
    with pytest.raises(FileNotFoundError, match="--images none"):
        annotated_images.place_images([("nowhere.png", tmp_path / "c.png")], "link")


def test_flat_names():
    assert flat_names([]) == []
    assert flat_names(["a/1.jpg", "b/1.jpg", "1.png"]) == ["1.jpg", "b_1.jpg", "1_2.png"]
    assert flat_names(["A.jpg", "a.jpg", "b/a.png"]) == [
        "A.jpg",
        "a_2.jpg",
        "b_a.png",
    ]  # there are file systems that see one
    assert flat_names(["x\\1.jpg", "a\nb.jpg", "\udcff.jpg", "ä b.jpg"]) == ["1.jpg", "a_b.jpg", "_.jpg", "ä b.jpg"]


def test_upright_box_around_a_rotated_one():
    assert upright_xywh([1, 2, 3, 4]) == [1, 2, 3, 4]
    assert upright_xywh([5, 5, 4, 2, 90]) == pytest.approx([4, 3, 2, 4])
