"""The LVIS format, and its tables of categories."""

import json

import pycocotools.mask as mask_util
import pytest

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import get_lvis_instances_meta, load_lvis_json, register_lvis_instances
from detectron2.structures import BoxMode

POLYGON = [0, 0, 4, 0, 4, 4]


@pytest.fixture
def name(request):
    """A name that is forgotten after the test."""
    name = f"test_lvis_v1/{request.node.name}"
    yield name
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog:
            catalog.remove(name)


def write(tmp_path, images=(), annotations=(), **more):
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps({"images": list(images), "annotations": list(annotations), **more}))
    return str(path)


def image(id, **more):
    return {"id": id, "height": 5, "width": 6, "coco_url": f"http://x/train2017/{id}.jpg", **more}


def annotation(id, category_id, **more):
    return {
        "id": id,
        "image_id": 1,
        "category_id": category_id,
        "bbox": [0, 0, 4, 4],
        "segmentation": [POLYGON],
        **more,
    }


def test_empty(tmp_path):
    assert load_lvis_json(write(tmp_path), "coco/") == []


def test_by_hand(tmp_path, name):
    file = write(
        tmp_path,
        [
            image(2, file_name="ignored.jpg"),
            image(1, not_exhaustive_category_ids=[3], neg_category_ids=[1, 1203]),
        ],
        [annotation(7, 1203, color="red")],
    )
    first, second = load_lvis_json(file, "coco/", name, ["color"])
    assert first == {
        "file_name": "coco/train2017/1.jpg",
        "height": 5,
        "width": 6,
        "image_id": 1,
        "not_exhaustive_category_ids": [3],
        "neg_category_ids": [1, 1203],
        "annotations": [
            {
                "bbox": [0, 0, 4, 4],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": 1202,
                "segmentation": [POLYGON],
                "color": "red",
            }
        ],
    }
    assert second["image_id"] == 2 and second["annotations"] == []
    assert len(MetadataCatalog.get(name).thing_classes) == 1203


def test_own_classes(tmp_path):
    name = "test_lvis_like"
    lacking_url = {"id": 1, "height": 5, "width": 6, "file_name": "a/b.jpg"}
    categories = [{"id": 9, "name": "nine"}, {"id": 4, "name": "four"}]
    file = write(tmp_path, [lacking_url], [annotation(7, 9)], categories=categories)
    try:
        (record,) = load_lvis_json(file, "root", name)
        assert record["annotations"][0]["category_id"] == 1 and record["file_name"] == "root/a/b.jpg"
        assert MetadataCatalog.get(name).thing_classes == ["four", "nine"]
    finally:
        MetadataCatalog.remove(name)


def test_run_lengths_and_boxes_without_masks(tmp_path):
    counts = [0, 4, 26]
    encoded = {"size": [5, 6], "counts": counts}
    boxes_only = {k: v for k, v in annotation(9, 2).items() if k != "segmentation"}
    file = write(tmp_path, [image(1)], [annotation(7, 1), annotation(8, 1, segmentation=encoded), boxes_only])
    (record,) = load_lvis_json(file, "coco/")
    polygons, mask, none = record["annotations"]
    assert polygons["segmentation"] == [POLYGON] and "segmentation" not in none
    decoded = mask_util.decode(mask["segmentation"])
    assert decoded.sum() == 4 and decoded[:4, 0].all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "expected the key 'images'"),
        ({"images": [{"id": 1, "height": 5, "width": 6}]}, r"images\[0\]: needs 'id' and 'file_name'"),
        ({"images": [image(1, coco_url=3)]}, r"images\[0\]: 'coco_url' must be a path"),
        ({"images": [image(1), image(1)]}, "earlier image has the id 1"),
        (
            {"images": [image(1, neg_category_ids="2")]},
            r"images\[0\]: 'neg_category_ids' must be a list of category ids",
        ),
        ({"images": [image(1, neg_category_ids=[1.5])]}, "'neg_category_ids' must be a list"),
        ({"images": [image(1, not_exhaustive_category_ids=[None])]}, "'not_exhaustive_category_ids' must be a list"),
        (
            {"images": [image(1)], "annotations": [annotation(7, 1, image_id=None)]},
            "annotation id 7: it has no 'image_id'",
        ),
        ({"images": [image(1)], "annotations": [annotation(7, 1, bbox="x")]}, "annotation id 7 .*'bbox' must be"),
        ({"images": [image(1)], "annotations": [annotation(7, 1204)]}, "category_id 1204 is not among the ids"),
        ({"images": [image(1)], "annotations": [annotation(7, 0)]}, "category_id 0 is not among the ids"),
    ],
)
def test_malformed(tmp_path, name, content, message):
    (tmp_path / "lvis.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_lvis_json(tmp_path / "lvis.json", "coco/", name)


@pytest.mark.parametrize("polygons", [[], [[0, 0, 1, 1]], [POLYGON, [0, 0, 1]]])
def test_invalid_polygons(tmp_path, polygons):
    with pytest.raises(ValueError, match="annotation id 7: every polygon"):
        load_lvis_json(write(tmp_path, [image(1)], [annotation(7, 1, segmentation=polygons)]), "coco/")


def test_cocofied(tmp_path):
    name = "test_lvis_cocofied"
    try:
        file = write(tmp_path, [image(1)], [annotation(7, 90)])
        assert load_lvis_json(file, "coco/", name)[0]["annotations"][0]["category_id"] == 79
        with pytest.raises(ValueError, match=r"annotation id 7 .*category_id 12 is not among the ids"):
            load_lvis_json(write(tmp_path, [image(1)], [annotation(7, 12)]), "coco/", name)
    finally:
        MetadataCatalog.remove(name)


def test_register(tmp_path, name):
    for _ in range(2):
        register_lvis_instances(name, {"year": 2020}, write(tmp_path, [image(1)]), "coco/")
    assert len(DatasetCatalog.get(name)) == 1
    metadata = MetadataCatalog.get(name)
    assert metadata.evaluator_type == "lvis" and metadata.year == 2020 and len(metadata.class_image_count) == 1203


def test_recorded_tables(shared_dir):
    tables = json.loads((shared_dir / "facts" / "builtin_datasets.json").read_text())["tables"]
    assert get_lvis_instances_meta("lvis_v1_val") == tables["lvis_v1_train"]
    assert get_lvis_instances_meta("lvis_v0.5_val") == tables["lvis_v0.5_train"]


def test_unknown_version():
    with pytest.raises(ValueError, match=r"'v1', 'v0\.5' or 'cocofied'"):
        get_lvis_instances_meta("something")
