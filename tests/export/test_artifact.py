"""An exported model in the place of its model: batches in, results in the frame of the image out."""

import json

import pytest
import torch

from detectron2.export import artifact
from detectron2.export.artifact import ExportedModel, batch_of

META = {
    "layout": 1,
    "format": "onnx",
    "artifact": "model.onnx",
    "task": "instances",
    "output_layout": "padded",
    "inputs": ["images", "image_sizes", "score_threshold"],
    "outputs": ["boxes", "scores", "classes", "count"],
    "dynamic": ["batch", "size"],
    "size": None,
    "score_threshold": 0.25,
    "mask_threshold": 0.5,
    "masks": None,
    "classes": ["a", "b"],
    "stuff_classes": None,
    "preprocessing": {"short_edge": 0, "long_edge": 0},
}


def test_batches():
    images, sizes = batch_of([torch.ones(3, 2, 4), 2 * torch.ones(3, 3, 1)])
    assert images.shape == (2, 3, 3, 4) and sizes.tolist() == [[2, 4], [3, 1]]
    assert images[0, 0].tolist() == [[1] * 4, [1] * 4, [0] * 4]
    assert images[1, 0].tolist() == [[2, 0, 0, 0]] * 3
    assert batch_of([torch.ones(3, 2, 4)], (5, 6))[0].shape == (1, 3, 5, 6)
    with pytest.raises(ValueError, match=r"2 x 9 pixels \(height x width\), and one has 3 x 1"):
        batch_of([torch.ones(3, 3, 1)], (2, 9))


class Runs:
    """A runtime that finds one box in each image, and keeps what it was given."""

    def __init__(self):
        self.calls = []

    def __call__(self, inputs):
        self.calls.append(inputs)
        n = len(inputs[0])
        boxes = torch.tensor([[1.0, 2, 5, 6], [0, 0, 0, 0]]).repeat(n, 1, 1)
        scores, classes = torch.tensor([[0.5, 0.0]]).repeat(n, 1), torch.tensor([[1, -1]]).repeat(n, 1)
        return {"boxes": boxes, "scores": scores, "classes": classes, "count": torch.ones(n, dtype=torch.int64)}


@pytest.fixture
def load(tmp_path, monkeypatch):
    def load_with(**changes):
        runs = Runs()
        monkeypatch.setattr(artifact, "load_artifact", lambda folder, description: runs)
        (tmp_path / "model.json").write_text(json.dumps({**META, **changes}))
        return ExportedModel(tmp_path), runs

    return load_with


def test_results_are_in_the_frame_that_was_asked_for(load):
    model, runs = load()
    inputs = [{"image": torch.zeros(3, 8, 10)}, {"image": torch.zeros(3, 10, 8), "height": 20, "width": 24}]
    first, second = (r["instances"] for r in model(inputs))
    assert len(runs.calls) == 1 and float(runs.calls[0][2]) == 0.25
    assert first.image_size == (8, 10) and first.pred_boxes.tensor.tolist() == [[1, 2, 5, 6]]
    assert second.image_size == (20, 24) and second.pred_boxes.tensor.tolist() == [[3, 4, 15, 12]]
    assert second.pred_classes.tolist() == [1] and second.scores.tolist() == [0.5]
    model.outputs([torch.zeros(3, 8, 10)], score_threshold=0.75)
    assert float(runs.calls[1][2]) == 0.75


def test_a_batch_of_one_is_run_one_by_one(load):
    model, runs = load(dynamic=[], size=[12, 12])
    assert len(model([{"image": torch.zeros(3, 8, 10)}] * 3)) == 3
    assert [call[0].shape for call in runs.calls] == [(1, 3, 12, 12)] * 3
    assert model([]) == []


def test_proposals(load):
    model, _ = load(task="proposals")
    found = model([{"image": torch.zeros(3, 8, 10)}])[0]["proposals"]
    assert found.proposal_boxes.tensor.tolist() == [[1, 2, 5, 6]] and found.objectness_logits.tolist() == [0.5]
