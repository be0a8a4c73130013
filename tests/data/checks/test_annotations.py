"""Labels, boxes and keypoints that a model cannot be trained on are found, with place and cure."""

import pickle

import numpy as np
import pytest
import torch

from detectron2.data import MetadataCatalog
from detectron2.data.validation import (
    DatasetError,
    inspect_dataset_dicts,
)
from detectron2.structures import BoxMode
from tests.data.checks.helpers import annotation, check, findings, record


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
            ({"bbox": [5, 5, 4, 8, float("inf")], "bbox_mode": BoxMode.XYWHA_ABS}, "NaN or infinity"),
        ],
    )
    def test_degenerate(self, changes, what):
        (text,) = findings(record(annotation(), annotation(**changes, id=3)))
        assert what in text and "annotation 1 (id 3) of 'a.jpg'" in text and "image 30 x 20" in text
        assert BoxMode(changes.get("bbox_mode", BoxMode.XYWH_ABS)).name in text
        assert "MetadataCatalog.get('test_validation').degenerate_boxes = \"drop\"" in text

    @pytest.mark.parametrize(
        ("box", "mode"), [(["5", "5", "4", "8"], BoxMode.XYWH_ABS), (["5", "5", "4", "8", "30"], BoxMode.XYWHA_ABS)]
    )
    def test_text_is_no_number(self, box, mode):
        (text,) = findings(record(annotation(bbox=box, bbox_mode=mode)))
        assert "without exactly four numbers (five if rotated)" in text and str(box) in text

    def test_partly_outside_is_a_warning(self, warnings):
        outside = [[-5, 2, 8, 4], [1, 2, 40, 4], [1, 2, 3, 40]]
        dicts = [record(*[annotation(bbox=b) for b in outside], annotation(bbox=[0, 0, 30.9, 20]))]
        assert check(*dicts) == dicts
        (text,) = warnings()
        assert "3 annotations have a box that ends beyond the edge" in text and "will be clipped" in text

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
        assert f"'{name}': 2 annotations have degenerate boxes and are left out" in text

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
        assert text.startswith(
            "1 annotation has a 'bbox_mode' that does not exist or does not fit the length of 'bbox'"
        )
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
        assert "1 image has 'annotations' that are not a list of dicts" in text and "empty list" in text


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
        assert "1 annotation has keypoints that are not finite numbers" in text and "in annotation 1 of" in text

    def test_lacking(self):
        """The mapper stops at images in which only some objects have keypoints."""
        some = record(annotation(keypoints=[1, 1, 2]), annotation(bbox=[0, 0, 4, 4]), annotation(keypoints=[]))
        (text,) = findings(record(annotation()), some, num_keypoints=1)
        assert "2 annotations have no keypoints, while others of the image have: none in annotation 1 of" in text


class TestFormOfBoxes:
    @staticmethod
    def kinds(*boxes, mode=BoxMode.XYWH_ABS):
        dicts = [record(*(annotation(bbox=list(b), bbox_mode=mode) for b in boxes), height=48, width=64)]
        return [f.kind for f in inspect_dataset_dicts(dicts, name="a", check_files=False).findings if f.level != "note"]

    def test_shares(self):
        shares = [(0.1, 0.2, 0.3, 0.4), (0.5, 0.5, 0.5, 0.5)]
        assert self.kinds(*shares) == ["box-shares"]
        assert self.kinds(*shares, (3, 4, 10, 10)) == ["box-tiny"]
        assert self.kinds((0, 0, 1, 1)) == ["box-tiny"]  # whole numbers: the first pixel may be meant

    def test_corners(self):
        corners = [(4, 5, 22, 25), (24, 5, 42, 25)]
        assert self.kinds(*corners) == ["box-corners"]
        assert self.kinds(*corners, mode=BoxMode.XYXY_ABS) == []
        assert self.kinds(*corners, (30, 20, 10, 10)) == ["box-overhang"]  # can be no corners

    def test_centres(self):
        centres = [(25, 15, 50, 30), (40, 20, 20, 10)]
        assert self.kinds(*centres) == ["box-centres"]
        assert self.kinds(*centres, mode=BoxMode.XYXY_ABS) != ["box-centres"]
        assert self.kinds(*centres, (1, 2, 10, 10)) == ["box-overhang"]  # would begin before the image
        assert self.kinds((24, 5, 42, 25)) == ["box-overhang"]  # one box is no rule
        assert self.kinds((4, 5, 22, 25), (4, 6, 22, 25)) == []
