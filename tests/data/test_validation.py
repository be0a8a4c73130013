"""Every finding of the validation is raised, names the place, and tells the cure; good data passes."""

import logging
import pickle

import numpy as np
import pytest
from PIL import Image

from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.data.validation import MAX_FINDINGS, DatasetError, validate_dataset_dicts
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
            (0, [29, 19, 30, 20]),
        ],
    )
    def test_boxes(self, warnings, mode, box):
        good = record(annotation(bbox=box, bbox_mode=mode))
        assert check(good, num_classes=1) == [good] and warnings() == []

    def test_all_checks(self):
        good = record(
            annotation(segmentation=[POLYGON], keypoints=[1, 1, 2] * 5, category_id=np.int64(2)),
            annotation(segmentation=[np.array(POLYGON)], keypoints=[]),
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
                annotation(id=1), annotation(bbox=[1, 1, 0, 0], id=2), annotation(iscrowd=1, id=3), annotation(id=4)
            ),
            record(annotation(bbox=[99, 1, 2, 2])),
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

    def test_wrong_length(self):
        (text,) = findings(record(annotation(bbox=[1, 2, 3])))
        assert "[1, 2, 3]" in text


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


class TestMasks:
    @pytest.mark.parametrize("mask", [[[0, 0, 1, 1]], [POLYGON, [0, 0, 1, 1, 2, 2, 3]], [[]]])
    def test_malformed(self, mask):
        (text,) = findings(record(annotation(segmentation=mask)), mask_format="bitmask")
        assert "less than three points" in text and "annotation 0 of 'a.jpg'" in text

    @pytest.mark.parametrize("mask", [None, []])
    def test_missing(self, mask):
        dicts = record(annotation(segmentation=[POLYGON]), annotation(segmentation=mask))
        (text,) = findings(dicts, mask_format="polygon")
        assert "1 annotation has no 'segmentation'" in text and "MODEL.MASK_ON" in text

    def test_run_lengths(self):
        dicts = record(annotation(segmentation={"size": [20, 30], "counts": "x"}))
        (text,) = findings(dicts, mask_format="polygon")
        assert "Set INPUT.MASK_FORMAT to 'bitmask'" in text
        check(dicts, mask_format="bitmask")


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
        for name in ("a.jpg", "a.npy"):
            (tmp_path / name).write_text("x")
        check(record(file_name=str(tmp_path / "a.npy")), check_files=True)
        (text,) = findings(record(file_name=str(tmp_path / "a.jpg")), check_files=True)
        assert "cannot be read as images" in text

    def test_remote_names_are_left_alone(self):
        check(record(file_name="s3://bucket/a.jpg"), {"image_id": 3}, check_files=True)

    def test_evenly_spaced_choice(self, images, tmp_path):
        records = images(*[(30, 20)] * 9)
        records[4] = record(file_name=str(tmp_path / "no.jpg"))
        check(*records, check_files=True, max_files=2)  # the first and the last
        (text,) = findings(*records, check_files=True, max_files=3)
        assert text.startswith("1 of 3 checked")

    def test_many_are_counted(self, tmp_path):
        (text,) = findings(*[record(file_name=str(tmp_path / f"{i}.jpg")) for i in range(50)], check_files=True)
        assert text.startswith("50 of 50") and "and 47 more" in text


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
