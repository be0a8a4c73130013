"""Every finding of the validation is raised, names the place, and tells the cure; good data passes."""

import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.data.validation import (
    MAX_FINDINGS,
    DatasetError,
    compare_classes,
    inspect_dataset_dicts,
    validate_class_names,
    validate_dataset_dicts,
)
from detectron2.structures import BoxMode

POLYGON = [0, 0, 4, 0, 4, 4]


def annotation(**changes):
    return {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, **changes}


def record(*annotations, **changes):
    return {
        "file_name": "a.jpg",
        "height": 20,
        "width": 30,
        "image_id": 7,
        "annotations": list(annotations),
        **changes,
    }


def check(*records, **arguments):
    arguments = {"name": "test_validation", "check_files": False, **arguments}
    return validate_dataset_dicts(list(records), **arguments)


def findings(*records, **arguments):
    with pytest.raises(DatasetError) as e:
        check(*records, **arguments)
    assert isinstance(e.value, ValueError) and "Dataset 'test_validation' has" in str(e.value)
    return e.value.findings


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, "detectron2.data.validation")
    return lambda: [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


class TestNothingWrong:
    def test_empty_is_wrong(self):
        (text,) = findings()
        assert "it is empty" in text

    def test_no_annotations(self):
        assert check(record()) == [record()]

    def test_without_the_key(self):
        dicts = [{"file_name": "a.jpg", "sem_seg_file_name": "a.png"}]
        assert check(*dicts, num_classes=0, mask_format="polygon", num_keypoints=17) == dicts

    @pytest.mark.parametrize(
        ("mode", "box"),
        [
            (BoxMode.XYXY_ABS, [0, 0, 30, 20]),
            (BoxMode.XYWH_ABS, (0, 0, 30, 20)),
            (BoxMode.XYXY_REL, np.array([0, 0, 1, 1])),
            (BoxMode.XYWH_REL, [0.5, 0.5, 0.5, 0.5]),
            (BoxMode.XYWHA_ABS, [15, 10, 40, 30, 45.0]),
            (BoxMode.XYWHA_ABS, [40, 10, 8, 30, 90]),
            (0, [29, 19, 30, 20]),
        ],
    )
    def test_boxes(self, warnings, mode, box):
        good = record(annotation(bbox=box, bbox_mode=mode))
        assert check(good, num_classes=1) == [good] and warnings() == []

    def test_all_checks(self):
        good = record(
            annotation(segmentation=[POLYGON], keypoints=[1, 1, 2] * 5, category_id=np.int64(2)),
            annotation(segmentation=[np.array(POLYGON)], keypoints=np.zeros((5, 3))),
            annotation(bbox=[0, 0, 0, 0], category_id=99, segmentation={"counts": "", "size": [1, 1]}, iscrowd=1),
        )
        assert check(good, num_classes=3, num_keypoints=5, mask_format="polygon") == [good]

    def test_images_of_unknown_size(self):
        good = record(annotation(bbox=[1000, 1000, 5, 5]))
        del good["height"], good["width"]
        assert check(good) == [good]


class TestLabels:
    def test_too_large(self):
        bad = record(annotation(), annotation(category_id=4, id=55), annotation(category_id=3))
        (text,) = findings(record(), bad, num_classes=3)
        assert text.startswith("2 annotations have a category_id of 3 or more, while MODEL.ROI_HEADS.NUM_CLASSES is 3")
        assert "category_id 4 in annotation 1 (id 55) of 'a.jpg' (image_id 7)" in text
        assert "category_id 3 in annotation 2 of 'a.jpg'" in text
        assert "Set MODEL.ROI_HEADS.NUM_CLASSES to 5." in text and "subtract" not in text

    def test_counted_from_one(self):
        (text,) = findings(record(annotation(category_id=1), annotation(category_id=2)), num_classes=2)
        assert "subtract 1" in text

    def test_other_key(self):
        (text,) = findings(
            record(annotation(category_id=1)), num_classes=1, num_classes_key="MODEL.RETINANET.NUM_CLASSES"
        )
        assert "Set MODEL.RETINANET.NUM_CLASSES to 2" in text

    def test_negative(self):
        (text,) = findings(record(annotation(category_id=-1)))
        assert "1 annotation has a negative category_id: category_id -1 in annotation 0" in text

    @pytest.mark.parametrize("label", ["cat", 1.5, None])
    def test_no_integer(self, label):
        (text,) = findings(record(annotation(), annotation(category_id=label)))
        assert "not an integer" in text and repr(label) in text and "annotation 1" in text

    def test_many_are_counted(self):
        (text,) = findings(record(*[annotation(category_id=9)] * 20), num_classes=1)
        assert text.startswith("20 annotations") and "and 17 more" in text


class TestBoxes:
    @pytest.mark.parametrize(
        ("changes", "what"),
        [
            ({"bbox": [1, 2, 0, 4]}, "without area"),
            ({"bbox": [1, 2, 3, -4]}, "without area"),
            ({"bbox": [5, 5, 4, 8], "bbox_mode": BoxMode.XYXY_ABS}, "without area"),
            ({"bbox": [5, 5, 4, 0, 30], "bbox_mode": BoxMode.XYWHA_ABS}, "without area"),
            ({"bbox": [1, 2, float("nan"), 4]}, "NaN"),
            ({"bbox": [1, 2, float("inf"), 4]}, "NaN or infinity"),
            ({"bbox": [30, 2, 3, 4]}, "wholly outside"),
            ({"bbox": [1, 20, 3, 4]}, "wholly outside"),
            ({"bbox": [-5, 2, 5, 4]}, "wholly outside"),
            ({"bbox": [1, -9, 5, 4]}, "wholly outside"),
            ({"bbox": [1.0, 0, 2, 1], "bbox_mode": BoxMode.XYXY_REL}, "wholly outside"),
            ({"bbox": [40, 10, 8, 30, 0], "bbox_mode": BoxMode.XYWHA_ABS}, "wholly outside"),
            ({"bbox": [5, 5, 4, 8, float("nan")], "bbox_mode": BoxMode.XYWHA_ABS}, "NaN"),
        ],
    )
    def test_degenerate(self, changes, what):
        (text,) = findings(record(annotation(), annotation(**changes, id=3)))
        assert what in text and "annotation 1 (id 3) of 'a.jpg'" in text and "image 30 x 20" in text
        assert BoxMode(changes.get("bbox_mode", BoxMode.XYWH_ABS)).name in text
        assert "MetadataCatalog.get('test_validation').degenerate_boxes = \"drop\"" in text

    def test_partly_outside_is_a_warning(self, warnings):
        outside = [[-5, 2, 8, 4], [1, 2, 40, 4], [1, 2, 3, 40]]
        dicts = [record(*[annotation(bbox=b) for b in outside], annotation(bbox=[0, 0, 30.9, 20]))]
        assert check(*dicts) == dicts
        (text,) = warnings()
        assert "3 annotations end beyond the edge" in text and "will be clipped" in text

    @pytest.mark.parametrize("builtin", [True, False])
    def test_dropped_where_allowed(self, warnings, builtin):
        name = "coco_2017_val" if builtin else "test_validation_drop"
        dicts = [
            record(annotation()),
            record(
                annotation(id=1),
                annotation(bbox=[1, 1, 0, 0], id=2),
                annotation(iscrowd=1, id=3),
                annotation(bbox=[5, 5, 3, 3], id=4),
                image_id=8,
            ),
            record(annotation(bbox=[99, 1, 2, 2]), image_id=9),
        ]
        copies = pickle.loads(pickle.dumps(dicts))
        try:
            if not builtin:
                MetadataCatalog.get(name).degenerate_boxes = "drop"
            result = check(*dicts, name=name)
        finally:
            if not builtin:
                MetadataCatalog.remove(name)
        assert [[a.get("id") for a in d["annotations"]] for d in result] == [[None], [1, 3, 4], []]
        assert dicts == copies and result[0] is dicts[0]
        (text,) = warnings()
        assert f"'{name}': 2 annotations with degenerate boxes are left out" in text

    def test_dropping_does_not_hide_other_findings(self):
        dicts = [record(annotation(bbox=[1, 1, 0, 0]), annotation(category_id=100))]
        with pytest.raises(DatasetError, match="category_id 100"):
            check(*dicts, name="coco_2017_val", num_classes=80)


class TestStructure:
    @pytest.mark.parametrize("key", ["bbox", "bbox_mode", "category_id"])
    def test_missing_key(self, key):
        bad = annotation()
        del bad[key]
        (text,) = findings(record(annotation(), bad))
        assert f"1 annotation has no '{key}'" in text and "annotation 1 of 'a.jpg'" in text

    @pytest.mark.parametrize(
        "box",
        [
            None,
            5,
            [],
            [1, 2, 3],
            [1, 2, 3, 4, 5, 6],
            "1234",
            ["1", "b", "3", "4"],
            [[1, 2], [3, 4]],
            {1: 2, 3: 4, 5: 6, 7: 8},
        ],
        ids=str,
    )
    def test_no_box(self, box):
        (text,) = findings(record(annotation(), annotation(bbox=box)))
        assert text.startswith("1 annotation has a 'bbox' without exactly four numbers")
        assert "in annotation 1 of 'a.jpg'" in text

    @pytest.mark.parametrize(
        ("mode", "box"),
        [
            *((mode, [1, 2, 3, 4]) for mode in (None, "XYXY_ABS", 99, -1, [0], BoxMode.XYWHA_ABS)),
            (BoxMode.XYXY_ABS, [1, 2, 3, 4, 5]),
        ],
        ids=str,
    )
    def test_kind_of_box(self, mode, box):
        (text,) = findings(record(annotation(), annotation(bbox=box, bbox_mode=mode)))
        assert text.startswith("1 annotation has a 'bbox_mode' that is none, or not one for so many numbers")
        assert f"bbox_mode {mode!r} with {box} in annotation 1 of 'a.jpg'" in text and "BoxMode.XYXY_ABS" in text

    @pytest.mark.parametrize("box", [(1, 2, 3, 4), np.array([1, 2, 3, 4]), torch.tensor([1.0, 2, 3, 4])], ids=str)
    @pytest.mark.parametrize("mode", [1, np.int64(1), BoxMode.XYWH_ABS])
    def test_other_types(self, box, mode):
        check(record(annotation(bbox=box, bbox_mode=mode)))

    @pytest.mark.parametrize("wrong", [None, "a.jpg", ["a.jpg"]], ids=str)
    def test_no_dict(self, wrong):
        (text,) = findings(record(annotation(category_id="x")), wrong, num_keypoints=3, check_files=True)
        assert f"1 element is no dict: element 1 is a {type(wrong).__name__}" in text

    @pytest.mark.parametrize("annotations", [None, "x", [None], [[]], np.zeros((2, 4)), {"bbox": []}], ids=str)
    def test_no_annotations(self, annotations):
        (text,) = findings(record(), record(annotations=annotations), mask_format="polygon")
        assert "1 image has 'annotations' that are no list of dicts" in text and "empty list" in text


class TestKeypoints:
    def test_wrong_count(self):
        bad = record(annotation(keypoints=[1, 1, 2] * 5), annotation(), annotation(keypoints=[1, 1, 2] * 17))
        (text,) = findings(bad, num_keypoints=17)
        assert "1 annotation has keypoints that are not 51 numbers" in text and "15 numbers in annotation 0" in text
        assert "set MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS to 5" in text

    def test_without_visibility(self):
        (text,) = findings(record(annotation(keypoints=[1, 1] * 17)), num_keypoints=17)
        assert "x, y, visibility" in text and "NUM_KEYPOINTS to" not in text

    def test_not_asked_for(self):
        check(record(annotation(keypoints=[1])))

    @pytest.mark.parametrize(
        "keypoints",
        [(1, 1, 2), [[1, 1, 2]], np.array([1, 1, 2]), np.array([[1, 1, 2]]), torch.tensor([1, 1, 2])],
        ids=str,
    )
    def test_other_types(self, keypoints):
        both = record(annotation(keypoints=keypoints), annotation(keypoints=[float("nan"), 0, 0], bbox=[2, 2, 3, 4]))
        check(both, num_keypoints=1)

    @pytest.mark.parametrize("keypoints", [3, "abc", ["a", "b", "c"]], ids=str)
    def test_no_numbers(self, keypoints):
        (text,) = findings(record(annotation(keypoints=keypoints)), num_keypoints=1)
        assert f"not 3 numbers (MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = 1): {keypoints!r} in annotation 0" in text

    @pytest.mark.parametrize("keypoints", [[1, None, 2], [float("inf"), 1, 1], [1, 1, float("nan")]], ids=str)
    def test_not_finite(self, keypoints):
        (text,) = findings(record(annotation(keypoints=[1, 1, 2]), annotation(keypoints=keypoints)), num_keypoints=1)
        assert "1 annotation has keypoints that are no finite numbers" in text and "in annotation 1 of" in text

    def test_lacking(self):
        """The mapper stops at images in which only some objects have keypoints."""
        some = record(annotation(keypoints=[1, 1, 2]), annotation(bbox=[0, 0, 4, 4]), annotation(keypoints=[]))
        (text,) = findings(record(annotation()), some, num_keypoints=1)
        assert "2 annotations have no keypoints, while others of the image have: none in annotation 1 of" in text


class TestMasks:
    @pytest.mark.parametrize("mask", [[[0, 0, 1, 1]], [POLYGON, [0, 0, 1, 1, 2, 2, 3]], [[]]])
    def test_malformed(self, mask):
        (text,) = findings(record(annotation(segmentation=mask)), mask_format="bitmask")
        assert "less than three points" in text and "annotation 0 of 'a.jpg'" in text

    @pytest.mark.parametrize(
        "polygon",
        [
            tuple(POLYGON),
            np.array(POLYGON),
            np.reshape(POLYGON, (3, 2)),
            [[0, 0], [4, 0], [4, 4]],
            [(0, 0), (4, 0), (4, 4)] * 2,
        ],
        ids=str,
    )
    def test_other_types(self, polygon):
        """What the mapper takes."""
        check(record(annotation(segmentation=[polygon])), mask_format="polygon")

    @pytest.mark.parametrize(
        "mask", [[["a"] * 6], [[None] * 6], [[float("nan")] * 6], [[0, 0, 4, 0, 4, float("inf")]]], ids=str
    )
    def test_no_numbers(self, mask):
        (text,) = findings(record(annotation(segmentation=mask)), mask_format="polygon")
        assert text.startswith("1 annotation has a polygon of other than finite numbers")

    @pytest.mark.parametrize(
        "mask",
        [
            "mask.png",
            {},
            {"size": [20, 30]},
            {"size": 20, "counts": [600]},
            np.zeros(600),
            (POLYGON,),
            torch.zeros(20, 30),
        ],
        ids=lambda m: type(m).__name__,
    )
    def test_unknown_kind(self, mask):
        (text,) = findings(record(annotation(segmentation=mask)), mask_format="bitmask")
        assert text.startswith("1 annotation has a 'segmentation' of unknown kind") and "list of polygons, run" in text

    @pytest.mark.parametrize(
        ("mask", "what"),
        [
            (np.zeros((30, 20), bool), "(height, width) (30, 20), where the image has (20, 30)"),
            ({"size": [10, 30], "counts": [300]}, "(height, width) (10, 30), where the image has (20, 30)"),
            ({"size": [20, 30], "counts": [300]}, "run lengths of 300 pixels, for 30 x 20 (width x height)"),
            ({"size": [20, 30], "counts": "x"}, "run lengths of no pixels, for 30 x 20"),
            ({"size": [20, 30], "counts": ["1"]}, "run lengths of no pixels, for 30 x 20"),
        ],
    )
    def test_other_size(self, mask, what):
        bad = record(annotation(segmentation=np.ones((20, 30))), annotation(segmentation=mask, bbox=[0, 0, 4, 4]))
        (text,) = findings(bad, mask_format="bitmask")
        assert text.startswith("1 annotation has a mask that does not fit its image") and what in text

    def test_encoded(self):
        encoded = mask_util.encode(np.asfortranarray(np.eye(20, 30, dtype=np.uint8)))
        for counts in (encoded["counts"], encoded["counts"].decode()):
            check(record(annotation(segmentation={"size": [20, 30], "counts": counts})), mask_format="bitmask")

    @pytest.mark.parametrize("mask", [None, []])
    def test_missing(self, mask):
        dicts = record(annotation(segmentation=[POLYGON]), annotation(segmentation=mask))
        (text,) = findings(dicts, mask_format="polygon")
        assert "1 annotation has no 'segmentation'" in text and "MODEL.MASK_ON" in text

    def test_masks_that_are_no_polygons_are_told_of_in_one_line(self, caplog):
        masks = ([POLYGON], {"size": [20, 30], "counts": [0, 600]}, np.zeros((20, 30), bool))
        dicts = record(*(annotation(segmentation=m, bbox=[i, 2, 3, 4]) for i, m in enumerate(masks)))
        check(dicts, mask_format="bitmask")
        assert not caplog.records
        check(dicts, mask_format="polygon")
        (line,) = caplog.messages
        assert "2 annotations have a mask that is no polygon" in line and "run lengths in annotation 1 of" in line
        assert "All masks of this image are given as bitmaps" in line


class TestFiles:
    @pytest.fixture
    def images(self, tmp_path):
        def make(*sizes_wh):
            records = []
            for i, size in enumerate(sizes_wh):
                path = tmp_path / f"{i}.png"
                Image.new("L", size).save(path)
                records.append(record(file_name=str(path), width=30, height=20))
            return records

        return make

    def test_good(self, images):
        check(*images((30, 20), (30, 20)), check_files=True)

    def test_none(self):
        (text,) = findings(check_files=True)
        assert "it is empty" in text

    def test_missing(self, images, tmp_path):
        (text,) = findings(*images((30, 20)), record(file_name=str(tmp_path / "no.jpg")), check_files=True)
        assert "1 of 2 checked image files cannot be found" in text and "no.jpg' (image_id 7)" in text

    def test_other_size(self, images):
        (text,) = findings(*images((30, 20), (20, 30)), check_files=True)
        assert "1.png' (image_id 7) is 20 x 30 (width x height), said to be 30 x 20" in text

    def test_size_not_said(self, images):
        (one,) = images((5, 5))
        del one["width"]
        check(one, check_files=True)

    def test_turned_by_exif(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        for extension in ("jpg", "png", "webp", "tif"):
            path = tmp_path / f"a.{extension}"
            Image.new("RGB", (20, 30)).save(path, exif=exif)
            check(record(file_name=str(path)), check_files=True)
            if extension != "tif":  # Pillow turns these on its own
                assert read_image(str(path)).shape[:2] == (20, 30)

    def test_not_an_image(self, tmp_path):
        for name in ("a.jpg", "a.npy", "a.raw"):
            (tmp_path / name).write_text("x")
        check(record(file_name=str(tmp_path / "a.raw")), check_files=True)  # for a mapper that knows it
        for name in ("a.jpg", "a.npy"):
            (text,) = findings(record(file_name=str(tmp_path / name)), check_files=True)
            assert "cannot be read as images" in text

    @pytest.mark.parametrize("name", [None, 5])
    def test_no_name(self, name):
        (text,) = findings(record(file_name=name), check_files=True)
        assert text.startswith(f"1 image has no 'file_name': image id 7 (file_name {name!r})") or name == 5
        assert "1 image has no 'file_name'" in text and "mapper of your own" in text
        check(record(file_name=name), check_files=True, raise_on_error=False)

    def test_paths(self, images):
        (one,) = images((30, 20))
        check({**one, "file_name": Path(one["file_name"])}, check_files=True)
        (text,) = findings({**one, "file_name": Path("no.jpg")}, check_files=True)
        assert "'no.jpg' (image_id 7)" in text

    @pytest.mark.parametrize("extension", ["jpg", "png", "gif", "bmp", "webp", "tif"])
    def test_whole(self, tmp_path, extension):
        noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
        path = tmp_path / f"a.{extension}"
        Image.fromarray(noise).save(path)
        content = path.read_bytes()
        path.write_bytes(content + bytes(9000))  # some programs write notes behind the end
        check(record(file_name=str(path)), check_files=True)
        path.write_bytes(content[: len(content) * 3 // 4])
        (text,) = findings(record(file_name=str(path)), check_files=True)
        assert "1 of 1 checked image files cannot be read as images" in text and str(path) in text

    def test_bad_files_that_the_loader_skips(self, images, tmp_path, warnings):
        records = [*images((30, 20), (20, 30)), record(file_name=str(tmp_path / "no.jpg"))]
        (text,) = findings(*records, check_files=True, skips_bad_images=True)
        assert "have another size" in text
        check(records[0], records[2], check_files=True, skips_bad_images=True)
        assert "1 of 2 checked image files cannot be found" in warnings()[-1]

    @pytest.mark.parametrize("save", [np.save, np.savez], ids=["npy", "npz"])
    def test_arrays(self, tmp_path, save):
        path = tmp_path / ("a.npy" if save is np.save else "a.npz")
        save(path, np.zeros((20, 30, 5), np.uint16))
        check(record(file_name=str(path)), check_files=True)
        (text,) = findings(record(file_name=str(path), height=30, width=20), check_files=True)
        assert "is 30 x 20 (width x height), said to be 20 x 30" in text

    def test_remote_names_are_left_alone(self):
        check(record(file_name="s3://bucket/a.jpg"), check_files=True)

    def test_evenly_spaced_choice(self, images, tmp_path):
        records = images(*[(30, 20)] * 9)
        records[4] = record(file_name=str(tmp_path / "no.jpg"))
        check(*records, check_files=True, max_files=2)  # the first and the last
        (text,) = findings(*records, check_files=True, max_files=3)
        assert text.startswith("1 of 3 checked")

    def test_many_are_counted(self, tmp_path):
        (text,) = findings(*[record(file_name=str(tmp_path / f"{i}.jpg")) for i in range(50)], check_files=True)
        assert text.startswith("50 of 50") and "and 47 more" in text


class TestLabelMaps:
    @pytest.fixture
    def labelled(self, tmp_path):
        """A function that makes a record with a label map."""
        Image.new("RGB", (30, 20)).save(tmp_path / "a.png")

        def make(labels, mode=None, **changes):
            path = tmp_path / f"labels_{len(list(tmp_path.iterdir()))}.png"
            picture = Image.fromarray(labels)
            if mode == "P":
                picture = picture.convert("P")
                picture.putpalette([0, 0, 0, 255, 0, 0] + [7] * 762)
            picture.save(path)
            return {"file_name": str(tmp_path / "a.png"), "image_id": 3, "sem_seg_file_name": str(path), **changes}

        return make

    def test_good(self, labelled):
        labels = np.zeros((20, 30), np.uint8)
        labels[:2], labels[2:4] = 255, 1
        good = labelled(labels)
        check(good, labelled(np.stack([labels] * 3, axis=2)), check_files=True, num_labels=2)
        check(labelled(np.minimum(labels, 9)), check_files=True)

    @pytest.mark.parametrize(
        ("labels", "mode", "what"),
        [
            (np.zeros((10, 30), np.uint8), None, "it is 30 x 10 (width x height), its image 30 x 20"),
            (np.ones((20, 30), np.uint8), "P", "it has a palette"),
            (np.ones((20, 30), bool), None, "it is black and white, which is read as the labels 0 and 255"),
            (np.full((20, 30, 3), (1, 2, 3), np.uint8), None, "it is a colour picture (mode RGB)"),
            (np.full((20, 30), 300, np.uint16), None, "values from 300 to 300"),
        ],
        ids=["size", "palette", "black and white", "colours", "16 bits"],
    )
    def test_unusable(self, labelled, labels, mode, what):
        bad = labelled(labels, mode)
        (text,) = findings(labelled(np.zeros((20, 30), np.uint8)), bad, check_files=True, num_labels=2)
        assert text.startswith("1 label map cannot be used") and what in text and bad["sem_seg_file_name"] in text

    def test_labels(self, labelled):
        labels = np.zeros((20, 30), np.uint8)
        labels[0], labels[1] = 4, 200
        (text,) = findings(labelled(labels), check_files=True, num_labels=3, ignore_label=200)
        assert "1 label map has labels of 3 or more, while MODEL.SEM_SEG_HEAD.NUM_CLASSES is 3" in text
        assert "(label 4)" in text and "to 5, or give such pixels the label to be ignored, 200" in text
        check(labelled(labels), check_files=True, check_annotations=False, num_labels=3)

    def test_missing(self, labelled, tmp_path):
        bad = labelled(np.zeros((20, 30), np.uint8), sem_seg_file_name=str(tmp_path / "no.png"))
        for arguments in ({"num_labels": 2}, {"check_annotations": False}):
            (text,) = findings(bad, check_files=True, **arguments)
            assert "1 of 1 checked label maps ('sem_seg_file_name') cannot be found" in text and "no.png" in text


class TestSegments:
    @pytest.fixture
    def panoptic(self, tmp_path):
        """A function that makes a record whose left half has the id 1, its right half 70000; nothing at the top."""
        Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
        ids = np.zeros((20, 30), np.int64)
        ids[5:, :15], ids[5:, 15:] = 1, 70000
        Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)).save(
            tmp_path / "ids.png"
        )

        def make(*segments, **changes):
            info = [{"id": i, "category_id": c} for i, c in segments]
            name = str(tmp_path / "ids.png")
            return {"file_name": str(tmp_path / "a.png"), "pan_seg_file_name": name, "segments_info": info, **changes}

        return make

    @pytest.fixture(autouse=True)
    def _metadata(self):
        MetadataCatalog.get("test_validation").set(thing_classes=["a"], stuff_classes=["a", "b"])
        yield
        MetadataCatalog.remove("test_validation")

    def test_good(self, panoptic, warnings):
        check(panoptic((1, 0), (70000, 1)), check_files=True)
        assert not warnings()

    @pytest.mark.parametrize(
        ("segments", "what"),
        [
            (((1, 0), (70000, 2)), "category_id of 2 or more (the number of stuff_classes in the metadata)"),
            (((1, -1), (70000, 0)), "segment id 1 has category_id -1"),
            (((1, 0), (70000, 1), (7, 1)), "no pixel has the id 7 (1 of 3 are absent)"),
        ],
    )
    def test_bad(self, panoptic, segments, what):
        (text,) = findings(panoptic(*segments), check_files=True)
        assert what in text and "ids.png" in text

    def test_unknown(self, panoptic, warnings):
        check(panoptic((1, 0)), check_files=True)
        assert "1 image has pixels with an id other than 0" in warnings()[0] and "the id 70000" in warnings()[0]

    @pytest.mark.parametrize("info", [None, "x", [1], [{"id": 1}], [{"id": "1", "category_id": 0}]], ids=str)
    def test_malformed(self, panoptic, info):
        (text,) = findings(panoptic(segments_info=info), check_files=True)
        assert "1 image has 'pan_seg_file_name', but no usable 'segments_info'" in text

    def test_report(self, panoptic):
        first, second = panoptic((1, 0), (70000, 1)), panoptic((1, 1), (70000, 1))
        report = inspect_dataset_dicts([first, second], name="x", category_names=["a", "b"])
        assert report.classes == [("a", 1, 1), ("b", 3, 2)] and report.num_empty == 0
        assert kinds(report) == {"file-twice": 2}


class TestError:
    def test_all_at_once(self, tmp_path):
        bad = record(annotation(category_id=5), annotation(bbox=[1, 1, 0, 0]), file_name=str(tmp_path / "no.jpg"))
        texts = findings(bad, num_classes=1, check_files=True, mask_format="polygon")
        assert len(texts) == 4

    def test_long_lists_are_cut(self):
        error = DatasetError("x", [f"finding {i}" for i in range(MAX_FINDINGS + 2)])
        assert "has 12 problems" in str(error) and "finding 9" in str(error) and "finding 10" not in str(error)
        assert "and 2 more" in str(error)

    def test_one(self):
        assert str(DatasetError("x", ["it is empty."])) == "Dataset 'x' has a problem:\n  1. it is empty."

    def test_crosses_processes(self):
        error = pickle.loads(pickle.dumps(DatasetError("x", ["a", "b"])))
        assert error.name == "x" and error.findings == ["a", "b"]

    def test_as_a_warning(self, warnings):
        dicts = [record(annotation(category_id=5))]
        assert check(*dicts, num_classes=1, raise_on_error=False) == dicts
        assert "category_id 5" in warnings()[0]

    def test_annotations_unchecked(self):
        check(record(annotation(category_id=-5)), check_annotations=False)


@pytest.mark.parametrize(("num_classes", "warned"), [(None, False), (2, False), (6, True)])
def test_more_classes_than_the_data_set_names(num_classes, warned, caplog):
    name = "validation_spare_classes"
    MetadataCatalog.get(name).thing_classes = ["a", "b"]
    record = {"file_name": "x.png", "height": 10, "width": 10, "image_id": 1, "annotations": []}
    try:
        validate_dataset_dicts([record], name=name, num_classes=num_classes, check_files=False)
    finally:
        MetadataCatalog.remove(name)
    assert ("MODEL.ROI_HEADS.NUM_CLASSES is 6, but it has 2 classes" in caplog.text) == warned


class TestTwice:
    """Duplicates are warned of: training goes on."""

    def test_annotations(self, warnings):
        first = record(
            annotation(id=1), annotation(id=2, category_id=1), annotation(id=3), annotation(bbox=[1, 2, 3, 5])
        )
        assert check(first, record(annotation(), image_id=8)) != []
        (text,) = warnings()
        assert "1 annotation has the box and the label of another" in text and "(id 3)" in text

    def test_the_same_box_in_other_modes(self, warnings):
        other = annotation(bbox=[1, 2, 4, 6], bbox_mode=BoxMode.XYXY_ABS)
        check(record(annotation(), other))
        assert "annotation 1 of 'a.jpg'" in warnings()[0]

    def test_image_ids(self, warnings):
        check(record(), record(file_name="b.jpg"), record(image_id=1))
        (text,) = warnings()
        assert "2 images have an image_id that another one has too: 'a.jpg' (image_id 7); 'b.jpg' (image_id 7)" in text

    def test_no_image_ids(self, warnings):
        dicts = [{"file_name": "a.jpg"}, {"file_name": "a.jpg"}]
        assert check(*dicts) == dicts and warnings() == []


def test_polygon_without_area(warnings):
    line, clockwise = [0, 0, 2, 2, 4, 4], [0, 0, 0, 4, 4, 4]
    check(
        record(annotation(segmentation=[POLYGON, line]), image_id=1),
        record(annotation(segmentation=[clockwise])),
        mask_format="polygon",
    )
    (text,) = warnings()
    assert "1 annotation has a polygon without area: [0, 0, 2, 2, 4, 4] in annotation 0 of 'a.jpg' (image_id 1)" in text


def inspect(*records, **arguments):
    return inspect_dataset_dicts(list(records), **{"name": "test_validation", "check_files": False, **arguments})


def kinds(report):
    return {f.kind: f.count for f in report.findings}


class TestReport:
    def test_empty(self):
        report = inspect(class_names=["a"])
        assert not report.passes and kinds(report) == {"empty": 1}
        assert report.classes == [("a", 0, 0)] and report.num_images == 0

    def test_no_annotations(self):
        report = inspect(record(), {"file_name": "b.jpg"})
        assert report.passes and kinds(report) == {"image-empty": 2} and report.num_empty == 2

    def test_numbers(self):
        dicts = [
            record(
                annotation(bbox=[0, 0, 31, 33]), annotation(category_id=2, bbox=[0, 0, 32, 32]), width=200, height=200
            ),
            record(
                annotation(bbox=[0, 0, 96, 96]),
                annotation(bbox=[0, 0, 95, 96]),
                annotation(iscrowd=1),
                image_id=8,
                file_name="b.jpg",
                width=200,
                height=200,
            ),
            record(annotation(iscrowd=1), image_id=9, file_name="c.jpg"),
        ]
        report = inspect(*dicts, class_names=["a", "b", "c"])
        assert (report.num_images, report.num_empty, report.num_annotations, report.num_crowd) == (3, 1, 4, 2)
        assert report.classes == [("a", 3, 2), ("b", 0, 0), ("c", 1, 1)]
        # 31 * 33 = 1023 < 32 ** 2
        assert report.sizes == {"small": 1, "medium": 2, "large": 1}
        assert kinds(report) == {"image-empty": 1, "annotation-nearly-twice": 1}

    def test_every_kind(self):
        bow_tie = [0, 0, 4, 4, 4, 0, 0, 4]
        bad = record(
            annotation(bbox=[1, 1, 0, 5], id=1),
            annotation(bbox=[100, 1, 5, 5], id=2),
            annotation(bbox=[float("nan"), 1, 5, 5], id=3),
            annotation(bbox=[25, 5, 10, 5], id=3),
            annotation(bbox=[3, 3, 1, 9], id=4, keypoints=[1, 1, 2]),
            annotation(bbox=[0, 0, 10, 10], id=5, keypoints=[1, 1, 2]),
            annotation(bbox=[0, 0, 10, 10.5], id=6, keypoints=[1, 1]),
            annotation(bbox=[0, 0, 10, 10], id=7, category_id=5),
            annotation(bbox=[0, 0, 10, 10], id=8, segmentation=[[1, 1, 2, 2]]),
            annotation(bbox=[5, 5, 9, 9], id=9, segmentation=[bow_tie, [1, 1, 2, 2, 3, 3]]),
            annotation(bbox=[5, 5, 9], id=10),
            {"id": 11, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0},
        )
        good = record(image_id=8)
        report = inspect(bad, good, class_names=["cat", "Cat ", "dog"])
        assert kinds(report) == {
            "annotation-id-twice": 2,
            "no-bbox": 1,
            "label-too-large": 1,
            "box-not-finite": 1,
            "box-empty": 1,
            "box-outside": 1,
            "keypoint-count": 1,
            "polygon-points": 1,
            "file-twice": 2,
            "class-names-alike": 1,
            "box-overhang": 1,
            "box-tiny": 1,
            "annotation-twice": 1,
            "two-labels": 1,
            "polygon-area": 1,
            "image-empty": 1,
            "annotation-nearly-twice": 2,
            "polygon-crossing": 1,
        }
        levels = [f.level for f in report.findings]
        assert levels == sorted(levels, key=["error", "warning", "note"].index)
        assert not report.passes and report.worst[0][0] == "a.jpg"
        json.dumps(report.to_dict())

    def test_wrong_number_of_values_in_a_box(self):
        report = inspect(record(annotation(bbox=[1, 2, 3]), annotation(bbox=None), annotation()))
        assert kinds(report) == {"box-numbers": 2} and report.classes == [("label 0", 1, 1)]

    def test_degenerate_boxes_that_training_leaves_out(self):
        bad = record(annotation(bbox=[1, 1, 0, 5]))
        assert not inspect(bad).passes and inspect(bad, drop_degenerate=True).passes

    @pytest.mark.parametrize(("filter_empty", "word"), [(None, "decides"), (True, "leaves them out"), (False, "uses")])
    def test_fate_of_empty_images(self, filter_empty, word):
        (finding,) = inspect(record(), filter_empty=filter_empty).findings
        assert word in finding.cure

    def test_model(self):
        mask = {"size": [20, 30], "counts": [0, 600]}
        dicts = record(annotation(category_id=1, keypoints=[1, 1, 2], segmentation=mask))
        assert inspect(dicts, class_names=["a", "b"]).passes
        report = inspect(dicts, num_classes=1, num_keypoints=17, mask_format="polygon", num_classes_key="KEY")
        assert kinds(report) == {"label-too-large": 1, "keypoint-count": 1, "mask-format": 1}
        assert "Set KEY to 2" in report.findings[0].text

    def test_files(self, tmp_path):
        Image.new("L", (30, 20)).save(tmp_path / "a.png")
        dicts = [record(file_name=str(tmp_path / f"{n}.png"), image_id=n) for n in "abc"]
        assert kinds(inspect(*dicts, check_files=True)) == {"file-missing": 2, "image-empty": 3}
        assert kinds(inspect(*dicts, check_files=True, max_files=2))["file-missing"] == 1


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 6), max_size=30))
def test_duplicates_by_brute_force(rows):
    """Image, label, and a box: compared with a loop over pairs."""
    images = [record(image_id=i, file_name=f"{i}.jpg", width=9, height=9) for i in range(4)]
    for i, label, x, y, w, h in rows:
        images[i]["annotations"].append(annotation(bbox=[x, y, w + 1, h + 1], category_id=label))
    twice = contrary = 0
    for image in images:
        seen = image["annotations"]
        for n, a in enumerate(seen):
            same_box = [b for b in seen[:n] if b["bbox"] == a["bbox"]]
            same = [b for b in same_box if b["category_id"] == a["category_id"]]
            twice += bool(same)
            contrary += bool(same_box) and not same
    found = kinds(inspect(*images))
    assert (found.get("annotation-twice", 0), found.get("two-labels", 0)) == (twice, contrary)
    assert "annotation-nearly-twice" not in found  # sides are at most 4: the IoU is at most 3/4


@pytest.mark.parametrize(
    ("polygon", "crosses"),
    [
        ([0, 0, 4, 0, 4, 4], False),
        ([0, 0, 4, 0, 4, 4, 0, 4], False),
        ([0, 0, 4, 4, 4, 0, 0, 3], True),
        ([0, 0, 9, 0, 9, 9, 5, 9, 5, 5, 4, 5, 4, 9, 0, 9], False),  # not convex
        ([0, 0, 0, 0, 4, 0, 4, 4, 0, 4, 0, 0], False),  # points twice
    ],
)
def test_outline_that_crosses_itself(polygon, crosses):
    report = inspect(record(annotation(segmentation=[polygon])))
    assert ("polygon-crossing" in kinds(report)) == crosses


class TestClasses:
    def test_nothing(self):
        assert compare_classes({}) == [] and compare_classes({"a": None, "b": ["x"]}) == []

    def test_equal(self):
        assert compare_classes({"a": ["x", "y"], "b": ("x", "y"), "c": None}) == []

    def test_order(self):
        (finding,) = compare_classes({"a": ["x", "y", "z"], "b": ["x", "z", "y"]})
        assert (finding.kind, finding.level, finding.count) == ("classes-order", "error", 2)
        assert "'z' is label 2 in 'a' and label 1 in 'b'" in finding.text

    def test_other_names(self):
        (finding,) = compare_classes({"a": ["x", "y"], "b": ["x", "w"]})
        assert (finding.kind, finding.level) == ("classes-names", "error")
        assert "label 1 is 'y' in 'a' and 'w' in 'b'" in finding.text

    def test_more(self):
        (finding,) = compare_classes({"a": ["x"], "b": ["x", "y"]})
        assert (finding.kind, finding.level) == ("classes-number", "warning") and "'y'" in finding.text


class TestClassesBeforeTraining:
    @pytest.fixture
    def names(self):
        """Metadata of data sets with these classes; None for a data set that learns them by being loaded, or cannot."""
        classes = {"v_train": ["x", "y"], "v_same": ["x", "y"], "v_moved": ["y", "x"], "v_more": ["x", "y", "z"]}
        for name, value in classes.items():
            MetadataCatalog.get(name).thing_classes = value

        def load():
            MetadataCatalog.get("v_loaded").thing_classes = ["y", "x"]
            return []

        def fail():
            raise FileNotFoundError("no.json")

        DatasetCatalog.register("v_loaded", load)
        DatasetCatalog.register("v_gone", fail)
        yield
        for name in (*classes, "v_loaded", "v_gone", "v_unknown", "v_none"):
            MetadataCatalog.pop(name, None)
        for name in ("v_loaded", "v_gone"):
            DatasetCatalog.remove(name)

    def test_nothing(self, names, warnings):
        validate_class_names([], [])
        validate_class_names(["v_none"], ["v_moved"])
        validate_class_names(["v_train"], ["v_same"])
        assert warnings() == []

    @pytest.mark.parametrize("test", ["v_moved", "v_loaded"])
    def test_other_labels(self, names, test):
        with pytest.raises(DatasetError, match=f"the classes of '{test}' are in another order than those of 'v_train'"):
            validate_class_names(["v_none", "v_train"], ["v_same", test])

    def test_warnings(self, names, warnings):
        validate_class_names(["v_train"], ["v_more", "v_gone", "v_unknown"])
        more, gone, unknown = warnings()
        assert "has 3 classes" in more and "no.json" in gone and "v_unknown" in unknown
