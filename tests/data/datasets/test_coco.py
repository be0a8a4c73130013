"""Loading and writing the COCO format."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import (
    convert_to_coco_dict,
    convert_to_coco_json,
    load_coco_json,
    load_sem_seg,
    register_coco_instances,
)
from detectron2.structures import BoxMode


@pytest.fixture
def name(request):
    """A name for a data set that is forgotten after the test."""
    name = f"test_coco/{request.node.name}"
    yield name
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog:
            catalog.remove(name)


@pytest.fixture
def write(tmp_path):
    def write(content, file="annotations.json"):
        (tmp_path / file).write_text(content if isinstance(content, str) else json.dumps(content))
        return str(tmp_path / file)

    return write


def image(id, **more):
    return {"id": id, "file_name": f"{id}.jpg", "height": 20, "width": 30, **more}


def annotation(id, image_id, **more):
    return {"id": id, "image_id": image_id, "bbox": [1, 2, 3, 4], "category_id": 5, "iscrowd": 0, **more}


CATEGORIES = [{"id": 7, "name": "seven"}, {"id": 5, "name": "five"}]


def dataset(images=(), annotations=(), categories=CATEGORIES):
    return {"images": list(images), "annotations": list(annotations), "categories": list(categories)}


class TestLoad:
    def test_no_images(self, write, name):
        assert load_coco_json(write(dataset()), "/images", name) == []
        assert MetadataCatalog.get(name).thing_classes == ["five", "seven"]

    def test_no_annotations(self, write, name):
        (record,) = load_coco_json(write(dataset([image(1)])), "/images", name)
        assert record == {
            "file_name": os.path.join("/images", "1.jpg"),
            "height": 20,
            "width": 30,
            "image_id": 1,
            "annotations": [],
        }

    def test_test_set_without_the_key(self, write, name):
        content = dataset([image(1)])
        del content["annotations"]
        assert load_coco_json(write(content), "/images", name)[0]["annotations"] == []

    def test_labels_and_order(self, write, name):
        file = write(
            dataset(
                [image(9), image(3)],
                [annotation(1, 9, category_id=7), annotation(2, 3), annotation(3, 9, extra="x")],
            )
        )
        records = load_coco_json(file, "/images", name)
        assert [r["image_id"] for r in records] == [3, 9]
        assert [[a["category_id"] for a in r["annotations"]] for r in records] == [[0], [1, 0]]
        assert records[0]["annotations"][0] == {
            "iscrowd": 0,
            "bbox": [1, 2, 3, 4],
            "category_id": 0,
            "bbox_mode": BoxMode.XYWH_ABS,
        }
        assert MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id == {5: 0, 7: 1}

    def test_without_name_ids_stay(self, write):
        (record,) = load_coco_json(write(dataset([image(1)], [annotation(1, 1)])), "/images")
        assert record["annotations"][0]["category_id"] == 5

    def test_extra_keys(self, write):
        file = write(dataset([image(1)], [annotation(1, 1, color="red"), annotation(2, 1)]))
        first, second = load_coco_json(file, "/images", extra_annotation_keys=["color"])[0]["annotations"]
        assert first["color"] == "red" and "color" not in second

    def test_optional_fields_missing(self, write, name):
        file = write(dataset([image(1)], [{"image_id": 1, "category_id": 5, "bbox": [0, 0, 1, 1]}] * 2))
        assert len(load_coco_json(file, "/images", name)[0]["annotations"]) == 2

    def test_keypoints_move_by_half_a_pixel(self, write):
        file = write(dataset([image(1)], [annotation(1, 1, keypoints=[10, 20, 2, 0, 0, 0])]))
        (record,) = load_coco_json(file, "/images")
        assert record["annotations"][0]["keypoints"] == [10.5, 20.5, 2, 0.5, 0.5, 0]

    def test_polygons(self, write, caplog):
        good = [0, 0, 4, 0, 4, 4]
        file = write(
            dataset(
                [image(1)],
                [
                    annotation(1, 1, segmentation=[good, [0, 0, 1, 1], [0, 0, 1, 1, 2, 2, 3]]),
                    annotation(2, 1, segmentation=[[0, 0, 1, 1]]),
                    annotation(3, 1, segmentation=[]),
                ],
            )
        )
        (record,) = load_coco_json(file, "/images")
        assert [a.get("segmentation") for a in record["annotations"]] == [[good], None]
        assert "1 annotations are left out" in caplog.text and "(ids 2)" in caplog.text

    def test_run_lengths(self, write):
        from pycocotools import mask as mask_util

        plain = {"size": [20, 30], "counts": [25, 3, 572]}
        mask = np.zeros(600, np.uint8)
        mask[25:28] = 1
        compressed = mask_util.encode(np.asfortranarray(mask.reshape(20, 30, order="F")))
        compressed["counts"] = compressed["counts"].decode()
        file = write(
            dataset(
                [image(1)],
                [annotation(1, 1, segmentation=plain, iscrowd=1), annotation(2, 1, segmentation=compressed)],
            )
        )
        (record,) = load_coco_json(file, "/images")
        for a in record["annotations"]:
            np.testing.assert_array_equal(mask_util.decode(a["segmentation"]).reshape(-1, order="F"), mask)

    def test_rotated_boxes(self, write):
        file = write(dataset([image(1)], [annotation(1, 1, bbox=[5, 5, 4, 2, 30])]))
        assert load_coco_json(file, "/images")[0]["annotations"][0]["bbox_mode"] == BoxMode.XYWHA_ABS

    def test_size_from_the_file(self, write, tmp_path):
        Image.new("RGB", (7, 5)).save(tmp_path / "1.jpg")
        lacking = {"id": 1, "file_name": "1.jpg"}
        (record,) = load_coco_json(write(dataset([lacking])), tmp_path)
        assert (record["height"], record["width"]) == (5, 7)
        (tmp_path / "1.jpg").unlink()
        with pytest.raises(ValueError, match="no 'height' and 'width'"):
            load_coco_json(write(dataset([lacking])), tmp_path)

    def test_annotations_of_unknown_images(self, write, caplog):
        (record,) = load_coco_json(write(dataset([image(1)], [annotation(4, 2)])), "/images")
        assert record["annotations"] == [] and "not in the file" in caplog.text

    @pytest.mark.parametrize("ids", [["b", "a"], [2, "a"]])
    def test_ids_of_other_types(self, write, ids):
        records = load_coco_json(write(dataset([image(i) for i in ids])), "/images")
        assert [r["image_id"] for r in records] == sorted(ids, key=str)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "not a JSON file"),
            ([], "format of detection results"),
            ({"annotations": []}, "'images'"),
            ({"images": [{"id": 1}]}, r"images\[0\] needs 'id' and 'file_name'"),
            ({"images": [image(1)]}, "'categories'"),
            (dataset([image(1), image(1)]), "several images have the same id: 1"),
            (dataset([image(1)], categories=CATEGORIES * 2), "several categories have the same id: 5, 7"),
            (dataset([image(1)], [annotation(3, 1)] * 2), "several annotations have the same id: 3"),
            (dataset([image(1)], [annotation(3, 1, category_id=6)]), "annotation id 3 .* category_id 6 .*: 5, 7"),
            (dataset([image(1)], [annotation(3, 1, bbox=[])]), "annotation id 3 of image id 1: 'bbox' must be"),
            (dataset([image(1)], [annotation(3, 1, ignore=1)]), "'iscrowd'"),
            (dataset([image(1)], [annotation(3, 1, segmentation="x")]), "must be a list or an object"),
            (dataset([image(1)], [{"id": 3}]), "annotation id 3 has no 'image_id'"),
        ],
    )
    def test_malformed(self, write, name, content, message):
        with pytest.raises(ValueError, match=message):
            load_coco_json(write(content), "/images", name)

    def test_minival_ids_may_repeat(self, write):
        file = write(dataset([image(1)], [annotation(3, 1)] * 2), "instances_minival2014.json")
        assert len(load_coco_json(file, "/images")[0]["annotations"]) == 2

    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="DETECTRON2_DATASETS"):
            load_coco_json(tmp_path / "nothing.json", tmp_path)

    def test_gc_is_left_as_it_was(self, write):
        import gc

        assert gc.isenabled()
        with pytest.raises(ValueError):
            load_coco_json(write("{"), "/images")
        assert gc.isenabled()

    def test_real_sample(self, shared_dir, name):
        root = shared_dir / "data" / "coco_keypoints_sample"
        records = load_coco_json(root / "test_coco.json", root, name)
        raw = json.loads((root / "test_coco.json").read_text())
        assert len(records) == 4 and sum(len(r["annotations"]) for r in records) == 14 == len(raw["annotations"])
        assert all(os.path.isfile(r["file_name"]) for r in records)


class TestRegister:
    def test_loads_when_asked(self, write, name, tmp_path):
        register_coco_instances(name, {"year": 2020}, str(tmp_path / "later.json"), str(tmp_path))
        register_coco_instances(name, {"year": 2020}, str(tmp_path / "later.json"), str(tmp_path))
        with pytest.raises(FileNotFoundError):
            DatasetCatalog.get(name)
        write(dataset([image(1)]), "later.json")
        assert len(DatasetCatalog.get(name)) == 1
        metadata = MetadataCatalog.get(name)
        assert metadata.evaluator_type == "coco" and metadata.year == 2020
        assert metadata.json_file.endswith("later.json") and metadata.image_root == str(tmp_path)
        with pytest.raises(ValueError, match="already registered"):
            register_coco_instances(name, {}, "another.json", str(tmp_path))

    @pytest.mark.parametrize("arguments", [(1, {}, "a", "b"), ("x", {}, None, "b"), ("x", {}, "a", 3)])
    def test_types(self, arguments):
        with pytest.raises(TypeError):
            register_coco_instances(*arguments)


class TestConvert:
    def register(self, name, records, **metadata):
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(**metadata)

    def test_empty(self, name):
        self.register(name, [], thing_classes=[])
        result = convert_to_coco_dict(name)
        assert result["images"] == result["categories"] == [] and "annotations" not in result and result["info"]

    def test_by_hand(self, name):
        base = {"category_id": 1}
        records = [
            {
                "file_name": "a.jpg",
                "height": np.int64(20),
                "width": 30,
                "image_id": np.int64(4),
                "annotations": [
                    {**base, "bbox": [1, 2, 4, 8], "bbox_mode": BoxMode.XYXY_ABS},
                    {**base, "bbox": [1, 2, 3.12345, 6], "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": 1},
                    {**base, "bbox": [5, 5, 4, 2, 30.0], "bbox_mode": BoxMode.XYWHA_ABS},
                    {
                        **base,
                        "bbox": [0, 0, 4, 4],
                        "bbox_mode": BoxMode.XYXY_ABS,
                        "segmentation": [[0, 0, 4, 0, 4, 4], [6, 6, 6, 8, 8, 8, 8, 6]],
                        "keypoints": [10.5, 20.5, 2, 0.5, 0.5, 0],
                    },
                ],
            },
            {"file_name": "b.jpg", "height": 5, "width": 6},
        ]
        self.register(name, records, thing_classes=["a", "b"], thing_dataset_id_to_contiguous_id={11: 0, 13: 1})
        result = json.loads(json.dumps(convert_to_coco_dict(name)))
        assert result["categories"] == [{"id": 11, "name": "a"}, {"id": 13, "name": "b"}]
        assert result["images"] == [
            {"id": 4, "width": 30, "height": 20, "file_name": "a.jpg"},
            {"id": 1, "width": 6, "height": 5, "file_name": "b.jpg"},
        ]
        boxes = [a["bbox"] for a in result["annotations"]]
        assert boxes == [[1, 2, 3, 6], [1, 2, 3.123, 6], [5, 5, 4, 2, 30], [0, 0, 4, 4]]
        assert [a["area"] for a in result["annotations"]] == pytest.approx([18, 18.7407, 8, 8 + 4])
        assert [a["iscrowd"] for a in result["annotations"]] == [0, 1, 0, 0]
        assert {a["category_id"] for a in result["annotations"]} == {13}
        assert [a["id"] for a in result["annotations"]] == [1, 2, 3, 4]
        last = result["annotations"][-1]
        assert last["keypoints"] == [10, 20, 2, 0, 0, 0] and last["num_keypoints"] == 1

    def test_masks_as_run_lengths(self, name):
        from pycocotools import mask as mask_util

        mask = np.zeros((6, 5), np.uint8)
        mask[1:4, 2:5] = 1
        rle = mask_util.encode(np.asfortranarray(mask))
        one = {"category_id": 0, "bbox": [2, 1, 3, 3], "bbox_mode": BoxMode.XYWH_ABS}
        plain = {"size": [6, 5], "counts": [13, 3, 3, 3, 3, 3, 2]}
        records = [
            {
                "height": 6,
                "width": 5,
                "file_name": "a",
                "annotations": [{**one, "segmentation": s} for s in (rle, plain)],
            }
        ]
        self.register(name, records, thing_classes=["a"])
        annotations = json.loads(json.dumps(convert_to_coco_dict(name)))["annotations"]
        assert [a["area"] for a in annotations] == [9, 9]
        for a in annotations:
            np.testing.assert_array_equal(mask_util.decode(a["segmentation"]), mask)

    @pytest.mark.parametrize(
        ("change", "error"), [({"bbox": [1, 2, 3]}, ValueError), ({"segmentation": "x"}, TypeError)]
    )
    def test_malformed(self, name, change, error):
        one = {"category_id": 0, "bbox": [2, 1, 3, 3], "bbox_mode": BoxMode.XYWH_ABS, **change}
        self.register(name, [{"height": 6, "width": 5, "file_name": "a", "annotations": [one]}], thing_classes=["a"])
        with pytest.raises(error):
            convert_to_coco_dict(name)

    def test_file_and_back(self, name, write, tmp_path):
        source = write(
            dataset(
                [image(9), image(3)],
                [
                    annotation(1, 3, segmentation=[[0.5, 0, 4, 0, 4, 4]], keypoints=[1, 2, 2]),
                    annotation(2, 9, category_id=7, iscrowd=1),
                ],
            )
        )
        register_coco_instances(name, {}, source, "/images")
        before = DatasetCatalog.get(name)
        target = str(tmp_path / "new" / "converted.json")
        convert_to_coco_json(name, target)
        assert load_coco_json(target, "/", name) == before

        def pycoco(file):
            content = json.loads(Path(file).read_text())
            return sorted((a["image_id"], a["category_id"], a["bbox"], a["iscrowd"]) for a in content["annotations"])

        assert pycoco(target) == pycoco(source)

    def test_cache(self, name, tmp_path, caplog):
        records = [{"height": 6, "width": 5, "file_name": "a"}]
        self.register(name, records, thing_classes=["a"])
        target = tmp_path / "converted.json"
        convert_to_coco_json(name, str(target))
        records.append(records[0])
        convert_to_coco_json(name, str(target))
        assert len(json.loads(target.read_text())["images"]) == 1 and "existing annotation file" in caplog.text
        convert_to_coco_json(name, str(target), allow_cached=False)
        assert len(json.loads(target.read_text())["images"]) == 2

    def test_failure_leaves_no_file(self, name, tmp_path):
        self.register(name, [{"height": 6, "width": 5, "file_name": "a", "image_id": {1}}], thing_classes=["a"])
        with pytest.raises(TypeError):
            convert_to_coco_json(name, str(tmp_path / "converted.json"))
        assert [p.name for p in tmp_path.glob("*.json*") if not p.name.endswith(".lock")] == []


class TestSemSeg:
    def make(self, tmp_path, images, labels):
        for folder, files in (("images", images), ("labels", labels)):
            for file in files:
                path = tmp_path / folder / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            (tmp_path / folder).mkdir(exist_ok=True)
        return tmp_path / "labels", tmp_path / "images"

    def test_empty(self, tmp_path):
        with pytest.raises(ValueError, match="No image is paired"):
            load_sem_seg(*self.make(tmp_path, [], []))

    def test_missing_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            load_sem_seg(tmp_path / "a", tmp_path / "b")

    def test_pairs(self, tmp_path, caplog):
        labels, images = self.make(tmp_path, ["b.jpg", "a.jpg", "c/d.jpg"], ["a.png", "c/d.png", "b.png"])
        records = load_sem_seg(str(labels), images)
        assert records == [
            {"file_name": str(images / f"{k}.jpg"), "sem_seg_file_name": str(labels / f"{k}.png")}
            for k in ("a", "b", "c/d")
        ]
        assert not [r for r in caplog.records if r.levelname == "WARNING"]

    def test_only_pairs_are_kept(self, tmp_path, caplog):
        labels, images = self.make(tmp_path, ["a.jpg", "b.jpg", "c.png"], ["b.png", "c.png"])
        assert [os.path.basename(r["file_name"]) for r in load_sem_seg(labels, images)] == ["b.jpg"]
        assert "Only 1 pairs" in caplog.text

    def test_extensions(self, tmp_path):
        labels, images = self.make(tmp_path, ["a.png"], ["a.tif"])
        assert len(load_sem_seg(labels, images, gt_ext="tif", image_ext="png")) == 1
