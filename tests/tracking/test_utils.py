import numpy as np
import pytest
import torch

from detectron2.tracking import create_prediction_pairs


def test_no_boxes(frame):
    tracked = frame([0, 0, 1, 1], ID=[5], ID_period=[3])
    assert create_prediction_pairs(frame(), frame(ID=[], ID_period=[]), np.zeros((0, 0))) == []
    assert create_prediction_pairs(frame(), tracked, torch.zeros(0, 1)) == []
    assert create_prediction_pairs(tracked, frame(ID=[], ID_period=[]), torch.zeros(1, 0)) == []


@pytest.mark.parametrize("convert", [np.asarray, torch.tensor])
def test_pairs(frame, convert):
    now = frame([0, 0, 1, 1], [0, 0, 2, 2])
    before = frame([0, 0, 1, 1], [0, 0, 2, 2], [0, 0, 3, 3], ID=[5, 8, 7], ID_period=[3, 1, 2])
    overlaps = convert([[0.5, 0.25, 1.0], [0.0, 0.75, 0.49]])
    found = create_prediction_pairs(now, before, overlaps, 0.5)
    assert found == [
        {"idx": 0, "prev_idx": 0, "prev_id": 5, "IoU": 0.5, "prev_period": 3},
        {"idx": 0, "prev_idx": 2, "prev_id": 7, "IoU": 1.0, "prev_period": 2},
        {"idx": 1, "prev_idx": 1, "prev_id": 8, "IoU": 0.75, "prev_period": 1},
    ]
    assert len(create_prediction_pairs(now, before, overlaps)) == 3
    assert len(create_prediction_pairs(now, before, overlaps, 0.1)) == 5


def test_overlaps_of_another_shape(frame):
    with pytest.raises(ValueError, match=r"\(1, 1\): \(2, 1\)"):
        create_prediction_pairs(frame([0, 0, 1, 1]), frame([0, 0, 1, 1], ID=[0], ID_period=[1]), np.zeros((2, 1)))
