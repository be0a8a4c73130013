"""Loading and writing the COCO format."""

import gzip
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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

    @pytest.mark.parametrize(
        ("keypoints", "pairs"),
        [
            (["nose", "left_eye", "right_eye"], [("left_eye", "right_eye")]),
            (["EarRight", "EarLeft"], [("EarRight", "EarLeft")]),
            (["left_front_leg", "left_hind_leg", "right_hind_leg"], None),  # one has no counterpart
            (["a", "b"], None),  # nobody can tell
        ],
        ids=str,
    )
    def test_names_of_keypoints(self, write, name, keypoints, pairs):
        named = {"keypoints": keypoints, "skeleton": [[2, 1], [1, 9], "x"]}
        file = write(dataset([image(1)], categories=[{**CATEGORIES[0], **named}, {**CATEGORIES[1], "keypoints": []}]))
        load_coco_json(file, "", name)
        metadata = MetadataCatalog.get(name)
        assert metadata.keypoint_names == keypoints and metadata.get("keypoint_flip_map") == pairs
        assert [line[:2] for line in metadata.keypoint_connection_rules] == [(keypoints[1], keypoints[0])]
        metadata.keypoint_names = ["mine", *keypoints[1:]]
        load_coco_json(file, "", name)
        assert metadata.keypoint_names[0] == "mine" and metadata.get("keypoint_flip_map") is None

    @pytest.mark.parametrize("second", [["c", "d"], 3, None, [1, 2], []], ids=str)
    def test_categories_with_other_keypoints(self, write, name, second):
        first, last = ({**c, "keypoints": k} for c, k in zip(CATEGORIES, (["a", "b"], second), strict=True))
        load_coco_json(write(dataset([image(1)], categories=[first, last])), "", name)
        expected = None if second == ["c", "d"] else ["a", "b"]
        assert MetadataCatalog.get(name).get("keypoint_names") == expected

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
        assert "2 annotations have a polygon of less than three points" in caplog.text and "(id 2)" in caplog.text

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
        assert record["annotations"] == [] and "1 annotation has an 'image_id' that no image has" in caplog.text

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
            ({"images": [{"id": 1}]}, r"images\[0\]: needs 'id' and 'file_name'"),
            ({"images": [image(1)]}, "'categories'"),
            (dataset([image(1), image(1)]), r"images\[1\]: an earlier image has the id 1, too"),
            (dataset([image(1)], categories=CATEGORIES * 2), r"categories\[2\]: an earlier category has the id 7, too"),
            (dataset([image(1)], [annotation(3, 1)] * 2), r"annotations\[1\]: an earlier annotation has the id 3, too"),
            (dataset([image(1)], [annotation(3, 1, category_id=6)]), "annotation id 3 .* category_id 6 .*: 5, 7"),
            (dataset([image(1)], [annotation(3, 1, bbox=[])]), "annotation id 3 of image id 1: 'bbox' must be"),
            (dataset([image(1)], [annotation(3, 1, ignore=1)]), "'iscrowd'"),
            (dataset([image(1)], [annotation(3, 1, segmentation="x")]), "must be a list or an object"),
            (dataset([image(1)], [{"id": 3}]), "annotation id 3: it has no 'image_id'"),
        ],
    )
    def test_malformed(self, write, name, content, message):
        with pytest.raises(ValueError, match=message):
            load_coco_json(write(content), "/images", name)

    @pytest.mark.parametrize(
        ("images", "annotations", "message"),
        [
            ({"1": image(1)}, [], "images: expected a list, not an object of 1 entry"),
            (None, [], "images: expected a list, not null"),
            ([3], [], r"images\[0\]: expected an object, not the number 3"),
            ([image(None)], [], r"images\[0\]: 'id' must be a whole number .* or a string, not null"),
            ([image(2**63)], [], "'id' must be a whole number"),
            ([image(math.nan)], [], "'id' must be a whole number .* not the number nan"),
            ([image(True)], [], "not the value true"),
            ([image([1])], [], "not a list of 1 entry"),
            ([image(1, file_name=3)], [], "'file_name' must be a path, not the number 3"),
            ([image(1, file_name="")], [], "'file_name' must be a path, not empty"),
            ([image(1, file_name="a\0b")], [], "no file can be called"),
            ([image(1, height=0)], [], "image id 1: 'height' must be a positive whole number .* not the number 0"),
            ([image(1, width=2.5)], [], "image id 1: 'width' must be"),
            ([image(1, width="30")], [], "not the string '30'"),
            ([image(1)], {"a": 1}, "annotations: expected a list"),
            ([image(1)], ["a"], r"annotations\[0\]: expected an object, not the string 'a'"),
            ([image(1)], [annotation([], 1)], r"annotations\[0\]: 'id' must be"),
            ([image(1)], [annotation(3, "1")], "annotation id 3: 'image_id' is '1', while the id of that image is 1"),
            ([image("1")], [annotation(3, 1)], "'image_id' is 1, while the id of that image is '1'"),
            ([image(1)], [annotation(3, None)], "annotation id 3: it has no 'image_id'"),
            ([image(1)], [annotation(3, [1])], "'image_id' must be a whole number"),
            ([image(1)], [annotation(3, math.nan)], "'image_id' must be a whole number"),
            ([image(1)], [annotation(3, 1, category_id=None)], "category_id None is not among"),
            ([image(1)], [annotation(3, 1, category_id=[5])], "category_id a list of 1 entry is not among"),
            ([image(1)], [annotation(3, 1, category_id="5")], "category_id '5' is not among the ids .* 5, 7"),
            ([image(1)], [annotation(3, 1, iscrowd="0")], "'iscrowd' must be 0 or 1, not the string '0'"),
            ([image(1)], [annotation(3, 1, iscrowd=2)], "'iscrowd' must be 0 or 1"),
            ([image(1)], [annotation(3, 1, bbox="1234")], "'bbox' must be .*, not the string '1234'"),
            ([image(1)], [annotation(3, 1, bbox=[1, 2, 3])], r"'bbox' must be .*, not \[1, 2, 3\]"),
            ([image(1)], [annotation(3, 1, bbox=[1, 2, "3", 4])], "one is the string '3'"),
            ([image(1)], [annotation(3, 1, bbox=[1, None, 3, 4])], "one is null"),
            ([image(1)], [annotation(3, 1, bbox=[1, 2, 3, 10**400])], "below 1e[+]07; one is the number 1000"),
            ([image(1)], [annotation(3, 1, keypoints=[1, 2])], "'keypoints' must be three numbers for each"),
            ([image(1)], [annotation(3, 1, keypoints=[1, "2", 2])], "'keypoints' must be numbers"),
            ([image(1)], [annotation(3, 1, keypoints=[math.nan, 0, 0])], "'keypoints' must be numbers"),
            ([image(1)], [annotation(3, 1, keypoints={"a": 1})], "'keypoints' must be three numbers"),
            (
                [image(1)],
                [annotation(3, 1, segmentation=[0, 0, 4, 0, 4, 4])],
                r"each of them one list of numbers: \[\[x1",
            ),
            (
                [image(1)],
                [annotation(3, 1, segmentation=[[[0, 0], [4, 0], [4, 4]]])],
                "one has pairs of numbers: .*4, 0",
            ),
            ([image(1)], [annotation(3, 1, segmentation=[[0, 0, 4, 0, 4, math.inf]])], "one is the number inf"),
            ([image(1)], [annotation(3, 1, segmentation=[[0, 0, 4, 0, 4, 1e300]])], "one is the number 1e[+]300"),
            ([image(1)], [annotation(3, 1, segmentation=[[0, 0, 4, 0, 4, [4]]])], "one is a list"),
            ([image(1)], [annotation(3, 1, segmentation=0)], "must be a list or an object"),
            (
                [image(1)],
                [annotation(3, 1, segmentation={"counts": [600]})],
                r"\[height, width\] = \[20, 30\], not null",
            ),
            (
                [image(1)],
                [annotation(3, 1, segmentation={"size": [30, 20], "counts": [600]})],
                r"must be that of the image, \[height, width\] = \[20, 30\], not \[30, 20\]",
            ),
            *[
                ([image(1)], [annotation(3, 1, segmentation={"size": [20, 30], "counts": counts})], message)
                for counts, message in [
                    ([599], "of 599 pixels, while the image has 600"),
                    ([601], "of 601 pixels"),
                    ([], "of 0 pixels"),
                    ([-1, 601], "whole numbers from 0"),
                    ([600.0], "whole numbers from 0"),
                    (None, "not null"),
                    ("", "not the string ''"),
                    ("~~", "not the string '~~'"),
                    ("hb", "not the string 'hb'"),  # breaks off
                    ("54", "of 9 pixels"),
                    ("o" * 12 + "0", "with a number that is too large"),
                ]
            ],
        ],
    )
    def test_wrong_values(self, write, name, images, annotations, message):
        file = write({"images": images, "annotations": annotations, "categories": CATEGORIES})
        with pytest.raises(ValueError, match=message) as caught:
            load_coco_json(file, "/images", name)
        assert str(caught.value).startswith(file) and len(str(caught.value)) < len(file) + 500

    @pytest.mark.parametrize(
        ("categories", "message"),
        [
            (3, "categories: expected a list, not the number 3"),
            ([3], r"categories\[0\]: expected an object"),
            ([{"id": 1}], r"categories\[0\]: needs 'id' and 'name'; it has: 'id'"),
            ([{"id": 1, "name": 3}], "'name' must be a string, not the number 3"),
            ([{"id": {}, "name": "a"}], r"categories\[0\]: 'id' must be"),
            ([{"id": 1, "name": "a"}, {"id": "b", "name": "b"}], "some ids are numbers and others strings"),
        ],
    )
    def test_wrong_categories(self, write, name, categories, message):
        with pytest.raises(ValueError, match=message):
            load_coco_json(write(dataset([image(1)], categories=[]) | {"categories": categories}), "/images", name)

    def test_what_may_be_missing_or_null(self, write, name):
        nothing = dict.fromkeys(("iscrowd", "segmentation", "keypoints", "id", "area", "ignore"))
        content = dataset(
            [image(1, license=None)], [{**annotation(0, 1), **nothing}, {**annotation(0, 1), **nothing, "bbox": None}]
        )
        first, second = load_coco_json(write(content), "/images", name)[0]["annotations"]
        assert first == {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
        assert second == {"bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
        assert load_coco_json(write(content | {"annotations": None}), "/images")[0]["annotations"] == []

    def test_ids_of_several_kinds(self, write, name):
        categories = [{"id": 2.0, "name": "b"}, {"id": -1, "name": "a"}]
        content = dataset([image(7.0, height=20.0)], [annotation(1, 7, category_id=2)], categories)
        (record,) = load_coco_json(write(content), "/images", name)
        assert type(record["image_id"]) is int and type(record["height"]) is int
        assert record["annotations"][0]["category_id"] == 1
        assert MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id == {-1: 0, 2: 1}

    def test_ids_that_are_strings(self, write, name):
        content = dataset([image("x")], [annotation("p", "x", category_id="c")], [{"id": "c", "name": "a"}])
        (record,) = load_coco_json(write(content), "/images", name)
        assert record["image_id"] == "x" and record["annotations"][0]["category_id"] == 0
        assert load_coco_json(write(content), "/images")[0]["annotations"][0]["category_id"] == "c"

    def test_names_of_classes_may_repeat(self, write, name, caplog):
        content = dataset([image(1)], categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}])
        load_coco_json(write(content), "/images", name)
        assert MetadataCatalog.get(name).thing_classes == ["a", "a"]
        assert "several categories have the same name: 'a'" in caplog.text

    def test_useless_boxes_are_left_to_the_validation(self, write):
        boxes = [[1, 2, -3, 0], [math.nan, 0, 1, 1], [0, 0, math.inf, 1], [99, 99, 1, 1]]
        (record,) = load_coco_json(
            write(dataset([image(1)], [annotation(i, 1, bbox=b) for i, b in enumerate(boxes)])), ""
        )
        assert str([a["bbox"] for a in record["annotations"]]) == str(boxes)

    def test_file_names(self, write, tmp_path, caplog):
        caplog.set_level("INFO")
        names = ["train\\1.jpg", "ä 写真.jpg", "/else/where.jpg", "a\\b.jpg"]
        (tmp_path / names[3]).touch()  # not from Windows: there is such a file
        content = dataset([image(i, file_name=n) for i, n in enumerate(names)])
        records = load_coco_json(write(content), tmp_path)
        expected = [str(tmp_path / "train/1.jpg"), str(tmp_path / names[1]), names[2], str(tmp_path / names[3])]
        assert [r["file_name"] for r in records] == expected
        assert "1 file names have" in caplog.text

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
    def test_encodings(self, tmp_path, encoding):
        content = json.dumps(dataset([image("ä")]), ensure_ascii=False)
        (tmp_path / "a.json").write_text(content, encoding=encoding)
        assert load_coco_json(tmp_path / "a.json", "/images")[0]["file_name"] == "/images/ä.jpg"

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "not a JSON file: it is empty"),
            (b"\xef\xbb\xbf \n", "it is empty"),
            (b" " * 100, "nothing but blanks"),
            (gzip.compress(b"{}", mtime=0), "compressed with gzip"),
            (b"PK\x03\x04...", "zip archive"),
            (b"<!doctype html>", "web page"),
            (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
            (b'{"images": [{"file_name": "\xe4.jpg"}]}', "not UTF-8 .* at byte 27"),
            (b'{"images": [{"id": 1}', "ends too early"),
            (b'{"images": [}', "Expecting value: line 1 column 13"),
            (b'{"images": ' + b"[" * 100_000, "nested too deeply"),
            (b'{"images": ' + b"9" * 5000 + b"}", "not a JSON file"),
            (b'"text"', "expected a JSON object .* not the string 'text'"),
        ],
    )
    def test_other_files(self, tmp_path, content, message):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(ValueError, match=f"^{tmp_path}/a.json: .*{message}"):
            load_coco_json(tmp_path / "a.json", "/images")

    def test_errors_can_be_pickled(self, write):
        import pickle

        with pytest.raises(ValueError) as caught:
            load_coco_json(write("[]"), "/images")
        again = pickle.loads(pickle.dumps(caught.value))
        assert str(again) == str(caught.value) and type(again) is type(caught.value)

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

    def test_area_of_polygons_that_overlap_is_that_of_their_union(self, name):
        outer, inner = ([a, a, b, a, b, b, a, b] for a, b in ((20, 80), (35, 65)))
        one = {"category_id": 0, "bbox": [20, 20, 60, 60], "bbox_mode": BoxMode.XYWH_ABS}
        record = {
            "height": 96,
            "width": 128,
            "file_name": "a",
            "annotations": [{**one, "segmentation": [outer, inner]}],
        }
        self.register(name, [record], thing_classes=["a"])
        assert convert_to_coco_dict(name)["annotations"][0]["area"] == 3600

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

    def test_masks_as_arrays(self, name):
        from pycocotools import mask as mask_util

        mask = np.zeros((6, 5), bool)
        mask[1:4, 2:5] = True
        one = {"category_id": 0, "bbox": [2, 1, 3, 3], "bbox_mode": BoxMode.XYWH_ABS}
        masks = [mask, mask.astype(np.float32) * 7, torch.from_numpy(mask)]
        records = [
            {"height": 6, "width": 5, "file_name": "a", "annotations": [{**one, "segmentation": m} for m in masks]}
        ]
        self.register(name, records, thing_classes=["a"])
        annotations = json.loads(json.dumps(convert_to_coco_dict(name)))["annotations"]
        for a in annotations:
            assert a["area"] == 9
            np.testing.assert_array_equal(mask_util.decode(a["segmentation"]), mask)

    @pytest.mark.parametrize(
        ("mode", "box", "expected"),
        [
            (BoxMode.XYXY_ABS, (1, 2, 4, 8), [1, 2, 3, 6]),
            (BoxMode.XYWH_ABS, np.float32([1, 2, 3, 6]), [1, 2, 3, 6]),
            (BoxMode.XYXY_REL, [0.25, 0.5, 0.75, 1], [5, 5, 10, 5]),
            (BoxMode.XYWH_REL, torch.tensor([0.25, 0.5, 0.75, 0.5]), [5, 5, 15, 5]),
            (4, [5, 6, 7, 8, -30], [5, 6, 7, 8, -30]),
        ],
    )
    def test_box_modes(self, name, mode, box, expected):
        one = {"category_id": 0, "bbox": box, "bbox_mode": mode}
        self.register(name, [{"height": 10, "width": 20, "file_name": "a", "annotations": [one]}], thing_classes=["a"])
        (converted,) = convert_to_coco_dict(name)["annotations"]
        assert converted["bbox"] == expected and converted["area"] == expected[2] * expected[3]

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"bbox": [1, 2, 3]}, ValueError, "annotation 0 of image id 0 .'a'.*4 numbers, or 5"),
            ({"bbox": [1, 2, 3, 4, 5]}, ValueError, "does not go with its 'bbox_mode' XYWH_ABS"),
            ({"bbox": [1, 2, 3, math.nan]}, ValueError, "not finite"),
            ({"bbox_mode": 17}, ValueError, "17 is not a valid BoxMode"),
            ({"category_id": 1}, ValueError, "category_id 1 is not the label of a class; there are 1 classes"),
            ({"keypoints": [1, 2]}, ValueError, "three numbers for each keypoint"),
            ({"segmentation": np.zeros((5, 6))}, ValueError, r"shape \(5, 6\), but the image has .* \(6, 5\)"),
            ({"segmentation": {"size": [6, 5]}}, ValueError, "no 'counts'"),
            ({"segmentation": "x"}, TypeError, "annotation 0 of image id 0 .* not str"),
        ],
    )
    def test_malformed(self, name, change, error, message):
        one = {"category_id": 0, "bbox": [2, 1, 3, 3], "bbox_mode": BoxMode.XYWH_ABS, **change}
        self.register(name, [{"height": 6, "width": 5, "file_name": "a", "annotations": [one]}], thing_classes=["a"])
        with pytest.raises(error, match=message):
            convert_to_coco_dict(name)

    @pytest.mark.parametrize(
        ("records", "metadata", "message"),
        [
            ([{"file_name": "a", "height": 3}], {}, "image 0 has no 'width'"),
            ([{"file_name": "a", "height": 3, "width": None}], {}, "image 0 has no 'width'"),
            ([{"file_name": "a", "height": 3, "width": 3, "image_id": 7}] * 2, {}, "the same 'image_id': 7"),
            ([], {"thing_dataset_id_to_contiguous_id": {1: 1}}, "has no id for these of the thing_classes: 'a'"),
            (
                [{"file_name": "a", "height": 3, "width": 3, "annotations": [{"bbox_mode": BoxMode.XYXY_ABS}]}],
                {},
                "annotation 0 of image id 0 .* there is no 'bbox'",
            ),
        ],
    )
    def test_malformed_data_sets(self, name, records, metadata, message):
        self.register(name, records, thing_classes=["a"], **metadata)
        with pytest.raises(ValueError, match=message):
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
        caplog.set_level("INFO")
        one = {"bbox": [0, 0, 1, 1], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
        records = [{"height": 6, "width": 5, "file_name": "a", "annotations": [one]}]
        self.register(name, records, thing_classes=["a"])
        target = tmp_path / "converted.json"

        def written_anew(**options):
            target.write_text(target.read_text() + " ")
            convert_to_coco_json(name, str(target), **options)
            return not target.read_text().endswith(" ")

        convert_to_coco_json(name, str(target))
        assert not written_anew() and "made from the same data" in caplog.text
        assert written_anew(allow_cached=False)
        for change in (
            lambda: records.append({**records[0], "annotations": []}),
            lambda: one.update(bbox=[0, 0, 1, 1.5]),
            lambda: one.update(segmentation=[[0, 0, 1, 0, 1, 1]]),
            lambda: one.update(bbox_mode=BoxMode.XYWH_ABS),
            lambda: records[0].update(height=7),
            lambda: MetadataCatalog.get(name).set(thing_dataset_id_to_contiguous_id={4: 0}),
        ):
            change()
            caplog.clear()
            assert written_anew() and "has changed since" in caplog.text
            assert not written_anew()
        assert [p.name for p in tmp_path.iterdir() if "tmp" in p.name] == []

    def test_file_of_another_origin_is_kept(self, name, tmp_path, caplog):
        self.register(name, [{"height": 6, "width": 5, "file_name": "a"}], thing_classes=["a"])
        target = tmp_path / "converted.json"
        target.write_text("{}")
        convert_to_coco_json(name, str(target))
        assert target.read_text() == "{}" and "may be older than dataset" in caplog.text
        convert_to_coco_json(name, str(target), allow_cached=False)
        assert len(json.loads(target.read_text())["images"]) == 1

    def test_failure_leaves_no_file(self, name, tmp_path):
        self.register(name, [{"height": 6, "width": 5, "file_name": "a", "image_id": {1}}], thing_classes=["a"])
        with pytest.raises(TypeError):
            convert_to_coco_json(name, str(tmp_path / "converted.json"))
        assert [p.name for p in tmp_path.glob("*.json*") if not p.name.endswith(".lock")] == []


EIGHTHS = st.integers(-80, 800).map(lambda v: v / 8)
POINTS = st.lists(st.tuples(EIGHTHS, EIGHTHS), min_size=3, max_size=6).map(lambda p: [v for xy in p for v in xy])


@st.composite
def coco_masks(draw):
    ends = sorted(draw(st.lists(st.integers(0, 600), max_size=5, unique=True)))
    plain = {"size": [20, 30], "counts": np.diff([0, *ends, 600]).tolist()}
    if draw(st.booleans()):
        from pycocotools import mask as mask_util

        return {"size": [20, 30], "counts": mask_util.frPyObjects(plain, 20, 30)["counts"].decode()}
    return plain


@st.composite
def coco_contents(draw):
    """A file in the COCO format, in which all that can be there may be there."""
    categories = draw(st.lists(st.integers(-5, 99), min_size=1, max_size=3, unique=True))
    image_ids = draw(st.lists(st.integers(0, 2**40) | st.text(max_size=3), max_size=3, unique=True))
    annotations = []
    for _ in range(draw(st.integers(0, 4)) if image_ids else 0):
        a = {
            "id": len(annotations) + 1,
            "image_id": draw(st.sampled_from(image_ids)),
            "category_id": draw(st.sampled_from(categories)),
            "bbox": draw(st.lists(EIGHTHS, min_size=4, max_size=5)),
            "iscrowd": draw(st.integers(0, 1)),
        }
        if draw(st.booleans()):
            a["segmentation"] = draw(st.lists(POINTS, min_size=1, max_size=2) | coco_masks())
        if draw(st.booleans()):
            a["keypoints"] = draw(
                st.lists(st.tuples(EIGHTHS, EIGHTHS, st.integers(0, 2)), min_size=1, max_size=3).map(
                    lambda points: [v for point in points for v in point]
                )
            )
        annotations.append(a)
    return dataset(
        [image(i, file_name=f"{draw(st.sampled_from('aäé/'))}{n}.jpg") for n, i in enumerate(image_ids)],
        annotations,
        [{"id": c, "name": f"class {c}"} for c in categories],
    )


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=coco_contents())
def test_load_convert_load_is_identity(tmp_path_factory, content):
    names = ("test_coco/first", "test_coco/second")
    folder = tmp_path_factory.mktemp("identity")
    (folder / "source.json").write_text(json.dumps(content))
    try:
        register_coco_instances(names[0], {}, folder / "source.json", "/images")
        before = DatasetCatalog.get(names[0])
        assert sum(len(r["annotations"]) for r in before) == len(content["annotations"])
        convert_to_coco_json(names[0], str(folder / "converted.json"))
        for annotation_ in (a for r in before for a in r["annotations"] if isinstance(a.get("segmentation"), dict)):
            counts = annotation_["segmentation"]["counts"]  # bytes, if the file had a list of numbers
            annotation_["segmentation"]["counts"] = counts.decode() if isinstance(counts, bytes) else counts
        assert load_coco_json(folder / "converted.json", "/", names[1]) == before
        first, second = (MetadataCatalog.get(n) for n in names)
        for key in ("thing_classes", "thing_dataset_id_to_contiguous_id"):
            assert first.get(key) == second.get(key)
    finally:
        for name in names:
            for catalog in (DatasetCatalog, MetadataCatalog):
                if name in catalog:
                    catalog.remove(name)


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
