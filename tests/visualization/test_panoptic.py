import numpy as np
import pytest
import torch

from detectron2.visualization.panoptic import _PanopticPrediction

SEGMENTS = np.array([[0, 0, 1, 1], [0, 2, 2, 2], [3, 2, 2, 2]])
INFO = [
    {"id": 1, "category_id": 5, "isthing": True},
    {"id": 2, "category_id": 0, "isthing": False},
    {"id": 3, "category_id": 6, "isthing": True},
]


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
def test_parts(convert):
    prediction = _PanopticPrediction(convert(SEGMENTS), INFO)
    np.testing.assert_array_equal(prediction.non_empty_mask(), SEGMENTS > 0)
    ((mask, info),) = prediction.semantic_masks()
    np.testing.assert_array_equal(mask, SEGMENTS == 2)
    assert info["category_id"] == 0
    # the largest first
    assert [info["id"] for _, info in prediction.instance_masks()] == [1, 3]


def test_nothing():
    prediction = _PanopticPrediction(np.zeros((2, 3), dtype=int), [])
    assert not prediction.non_empty_mask().any()
    assert list(prediction.semantic_masks()) == list(prediction.instance_masks()) == []


def test_categories_by_divisor():
    metadata = {"label_divisor": 1000, "thing_dataset_id_to_contiguous_id": {18: 11}}
    segments = np.array([[-1, 7000, 7000], [11000, 11001, 11001]])
    prediction = _PanopticPrediction(segments, None, metadata)
    np.testing.assert_array_equal(prediction.non_empty_mask(), segments >= 0)
    assert [info["category_id"] for _, info in prediction.semantic_masks()] == [7]
    assert [info["id"] for _, info in prediction.instance_masks()] == [11001, 11000]


@pytest.mark.parametrize("metadata", [None, {}])
def test_a_divisor_is_needed(metadata):
    with pytest.raises(ValueError, match="label_divisor"):
        _PanopticPrediction(SEGMENTS, None, metadata)
