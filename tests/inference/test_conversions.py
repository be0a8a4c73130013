import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from detectron2.data import Metadata
from detectron2.inference.results import Result
from detectron2.structures import Boxes, Instances, RotatedBoxes

SIZE = (40, 80)
NAMES = Metadata(thing_classes=["person", "dog"], stuff_classes=["sky"])


def result(outputs, error=None):
    image = None if error else np.zeros((*SIZE, 3), np.uint8)
    frame = SimpleNamespace(image=image, name="a", path=None, index=0, time=None, error=error, source=None)
    return Result(outputs, frame=frame, image_format="RGB", metadata=NAMES)


def objects():
    found = Instances(SIZE, pred_boxes=Boxes([[8, 4, 24, 20], [40, 0, 60, 10.5]]))
    found.scores, found.pred_classes = torch.tensor([0.75, 0.5]), torch.tensor([1, 0])
    found.pred_masks = torch.zeros(2, *SIZE, dtype=torch.bool)
    found.pred_masks[0, 6:10, 8:16] = True
    found.pred_keypoints = torch.tensor([[[10.0, 8.0, 0.5], [20.0, 10.0, 0.0]]]).repeat(2, 1, 1)
    found.ID = [3, 9]
    return found


def rotated():
    found = Instances(SIZE, pred_boxes=RotatedBoxes(torch.tensor([[40.0, 20.0, 20.0, 10.0, 90.0]])))
    found.scores, found.pred_classes = torch.tensor([0.5]), torch.tensor([0])
    return found


def panoptic():
    ids = torch.zeros(SIZE, dtype=torch.int32)
    ids[:10], ids[20:30, 8:16] = 1, 2
    return ids, [{"id": 1, "category_id": 0, "isthing": False}, {"id": 2, "category_id": 1, "isthing": True}]


@pytest.mark.parametrize(("name", "package"), [("to_supervision", "supervision"), ("to_fiftyone", "fiftyone")])
def test_without_the_library_the_error_says_how_to_get_it(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        getattr(result({"instances": objects()}), name)()


def test_supervision():
    supervision = pytest.importorskip("supervision")
    for empty in (result({"instances": Instances(SIZE)}), result({}, error=OSError("bad"))):
        assert len(empty.to_supervision()) == 0
    found = result({"instances": objects()}).to_supervision()
    assert isinstance(found, supervision.Detections)
    assert found.xyxy.tolist() == [[8, 4, 24, 20], [40, 0, 60, 10.5]]
    assert found.confidence.tolist() == [0.75, 0.5] and found.class_id.tolist() == [1, 0]
    assert found.tracker_id.tolist() == [3, 9] and found.data["class_name"].tolist() == ["dog", "person"]
    assert found.mask.shape == (2, *SIZE) and found.mask.sum(axis=(1, 2)).tolist() == [32, 0]
    assert len(found[found.class_id == 1]) == 1 and found.data["keypoints"].shape == (2, 2, 3)
    picture = supervision.MaskAnnotator().annotate(np.zeros((*SIZE, 3), np.uint8), found)
    assert picture[7, 10].any() and not picture[30, 70].any()
    supervision.LabelAnnotator().annotate(picture, found)


def test_supervision_of_rotated_boxes_and_segments():
    supervision = pytest.importorskip("supervision")
    found = result({"instances": rotated()}).to_supervision()
    np.testing.assert_allclose(found.xyxy, [[35, 10, 45, 30]], atol=1e-4)
    corners = {tuple(np.round(c).astype(int).tolist()) for c in found.data["xyxyxyxy"][0]}
    assert corners == {(35, 10), (45, 10), (45, 30), (35, 30)}
    supervision.OrientedBoxAnnotator().annotate(np.zeros((*SIZE, 3), np.uint8), found)
    segments = result({"panoptic_seg": panoptic()}).to_supervision()
    assert segments.data["class_name"].tolist() == ["sky", "dog"] and segments.class_id.tolist() == [2, 1]
    assert segments.mask.sum(axis=(1, 2)).tolist() == [800, 80]
    with pytest.raises(ValueError, match="semantic"):
        result({"sem_seg": torch.zeros(1, *SIZE)}).to_supervision()


def test_fiftyone():
    fiftyone = pytest.importorskip("fiftyone")
    assert result({}, error=OSError("bad")).to_fiftyone() == {}
    assert len(result({"instances": Instances(SIZE)}).to_fiftyone()["detections"].detections) == 0
    labels = result({"instances": objects(), "sem_seg": torch.zeros(SIZE, dtype=torch.int64)}).to_fiftyone()
    assert sorted(labels) == ["detections", "keypoints", "segmentation"]
    first, second = labels["detections"].detections
    assert isinstance(first, fiftyone.Detection) and (first.label, first.confidence, first.index) == ("dog", 0.75, 3)
    assert first.bounding_box == [0.1, 0.1, 0.2, 0.4]
    assert first.mask.shape == (16, 16) and first.mask[2:6, :8].all() and first.mask.sum() == 32
    assert second.mask.shape == (11, 20) and not second.mask.any()
    points = labels["keypoints"].keypoints[0]
    assert (
        tuple(points.points[0]) == (0.125, 0.2) and np.isnan(points.points[1]).all() and points.confidence == [0.5, 0.0]
    )
    assert (labels["segmentation"].mask == 1).all() and labels["segmentation"].mask.dtype == np.uint8
    sample = fiftyone.Sample(filepath="a.png")
    for field, label in labels.items():
        sample[field] = label
    assert sample.detections.detections[1].label == "person"


def test_fiftyone_of_rotated_boxes_and_segments():
    pytest.importorskip("fiftyone")
    lines = result({"instances": rotated()}).to_fiftyone()["polylines"].polylines
    np.testing.assert_allclose(
        sorted(lines[0].points[0]), [(35 / 80, 0.25), (35 / 80, 0.75), (45 / 80, 0.25), (45 / 80, 0.75)]
    )
    assert lines[0].closed and not lines[0].filled
    segments = result({"panoptic_seg": panoptic()}).to_fiftyone()["panoptic"].detections
    assert [(s.label, s.bounding_box) for s in segments] == [("sky", [0, 0, 1, 0.25]), ("dog", [0.1, 0.5, 0.1, 0.25])]
    assert segments[1].mask.shape == (10, 8) and segments[1].mask.all()
