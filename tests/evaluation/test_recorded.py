"""Predictions that were written and read again are evaluated with the numbers of the model itself."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from detectron2.data import Metadata
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.recorded import evaluate_rows, outputs_of
from detectron2.inference import Result
from detectron2.structures import Boxes, Instances, RotatedBoxes

NAMES = Metadata(thing_classes=["cat", "dog"], stuff_classes=["sky", "sea", "sand"])


def row_of(outputs, file="a.jpg", metadata=NAMES):
    """The row of an image, as it comes out of a file."""
    image = np.zeros((6, 8, 3), np.uint8)
    frame = SimpleNamespace(image=image, name=file, path=file, index=0, time=None, error=None, source=None)
    return json.loads(Result(outputs, frame=frame, image_format="BGR", metadata=metadata).to_json())


def instances(count=2, boxes=None):
    generator = torch.Generator().manual_seed(0)
    found = Instances(
        (6, 8), pred_boxes=Boxes(torch.rand(count, 4, generator=generator) * 5) if boxes is None else boxes
    )
    found.scores = torch.rand(count, generator=generator)
    found.pred_classes = torch.arange(count) % 2
    return found


class Keep(DatasetEvaluator):
    """Keeps what it is given."""

    def reset(self):
        self.seen = []

    def process(self, inputs, outputs):
        self.seen += [(x["image_id"], out) for x, out in zip(inputs, outputs, strict=True)]

    def evaluate(self):
        return {"images": [image_id for image_id, _ in self.seen]}


def test_nothing():
    assert evaluate_rows([], [], NAMES, Keep()) == {"images": []}
    found = outputs_of(row_of({"instances": instances(0)}), NAMES)["instances"]
    assert len(found) == 0 and found.pred_boxes.tensor.shape == (0, 4) and found.pred_classes.dtype == torch.int64


def test_objects_are_equal_to_the_last_bit():
    given = instances()
    given.pred_masks = torch.rand(2, 6, 8) > 0.5
    given.pred_keypoints = torch.rand(2, 3, 3)
    found = outputs_of(row_of({"instances": given}), NAMES)["instances"]
    for name in ("scores", "pred_classes", "pred_keypoints"):
        assert torch.equal(found.get(name), given.get(name))
    assert torch.equal(found.pred_boxes.tensor, given.pred_boxes.tensor)
    from pycocotools import mask as mask_util

    assert np.array_equal(mask_util.decode(found.pred_masks_rle).transpose(2, 0, 1) > 0, given.pred_masks.numpy())


def test_rotated_boxes():
    given = instances(boxes=RotatedBoxes([[3.0, 3, 4, 2, 30], [2, 2, 1, 1, 0]]))
    found = outputs_of(row_of({"instances": given}), NAMES)["instances"].pred_boxes
    assert isinstance(found, RotatedBoxes) and torch.equal(found.tensor, given.pred_boxes.tensor)


def test_numbers_that_are_not_finite():
    given = instances()
    given.pred_boxes.tensor[0, 0] = float("inf")
    found = outputs_of(row_of({"instances": given}), NAMES)["instances"]
    assert found.pred_boxes.tensor[0, 0].isnan() and len(found) == 2


def test_classes_are_found_by_name():
    row = row_of({"instances": instances()})
    turned = Metadata(thing_classes=["dog", "cat"])
    assert outputs_of(row, turned)["instances"].pred_classes.tolist() == [1, 0]
    assert outputs_of(row, Metadata())["instances"].pred_classes.tolist() == [0, 1]
    with pytest.raises(ValueError, match="have the class 'cat'; the data set has dog, fox"):
        outputs_of(row, Metadata(thing_classes=["dog", "fox"]))


def test_segmentations():
    labels = torch.randint(0, 3, (6, 8), generator=torch.Generator().manual_seed(1))
    ids = labels + 1
    segments = [{"id": i + 1, "category_id": min(i, 1), "isthing": i == 0} for i in range(3)]
    segments[0]["score"] = 0.5
    row = row_of({"sem_seg": torch.nn.functional.one_hot(labels, 3).permute(2, 0, 1), "panoptic_seg": (ids, segments)})
    found = outputs_of(row, NAMES)
    assert torch.equal(found["sem_seg"].argmax(0), labels) and found["sem_seg"].shape == (3, 6, 8)
    found_ids, infos = found["panoptic_seg"]
    assert torch.equal(found_ids, ids.int())
    assert [(s["id"], s["category_id"], s["isthing"]) for s in infos] == [(1, 0, True), (2, 1, False), (3, 1, False)]
    assert infos[0]["score"] == 0.5 and "score" not in infos[1]


def test_rows_and_records_belong_together_by_file():
    rows = [row_of({"instances": instances(1)}, file) for file in ("x/b.jpg", "else/c.jpg", "x/a.jpg", "other.jpg")]
    records = [{"file_name": f"x/{name}.jpg", "image_id": i} for i, name in enumerate("abc")]
    assert evaluate_rows(rows, records, NAMES, Keep()) == {"images": [1, 2, 0]}
    with pytest.raises(ValueError, match="lack 1 of 3 images, such as x"):
        evaluate_rows(rows[:2], records, NAMES, Keep())
    with pytest.raises(ValueError, match="have twice 1 of 3 images, such as x"):
        evaluate_rows([*rows, rows[0]], records, NAMES, Keep())


def test_what_cannot_be_evaluated():
    with pytest.raises(ValueError, match="was not predicted on: damaged"):
        outputs_of({"file": "a.jpg", "error": "damaged"}, NAMES)
    row = row_of({"sem_seg": torch.zeros(3, 6, 8)})
    del row["pixel_classes"][0]["mask"]
    with pytest.raises(ValueError, match="no masks"):
        outputs_of(row, NAMES)
