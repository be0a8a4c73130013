"""The report has every kind of finding, and the numbers of the data set."""

import json

import pytest
from PIL import Image

from detectron2.structures import BoxMode
from tests.data.checks.helpers import annotation, inspect, kinds, record


class TestReport:
    def test_empty(self):
        report = inspect(class_names=["a"])
        assert not report.passes and kinds(report) == {"empty": 1}
        assert report.classes == [("a", 0, 0)] and report.num_images == 0

    def test_no_annotations(self):
        report = inspect(record(), {"file_name": "b.jpg"})
        assert report.passes and kinds(report) == {"all-empty": 2} and report.num_empty == 2

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
        assert kinds(inspect(*dicts, check_files=True)) == {"file-missing": 2, "all-empty": 3}
        assert kinds(inspect(*dicts, check_files=True, max_files=2))["file-missing"] == 1
