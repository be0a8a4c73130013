"""Folders in YOLO format: shares of the image become pixels and back; lines that are wrong become findings."""

import os

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

from detectron2.data.formats.annotated_images import AnnotatedImages
from detectron2.data.formats.run_lengths import encode_mask
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


@pytest.mark.parametrize(
    ("lines", "form"),
    [
        ("0 0.1 0.5 0.3 0.9\n1 0.6 0.1 0.9 0.7", "corners"),
        ("0 0.1 0.1 0.3 0.1\n1 0.6 0.1 0.2 0.3", "the upper left corner, width and height"),
        ("0 0.1 0.5 0.3 0.9", None),  # one may be a slip
        ("0 0.1 0.5 0.2 0.2\n1 0.6 0.1 0.3 0.2", None),
        ("0 0.1 0.5 0.3 0.9\n1 0.9 0.9 0.2 0.2", None),
    ],
)
def test_boxes_of_another_form(folder, lines, form):
    (folder / "labels" / "a.txt").write_text(lines)
    found = [f for f in read_yolo(folder).findings if f.kind == "yolo-corners"]
    assert [f.cases[0].value.partition(" would fit as ")[2].partition(", x1")[0] for f in found] == [form][: bool(form)]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_texts_as_windows_saves_them(folder, encoding):
    (folder / "labels" / "a.txt").write_text("1 0.5 0.5 0.2 0.1\r\n", encoding=encoding)
    (folder / "classes.txt").write_text("cat\r\ndög\r\n", encoding=encoding)
    data = read_yolo(folder)
    assert data.findings == [] and [c["name"] for c in data.content["categories"]] == ["cat", "dög"]
    assert [a["bbox"] for a in data.content["annotations"]] == [[24, 18, 12, 4]]


def test_labels_that_are_no_text(folder):
    (folder / "labels" / "a.txt").write_bytes(b"0 0.5 \xe9")
    (finding,) = read_yolo(folder).findings
    assert finding.kind == "yolo-text" and "labels/a.txt" in finding.text and "at byte 6" in finding.text


def test_classes_that_count_from_one(folder):
    (folder / "labels" / "a.txt").write_text("1 0.5 0.5 0.2 0.1\n2 0.5 0.5 0.1 0.1\n")
    assert {f.kind for f in read_yolo(folder).findings} == {"yolo-from-one", "yolo-class"}


def test_a_line_without_a_class_name(folder):
    (folder / "classes.txt").write_text("cat\n\ndog\n")
    with pytest.raises(ValueError, match=r"classes\.txt': line 2 is empty"):
        read_yolo(folder)


def run_lengths_of(pixels):
    rle = encode_mask(pixels)
    return {**rle, "counts": rle["counts"].decode()}


def masks_of(segmentations, size_hw):
    """The masks by pycocotools, which takes several polygons as their union."""
    masks = []
    for s in segmentations:
        rle = mask_util.merge(mask_util.frPyObjects(s, *size_hw)) if isinstance(s, list) else s
        masks.append(mask_util.decode(rle) > 0)
    return masks


def there_and_back(folder, segmentations, size_hw):
    folder.mkdir()
    Image.new("RGB", size_hw[::-1]).save(folder / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": size_hw[0], "width": size_hw[1]}],
        "categories": [{"id": 1, "name": "x"}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "segmentation": s}
            for n, s in enumerate(segmentations, start=1)
        ],
    }
    lost = write_yolo(AnnotatedImages("a", "coco", content, str(folder), {"train": [1]}), folder / "new", "copy")
    found = read_yolo(folder / "new").content["annotations"]
    return lost, found, masks_of([a["segmentation"] for a in found], size_hw)


def rectangle(x1, y1, x2, y2, turned=False):
    ring = [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]
    return [float(v) for point in (ring[::-1] if turned else ring) for v in point]


def test_shapes_survive_the_way_to_yolo_and_back(tmp_path):
    ring = np.zeros((96, 128), np.uint8)
    ring[20:80, 20:80] = 1
    ring[35:65, 35:65] = 0
    ring[40:50, 40:50] = 1  # an island in the hole
    outer, inner = rectangle(20, 20, 80, 80), rectangle(35, 35, 65, 65)
    shapes = [
        run_lengths_of(ring),
        [outer, inner],  # COCO's union: no hole
        [outer, rectangle(35, 35, 65, 65, turned=True)],
        [inner, outer],
        [rectangle(10, 10, 40, 40), rectangle(60, 20, 90, 30, turned=True), rectangle(60, 40, 90, 50)],
        [rectangle(10, 10, 40, 40), rectangle(30, 20, 90, 30)],  # they overlap
    ]
    lost, found, masks = there_and_back(tmp_path / "a", shapes, (96, 128))
    assert lost == {}
    for before, after in zip(masks_of(shapes, (96, 128)), masks, strict=True):
        assert (before == after).all()
    assert [round(a["area"], -1) for a in found] == [2800, 3600, 3600, 3600, 1500, 1400]


@pytest.mark.parametrize("seed", range(8))
def test_generated_nested_shapes(tmp_path, seed):
    rng = np.random.default_rng(seed)
    shapes = []
    for _ in range(10):
        pixels = np.zeros((60, 80), np.uint8)
        polygons = []
        for depth in range(int(rng.integers(1, 5))):
            x, y = rng.integers(0, 50), rng.integers(0, 30)
            w, h = rng.integers(5, 30, size=2)
            pixels[y : y + h, x : x + w] = depth % 2 == 0
            angles = np.sort(rng.uniform(0, 2 * np.pi, 7))[:: rng.choice([-1, 1])]
            points = np.stack([x + w / 2 + w / 2 * np.cos(angles), y + h / 2 + h / 2 * np.sin(angles)], axis=1)
            polygons.append(points.round(2).reshape(-1).tolist())
        shapes += [run_lengths_of(pixels), polygons] if pixels.any() else [polygons]
    lost, found, masks = there_and_back(tmp_path / "a", shapes, (60, 80))
    changed = 0
    for before, after, annotation in zip(masks_of(shapes, (60, 80)), masks, found, strict=True):
        assert (before & after).sum() / (before | after).sum() > 0.97
        assert annotation["area"] == pytest.approx(before.sum(), rel=0.1, abs=6)
        changed += bool((before != after).any())
    assert sum(lost.values()) >= changed - 1 and (changed == 0 or lost)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("names: 5", "'names' must be a list"),
        ("names: [1, 2.5, null, [x]]", "'names' must be a list"),
        ("names: {a: 0}", "must be classes from 0 on"),
        ("names: {99999999999: a}", "must be classes from 0 on"),
        ("names: [a]\nnc: 5", "'nc' is '5', but 'names' has 1"),
        ("train: ../../..\nnames: [a]", "has the data set in it"),
        ("train: /\nnames: [a]", "has the data set in it"),
        ("train: 5\nnames: [a]", "must be paths"),
        ("train: /dev/zero\nnames: [a]", "neither a folder nor a file"),
        ("train: images/a.png\nnames: [a]", "is not a list of files"),
        ("[" * 3000, "is not YAML"),
        ("names: !!int ''", "is not YAML"),
    ],
)
def test_settings_that_cannot_be_meant(folder, text, said):
    (folder / "data.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"data\.yaml") as error:
        read_yolo(folder)
    assert said in str(error.value)


def test_images_on_another_drive(folder, monkeypatch):
    assert read_yolo(folder).content["images"][0]["file_name"] == "images/a.png"
    monkeypatch.setattr("os.path.relpath", other_drive)
    data = read_yolo(folder)
    assert data.content["images"][0]["file_name"] == (folder / "images" / "a.png").as_posix()
    assert write_yolo(data, folder / "new", "copy") == {}


def other_drive(*_):
    raise ValueError("path is on mount 'D:', start on mount 'C:'")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="of Linux")
def test_folders_of_the_system(folder):
    for place in ("/proc", "/dev"):
        (folder / "data.yaml").write_text(f"train: {place}\nnames: [a]")
        with pytest.raises(ValueError, match=f"'{place}' has .* files and folders"):
            read_yolo(folder)


def test_trees_without_end(folder, monkeypatch):
    """Neither links in a circle nor very many files nor very deep folders keep it busy."""
    monkeypatch.setattr("detectron2.data.formats.yolo._MOST_WITHOUT_IMAGES", 300)
    (folder / "other").mkdir()
    (folder / "other" / "round").symlink_to(folder / "other")
    (folder / "data.yaml").write_text("train: other\nnames: [a]")
    with pytest.raises(ValueError, match="1 files and folders, but no image"):
        read_yolo(folder)
    place = folder / "other"
    for _ in range(400):
        place /= "a"
        place.mkdir()
    with pytest.raises(ValueError, match="more than 300 files and folders, none an image"):
        read_yolo(folder)
