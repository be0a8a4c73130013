"""Every finding of the validation is raised, names the place, and tells the cure; good data passes."""

import pickle

import numpy as np
import pytest

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.validation import (
    MAX_FINDINGS,
    DatasetError,
    compare_classes,
    validate_class_names,
    validate_dataset_dicts,
)
from detectron2.structures import BoxMode
from tests.data.checks.helpers import POLYGON, annotation, check, findings, record


@pytest.mark.parametrize(("num_labels", "warned"), [(3, True), (2, False), (1, True), (None, False)])
def test_names_of_another_number_of_labels(warnings, num_labels, warned):
    MetadataCatalog.get("validation_labels").stuff_classes = ["things", "sky"]
    try:
        validate_dataset_dicts([record()], name="validation_labels", num_labels=num_labels, check_files=False)
    finally:
        MetadataCatalog.remove("validation_labels")
    said = f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {num_labels}, but the metadata has 2 stuff_classes"
    assert any(said in text for text in warnings()) == warned


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

    def test_other_labels_of_an_open_vocabulary(self, names, warnings):
        validate_class_names(["v_train"], ["v_moved"], is_strict=False)
        assert "in another order" in warnings()[0]

    def test_names_of_label_maps(self, warnings):
        tables = {"v_sky": ["sky", "sea"], "v_sea": ["sea", "sky"], "v_sun": ["sky", "sun"]}
        for name, classes in tables.items():
            MetadataCatalog.get(name).set(thing_classes=["a"], stuff_classes=classes)
        try:
            validate_class_names(["v_sky"], ["v_sky", "v_sun"])
            assert len(warnings()) == 1 and "label 1 is 'sea' in 'v_sky' and 'sun' in 'v_sun'" in warnings()[0]
            with pytest.raises(DatasetError, match="the classes of 'v_sea' are in another order than those of 'v_sky'"):
                validate_class_names(["v_sky"], ["v_sea"])
        finally:
            for name in tables:
                MetadataCatalog.remove(name)

    def test_warnings(self, names, warnings):
        validate_class_names(["v_train"], ["v_more", "v_gone", "v_unknown"])
        more, gone, unknown = warnings()
        assert "has 3 classes" in more and "no.json" in gone and "v_unknown" in unknown
