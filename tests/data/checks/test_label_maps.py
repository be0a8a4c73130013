"""Label maps and panoptic segments that do not fit the metadata are found."""

import numpy as np
import pytest
from PIL import Image

from detectron2.data import MetadataCatalog
from detectron2.data.validation import (
    inspect_dataset_dicts,
)
from tests.data.checks.helpers import check, findings, kinds


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
            (((1, 0), (70000, 1), (7, 1)), "(no pixel has the id 7; 1 of 3 are absent)"),
        ],
    )
    def test_bad(self, panoptic, segments, what):
        (text,) = findings(panoptic(*segments), check_files=True)
        assert what in text and "ids.png" in text

    def test_unknown(self, panoptic, warnings):
        check(panoptic((1, 0)), check_files=True)
        assert "1 image has pixels with an id other than 0" in warnings()[0] and "the id 70000" in warnings()[0]

    def test_a_segment_of_void(self, panoptic, warnings):
        check(panoptic((1, 0), (70000, 1), (0, 1)), check_files=True)
        (text,) = warnings()
        assert "1 image has a segment with the id 0, which stands for pixels without a label" in text

    def test_a_file_that_is_no_colour_picture(self, panoptic, tmp_path):
        Image.fromarray(np.full((20, 30), 70000 % 65536, np.uint16)).save(tmp_path / "ids.png")
        (text,) = findings(panoptic((1, 0), (70000, 1)), check_files=True)
        assert "1 image has a file that is not a map of segments" in text and "values from 4464 to 4464" in text

    @pytest.mark.parametrize("info", [None, "x", [1], [{"id": 1}], [{"id": "1", "category_id": 0}]], ids=str)
    def test_malformed(self, panoptic, info):
        (text,) = findings(panoptic(segments_info=info), check_files=True)
        assert "1 image has 'pan_seg_file_name', but no usable 'segments_info'" in text

    def test_report(self, panoptic):
        first, second = panoptic((1, 0), (70000, 1)), panoptic((1, 1), (70000, 1))
        report = inspect_dataset_dicts([first, second], name="x", category_names=["a", "b"])
        assert report.classes == [("a", 1, 1), ("b", 3, 2)] and report.num_empty == 0
        assert kinds(report) == {"file-twice": 2}
