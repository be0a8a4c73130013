"""The data set that is drawn: reproducible, and with annotations that are true."""

import hashlib
import json
from collections import Counter

import numpy as np
import pycocotools.mask
import pytest
import shapely
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances, synthetic
from detectron2.data.datasets.synthetic import SHAPE_CLASSES, generate_shapes_dataset
from detectron2.data.validation import validate_dataset_dicts

HEIGHT, WIDTH = 96, 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    generate_shapes_dataset(folder, 20, size_hw=(HEIGHT, WIDTH), seed=3)
    return folder


@pytest.fixture(scope="module")
def content(folder):
    return json.loads((folder / "annotations.json").read_text())


def digest(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def rasterise(annotation):
    parts = pycocotools.mask.frPyObjects(annotation["segmentation"], HEIGHT, WIDTH)
    return pycocotools.mask.decode(pycocotools.mask.merge(parts)).astype(bool)


def test_no_images(tmp_path):
    path = generate_shapes_dataset(tmp_path / "empty", 0)
    assert path == tmp_path / "empty" / "annotations.json"
    content = json.loads(path.read_text())
    assert content["images"] == []
    assert content["annotations"] == []
    assert [c["name"] for c in content["categories"]] == list(SHAPE_CLASSES)
    assert list((tmp_path / "empty" / "images").iterdir()) == []


@pytest.mark.parametrize("wrong", [{"num_images": -1}, {"max_objects": 0}, {"size_hw": (31, 200)}], ids=str)
def test_numbers_out_of_range(tmp_path, wrong):
    with pytest.raises(ValueError, match="Expected num_images >= 0"):
        generate_shapes_dataset(tmp_path / "new", **{"num_images": 1, **wrong})
    assert not (tmp_path / "new").exists()


def test_same_arguments_same_bytes(folder, tmp_path):
    generate_shapes_dataset(tmp_path, 20, size_hw=(HEIGHT, WIDTH), seed=3)
    assert digest(tmp_path) == digest(folder)
    assert not list(tmp_path.glob("*.tmp"))


def test_more_images_begin_with_the_same_ones(folder, tmp_path):
    generate_shapes_dataset(tmp_path, 3, size_hw=(HEIGHT, WIDTH), seed=3)
    first = {k: v for k, v in digest(tmp_path).items() if k.endswith(".png")}
    assert len(first) == 3
    assert first.items() <= digest(folder).items()


def test_another_seed_another_image(folder, tmp_path):
    generate_shapes_dataset(tmp_path, 1, size_hw=(HEIGHT, WIDTH), seed=4)
    assert digest(tmp_path)["images/00000.png"] != digest(folder)["images/00000.png"]


def test_images_are_as_described(folder, content):
    assert [i["file_name"] for i in content["images"]] == [f"{i:05d}.png" for i in range(20)]
    for record in content["images"]:
        with Image.open(folder / "images" / record["file_name"]) as image:
            assert image.mode == "RGB"
            assert image.size == (WIDTH, HEIGHT)
            assert (record["width"], record["height"]) == (WIDTH, HEIGHT)


def test_ids(content):
    assert [i["id"] for i in content["images"]] == list(range(1, 21))
    ids = [a["id"] for a in content["annotations"]]
    assert ids == list(range(1, len(ids) + 1))
    per_image = Counter(a["image_id"] for a in content["annotations"])
    assert set(per_image) == set(range(1, 21))
    assert min(per_image.values()) >= 1 and max(per_image.values()) <= 7


def test_every_class_is_present(content):
    assert content["categories"] == [{"id": i, "name": n} for i, n in enumerate(SHAPE_CLASSES, start=1)]
    assert {a["category_id"] for a in content["annotations"]} == set(range(1, len(SHAPE_CLASSES) + 1))


def test_boxes_are_the_extents_of_the_polygons(content):
    for annotation in content["annotations"]:
        corners = np.concatenate([np.reshape(p, (-1, 2)) for p in annotation["segmentation"]])
        x, y, w, h = annotation["bbox"]
        assert [x, y] == pytest.approx(corners.min(0).tolist(), abs=0.011)  # both are rounded to hundredths
        assert [x + w, y + h] == pytest.approx(corners.max(0).tolist(), abs=0.021)


def test_polygons_lie_in_the_image(content):
    for annotation in content["annotations"]:
        for polygon in annotation["segmentation"]:
            assert len(polygon) >= 6 and len(polygon) % 2 == 0
            xy = np.reshape(polygon, (-1, 2))
            assert (xy >= 0).all() and (xy <= [WIDTH, HEIGHT]).all()


def test_areas_are_those_of_the_polygons(content):
    errors = []
    for annotation in content["annotations"]:
        shape = shapely.union_all([shapely.Polygon(np.reshape(p, (-1, 2))) for p in annotation["segmentation"]])
        errors.append((annotation["area"] - shape.area) / shape.length)
    # A pixel on the outline counts wholly or not at all.
    assert max(errors) < 0.3
    # The area is that of what is visible; polygons cannot leave out a hole, where a smaller object lies on top.
    assert np.mean(np.array(errors) > -0.3) > 0.95


def test_polygons_show_what_is_drawn():
    """A visible mask and its polygons cover nearly the same pixels, and no pixel belongs to two objects."""
    overlaps = []
    for index in range(10):
        _, objects = synthetic._draw_scene(np.random.default_rng([9, index]), (HEIGHT, WIDTH), 7)
        taken = np.zeros((HEIGHT, WIDTH), int)
        for number, (category, visible, outline) in enumerate(objects, start=1):
            taken += visible
            drawn = rasterise(synthetic._annotation(number, 1, category, visible, outline))
            overlaps.append((drawn & visible).sum() / (drawn | visible).sum())
        assert taken.max() == 1
    assert np.quantile(overlaps, 0.05) > 0.85


def test_enough_of_each_object_is_visible(monkeypatch):
    shares = []
    coverage = synthetic._coverage
    for index in range(10):
        whole = []

        def record(outline, size_hw, whole=whole):
            alpha = coverage(outline, size_hw)
            whole.append(alpha >= 0.5)
            return alpha

        monkeypatch.setattr(synthetic, "_coverage", record)
        _, objects = synthetic._draw_scene(np.random.default_rng([7, index]), (HEIGHT, WIDTH), 7)
        for _, visible, _ in objects:
            around = [mask.sum() for mask in whole if not (visible & ~mask).any()]
            shares.append(visible.sum() / min(around))
    assert min(shares) >= 0.45
    assert min(shares) < 0.9  # objects do hide each other


def test_a_single_object(tmp_path):
    path = generate_shapes_dataset(tmp_path, 5, size_hw=(32, 32), max_objects=1)
    annotations = json.loads(path.read_text())["annotations"]
    assert max(Counter(a["image_id"] for a in annotations).values(), default=0) <= 1


def test_it_is_a_valid_data_set(folder):
    name = "test_synthetic_shapes"
    register_coco_instances(name, {}, str(folder / "annotations.json"), str(folder / "images"))
    try:
        dicts = DatasetCatalog.get(name)
        checked = validate_dataset_dicts(dicts, name=name, num_classes=6, mask_format="polygon")
        assert len(checked) == 20
        assert MetadataCatalog.get(name).thing_classes == list(SHAPE_CLASSES)
        again = load_coco_json(str(folder / "annotations.json"), str(folder / "images"))
        assert sum(len(d["annotations"]) for d in again) == sum(len(d["annotations"]) for d in dicts)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
