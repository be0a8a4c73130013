"""The COCO panoptic format, standard and separated."""

import json

import pytest
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_panoptic, register_coco_panoptic_separated
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from detectron2.data.datasets.coco_panoptic import load_coco_panoptic_json, merge_to_panoptic
from detectron2.evaluation import COCOPanopticEvaluator

META = {"thing_dataset_id_to_contiguous_id": {3: 0}, "stuff_dataset_id_to_contiguous_id": {8: 1}}


@pytest.fixture
def names():
    """Names that are forgotten after the test."""
    names = ["test_panoptic", "test_panoptic_separated", "test_panoptic_stuffonly"]
    yield names
    for name in names:
        for catalog in (DatasetCatalog, MetadataCatalog):
            if name in catalog:
                catalog.remove(name)


def write(path, content):
    path.write_text(json.dumps(content))
    return str(path)


def panoptic(*categories, images=()):
    segments = [{"id": i + 1, "category_id": c, "area": 5} for i, c in enumerate(categories)]
    annotation = {"image_id": 4, "file_name": "x.png", "segments_info": segments}
    return {"images": list(images), "annotations": [annotation]}


def test_empty(tmp_path):
    assert load_coco_panoptic_json(write(tmp_path / "a.json", {"annotations": []}), "i", "p", META) == []


def test_by_hand(tmp_path):
    file = write(tmp_path / "a.json", panoptic(3, 8))
    assert load_coco_panoptic_json(file, "i", "p", META) == [
        {
            "file_name": "i/x.jpg",
            "image_id": 4,
            "pan_seg_file_name": "p/x.png",
            "segments_info": [
                {"id": 1, "category_id": 0, "area": 5, "isthing": True},
                {"id": 2, "category_id": 1, "area": 5, "isthing": False},
            ],
        }
    ]


def test_image_table(tmp_path):
    content = panoptic(3, images=[{"id": 4, "file_name": "y.jpeg", "height": 5, "width": 6}])
    (record,) = load_coco_panoptic_json(write(tmp_path / "a.json", content), "i", "p", META)
    assert (record["file_name"], record["height"], record["width"]) == ("i/y.jpeg", 5, 6)


def changed(**changes):
    content = panoptic(3)
    content["annotations"][0].update(changes)
    return content


def changed_segment(**changes):
    content = panoptic(3, 8)
    content["annotations"][0]["segments_info"][1].update(changes)
    return content


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": 3}, r"categories\[1\]: an earlier category has the id 3, too"),
        ({"name": None}, r"categories\[1\]: 'name' must be a string, not null"),
        ({"isthing": "1"}, r"categories\[1\]: needs 'isthing' 0 or 1"),
    ],
)
def test_malformed_categories(tmp_path, changes, message):
    categories = [{"id": 3, "name": "cat", "isthing": 1}, {"id": 8, "name": "sky", "isthing": 0, **changes}]
    with pytest.raises(ValueError, match=message):
        load_coco_panoptic_json(write(tmp_path / "a.json", {**panoptic(3), "categories": categories}), "i", "p", {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "'annotations'"),
        ({"annotations": {}}, "annotations: expected a list"),
        ({"annotations": [4]}, r"annotations\[0\]: expected an object"),
        ({"annotations": [{"image_id": 4}]}, r"annotations\[0\]: needs 'image_id', 'file_name' and 'segments_info'"),
        (changed(image_id=None), "'image_id' must be"),
        (changed(file_name=7), "'file_name' must be a path"),
        (changed(segments_info=None), "segments_info: expected a list, not null"),
        (changed(segments_info=[[]]), r"segments_info\[0\]: expected an object"),
        (panoptic(5), "segment 1 of image id 4: it has category_id 5"),
        (changed_segment(category_id=[8]), "segment 2 of image id 4: 'category_id' must be"),
        (changed_segment(id=1), "segment 1 of image id 4: 'id' must be .* that no other segment"),
        (changed_segment(id=2**24), "'id' must be a number from 0 to 16777215"),
        (changed_segment(id="2"), "'id' must be a number"),
        (changed_segment(iscrowd=7), "'iscrowd' must be 0 or 1"),
        (panoptic(images=[4]), r"images\[0\]: expected an object"),
        (panoptic(images=[{}]), r"images\[0\]: needs 'id'"),
        (panoptic(images=[{"id": 4}] * 2), r"images\[1\]: another image has the id 4"),
        (panoptic(images=[{"id": 4, "file_name": 5}]), "'file_name' must be a path"),
        (panoptic(images=[{"id": 4, "height": -1}]), "'height' must be a positive"),
    ],
)
def test_malformed(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_coco_panoptic_json(write(tmp_path / "a.json", content), "i", "p", META)
    assert str(caught.value).startswith(str(tmp_path / "a.json"))


@pytest.mark.parametrize(("image_id", "expected"), [("000123", 123), (4.0, 4), ("bonn_7", "bonn_7")])
def test_image_ids(tmp_path, image_id, expected):
    content = changed(image_id=image_id) | {"images": [{"id": image_id, "file_name": "y.jpg", "height": None}]}
    (record,) = load_coco_panoptic_json(write(tmp_path / "a.json", content), "i", "p", META)
    assert record["image_id"] == expected and type(record["image_id"]) is type(expected)
    assert record["file_name"] == "i/y.jpg" and "height" not in record


def test_register_standard(tmp_path, names):
    file = write(tmp_path / "a.json", panoptic(3, 8))
    for _ in range(2):
        register_coco_panoptic(names[0], META, "i", "p", file, "instances.json")
    assert len(DatasetCatalog.get(names[0])) == 1
    metadata = MetadataCatalog.get(names[0]).as_dict()
    assert metadata == {
        "name": names[0],
        "panoptic_root": "p",
        "image_root": "i",
        "panoptic_json": file,
        "json_file": "instances.json",
        "evaluator_type": "coco_panoptic_seg",
        "ignore_label": 255,
        "label_divisor": 1000,
        **META,
    }


def test_register_separated(tmp_path, names):
    for folder, extension in (("images", "jpg"), ("stuff", "png")):
        (tmp_path / folder).mkdir()
        Image.new("L", (6, 5)).save(tmp_path / folder / f"x.{extension}")
    instances = write(
        tmp_path / "instances.json",
        {
            "images": [{"id": 4, "file_name": "x.jpg", "height": 5, "width": 6}],
            "annotations": [{"id": 1, "image_id": 4, "category_id": 3, "bbox": [0, 0, 1, 1]}],
            "categories": [{"id": 3, "name": "thing"}],
        },
    )
    paths = (str(tmp_path / "images"), "p", "panoptic.json", str(tmp_path / "stuff"), instances)
    register_coco_panoptic_separated(names[0], {"stuff_classes": ["things", "sky"]}, *paths)
    (record,) = DatasetCatalog.get(names[1])
    assert record["sem_seg_file_name"] == str(tmp_path / "stuff" / "x.png")
    assert record["file_name"] == str(tmp_path / "images" / "x.jpg") and len(record["annotations"]) == 1
    (stuff,) = DatasetCatalog.get(names[2])
    assert stuff == {k: record[k] for k in ("file_name", "sem_seg_file_name")}
    assert MetadataCatalog.get(names[1]).evaluator_type == "coco_panoptic_seg"
    assert MetadataCatalog.get(names[1]).thing_classes == ["thing"]
    assert MetadataCatalog.get(names[2]).evaluator_type == "sem_seg"


CATEGORIES = [
    {"id": 7, "name": "cheese", "isthing": 0},
    {"id": 3, "name": "hole", "isthing": 1},
    {"id": 9, "name": "board", "isthing": 0},
]


class TestClassesOfTheFile:
    """Names, labels and things are what the file's own categories say, before and after loading."""

    @pytest.mark.parametrize("given", [{}, {"thing_classes": ["board", "cheese", "hole"]}, {"stuff_classes": "same"}])
    def test_standard(self, tmp_path, names, given):
        order = ["hole", "cheese", "board"]
        given = {k: order if v == "same" else v for k, v in given.items()}
        file = write(tmp_path / "a.json", panoptic(7, 3) | {"categories": CATEGORIES})
        if "thing_classes" in given:  # the user's order of names; hole would be 2, and so is board
            register_coco_panoptic(names[0], given, "i", "p", file)
            with pytest.raises(ValueError, match=r"labels \[2\] would be a thing and stuff at once"):
                DatasetCatalog.get(names[0])
            MetadataCatalog.get(names[0]).stuff_classes = order = given["thing_classes"]
        else:
            register_coco_panoptic(names[0], given, "i", "p", file)
        metadata = MetadataCatalog.get(names[0])
        for _ in range(2):
            assert metadata.thing_classes == metadata.stuff_classes == order
            assert metadata.thing_dataset_id_to_contiguous_id == {3: order.index("hole")}
            assert metadata.stuff_dataset_id_to_contiguous_id == {7: order.index("cheese"), 9: order.index("board")}
            (record,) = DatasetCatalog.get(names[0])
        found = [(order[s["category_id"]], s["isthing"]) for s in record["segments_info"]]
        assert found == [("cheese", False), ("hole", True)]

    def separated(self, tmp_path, names, metadata):
        instances = {"images": [], "annotations": [], "categories": CATEGORIES[1:2]}
        files = [
            write(tmp_path / name, content)
            for name, content in (("i.json", instances), ("p.json", panoptic() | {"categories": CATEGORIES}))
        ]
        register_coco_panoptic_separated(names[0], metadata, "i", "p", files[1], "s", files[0])
        return MetadataCatalog.get(names[1]), MetadataCatalog.get(names[2])

    def test_separated(self, tmp_path, names):
        metadata, stuff_only = self.separated(tmp_path, names, {})
        assert metadata.thing_dataset_id_to_contiguous_id == {3: 0} and metadata.thing_classes == ["hole"]
        for known in (metadata, stuff_only):
            assert known.stuff_classes == ["things", "cheese", "board"]
            assert known.stuff_dataset_id_to_contiguous_id == {0: 0, 7: 1, 9: 2}
        assert COCOPanopticEvaluator(names[1])._stuff_contiguous_id_to_dataset_id == {0: 0, 1: 7, 2: 9}

    def test_separated_with_names_in_another_order(self, tmp_path, names):
        metadata, _ = self.separated(tmp_path, names, {"stuff_classes": ["things", "board", "cheese"]})
        assert metadata.stuff_dataset_id_to_contiguous_id == {0: 0, 7: 2, 9: 1}

    def test_names_that_do_not_fit(self, tmp_path, names):
        self.separated(tmp_path, names, {"stuff_classes": ["things", "sky", "board"]})
        with pytest.raises(ValueError, match=r"needs \['stuff_dataset_id_to_contiguous_id'\].*without 'cheese'"):
            COCOPanopticEvaluator(names[1])

    @pytest.mark.parametrize(
        ("category", "message"),
        [
            ({"id": 3, "name": "hole"}, r"categories\[0\]: needs 'id', 'name' and 'isthing'"),
            ({"id": 3, "name": "hole", "isthing": "yes"}, "needs 'isthing' 0 or 1"),
        ],
    )
    def test_categories_that_do_not_say(self, tmp_path, names, category, message):
        register_coco_panoptic(names[0], {}, "i", "p", write(tmp_path / "a", panoptic(3) | {"categories": [category]}))
        with pytest.raises(ValueError, match=message):
            DatasetCatalog.get(names[0])
        with pytest.raises(ValueError, match=message):
            COCOPanopticEvaluator(names[0])


def test_merge_needs_all():
    with pytest.raises(ValueError, match=r"1 images have no semantic segmentation: 'a\.jpg'"):
        merge_to_panoptic([{"file_name": "a.jpg"}], [{"file_name": "b.jpg", "sem_seg_file_name": "b.png"}])


def test_real_sample(shared_dir):
    root = shared_dir / "data" / "coco_panoptic_sample" / "sample_data"
    meta = _get_builtin_metadata("coco_panoptic_standard")
    records = load_coco_panoptic_json(
        root / "panoptic_examples.json", root / "input_images", root / "panoptic_examples", meta
    )
    assert [r["image_id"] for r in records] == [142238, 439180]
    raw = json.loads((root / "panoptic_examples.json").read_text())
    names = {c["id"]: c["name"] for c in raw["categories"]}
    things = {c["id"]: bool(c["isthing"]) for c in raw["categories"]}
    for record, source in zip(records, raw["annotations"], strict=True):
        for ours, theirs in zip(record["segments_info"], source["segments_info"], strict=True):
            assert meta["stuff_classes"][ours["category_id"]] == names[theirs["category_id"]]
            assert ours["isthing"] == things[theirs["category_id"]]
        with Image.open(record["file_name"]) as image:
            assert image.size == (record["width"], record["height"])
